"""Layouts of speech: which columns come of them, and rows that are refused."""

import json

import pytest
from audio_files import encoded, tone
from expected import raises

from ftengine.api import BrokenRow
from ftengine_speech import AudioFolderReader, CommonVoiceReader, LJSpeechReader, NemoReader


def read(reader, source):
    """Return the rows' values, or the reason why they are refused."""
    return [str(row) if isinstance(row, BrokenRow) else dict(row.values) for row in reader.read(str(source))]


def test_nemos_manifest(tmp_path):
    file = tmp_path / "train.json"
    lines = [
        {"audio_filepath": "a.wav", "text": "we go", "duration": 1.0},
        {"audio_filepath": "/data/c.wav", "text": "y"},
        {"audio_filepath": "d.wav", "offset": 2.5, "text": "z"},
        [1],
    ]
    file.write_text("".join(json.dumps(line) + "\n" for line in lines) + "{\n")
    reader = NemoReader()
    assert reader.accepts(str(file))
    first, absolute, part, no_object, no_json = read(reader, file)
    assert first == {"audio": "a.wav", "text": "we go", "duration": 1.0}
    assert absolute == {"audio": "/data/c.wav", "text": "y"}
    assert "offset 2.5" in part
    assert "audio_filepath" in no_object
    assert "JSON" in no_json
    file.write_text('{"text": "a"}\n')
    assert not reader.accepts(str(file))


def test_common_voices_table(tmp_path):
    file = tmp_path / "train.tsv"
    file.write_text('client_id\tpath\tsentence\tage\nanna\t1.mp3\tShe said "no.\t\nben\t2.mp3\n')
    assert CommonVoiceReader().accepts(str(file))
    good, short = read(CommonVoiceReader(), file)
    assert good == {"audio": "clips/1.mp3", "speaker": "anna", "text": 'She said "no.', "age": None}
    assert "2 fields" in short
    file.write_text("a\tb\n1\t2\n")
    assert not CommonVoiceReader().accepts(str(file))


def test_ljspeechs_folder(tmp_path):
    (tmp_path / "wavs").mkdir()
    (tmp_path / "metadata.csv").write_text('LJ1|Mr. "B"|Mister "B"\nLJ2|plain|\nnothing\n')
    assert LJSpeechReader().accepts(str(tmp_path))
    first, second, third = read(LJSpeechReader(), tmp_path)
    assert first == {"audio": "wavs/LJ1.wav", "text": 'Mister "B"'}
    assert second["text"] == "plain"
    assert "bars" in third


def test_folders_of_files_with_transcripts(tmp_path):
    (tmp_path / "anna").mkdir()
    for name in ("anna/1.wav", "anna/2.flac"):
        (tmp_path / name).write_bytes(encoded(tone(0.1)))
    (tmp_path / "anna" / "1.txt").write_text("we\ngo\n")
    good, lonely = read(AudioFolderReader(), tmp_path)
    assert good == {"audio": "anna/1.wav", "text": "we go", "speaker": "anna"}
    assert "2.txt" in lonely
    with raises(BrokenRow, "no recordings"):
        read(AudioFolderReader(), tmp_path / "anna" / "none")


@pytest.mark.parametrize("reader", [AudioFolderReader, CommonVoiceReader, LJSpeechReader, NemoReader])
def test_what_is_not_there_is_not_accepted(reader, tmp_path):
    assert not reader().accepts(str(tmp_path / "no"))
