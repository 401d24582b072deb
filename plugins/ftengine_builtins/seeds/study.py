"""seeds.json: results of one recipe trained with several seeds."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ValidationError

from ftengine import Recipe, Run, RunRecords, Shared, fine_tune, load_run
from ftengine.api import Listener
from ftengine.errors import InputError, RunError, TrainingError
from ftengine.evaluation import (
    SeedFigure,
    difference_of_recipes,
    difference_over_seeds,
    mean_over_seeds,
)

FILE = "seeds.json"
SIDES = ("base", "tuned", "difference")
Keep = Literal["median", "best"]


class SeededRun(BaseModel):
    """One of the runs.

    Args:
        seed: its `train.seed`.
        run: its folder's name.
        validation_loss: the lowest; None without a validation split.
        better: True if the compared metric is significantly better than the base's in this run, False if worse, None if
            neither.
    """

    seed: int
    run: str
    validation_loss: float | None
    better: bool | None


class Seeds(BaseModel):
    """seeds.json.

    Args:
        metric: the metric that the verdict compares; its label, and whether higher is better.
        split: the held-out split, with so many examples (groups, if rows are grouped).
        runs: in the order of seeds.
        keep, kept: the rule that chooses one of the runs, and the chosen folder.
        base, tuned, difference: by metric, the mean over seeds with an interval over seeds and examples.
        against, minus_other: the folder of another recipe's seeds on the same examples, and by metric this one's tuned
            mean minus that one's.
    """

    metric: str
    label: str
    higher_is_better: bool | None
    split: str
    examples: int
    runs: list[SeededRun]
    keep: Keep
    kept: str
    base: dict[str, SeedFigure]
    tuned: dict[str, SeedFigure]
    difference: dict[str, SeedFigure]
    against: str | None = None
    minus_other: dict[str, SeedFigure] = {}

    @property
    def settled(self) -> bool | None:
        """Whether tuning is better (True) or worse (False) over seeds and examples; None: neither beyond chance."""
        figure = self.difference[self.metric]
        if figure.low is None or figure.high is None or self.higher_is_better is None:
            return None
        if figure.low <= 0 <= figure.high:
            return None
        return (figure.low > 0) == self.higher_is_better

    def write(self, folder: Path) -> None:
        """Write seeds.json atomically."""
        partial = folder / f"{FILE}.partial"
        partial.write_text(f"{self.model_dump_json(indent=2)}\n", encoding="utf-8")
        partial.replace(folder / FILE)

    @classmethod
    def read(cls, folder: Path) -> Seeds | None:
        """Read a folder's seeds.json; None if there is none (RunError: it is damaged)."""
        file = folder / FILE
        if not file.is_file():
            return None
        try:
            return cls.model_validate_json(file.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError, ValidationError) as error:
            raise RunError(
                f"{file} is damaged: {' '.join(str(error).split())} Write it again: ftengine seeds."
            ) from None


def train_seeds(
    recipe: Recipe,
    seeds: int,
    *,
    keep: Keep = "median",
    against: Path | None = None,
    listener: Listener | None = None,
    on_run: Callable[[Recipe, bool], None] | None = None,
) -> Seeds:
    """Train a recipe with several seeds on one split, and measure all of them together.

    Each run is a folder `seed-N` in `recipe.output`, where `seeds.json` is written as well. Unfinished runs are
    resumed, finished ones reused. Every run's verdict and report are written again, with what all seeds show.

    Args:
        recipe: what to train. Its `seed` decides the split; `train.seed` is numbered from there.
        seeds: number of runs, at least two.
        keep: which run is kept, by validation loss: the median one, or the best one.
        against: the output of another recipe's seeds, which was measured on the same examples.
        listener: receives phases and steps, as `fine_tune` has it.
        on_run: called before each run with its recipe, and whether it was finished before.

    Raises:
        InputError: recipe, data or model is wrong, or nothing is held out; raised before anything trains. The runs of
            `against` have other examples; found after training, whose figures are kept.
        TrainingError: a run failed; finished ones are kept.
    """
    recipes = seeded(recipe, seeds)
    if recipe.data.validation is None and recipe.data.test is None:
        raise InputError("seeds are compared on held-out data; set data.validation or data.test.")
    others = [] if against is None else runs_of(against)
    if against is not None:
        _require_same_resamples(recipe, others[0].recipe, against)
    finished = [(Path(one.output) / "verdict.json").is_file() for one in recipes]
    runs, shared = [], Shared()
    for one, done in zip(recipes, finished, strict=True):
        if on_run is not None:
            on_run(one, done)
        try:
            runs.append(fine_tune(one, resume=True, listener=listener, shared=shared))
        except TrainingError as error:
            raise TrainingError(f"train.seed {one.training_seed}: {error} Finished runs are kept.") from error
    study = measured(runs, keep)
    study.write(Path(recipe.output))  # stays if the other runs have other examples
    if against is not None:
        study = set_against(study, runs, against, others)
    study.write(Path(recipe.output))
    for run in runs:
        study.write(run.path)
        run.conclude()
    return study


def runs_of(folder: Path) -> list[Run]:
    """Return the runs of a folder that `train_seeds` wrote (InputError: it wrote none there)."""
    study = Seeds.read(folder)
    if study is None:
        raise InputError(f"{str(folder)!r} holds no {FILE}. Name the output of `ftengine seeds`.")
    return [load_run(folder / run.run) for run in study.runs]


def _require_same_resamples(mine: Recipe, other: Recipe, folder: Path) -> None:
    """Raise InputError if two recipes weigh the same examples otherwise in a resample."""
    for key, own, theirs in (
        ("seed", mine.seed, other.seed),
        ("evaluation.resamples", mine.evaluation.resamples, other.evaluation.resamples),
    ):
        if own != theirs:
            raise InputError(
                f"{key} is {own} here and {theirs} in the runs of {str(folder)!r}. Compare recipes that have it in "
                "common; the seeds of training (train.seed) may differ."
            )


def set_against(study: Seeds, runs: Sequence[Run], folder: Path, others: Sequence[Run]) -> Seeds:
    """Return a study with its difference from another one's runs (InputError: these have other examples)."""
    records = [RunRecords.read(run.path) for run in (runs[0], others[0])]
    contents = {record.audit.contents.get(study.split) for record in records}
    if len(contents) > 1:
        raise InputError(
            f"the runs of {str(folder)!r} were measured on other {study.split} examples. Compare recipes with the same "
            "data and splits."
        )
    mine, theirs = ([run.resampled_figures()["tuned"] for run in side] for side in (runs, others))
    minus = {
        name: difference_of_recipes([one[name] for one in mine], [one[name] for one in theirs])
        for name in mine[0]
        if all(name in one for one in (*mine, *theirs))
    }
    return study.model_copy(update={"against": str(folder), "minus_other": minus})


def seeded(recipe: Recipe, seeds: int) -> list[Recipe]:
    """Return the recipe of each seed, with its own folder (InputError: fewer than two, or the folder is a run)."""
    if seeds < 2:
        raise InputError(f"--seeds {seeds}: at least two are needed to see how results vary; three to five are usual.")
    if (Path(recipe.output) / "recipe.yaml").is_file():
        raise InputError(
            f"output {recipe.output!r} is a run; the runs of seeds are folders inside output. Name another."
        )
    return Recipe.make(recipe.resolved(), [f"train.seeds={seeds}"]).seeded()


def measured(runs: Sequence[Run], keep: Keep) -> Seeds:
    """Measure finished runs of one recipe together (RunError: they were trained or measured on different examples)."""
    records = [RunRecords.read(run.path) for run in runs]
    first = records[0]
    split, metric = first.evaluation.split, first.evaluation.headline_metric
    if split is None or metric is None:
        raise InputError("no metric was measured on held-out data, so seeds cannot be compared. Name an evaluator.")
    contents = [record.audit.contents for record in records]
    if changed := [name for name in contents[0] if any(other.get(name) != contents[0][name] for other in contents)]:
        raise RunError(
            f"the runs have different {changed[0]} examples: the data changed between them. Remove the older runs, or "
            "name another output."
        )
    resampled = [run.resampled_figures() for run in runs]
    base, tuned = (
        {
            name: mean_over_seeds([side[name] for side in sides])
            for name in sides[0]
            if all(name in side for side in sides)
        }
        for sides in ([figures[name] for figures in resampled] for name in ("base", "tuned"))
    )
    difference = _differences([(figures["base"], figures["tuned"]) for figures in resampled])
    losses = [record.training.best_loss for record in records]
    declared = first.evaluation.metrics[metric]
    return Seeds(
        metric=metric,
        label=declared.label,
        higher_is_better=declared.higher_is_better,
        split=split,
        examples=first.evaluation.tuned[metric].n,
        runs=[
            SeededRun(
                seed=run.recipe.training_seed,
                run=run.path.name,
                validation_loss=loss,
                better=record.evaluation.difference[metric].better if metric in record.evaluation.difference else None,
            )
            for run, record, loss in zip(runs, records, losses, strict=True)
        ],
        keep=keep,
        kept=runs[chosen(losses, keep)].path.name,
        base=base,
        tuned=tuned,
        difference=difference,
    )


def _differences(runs: Sequence[tuple[Mapping[str, Any], Mapping[str, Any]]]) -> dict[str, SeedFigure]:
    """Return tuned minus base over seeds, by metric, of the resampled figures of base and tuned model of each run."""
    names = [name for name in runs[0][1] if all(name in side for run in runs for side in run)]
    return {
        name: difference_over_seeds([before[name] for before, _ in runs], [after[name] for _, after in runs])
        for name in names
    }


def chosen(losses: Sequence[float | None], keep: Keep) -> int:
    """Return the number of the run that is kept: by validation loss, the median one or the best; without, the first."""
    known = [loss for loss in losses if loss is not None and math.isfinite(loss)]
    if len(known) < len(losses):
        return 0
    return losses.index(min(known) if keep == "best" else statistics.median_low(known))
