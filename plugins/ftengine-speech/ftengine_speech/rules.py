"""Rule `transcripts`: faults of the data, found by the base's word errors."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from ftengine.api import Finding, Rule
from ftengine.text import number, percent
from ftengine_speech.word_errors import WordErrorRate

if TYPE_CHECKING:
    from ftengine import RunRecords

HOPELESS = 0.9
"""Word error rate of the base from which it understands next to nothing. Whisper's of English alone has 0.4 of a field
that it does not know, and over 1 at half the sampling rate."""
NEARER = 0.3
"""How much lower the rate against another row's transcript is, for the transcripts to be shifted."""
LEARNT = 0.6
"""Part of the base's word error rate from which the tuned model understands the recordings, so that they are right."""
EMPTY = 0.1
"""Share of empty answers that is told."""


class Transcripts(Rule):
    """Finds transcripts that belong to other rows, and recordings that the base cannot transcribe."""

    name = "transcripts"
    order = 105

    def judge(self, run: RunRecords) -> Iterator[Finding]:
        rate = run.evaluation.base.get(WordErrorRate.rate)
        if rate is None:
            return
        of_base, of_tuned = (side.get(WordErrorRate.name, {}) for side in _sides(run))
        shifted = {int(shift): value for shift, value in (of_base.get("shifted") or {}).items()}
        shift = min(shifted, key=shifted.__getitem__, default=0)
        if shift and shifted[shift] <= rate.value - NEARER:
            where = "before" if shift < 0 else "after"
            lead = f"shift the transcripts: the base's answers suit those of the rows {where} better"
            text = f"{lead[:1].upper()}{lead[1:]} (word error rate {number(shifted[shift], 2)}) than their own "
            text += f"({number(rate.value, 2)})."
            yield _alarm(text, lead, {"own": rate.value, "shifted": shifted[shift], "shift": shift})
        elif rate.value >= HOPELESS:
            lead = "check the recordings: the base writes next to nothing as it was said (word error rate "
            lead += f"{number(rate.value, 2)})"
            text = f"{lead[:1].upper()}{lead[1:]}. Usual causes are a wrong sampling rate in the files' headers or in "
            text += "`sampling_rate`, another language than task.language, and transcripts of other recordings. Where "
            text += "it is none of them, the base does not know this language or kind of speech."
            finding = _alarm(text, lead, {"base": rate.value})
            learnt = run.evaluation.tuned[WordErrorRate.rate].value <= LEARNT * rate.value
            yield finding.model_copy(update={"level": "note", "explains": ()}) if learnt else finding
        if (words := of_tuned.get("words")) and (empty := of_tuned.get("empty_answers", 0)) > EMPTY * _rows(run):
            share = percent(empty / max(1, _rows(run)))
            text = (
                f"The tuned model writes nothing of {share} of the held-out recordings, in which {words:,} words are "
            )
            text += "said in all. Silence or empty transcripts in training teach that."
            yield Finding(kind="quality", level="note", text=text, figures={"empty": empty})


def _alarm(text: str, brief: str, figures: dict[str, Any]) -> Finding:
    return Finding(kind="data", level="alarm", text=text, brief=brief, explains=("quality",), figures=figures)


def _sides(run: RunRecords) -> tuple[dict[str, Any], dict[str, Any]]:
    details = run.evaluation.details
    return dict(details.base), dict(details.tuned)


def _rows(run: RunRecords) -> int:
    rate = run.evaluation.tuned[WordErrorRate.rate]
    return rate.rows or rate.n
