"""tune.json: trials, what was decided after each rung, the best trial, and its figures on the test split."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, ValidationError

from ftengine.api import Estimate
from ftengine.errors import RunError
from ftengine.text import capitalized, counted, decimals, has_value, listed, number, plain, probability, with_interval
from ftengine_tune.halving import ERROR, RUNGS

FILE = "tune.json"

State = Literal["open", "dropped", "failed", "finished"]
End = Literal["one left", "not told apart", "time", "all rungs"]


class Dropped(BaseModel):
    """Why a trial was dropped.

    Args:
        rung: the rung after which it was, from 1.
        behind: the number of a trial that it was surely behind.
        difference: its validation loss minus that one's.
        p: p-value, multiplied by the number of comparisons.
    """

    rung: int
    behind: int
    difference: float
    p: float


class Trial(BaseModel):
    """One trial.

    Args:
        number: from 1.
        values: by key of the recipe.
        steps: optimiser steps after each rung.
        state: "open": it may train further, unless the search ended. "dropped" or "failed": it does not. "finished": it
            is a whole run with figures.
        rung: the last rung that it reached; 0 for none.
        loss: validation loss after that rung of the weights that a run would keep there.
        dropped: why it was, if it was.
        reason: why it failed, if it did.
        seconds: time that it trained, without what a killed process lost.
        run: its folder.
    """

    number: int
    values: dict[str, Any]
    steps: tuple[int, ...]
    state: State = "open"
    rung: int = 0
    loss: float | None = None
    dropped: Dropped | None = None
    reason: str = ""
    seconds: float = 0.0
    run: str

    @property
    def trained(self) -> int:
        """Optimiser steps that it trained, up to its last rung."""
        return self.steps[self.rung - 1] if self.rung else 0

    def reached(self, rung: int) -> bool:
        """Return whether it has a loss at a rung; a run that stopped early has one at all."""
        return self.rung >= rung or self.state == "finished"


class RungResult(BaseModel):
    """The trials that were compared after a rung, and those dropped (numbers)."""

    compared: list[int]
    dropped: list[int]


def _undefined(value: Any) -> Any:
    return value | {"value": math.nan} if isinstance(value, dict) and value.get("value") is None else value


Figure = Annotated[Estimate, BeforeValidator(_undefined)]
"""An estimate, which JSON holds as null where it is undefined."""


class Tested(BaseModel):
    """The best trial's figures: tuned on validation, tuned and base on the test split, by metric."""

    metric: str
    label: str
    higher_is_better: bool | None
    validation: Figure
    tuned: Figure
    base: Figure


class Tuning(BaseModel):
    """tune.json.

    Args:
        recipe: as it is written, resolved.
        planned: number of trials.
        examples: number of validation examples, as groups that are independent.
        full_seconds: estimated seconds of one whole run.
        ended: why the search ended; None while it goes on.
        best: the number of the best trial.
        not_told_apart: trials whose loss is not surely above the best one's, where these were last compared.
        share: steps trained, as a share of those of all trials trained to their end.
        tested: figures on the test split; None without one.
        best_recipe: the file with the best trial's recipe.
        statement: the result in words.
    """

    model_config = ConfigDict(ser_json_inf_nan="null")

    recipe: dict[str, Any]
    space: list[dict[str, Any]]
    sampler: str
    planned: int
    full_seconds: float
    examples: int = 0
    trials: list[Trial] = []
    rungs: list[RungResult] = []
    ended: End | None = None
    best: int | None = None
    not_told_apart: list[int] = []
    share: float | None = None
    tested: Tested | None = None
    best_recipe: str = ""
    statement: str = ""

    def of(self, number: int) -> Trial:
        """Return a trial by its number."""
        return next(trial for trial in self.trials if trial.number == number)

    def in_state(self, *states: State) -> list[Trial]:
        """Return the trials in one of these states."""
        return [trial for trial in self.trials if trial.state in states]

    @property
    def last_common_rung(self) -> int:
        """The last rung that two trials reached, of those neither dropped nor failed: there, losses are comparable.

        Trials go on in the order of their losses, so those that did not reach it were behind. With one trial left, the
        last rung at which trials were compared.
        """
        left = self.in_state("open", "finished")
        common = [rung for rung in range(1, RUNGS + 1) if sum(trial.reached(rung) for trial in left) > 1]
        return max(common, default=len(self.rungs))

    @property
    def seconds(self) -> float:
        """Seconds that trials took."""
        return sum(trial.seconds for trial in self.trials)

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
            raise RunError(
                f"{file}, which says how far the search is, is damaged: {reason} Restore it, or start again in another "
                "folder with --output DIR."
            ) from None


def statement(tuning: Tuning) -> str:
    """Return the result of a search that ended, in words."""
    assert tuning.best is not None
    best = tuning.of(tuning.best)
    dropped, failed = tuning.in_state("dropped"), tuning.in_state("failed")
    trials = counted(len(tuning.trials) - len(failed), "trial") + (" that did not fail" if failed else "")
    sentences = [f"Of {trials}, number {best.number} {_lowest(tuning, number(best.loss, 4))}."]
    if dropped:
        rungs = [trial.dropped.rung for trial in dropped if trial.dropped]
        after = [f"{rungs.count(rung):,} after rung {rung}" for rung in sorted(set(rungs))]
        sentences.append(
            f"{counted(len(dropped), 'trial')} {_was(dropped)} dropped as surely behind another one ({listed(after)})."
        )
    if failed:
        sentences.append(f"{counted(len(failed), 'trial')} failed.")
    sentences += [*_ending(tuning), *_alike(tuning)]
    if tuning.share is not None:
        sentences.append(f"The search trained {tuning.share:.0%} of the steps of {len(tuning.trials):,} whole runs.")
    sentences.append(_on_test(tuning))
    return " ".join(sentences)


def _lowest(tuning: Tuning, loss: str) -> str:
    """Return among which trials, and when, the best one had the lowest loss."""
    rung, ended = tuning.last_common_rung, [one for one in tuning.in_state("open", "finished") if one.reached(RUNGS)]
    if len(ended) > 1:
        return f"has the lowest validation loss of the {len(ended):,} trained to their end, {loss}"
    if rung < RUNGS:
        return f"had the lowest validation loss at rung {rung}; trained to its end, it comes to {loss}"
    return f"alone was trained to its end; its validation loss is {loss}"


def _was(trials: list[Trial]) -> str:
    return "was" if len(trials) == 1 else "were"


def _ending(tuning: Tuning) -> list[str]:
    last, left = len(tuning.rungs), tuning.in_state("open")
    if tuning.ended == "not told apart":
        return [
            f"The search ended after rung {last}, which dropped {len(tuning.rungs[-1].dropped):,} of "
            f"{len(tuning.rungs[-1].compared):,}: the {len(left) + 1} trials left cannot be told apart on "
            f"{counted(tuning.examples, 'validation example')}. The one with the lowest loss was trained to its end; "
            "hold out more examples to tell smaller differences."
        ]
    if tuning.ended == "time":
        began = f" before {tuning.planned:,} trials had begun" if len(tuning.trials) < tuning.planned else ""
        others = f"; {counted(len(left), 'trial')} {_was(left)} left undecided" if left else ""
        return [f"Time was up{began}{others}."]
    return []


def _alike(tuning: Tuning) -> list[str]:
    if not tuning.not_told_apart or tuning.ended == "not told apart":
        return []
    numbers = listed([str(one) for one in tuning.not_told_apart])
    noun = "trial" if len(tuning.not_told_apart) == 1 else "trials"
    return [
        f"{capitalized(noun)} {numbers} cannot be told apart from it on "
        f"{counted(tuning.examples, 'validation example')}."
    ]


def _on_test(tuning: Tuning) -> str:
    tested = tuning.tested
    if tested is None:
        return (
            "It was not measured on a test split, so its quality on new data is unknown: its validation loss is that "
            "of the best of several, and optimistic."
        )
    if not has_value(tested.tuned):
        return f"On the test split, which no trial saw, {tested.label} is undefined."
    text = (
        f"On the test split, which no trial saw and which was measured once, {tested.label} is "
        f"{with_interval(tested.tuned)}"
    )
    if has_value(tested.validation):
        places = max(decimals(tested.validation), decimals(tested.tuned))
        text += f" (validation: {number(tested.validation.value, places)})"
    return f"{text}; the base's is {plain(tested.base)}."


def outcome(trial: Trial, tuning: Tuning) -> str:
    """Return what became of a trial, in a few words."""
    if trial.number == tuning.best:
        return "the best"
    if trial.dropped is not None:
        return f"dropped after rung {trial.dropped.rung}: behind {trial.dropped.behind}, {probability(trial.dropped.p)}"
    if trial.number in tuning.not_told_apart:
        return "not told apart from the best"
    return {"failed": "failed", "finished": f"behind (level {ERROR:.0%})", "open": "left undecided"}.get(
        trial.state, ""
    )


def ranked(tuning: Tuning) -> list[Trial]:
    """Return the trials: the best one, then those that went furthest, by loss."""
    return sorted(
        tuning.trials,
        key=lambda trial: (trial.number != tuning.best, -trial.rung, math.inf if trial.loss is None else trial.loss),
    )
