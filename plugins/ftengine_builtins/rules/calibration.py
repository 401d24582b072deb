"""Rule `calibrated-confidence`."""

from collections.abc import Iterator

from ftengine import RunRecords
from ftengine.api import Finding, Rule
from ftengine.text import ends, number, plain, with_interval
from ftengine_builtins.rules.quality import sides

NOTE = 0.05
"""Calibration error from which there is a finding, at the interval's near end: 5 points."""

ALARM = 0.15
"""The same for an alarm: too high a confidence misleads users."""

HELPS = 0.9
"""A temperature is proposed if it reduces the calibration error at least to this share."""


class CalibratedConfidence(Rule):
    """Says whether the tuned model's confidence is reliable.

    Judged by every metric of kind "calibration" with an interval: metrics without a direction are signed, above 0 where
    the model is overconfident; of the others, lower is better.
    """

    name = "calibrated-confidence"
    order = 15

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
            text = f"Its confidence is {lead}: {declared.label} is {with_interval(tuned, sign=signed)}."
            brief = f"its confidence is {lead}: {declared.label} is {plain(tuned, sign=signed)}"
            text += _cure(run, declared.evaluator, over=over)
            level = "alarm" if low >= ALARM else "note"
            figures = {"metric": metric, **sides(evaluation, metric)}
            yield Finding(kind="calibration", level=level, text=text, brief=brief, figures=figures)


def _cure(run: RunRecords, evaluator: str, *, over: bool) -> str:
    """Return the run's temperature for `predict --calibrated`, if it improves confidence; "" otherwise.

    The improvement is measured if the temperature was fitted on other examples.
    """
    temperature, facts = run.trained.calibration.get("temperature"), run.evaluation.details.tuned.get(evaluator, {})
    if not temperature or (temperature > 1) != over:
        return ""
    text = (
        f" `ftengine predict --calibrated` divides logits by {number(temperature, 2)}, fitted on the validation split"
    )
    before, after = facts.get("ece"), (facts.get("after") or {}).get("ece")
    if before is None or after is None:
        return f"{text}."
    if after > HELPS * before:
        return ""
    return f"{text}: the calibration error goes from {number(before, 3)} to {number(after, 3)}."
