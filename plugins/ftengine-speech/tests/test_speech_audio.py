"""Reading of audio: every format, what is refused, and files that are hostile."""

import random
import struct

import numpy as np
import pytest
from audio_files import RATE, encoded, tone
from expected import raises

from ftengine.errors import DataError
from ftengine_speech import SpeechToText
from ftengine_speech.audio import BLOCK, Audio, audio_identity, read_audio, read_header

FORMATS = [("WAV", "PCM_16"), ("FLAC", "PCM_16"), ("OGG", "VORBIS"), ("OGG", "OPUS"), ("MP3", "MPEG_LAYER_III")]


@pytest.mark.parametrize(("form", "subtype"), FORMATS)
def test_formats_give_the_samples_that_were_written(form, subtype):
    audio = read_audio(encoded(tone(0.5), form=form, subtype=subtype), "audio", 30)
    assert audio.rate == RATE
    assert audio.seconds == pytest.approx(0.5, abs=0.1)  # MP3 pads to its blocks
    middle = audio.samples[1000:7000]
    assert np.sqrt(np.mean(middle**2)) == pytest.approx(np.sqrt(np.mean(tone(0.5)[1000:7000] ** 2)), rel=0.1)


def test_channels_are_averaged_and_rates_converted():
    left, right = tone(0.5, rate=44_100), np.zeros(22_050, np.float32)
    audio = read_audio({"bytes": encoded(np.stack([left, right], 1), 44_100), "path": "a.wav"}, "audio", 30)
    np.testing.assert_allclose(audio.samples, left / 2, atol=1e-4)
    other = audio.resampled(RATE)
    assert (other.rate, len(other.samples)) == (RATE, 8000)
    np.testing.assert_allclose(other.samples[500:-500], tone(0.5)[500:-500] / 2, atol=2e-3)


def test_arrays_of_datasets_are_read():
    samples = tone(0.2)
    assert read_audio({"array": samples.tolist(), "sampling_rate": RATE}, "audio", 30) == Audio(samples, RATE)
    with raises(DataError, "sampling_rate", "0", "Hz"):
        read_audio({"array": samples, "sampling_rate": 0}, "audio", 30)


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (None, ["`audio`", "missing"]),
        ("no-such.wav", ["no file", "no-such.wav"]),
        ("https://example.org/a.wav", ["address", "https://example.org/a.wav"]),
        ("data/https:/example.org/a.wav", ["address"]),
        ("/dev/zero", ["no regular file"]),
        ("a\0b.wav", ["`audio`"]),
        (b"RIFF and no more", ["not audio"]),
        ({"bytes": None, "path": None}, ["`audio`"]),
        ({"array": [0.1, float("nan")], "sampling_rate": 16_000}, ["not finite"]),
        ({"array": ["a"], "sampling_rate": 16_000}, ["no numbers"]),
        ({"array": np.array([0, -20_000], np.int16), "sampling_rate": 16_000}, ["integers", "20000", "32768"]),
        (Audio(np.ones(31 * 1000, np.float32), 1000), ["31.0 s", "30 s"]),  # as an augmenter may make it
    ],
)
def test_what_is_no_audio_is_refused(value, words):
    with raises(DataError, *words):
        read_audio(value, "audio", 30)


def test_files_outside_of_the_datas_folder_are_refused_unless_allowed(tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "a.wav").write_bytes(encoded(tone(0.1)))
    (tmp_path / "b.wav").write_bytes(encoded(tone(0.1)))
    folder = str(tmp_path / "data")
    for path in ("a.wav", "../data/a.wav", str(tmp_path / "data" / "a.wav")):
        assert SpeechToText().input_of(SpeechToText().in_folder({"audio": path}, folder))[0].seconds == 0.1
    for path in ("../b.wav", str(tmp_path / "b.wav"), {"path": "../b.wav", "bytes": None}):
        with raises(DataError, "b.wav", folder, "outside_files"):
            SpeechToText().read_input(SpeechToText().in_folder({"audio": path}, folder), RATE)
        allows = SpeechToText(SpeechToText.Config(outside_files=True))
        assert allows.input_of(allows.in_folder({"audio": path}, folder))[0].seconds == 0.1


def test_a_file_of_ten_hours_is_refused_from_its_header(tmp_path):
    """The file holds a second; the header states 36,000 (as sparse files and damaged ones do)."""
    content = bytearray(encoded(tone(1.0, rate=8000), 8000))
    frames = 8000 * 36_000
    content[4:8], content[40:44] = struct.pack("<I", frames * 2 + 36), struct.pack("<I", frames * 2)
    file = tmp_path / "long.wav"
    with file.open("wb") as out:
        out.write(content)
        out.truncate(frames * 2 + 44)  # sparse: it takes no room
    assert read_header(str(file), "audio").seconds == 36_000
    with raises(DataError, "long.wav", "10.0 h", "30 s"):
        read_audio(str(file), "audio", 30)


def test_a_longer_file_than_its_header_says_is_refused_while_it_is_read():
    """MP3s have no count of frames: libsndfile estimates it."""
    content = encoded(tone(3.0), form="MP3", subtype="MPEG_LAYER_III")
    with raises(DataError, "s are allowed"):
        read_audio(content, "audio", 2.0)
    assert BLOCK / RATE < 5


def test_files_cut_off_in_the_middle_are_refused():
    content = encoded(tone(1.0), form="FLAC")
    with raises(DataError, "audio"):
        read_audio(content[: len(content) // 2], "audio", 30)


@pytest.mark.parametrize(("form", "subtype"), FORMATS)
def test_a_hundred_damaged_files_are_read_or_refused(form, subtype):
    """Bytes are changed, cut off or repeated: no other error, and no more samples than are allowed."""
    rng, content = random.Random(0), encoded(tone(0.25), form=form, subtype=subtype)
    refused = 0
    for _ in range(100):
        damaged = bytearray(content)
        for _ in range(rng.randrange(1, 12)):
            damaged[rng.randrange(min(len(damaged), rng.choice([64, len(damaged)])))] = rng.randrange(256)
        if rng.random() < 0.3:
            del damaged[rng.randrange(len(damaged)) :]
        try:
            audio = read_audio(bytes(damaged), "audio", 2)
            assert audio.seconds <= 2 + BLOCK / audio.rate
            assert np.isfinite(audio.samples).all()
        except DataError:
            refused += 1
    assert refused > 5


def test_identity_is_of_the_content(tmp_path):
    content = encoded(tone(0.1))
    for name in ("a.wav", "b.wav"):
        (tmp_path / name).write_bytes(content)
    same = {audio_identity(x) for x in (str(tmp_path / "a.wav"), {"path": str(tmp_path / "b.wav")}, content)}
    assert len(same) == 1
    assert audio_identity(encoded(tone(0.1, hertz=441))) not in same


def test_clipped_and_silent_recordings_are_detected():
    assert Audio(np.zeros(100, np.float32), RATE).silent
    assert Audio(np.zeros(0, np.float32), RATE).silent
    assert not Audio(tone(0.1, loud=0.001), RATE).silent
    loud = Audio(np.clip(tone(0.5, loud=3.0), -1, 1), RATE)
    assert loud.clipped
    assert not Audio(tone(0.5, loud=1.0), RATE).clipped
