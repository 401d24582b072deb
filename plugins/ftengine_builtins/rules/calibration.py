"""Rule `calibrated-confidence`."""

from collections.abc import Iterator
from typing import Any

from ftengine import RunRecords
from ftengine.api import Finding, Rule
from ftengine.text import ends, number, with_interval
from ftengine_builtins.rules.quality import sides

NOTE = 0.05
"""How far confidence is off that is worth a word, at the interval's near end: 5 points."""

ALARM = 0.15
"""The same, interval above, from which too high a confidence misleads whoever relies on it."""

HELPS = 0.9
"""Calibration error after a temperature, as a share of that before, up to which the temperature is worth a word."""

LEAST_FITTED = 100
"""Validation examples from which a fitted temperature is worth a word. In 200 simulated sets each (2 to 10 classes,
logits 1 to 3 times too sharp) it was within a factor of 1.5 of the right one in 86 to 100 % of those of 100 examples,
and in 57 to 92 % of those of 25."""


class CalibratedConfidence(Rule):
    """Says whether the tuned model's confidence can be believed.

    By every metric that is declared of kind "calibration" and has an interval: those without a direction are signed,
    above 0 where the model is too sure of itself; of the others, lower is better.
    """

    name = "calibrated-confidence"
    order = 15
    about = "its confidence"

    def judge(self, run: RunRecords) -> Iterator[Finding]:
        evaluation = run.evaluation
        for metric, declared in evaluation.metrics.items():
            tuned = evaluation.tuned.get(metric)
            interval = ends(tuned)
            if declared.kind != "calibration" or declared.higher_is_better or interval is None:
                continue
            low, high = interval
            signed, over = declared.higher_is_better is None, low >= NOTE
            if not over and not (signed and high <= -NOTE):
                continue
            lead = ("too high" if over else "too low") if signed else "badly calibrated"
            facts = evaluation.details.tuned.get(declared.evaluator, {})
            text = f"Its confidence is {lead}: {declared.label} is {with_interval(tuned, sign=signed)}."
            text += _cure(facts, over=over)
            level = "alarm" if low >= ALARM else "note"
            figures = {"metric": metric, **sides(evaluation, metric)}
            yield Finding(kind="calibration", level=level, text=text, figures=figures)


def _cure(facts: dict[str, Any], *, over: bool) -> str:
    """Say what a temperature would do, where the evaluator fitted one and it helps.

    Nothing where it lies at an end of what was searched (`temperature_at_edge`), which is no optimum, or rests on too
    few examples (`temperature_from`).
    """
    if facts.get("temperature_at_edge") or facts.get("temperature_from", LEAST_FITTED) < LEAST_FITTED:
        return ""
    temperature, before = facts.get("temperature"), facts.get("ece")
    after = (facts.get("after") or {}).get("ece")
    if not temperature or before is None or after is None or (temperature > 1) != over or after > HELPS * before:
        return ""
    return (
        f" A temperature of {temperature:.2f}, fitted on validation, would lower the calibration error from "
        f"{number(before, 3)} to {number(after, 3)}."
    )
