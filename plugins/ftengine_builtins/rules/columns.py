"""Rules about unread columns and single phrases that predict the label."""

from collections.abc import Iterator, Mapping
from typing import Any

from ftengine import RunRecords
from ftengine.api import Finding, Rule
from ftengine.text import capitalized, percent
from ftengine_builtins.audits.telling_phrases import TellingPhrases
from ftengine_builtins.audits.unread_columns import UnreadColumns

BEHIND = 0.05
"""How much fewer labels than a column the tuned model tells, between the near ends of both intervals, for an alarm."""

NEARLY_ALL = 0.97
"""Accuracy from which it is said that one phrase tells the label: below, the model answers by something else."""

EXPLAINS = ("quality", "learning", "rows", "labels", "classes", "over-fitting", "calibration", "worse")


class UnreadColumnsTell(Rule):
    """Names an unread column that predicts more labels (or more of the numbers) than the tuned model does."""

    name = "unread-columns"
    order = 8

    def judge(self, run: RunRecords) -> Iterator[Finding]:
        columns = [finding for finding in run.audit.findings if finding.source == UnreadColumns.name]
        # Where what is read tells nothing, the column with the content comes before others that tell the label.
        for finding in sorted(columns, key=lambda finding: finding.level != "alarm"):
            figures = finding.figures
            if figures.get("text") and not finding.brief:
                continue  # it may have been written once the label was known
            metric = "r2" if figures.get("numbers") else "accuracy"
            reached = run.evaluation.tuned.get(metric)
            if reached is None or reached.value is None or reached.high is None:
                continue
            if figures["low"] < reached.high + BEHIND:
                continue
            lead = finding.brief if figures.get("text") else _write_into_text(figures)
            lead += f", the model {'' if figures.get('text') else 'of '}{percent(max(0.0, reached.value))}"
            yield Finding(
                kind="data",
                level="alarm",
                text=f"{capitalized(lead)}. Do so if it is known at prediction time.",
                brief=lead,
                explains=EXPLAINS,
                figures={**figures, metric: reached},
            )
            return


def _write_into_text(figures: Mapping[str, Any]) -> str:
    lead = f"write column `{figures['column']}` into the text: it is not read, and predicts the label of "
    return f"{lead}{percent(figures['told'])} of the {figures['split']} rows"


class TellingPhrase(Rule):
    """Notes that one phrase predicts each label, where the tuned model is nearly always right."""

    name = "telling-phrase"
    order = 3

    def judge(self, run: RunRecords) -> Iterator[Finding]:
        reached = run.evaluation.tuned.get("accuracy")
        if reached is None or reached.value is None or reached.value < NEARLY_ALL:
            return
        for finding in run.audit.findings:
            if finding.source == TellingPhrases.name:
                yield finding.model_copy(update={"source": ""})
