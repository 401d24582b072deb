"""Planted faults: what the audit and the rule name, and what they leave alone."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
from audio_files import RATE, encoded, tone

from ftengine.api import Estimate, Finding
from ftengine_speech import Recordings, SpeechToText, Transcripts, audits


class Rows:
    """Rows as an audit sees them."""

    source = "train.jsonl"

    def __init__(self, rows):
        self._rows, self._task = rows, SpeechToText()

    def __len__(self):
        return len(self._rows)

    def __iter__(self):
        return map(self._task.view, self._rows)

    def select(self, rows):
        return Rows([self._rows[row] for row in rows])

    def where(self, row):
        return f"train.jsonl:{row + 1}"


def spoken(count=40, rate=RATE, claimed=None, **change):
    """Return rows of tones as long as their transcripts take to say, by a rate of speech of 12 letters a second."""
    lengths = np.random.default_rng(0).integers(8, 60, count)
    return [
        {
            "audio": encoded(change.get("loud", 1) * tone(int(n) / 12, rate=rate), claimed or rate),
            "text": "a" * int(n),
        }
        for n in lengths
    ]


def found(rows):
    data = SimpleNamespace(task="speech-to-text", splits={"train": Rows(rows)})
    return [x for x in Recordings().examine(data) if isinstance(x, Finding)]


def test_sound_recordings_have_no_finding():
    assert found(spoken()) == []


@pytest.mark.parametrize("side", ["next", "previous"])
def test_transcripts_shifted_by_one_row_are_named(side):
    rows, step = spoken(), 1 if side == "previous" else -1
    shifted = [{**row, "text": rows[(i + step) % len(rows)]["text"]} for i, row in enumerate(rows)]
    (finding,) = found(shifted)
    assert finding.level == "alarm"
    assert finding.figures[side] > 0.9
    assert abs(finding.figures["own"]) < 0.4


def test_shifted_transcripts_are_named_in_a_sample_of_many_rows(monkeypatch):
    """Rows that are looked at stand in blocks: of single rows here and there the neighbours are unknown."""
    monkeypatch.setattr(audits, "MOST", 60)
    monkeypatch.setattr(audits, "BLOCK", 20)
    rows = spoken(200)
    shifted = [{**row, "text": rows[(i + 1) % len(rows)]["text"]} for i, row in enumerate(rows)]
    (finding,) = found(shifted)
    assert finding.figures["previous"] > 0.9


def test_transcripts_of_other_recordings_are_named():
    rows = spoken(60)
    texts = np.random.default_rng(1).permutation([row["text"] for row in rows]).tolist()
    (finding,) = found([{**row, "text": text} for row, text in zip(rows, texts, strict=True)])
    assert finding.level == "alarm"
    assert finding.figures["own"] < 0.3


@pytest.mark.parametrize(("rate", "claimed"), [(48_000, 8_000), (8_000, 32_000)])
def test_a_header_with_another_rate_than_the_recording_is_named(rate, claimed):
    (finding,) = found(spoken(rate=rate, claimed=claimed))
    assert finding.level == "alarm"
    assert finding.figures["rate"] == pytest.approx(12 * claimed / rate, rel=0.1)


def test_a_few_files_of_another_rate_are_named_by_row():
    rows = spoken()
    rows[7] = spoken(rate=48_000, claimed=8_000)[7]
    (finding,) = found(rows)
    assert (finding.level, finding.places) == ("note", ("train.jsonl:8",))


def test_clipped_and_hardly_audible_recordings_are_named():
    rows = spoken()
    rows[3] = {**rows[3], "audio": encoded(np.clip(8 * tone(len(rows[3]["text"]) / 12), -1, 1))}
    rows[5] = {**rows[5], "audio": encoded(tone(len(rows[5]["text"]) / 12, loud=0.002))}
    assert [finding.places for finding in found(rows)] == [("train.jsonl:4",), ("train.jsonl:6",)]


def judged(base, shifted=None, tuned=0.2, empty=0, rows=50):
    figures = SimpleNamespace(
        base={"wer": Estimate(base, None, None, rows)},
        tuned={"wer": Estimate(tuned, None, None, rows)},
        details=SimpleNamespace(
            base={"wer": {"shifted": json.loads(json.dumps(shifted or {}))}},
            tuned={"wer": {"words": 400, "empty_answers": empty}},
        ),
    )
    return list(Transcripts().judge(SimpleNamespace(evaluation=figures)))


def test_the_verdict_names_shifted_transcripts():
    (finding,) = judged(1.1, {"-1": 1.0, "1": 0.2})
    assert finding.level == "alarm"
    assert finding.figures["shift"] == 1


def test_the_verdict_names_what_the_base_does_not_understand():
    (finding,) = judged(1.3, {"-1": 1.2, "1": 1.3}, tuned=1.1)
    assert finding.level == "alarm"
    assert "task.language" in finding.text
    (learnt,) = judged(1.3, {"-1": 1.2, "1": 1.3}, tuned=0.4)
    assert (learnt.level, learnt.explains) == ("note", ())
    assert judged(0.4, {"-1": 1.0, "1": 1.0}) == []


def test_the_verdict_names_empty_answers():
    (finding,) = judged(0.4, empty=20)
    assert (finding.level, finding.figures["empty"]) == ("note", 20)


def test_a_run_without_word_errors_is_not_judged():
    assert list(Transcripts().judge(SimpleNamespace(evaluation=SimpleNamespace(base={})))) == []
