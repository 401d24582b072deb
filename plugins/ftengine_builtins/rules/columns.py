"""Rules about what tells the label: a column that is not read, or one phrase."""

from collections.abc import Iterator

from ftengine import RunRecords
from ftengine.api import Finding, Rule
from ftengine.text import percent
from ftengine_builtins.audits.telling_phrases import TellingPhrases
from ftengine_builtins.audits.unread_columns import UnreadColumns

BEHIND = 0.05
"""How much fewer labels than a column the tuned model tells, between the near ends of both intervals, for an alarm."""

NEARLY_ALL = 0.97
"""Accuracy from which it is said that one phrase tells the label: below, the model answers by something else."""


class UnreadColumnsTell(Rule):
    """Names the column that is not read and tells more labels than the tuned model does."""

    name = "unread-columns"
    order = 8

    def judge(self, run: RunRecords) -> Iterator[Finding]:
        reached = run.evaluation.tuned.get("accuracy")
        columns = [one for one in run.audit.findings if one.source == UnreadColumns.name]
        if reached is None or reached.value is None or reached.high is None:
            return
        for finding in columns:
            figures = finding.figures
            if figures["low"] < reached.high + BEHIND:
                continue
            name = f"`{figures['column']}`"
            figures = {**figures, "accuracy": reached}
            lead = f"write column {name} into the text: it is not read, and tells the label of "
            lead += f"{percent(figures['told'])} of the {figures['split']} rows, the model of {percent(reached.value)}"
            yield Finding(
                kind="data",
                level="alarm",
                text=f"{lead[:1].upper()}{lead[1:]}. Do so if it is known when the model is asked.",
                brief=lead,
                explains=("quality", "learning", "labels", "classes", "over-fitting", "calibration", "worse"),
                figures=figures,
            )
            return


class TellingPhrase(Rule):
    """Says that one phrase tells each label where the tuned model is nearly always right."""

    name = "telling-phrase"
    order = 3

    def judge(self, run: RunRecords) -> Iterator[Finding]:
        reached = run.evaluation.tuned.get("accuracy")
        if reached is None or reached.value is None or reached.value < NEARLY_ALL:
            return
        for finding in run.audit.findings:
            if finding.source == TellingPhrases.name:
                yield finding.model_copy(update={"source": ""})
