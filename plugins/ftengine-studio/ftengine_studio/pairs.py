"""Answers of base and tuned model to the same prompts, as a run keeps them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from ftengine import RunRecords
from ftengine.errors import InputError
from ftengine.evaluation import read_predictions
from ftengine_studio.judgements import hash_of

READ_ALONE = "answers"
"""Set of answers without figures, which a run keeps for the report."""
SLICE = "slice."


@dataclass(frozen=True)
class Pair:
    """A prompt with the answers of base and tuned model.

    Args:
        row: its position in the test set.
        reference: the row's own answer; None where it has none.
        slices: the row's value of each column by which figures are sliced.
    """

    row: int
    place: str
    prompt: str
    reference: str | None
    answers: Mapping[str, str]
    slices: Mapping[str, str]

    @property
    def prompt_hash(self) -> str:
        return hash_of(self.prompt)


def read_pairs(run: str | Path) -> list[Pair]:
    """Return the held-out prompts that both models of a finished run answered, in the order of their rows.

    Raises:
        InputError: it answered none; the message says how to have answers.
        RunError: the folder is no finished run, or a file is damaged.
    """
    return pairs_of(RunRecords.read(run))


def pairs_of(run: RunRecords) -> list[Pair]:
    """Return the answered prompts of a run that was read; see `read_pairs`."""
    for name in filter(None, (run.evaluation.split, READ_ALONE)):
        base, tuned = (read_predictions(run.path, name, side) for side in ("base", "tuned"))
        if {"prompt", "completion", "answered"} <= base.keys() & tuned.keys():
            answers = dict(zip(base["row"].tolist(), base["completion"], strict=True))
            columns = {key.removeprefix(SLICE): values for key, values in tuned.items() if key.startswith(SLICE)}
            return [
                Pair(
                    row=int(row),
                    place=str(tuned["place"][i]),
                    prompt=str(tuned["prompt"][i]),
                    answers={"base": str(answers[row]), "tuned": str(tuned["completion"][i])},
                    reference=None if tuned["reference"][i] is None else str(tuned["reference"][i]),
                    slices={column: str(values[i]) for column, values in columns.items()},
                )
                for i, row in enumerate(tuned["row"].tolist())
                if tuned["answered"][i] == 1 and answers.get(row) is not None
            ]
    raise InputError(
        f"run {str(run.path)!r} has no answers to judge: its task writes none, or evaluation.answers was null. Train "
        "again with evaluation.answers=40, or with evaluator 'generation' for evaluation.generate.limit answers."
    )
