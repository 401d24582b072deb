"""Rules about the classes of a classifier: a constant answer, and classes that it never gives."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from ftengine.api import Finding, Rule
from ftengine.api.figures import counted, ends, listed, percent, quoted, to_json, with_interval

if TYPE_CHECKING:
    from ftengine import RunRecords

NEVER_ALARM, LEAST_CLASS = 0.05, 5
"""Share of the held-out examples whose class is never answered, for an alarm; counted are classes of at least so many
examples, as a class of one or two is missed by a sound model as well."""

MOST_CLASSES = 5
"""Classes that a sentence names."""


@dataclass(frozen=True)
class ClassCounts:
    """The labels, how often each is the truth, and how often it is the tuned model's answer."""

    names: list[str]
    supports: list[int]
    answers: list[int]

    @property
    def majority(self) -> tuple[str, float]:
        """The most frequent truth and its share."""
        most = max(range(len(self.supports)), key=self.supports.__getitem__)
        return self.names[most], self.supports[most] / sum(self.supports)


def class_counts(run: RunRecords, evaluator: str | None = None) -> ClassCounts | None:
    """Return the counts of classes, where there is one label an example.

    Of a confusion matrix, or of the labels' own rows where there are too many for one. None where an example may have
    several labels, as shares of the examples mean something else then.

    Args:
        evaluator: the one whose details are read; by default the first that has such counts.
    """
    for name, details in run.evaluation.details.tuned.items():
        matrix, labels = details.get("confusion"), details.get("labels")
        if not labels or evaluator not in (None, name):
            continue
        if matrix and len(matrix) == len(labels):
            supports, answers = [sum(row) for row in matrix], [sum(column) for column in zip(*matrix, strict=True)]
        elif "accuracy" in run.evaluation.tuned and all("support" in row and "predicted" in row for row in labels):
            supports, answers = [row["support"] for row in labels], [row["predicted"] for row in labels]
        else:
            continue
        if sum(supports):
            return ClassCounts([str(row["label"]) for row in labels], supports, answers)
    return None


def no_better_than_a_constant(run: RunRecords) -> bool:
    """Say whether a classifier is not shown to be better than always giving the most frequent answer.

    Where all held-out examples are of one class, none can be better, and nothing is said.
    """
    found, interval = class_counts(run), ends(run.evaluation.tuned.get("accuracy"))
    return found is not None and interval is not None and interval[0] <= found.majority[1] < 1


class ConstantAnswer(Rule):
    """Compares a classifier with always giving the most frequent answer; a fresh head makes its base a low bar."""

    name = "constant-answer"
    order = 1

    def judge(self, run: RunRecords) -> Iterator[Finding]:
        level: Literal["alarm", "note"]
        found, accuracy = class_counts(run), run.evaluation.tuned.get("accuracy")
        if found is None or accuracy is None:
            return
        label, share = found.majority
        always = f"always answering {quoted(label)} would be right in {percent(share)}"
        if share == 1:
            level = "note"
            text = f"The {run.evaluation.split} split holds one class only ({quoted(label)}): accuracy here says "
            text += "nothing of the others."
        elif no_better_than_a_constant(run):
            level = "alarm"
            text = f"Not shown to be better than a constant answer: accuracy {with_interval(accuracy)}, and {always}."
        elif run.trained.new_modules and ends(accuracy) is not None:
            level = "note"
            text = "The base's classification head was fresh and had learnt nothing, so its figures are those of "
            text += f"guessing. A fairer bar: {always}; accuracy is {with_interval(accuracy)}."
        else:
            return
        figures = {"label": label, "share": share, "tuned": to_json(accuracy)}
        yield Finding(kind="baseline", level=level, text=text, figures=figures)


class UnansweredClasses(Rule):
    """Names the classes that the tuned model never gives as its answer, though held-out examples have them."""

    name = "unanswered-classes"
    order = 2

    def judge(self, run: RunRecords) -> Iterator[Finding]:
        found = class_counts(run)
        if found is None:
            return
        names, supports, answers = found.names, found.supports, found.answers
        total = sum(supports)
        never = [i for i in range(len(names)) if supports[i] and not answers[i]]
        if not never:
            return
        large = sum(supports[i] for i in never if supports[i] >= LEAST_CLASS)
        missed, most = sum(supports[i] for i in never), max(range(len(names)), key=answers.__getitem__)
        shown = [quoted(names[i]) for i in never[:MOST_CLASSES]]
        if len(never) > MOST_CLASSES:
            shown.append(counted(len(never) - MOST_CLASSES, "other class", "other classes"))
        yield Finding(
            kind="classes",
            level="alarm" if large >= NEVER_ALARM * total else "note",
            text=f"Never answers {listed(shown)}, the truth of {missed:,} of {total:,} held-out examples; "
            f"{quoted(names[most])} is its answer to {answers[most]:,}.",
            figures={"never": [names[i] for i in never], "examples": missed, "total": total, "most": names[most]},
        )
