"""The search: Optuna proposes values, each trial is a run, and the best one is evaluated on the test split."""

from __future__ import annotations

import gc
import json
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import optuna
import torch
import yaml
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, TrialState

from ftengine import Recipe, Run, fine_tune, load_run, plan, registry_of
from ftengine.api import Estimate, Listener, SilentListener
from ftengine.errors import FtengineError, InputError, RunError, TrainingError
from ftengine.identity import require_same_base
from ftengine.text import counted, listed, plain
from ftengine_optuna.division import FOLDER, choose_metric, divide, trial_recipe
from ftengine_optuna.result import Tested, Tried, Tuning, ranked, statement
from ftengine_optuna.space import Dimension, check_space, default_space, own_values, shown, with_values

JOURNAL = "trials.log"
"""Optuna's journal: a line of JSON a change."""
BEST = "best.yaml"

SAMPLERS: dict[str, Callable[[int], optuna.samplers.BaseSampler]] = {
    "random": lambda seed: optuna.samplers.RandomSampler(seed=seed),
    "tpe": lambda seed: optuna.samplers.TPESampler(seed=seed),
}


def tune(
    recipe: Recipe,
    *,
    trials: int,
    space: Sequence[Dimension] = (),
    metric: str | None = None,
    sampler: str = "tpe",
    timeout: float | None = None,
    test: bool = True,
    listener: Listener | None = None,
) -> Tuning:
    """Search for the values that are best on validation, and evaluate the best trial on the test split.

    Everything is kept in `recipe.output`: trials.log (Optuna's journal), trials/001 and so on (the runs), division/
    (the splits), best.yaml, tune.json. The same call continues an interrupted search.

    Args:
        recipe: has a validation and a test split.
        trials: total number of trials, including earlier and failed ones.
        space: the search space; by default learning rate, rank and dropout.
        metric: metric that compares trials; by default the verdict's.
        sampler: "tpe" (Bergstra et al. 2011) or "random".
        timeout: seconds after which no further trial begins.
        test: whether the best trial is evaluated on the test split, once.
        listener: receives phases, and a line per trial.

    Raises:
        InputError: recipe, ranges or metric are wrong, or the folder holds something else; raised before any training.
        TrainingError: no trial has a figure.
    """
    listener = listener or SilentListener()
    registry = registry_of()
    require_splits(recipe, test)
    strategy = registry.get("strategy", recipe.strategy["name"], "strategy")
    space = list(space) or default_space(recipe, strategy.cls.Config)
    check_space(recipe, space, registry)
    search = Search.open(recipe, space, metric, sampler, listener)
    own = own_values(recipe, space, registry)
    search.run(trials, own, timeout)
    tuning = search.tuning(own)
    if tuning.best is None:
        last = tuning.trials[-1].reason if tuning.trials else "none began; give more time with --timeout."
        raise TrainingError(f"none of {counted(len(tuning.trials), 'trial')} has a figure; the last one failed: {last}")
    conclude(tuning, search, test, Tuning.read(search.folder))
    return tuning


def require_splits(recipe: Recipe, test: bool) -> None:
    """Refuse a recipe without the splits that are needed (InputError)."""
    if recipe.data.validation is None:
        raise InputError(
            "trials are compared on validation, and data.validation is null. Set it to a fraction or a file, for "
            "example --set data.validation=0.1."
        )
    if test and recipe.data.test is None and recipe.data.split.folds is None:
        raise InputError(
            "the best of several trials looks better on validation than it is, so it is measured on a test split in "
            "the end, and data.test is null. Set it, for example --set data.test=0.1, or tune without one: --no-test."
        )


class Search:
    """Trials of one recipe in one folder."""

    def __init__(
        self,
        recipe: Recipe,
        space: Sequence[Dimension],
        files: dict[str, Path],
        sampler: str,
        study: optuna.Study,
        listener: Listener,
    ) -> None:
        self.recipe, self.space, self.files = recipe, space, files
        self.sampler, self.study, self.listener = sampler, study, listener
        self.folder = Path(recipe.output)
        self.metric: str = study.user_attrs["begun"]["metric"]
        self.label: str = study.user_attrs["begun"]["label"]
        self.higher_is_better = study.direction == optuna.study.StudyDirection.MAXIMIZE

    @classmethod
    def open(
        cls,
        recipe: Recipe,
        space: Sequence[Dimension],
        metric: str | None,
        sampler: str,
        listener: Listener,
    ) -> Search:
        """Continue or begin the search in `recipe.output` (InputError: the folder holds something else)."""
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        asked = {"recipe": recipe.resolved(), "space": [dimension.to_json() for dimension in space]}
        asked = json.loads(json.dumps(asked))
        folder = Path(recipe.output)
        journal = folder / JOURNAL
        if not journal.exists():
            if folder.is_dir() and any(dimension.name != FOLDER for dimension in folder.iterdir()):
                raise RunError(
                    f"output {str(folder)!r} holds other files. Choose a folder of its own for the trials with "
                    "--output DIR."
                )
            plan(recipe, measure=False, listener=listener)  # all that is wrong with the recipe is found here
            with _nothing_left(folder / FOLDER):
                files, labels = divide(recipe, folder / FOLDER)
                name, declared = choose_metric(recipe, labels, metric)
            direction = "maximize" if declared.higher_is_better else "minimize"
            study = optuna.create_study(storage=_storage(journal), study_name="tune", direction=direction)  # type: ignore[arg-type]
            study.set_user_attr("begun", {"metric": name, "label": declared.label, **asked})
        else:
            study = _begun(journal)
            _require_same(folder, study.user_attrs["begun"], asked, metric)
            files = {file.stem: file for file in (folder / FOLDER).glob("*.jsonl")}
        return cls(recipe, space, files, sampler, study, listener)

    def run(self, trials: int, own: dict[str, Any] | None, timeout: float | None) -> None:
        """Run trials until there are `trials`; an interrupted one is continued first."""
        until = None if timeout is None else time.monotonic() + timeout
        for trial in self.study.get_trials(states=[TrialState.RUNNING]):
            if all(dimension.key in trial.params for dimension in self.space):
                self._try(trial.number, {dimension.key: dimension.of(trial.params) for dimension in self.space}, trials)
            else:  # it ended while values were proposed
                self.study.tell(trial.number, state=TrialState.FAIL)
        if own is not None and all(trial.state == TrialState.FAIL for trial in self.study.trials):
            self.study.enqueue_trial({dimension.key: dimension.stored(own[dimension.key]) for dimension in self.space})
        while len(self._done()) < trials:
            if until is not None and time.monotonic() >= until:
                self.listener.message(f"time is up after {len(self._done()):,} of {trials:,} trials")
                return
            # A seed of its own for each, so that an interrupted search proposes what a whole dimension does.
            self.study.sampler = SAMPLERS[self.sampler](self.recipe.seed + len(self._done()))
            asked = self.study.ask()
            self._try(asked.number, {dimension.key: dimension.suggest(asked) for dimension in self.space}, trials)

    def _done(self) -> list[FrozenTrial]:
        return self.study.get_trials(states=[TrialState.COMPLETE, TrialState.PRUNED])

    def _try(self, number: int, values: dict[str, Any], trials: int) -> None:
        """Train one trial; one that fails counts among the worst."""
        began, shown_values = (
            time.monotonic(),
            ", ".join(f"{key.split('.', 1)[1]} {shown(v)}" for key, v in values.items()),
        )
        run, figure, reason = None, None, ""
        self.listener.phase(f"trial {number + 1} of {trials}")
        try:
            recipe = trial_recipe(with_values(self.recipe, values), self.files, self.place(number))
            run = fine_tune(recipe, resume=True, listener=SilentListener())
            measured = run.evaluation["tuned"][self.metric]
            if measured["value"] is None:
                reason = f"{self.metric} is undefined"
            else:
                figure = Estimate(**measured)
        except (FtengineError, torch.OutOfMemoryError) as error:
            reason = " ".join(str(error).split())
        if run is not None:
            self._require_same_base(run)
        record = {"figure": figure and vars(figure), "reason": reason, "seconds": round(time.monotonic() - began, 3)}
        self.study.set_user_attr(_key(number), record)
        if figure is None:
            self.study.tell(number, state=TrialState.PRUNED)
            self.listener.message(f"trial {number + 1} of {trials}: {shown_values}: failed: {reason}")
        else:
            self.study.tell(number, figure.value)
            first = " (the best so far)" if self.ranked()[0].number == number + 1 else ""
            self.listener.message(
                f"trial {number + 1} of {trials}: {shown_values}: {self.label} {plain(figure)}{first}"
            )
        gc.collect()  # what a trial leaves on the device is not the next one's
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def _require_same_base(self, run: Run) -> None:
        """Refuse figures of another base than the other trials' (BaseMismatch: says what differs)."""
        other = next((trial.run for trial in self.tried() if trial.state == "finished"), None)
        if other is not None:
            base = load_run(other, trust_code=True).facts.base
            where = f"{str(run.path)!r} cannot be set beside {other!r}, which"
            require_same_base(run.facts.base, base, self.recipe.model.source, where)

    def place(self, number: int) -> Path:
        """Return the folder of a trial's run."""
        return self.folder / "trials" / f"{number + 1:03d}"

    def tried(self) -> list[Tried]:
        """Return the trials that ended, in order."""
        ended = []
        for trial in self._done():
            record = self.study.user_attrs[_key(trial.number)]
            ended.append(
                Tried(
                    number=trial.number + 1,
                    values={dimension.key: dimension.of(trial.params) for dimension in self.space},
                    state="finished" if record["figure"] else "failed",
                    run=str(self.place(trial.number)),
                    **record,
                )
            )
        return ended

    def ranked(self) -> list[Tried]:
        """Return the trials that have a figure, the best first."""
        return ranked(self.tried(), self.higher_is_better)

    def tuning(self, own: dict[str, Any] | None) -> Tuning:
        """Return the result of the trials, without figures on the test split."""
        tried = self.tried()
        return Tuning(
            metric=self.metric,
            label=self.label,
            higher_is_better=self.higher_is_better,
            space=[dimension.to_json() for dimension in self.space],
            trials=tried,
            as_written=next((trial.number for trial in tried if trial.values == own), None),
            best=next((trial.number for trial in self.ranked()), None),
        )


def conclude(tuning: Tuning, search: Search, test: bool, before: Tuning | None) -> None:
    """Write the best trial's recipe, evaluate it on the test split if that is still to be done, and write tune.json."""
    assert tuning.best is not None
    best = tuning.of(tuning.best)
    recipe = with_values(search.recipe, best.values)
    recipe = recipe.model_copy(update={"output": str(search.folder / "best")})
    text = yaml.safe_dump(recipe.resolved(), sort_keys=False, allow_unicode=True)
    (search.folder / BEST).write_text(text, encoding="utf-8")
    tuning.recipe = str(search.folder / BEST)
    tuning.tested = [] if before is None else before.tested
    if test and all(evaluated.trial != best.number for evaluated in tuning.tested):
        search.listener.phase("measure the best on test")
        figures = load_run(best.run, trust_code=True).evaluate(search.files["test"])
        sides = {side: figures[side][search.metric] for side in ("base", "tuned")}
        tuning.tested = [*tuning.tested, Tested(trial=best.number, **sides)]
    tuning.statement = statement(tuning)
    tuning.write(search.folder)


@contextmanager
def _nothing_left(folder: Path) -> Iterator[None]:
    """Remove a folder, and those above it that were made for it, where something is refused."""
    new = next((path for path in reversed((folder, *folder.parents)) if not path.exists()), folder)
    try:
        yield
    except BaseException:
        shutil.rmtree(new, ignore_errors=True)
        raise


def _storage(journal: Path) -> JournalStorage:
    journal.parent.mkdir(parents=True, exist_ok=True)
    return JournalStorage(JournalFileBackend(str(journal)))


def _begun(journal: Path) -> optuna.Study:
    """Open what was begun (RunError: it ended before anything was recorded)."""
    try:
        study = optuna.load_study(study_name="tune", storage=_storage(journal))
        if "begun" in study.user_attrs:
            return study
    except KeyError:  # no study of this name
        pass
    raise RunError(f"{journal} ends at its very beginning. Remove {journal.parent}, and start again.")


def _key(number: int) -> str:
    return f"trial {number + 1}"


def _require_same(folder: Path, begun: dict[str, Any], asked: dict[str, Any], metric: str | None) -> None:
    """Refuse to go on with trials of another recipe, other ranges or another metric (RunError)."""
    before, now = _flat(begun["recipe"]), _flat(asked["recipe"])
    differing = sorted(key for key in before.keys() | now.keys() if before.get(key) != now.get(key) and key != "output")
    differing += ["the ranges"] if begun["space"] != asked["space"] else []
    differing += ["--metric"] if metric not in (None, begun["metric"]) else []
    if differing:
        raise RunError(
            f"output {str(folder)!r} holds trials of another search, which differs in {listed(differing)}. Use the "
            "same settings, or choose another folder with --output DIR."
        )


def _flat(content: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(content, dict) or not content:
        return {prefix.rstrip("."): content}
    return {k: v for key, value in content.items() for k, v in _flat(value, f"{prefix}{key}.").items()}
