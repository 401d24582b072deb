"""Pairs of answers to judge: from the evaluation of runs, or generated on demand."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ftengine.api import Listener, SilentListener
from ftengine.errors import InputError, RunError
from ftengine.evaluation import read_predictions
from ftengine_studio.judgements import answers_hash, append_line, hash_of
from ftengine_studio.runs import StudioRun, maker_name

SETS = ("test", "validation", "answers")
"""Prediction tables that may have answers; "answers" are those without figures."""
NEW = "answers.jsonl"
"""Answers that were made on demand, in the run's folder."""
TOGETHER = 8
"""Rows that are answered in one batch, between which progress is shown."""


@dataclass(frozen=True)
class Answered:
    """A prompt with the answers of base and tuned model.

    Args:
        row: position in the test set.
        place: file and line.
        prompt: the text.
        reference: the row's answer; None if it has none.
        base, tuned: the models' answers.
        slices: values of the columns that define slices.
    """

    row: int
    place: str
    prompt: str
    reference: str | None
    base: str
    tuned: str
    slices: Mapping[str, str] = field(default_factory=dict)

    @property
    def key(self) -> tuple[int, str]:
        """A key that is equal for the same prompt of another run."""
        return self.row, hash_of(self.prompt)


@dataclass(frozen=True)
class Pair:
    """Two answers to one prompt, by maker ("base", "tuned" or a run's `maker_name`)."""

    row: int
    place: str
    prompt: str
    reference: str | None
    answers: Mapping[str, str]
    slices: Mapping[str, str]

    @property
    def prompt_hash(self) -> str:
        return hash_of(self.prompt)

    @property
    def answers_hash(self) -> str:
        return answers_hash(self.answers)


def answers_of(run: StudioRun) -> dict[tuple[int, str], Answered]:
    """Return a run's answered prompts by `Answered.key`; {} where it has none yet (RunError: a file is damaged)."""
    answered: dict[tuple[int, str], Answered] = {}
    for one in (*_evaluated(run), *_made(run)):
        answered.setdefault(one.key, one)
    return answered


def answers_version(run: StudioRun) -> list[tuple[str, int]]:
    """Return what differs once the run's answers are others: names and times of the files that hold them."""
    files = [*(run.path / "predictions").glob("*.parquet"), run.path / NEW]
    return sorted((file.name, file.stat().st_mtime_ns) for file in files if file.is_file())


def pairs_of(run: StudioRun, other: StudioRun | None = None) -> list[Pair]:
    """Return the pairs of a run's base and tuned model, or of the tuned models of two runs on the prompts of both."""
    first = answers_of(run)
    if other is None:
        sides = {key: {"base": one.base, "tuned": one.tuned} for key, one in first.items()}
    else:
        second = answers_of(other)
        own, others = maker_name(run.path, run.path), maker_name(other.path, run.path)
        sides = {key: {own: one.tuned, others: second[key].tuned} for key, one in first.items() if key in second}
    return [
        Pair(one.row, one.place, one.prompt, one.reference, sides[key], one.slices)
        for key, one in first.items()
        if key in sides
    ]


def _evaluated(run: StudioRun) -> Iterator[Answered]:
    for name in SETS:
        base, tuned = (read_predictions(run.path, name, side) for side in ("base", "tuned"))
        if not {"prompt", "completion", "answered"} <= base.keys() & tuned.keys():
            continue
        if not np.array_equal(base["row"], tuned["row"]):
            raise RunError(f"run {str(run.path)!r}: the tables of base and tuned model have other rows. Train again.")
        slices = {key.removeprefix("slice."): column for key, column in base.items() if key.startswith("slice.")}
        for i in np.flatnonzero(base["answered"].astype(bool) & tuned["answered"].astype(bool)).tolist():
            reference = base["reference"][i] if "reference" in base else None
            texts = (str(base["completion"][i]), str(tuned["completion"][i]))
            own = {key: str(column[i]) for key, column in slices.items() if column[i] is not None}
            yield Answered(
                int(base["row"][i]), str(base["place"][i]), str(base["prompt"][i]), reference, *texts, slices=own
            )


def _made(run: StudioRun) -> Iterator[Answered]:
    file = run.path / NEW
    if not file.is_file():
        return
    lines = file.read_bytes().split(b"\n")
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            yield Answered(**json.loads(line))
        except (ValueError, TypeError):
            if number < len(lines):
                raise RunError(f"{str(file)!r}: line {number} is damaged. Remove the line.") from None


def make_answers(
    run: StudioRun, count: int, seed: int, listener: Listener | None = None, *, trust_code: bool = False
) -> int:
    """Let base and tuned model answer held-out prompts that have no answers yet, and store the answers in `NEW`.

    Generation has the options of the run's evaluation.

    Args:
        count: maximal number of prompts, drawn by the seed.

    Returns:
        The number of new answers.

    Raises:
        InputError: the run is not finished, has no held-out rows, writes no text, or its data has changed.
    """
    from ftengine import Experiment, load_run, prepare_data

    listener = listener or SilentListener()
    opened = load_run(run.path, listener=listener, trust_code=trust_code)
    generate = getattr(opened.task, "generate", None)
    if generate is None:
        raise InputError(f"task {opened.task.name!r} writes no text, so it has no answers to judge.")
    opened.without_model(check_source=True)  # reading rows runs what loads the processor, which is to be trusted
    opened.require_trusted_code()
    data = prepare_data(Experiment.open(run.recipe, opened.registry, listener, check_source=False, day=opened.day))
    held = next((name for name in ("test", "validation") if name in data.encoded), None)
    if held is None:
        raise InputError(f"run {run.name!r} has no held-out rows; set data.validation or data.test and train again.")
    recorded = ((run.read("audit.json") or {}).get("encoded") or {}).get(held, {}).get("content")
    if recorded != data.encoded[held].content:
        raise InputError(f"the data of run {run.name!r} has changed since it was trained: restore the files.")
    rows, known = data.encoded[held].rows, {row for row, _ in answers_of(run)}
    order = np.random.default_rng(seed).permutation(np.unique(data.encoded[held].index)).tolist()
    chosen = [row for row in order if row not in known][:count]
    options = opened.recipe.evaluation.generate.options
    made: dict[str, list[dict[str, Any]]] = {}
    for side in ("base", "tuned"):
        with opened.model(base=side == "base") as loaded:
            listener.phase(f"answers of the {side} model", len(chosen))
            made[side] = []
            for start in range(0, len(chosen), TOGETHER):
                batch = [rows[row] for row in chosen[start : start + TOGETHER]]
                made[side] += generate(loaded, batch, options)
                listener.advance(len(batch))
    columns = opened.recipe.evaluation.slices
    for row, base, tuned in zip(chosen, made["base"], made["tuned"], strict=True):
        slices = {column: str(rows[row][column]) for column in columns if rows[row].get(column) is not None}
        texts = base["prompt"], base.get("reference"), base["completion"], tuned["completion"]
        append_line(Path(run.path) / NEW, asdict(Answered(row, rows.where(row), *texts, slices=slices)))
    return len(chosen)
