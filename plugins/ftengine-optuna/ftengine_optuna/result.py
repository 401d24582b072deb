"""tune.json: the trials, the best of them, and its figures on the test split."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, ValidationError

from ftengine.api import Estimate
from ftengine.errors import RunError
from ftengine.text import counted, decimals, has_value, number, plain, with_interval

FILE = "tune.json"


class Tried(BaseModel):
    """One trial: its number, from 1, its values, and its figure on validation."""

    number: int
    values: dict[str, Any]
    state: Literal["finished", "failed"]
    figure: Estimate | None = None
    reason: str = ""
    seconds: float = 0.0
    run: str


def _undefined(value: Any) -> Any:
    return value | {"value": math.nan} if isinstance(value, dict) and value.get("value") is None else value


Figure = Annotated[Estimate, BeforeValidator(_undefined)]
"""An estimate, which JSON holds as null where it is undefined."""


class Tested(BaseModel):
    """The figures of a trial and of the base on the test split."""

    trial: int
    base: Figure
    tuned: Figure


class Tuning(BaseModel):
    """tune.json.

    Args:
        metric: the metric that compares trials; `label` is its name for people.
        trials: in order; the first has the recipe's own values, if the ranges contain them.
        as_written: the number of that trial; None if there is none.
        best: the number of the best.
        tested: each evaluation on the test split, in order; one, unless trials were added later.
        statement: the result in words.
    """

    model_config = ConfigDict(ser_json_inf_nan="null")

    metric: str
    label: str
    higher_is_better: bool
    space: list[dict[str, Any]]
    trials: list[Tried]
    as_written: int | None
    best: int | None
    tested: list[Tested] = []
    recipe: str = ""
    statement: str = ""

    @property
    def finished(self) -> list[Tried]:
        """The trials that have a figure."""
        return [trial for trial in self.trials if trial.state == "finished"]

    def of(self, number: int) -> Tried:
        """Return a trial by its number."""
        return next(trial for trial in self.trials if trial.number == number)

    def write(self, folder: Path) -> None:
        """Write tune.json atomically."""
        partial = folder / f"{FILE}.partial"
        partial.write_text(f"{self.model_dump_json(indent=2)}\n", encoding="utf-8")
        partial.replace(folder / FILE)

    @classmethod
    def read(cls, folder: Path) -> Tuning | None:
        """Read a folder's tune.json; None if there is none (RunError: it is damaged)."""
        file = folder / FILE
        if not file.is_file():
            return None
        try:
            return cls.model_validate_json(file.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError, ValidationError) as error:
            reason = " ".join(str(error).split())
            raise RunError(f"{file}, which says how often the test split was measured, is damaged: {reason}") from None


def ranked(trials: list[Tried], higher_is_better: bool) -> list[Tried]:
    """Return the trials that have a figure, the best first, equal ones in order."""
    scored = [(trial.figure.value, trial) for trial in trials if has_value(trial.figure)]
    return [trial for _, trial in sorted(scored, key=lambda pair: pair[0], reverse=higher_is_better)]


def statement(tuning: Tuning) -> str:
    """Return the result in words: the number of trials, and how reliable the best one's figure is."""
    if tuning.best is None:
        return "No trial came to a figure."
    best, failed = tuning.of(tuning.best), len(tuning.trials) - len(tuning.finished)
    lost = f" ({counted(failed, 'further one')} failed)" if failed else ""
    sentences = [
        f"Of {counted(len(tuning.finished), 'trial')}{lost}, number {best.number} is the best by {tuning.label} on "
        f"validation: {with_interval(best.figure)}."
    ]
    written = None if tuning.as_written is None else tuning.of(tuning.as_written)
    if written is not None and written.number == best.number:
        sentences.append("It has the recipe's own values.")
    elif written is not None and has_value(written.figure):
        sentences.append(f"The recipe as it is written (trial {written.number}) came to {plain(written.figure)}.")
    if len(tuning.finished) > 1:
        sentences.append(f"It was chosen as the luckiest of {len(tuning.finished):,}, so this figure is optimistic.")
    sentences.append(_on_test(tuning, best))
    return " ".join(sentences)


def _on_test(tuning: Tuning, best: Tried) -> str:
    tested = next((test for test in reversed(tuning.tested) if test.trial == best.number), None)
    if tested is None or best.figure is None:
        return (
            "It was not measured on a test split, so its quality on new data is unknown; measure it on examples apart."
        )
    if not has_value(tested.tuned):
        return f"On the test split, which no trial saw, {tuning.label} is undefined."
    worse = (
        best.figure.value - tested.tuned.value if tuning.higher_is_better else tested.tuned.value - best.figure.value
    )
    places = decimals(best.figure)
    apart = f"{number(abs(worse), places)} {'worse' if worse > 0 else 'better'} than on validation"
    looks = "once" if len(tuning.tested) == 1 else f"{len(tuning.tested)} times, each after further trials"
    again = (
        "" if len(tuning.tested) == 1 else " A choice that follows a look at the test split makes it optimistic too."
    )
    return (
        f"On the test split, which no trial saw and which was measured {looks}, it comes to "
        f"{with_interval(tested.tuned)}, {apart}; the base to {plain(tested.base)}.{again}"
    )
