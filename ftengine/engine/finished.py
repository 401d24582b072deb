"""A finished run: loading, evaluating, predicting and merging."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ftengine.api import CodeEvaluator, Listener, LoadedModel, SilentListener
from ftengine.api.on_policy import is_on_policy
from ftengine.engine.answering import Answering
from ftengine.engine.evaluate import add_figures, evaluate_run, reference_model
from ftengine.engine.merge import MERGED_DTYPES, MergeReport, check_merge, merge_into
from ftengine.engine.prepared_data import LabelledTask, apply_strategy
from ftengine.engine.prepared_model import load_base_of, prepare_strategy
from ftengine.engine.saved_part import load_trained_part
from ftengine.errors import InputError, NotMergeable, UnknownName
from ftengine.evaluation.figures import ResampledFigure
from ftengine.evaluation.finite import require_finite_weights
from ftengine.evaluation.stored import measure_again, stored, validation_of
from ftengine.identity import folder_hash
from ftengine.model.saving import write_calibration
from ftengine.parallel.device import Device
from ftengine.parallel.heartbeat import heartbeat
from ftengine.plugins.distributions import BLOCK_VARIABLE
from ftengine.plugins.registry import Registry
from ftengine.report.verdict import view_commands
from ftengine.report.write import conclude_again, verdict_of
from ftengine.run.directory import RunDirectory
from ftengine.run.environment import versions
from ftengine.run.recipe import Recipe
from ftengine.run.records import Environment, EvaluationResult, RunRecords, TrainedPart, Verdict
from ftengine.run.seal import report_state
from ftengine.text import listed
from ftengine.training.callbacks import Callbacks


class Run(Answering):
    """A run that `fine_tune` finished; weights are loaded when they are first needed.

    Args:
        path: the run directory.
        registry: components; by default those of all installed plugins.
        listener: receives phases and steps.
        precision: replaces the recipe's `train.precision`.
        trust_code: whether code outside of installed plugins may load the model or judge answers, if the recipe
            names some. Read the recipe of a run from somebody else first.

    Raises:
        RunError: the folder holds no finished run, or its trained part failed its check.
        RecipeError: the precision does not exist.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        registry: Registry | None = None,
        listener: Listener | None = None,
        precision: str | None = None,
        trust_code: bool = False,
    ) -> None:
        self.directory = RunDirectory(path)
        self.directory.require_finished()
        self.path = self.directory.path
        other = [f"train.precision={precision}", "model.dtype=auto"] if precision else []
        self.recipe = Recipe.read(self.path / "recipe.yaml", other)
        self.facts = TrainedPart.read(RunDirectory(self.directory.trained))
        self.listener = listener or SilentListener()
        report_state(self.directory, self.facts, self.listener)
        self.trust_code = trust_code
        self.day = Environment.read(self.directory).date
        """The day that its models' chat template writes; None: today."""
        self._registry = registry or Registry()
        self._ready: tuple[Device, LabelledTask, LoadedModel] | None = None
        self.base_now: Mapping[str, Any] = {}
        """Fingerprint of the base as it was loaded last; {} before."""

    @property
    def trained(self) -> Path:
        """Folder of the trained part, in the format of its ecosystem."""
        return self.directory.trained

    @property
    def evaluation(self) -> dict[str, Any]:
        """The figures of the run: base, tuned and difference."""
        return EvaluationResult.read(self.directory).to_json()

    def resampled_figures(self) -> dict[str, dict[str, ResampledFigure]]:
        """Return the figures of "base" and "tuned" by metric, with their resamples, from the stored predictions.

        Runs on the same examples with the recipe's `seed` weigh an example alike in each resample, so their resamples
        can be subtracted and averaged.

        Raises:
            RunError: predictions are missing or damaged.
            InputError: the run has no held-out split.
        """
        if (split := EvaluationResult.read(self.directory).split) is None:
            raise InputError(f"run {str(self.path)!r} has no held-out split, so it kept no predictions to measure.")
        ready = self.without_model()
        tables = {side: stored(self.directory, split, side) for side in ("base", "tuned")}
        weights = tables["tuned"].weights(self.recipe.seed, self.recipe.evaluation.resamples)
        return {
            side: measure_again(
                table, ready.evaluators(), ready.task, weights, validation_of(self.directory, split, side)
            ).figures
            for side, table in tables.items()
        }

    @property
    def verdict(self) -> Verdict:
        """The verdict on the run."""
        return verdict_of(self.path)

    def conclude(self) -> Verdict:
        """Judge the run again after one of its files has changed: rewrite verdict.json and report.html.

        Returns:
            The verdict.

        Raises:
            RunError: a file cannot be read or written.
        """
        return conclude_again(self.directory, self._registry)

    @property
    def metrics(self) -> list[dict[str, Any]]:
        """The lines of metrics.jsonl: one mapping per training step or validation."""
        return self.directory.metrics()

    @property
    def view_commands(self) -> list[str]:
        """Commands that show what the run's callbacks wrote, and by which people add to what rules judge."""
        with made_with(self.directory, self._registry):
            written = Callbacks(self.recipe, self._registry, self.listener).view_commands(self.path)
        return [*written, *view_commands(RunRecords.read(self.path), self._registry, self.listener)]

    @property
    def mergeable(self) -> bool:
        """Whether the strategy can be merged; a quantised base may still prevent it."""
        try:
            with made_with(self.directory, self._registry):
                check_merge(self._registry.build("strategy", self.facts.strategy, "strategy"))
        except NotMergeable:
            return False
        # The run is complete, whatever a third-party strategy raises; `merge` itself will tell.
        except Exception as error:
            self.listener.message(f"cannot tell whether the run can be merged: {type(error).__name__}: {error}")
            return False
        return True

    def evaluate(
        self, data: str | Path | None = None, *, evaluators: Sequence[str | Mapping[str, Any]] = ()
    ) -> dict[str, Any]:
        """Evaluate the base and the tuned model on the same examples.

        Args:
            data: a data file; by default the run's own test (else validation) split.
            evaluators: further evaluators (a name, or a mapping of `name` and options). Their figures are computed
                from the run's stored predictions, without a model, and added to its evaluation.json;
                verdict.json and report.html are rewritten.

        Returns:
            What evaluation.json holds: split, metrics, base, tuned, difference, details, displays, paired, training,
            slices, probes.

        Raises:
            InputError: the data cannot be used, the base is not the one trained on, or an evaluator reads a key
                that the run did not store.
            ProcessLost: one of several processes is gone.
        """
        named = {evaluator if isinstance(evaluator, str) else None for evaluator in evaluators}
        self.require_trusted_code(named if evaluators else None)
        if not evaluators:
            with heartbeat():
                return evaluate_run(self.ready(), self.directory, self.facts, data).to_json()
        if data is not None:
            raise InputError(
                "--evaluators reads the predictions that the run kept, and --data names other examples. To measure "
                "those with further evaluators, name them in recipe key 'evaluate'."
            )
        return add_figures(self.without_model(), self.directory, evaluators).to_json()

    def answering(
        self,
        *,
        base: bool = False,
        calibrated: bool = False,
        options: Mapping[str, Any] | None = None,
        samples: int | None = None,
    ) -> dict[str, Any]:
        """Return what this run's answers depend on besides the rows: the fields of `AnswerOrigin`.

        Until a base is loaded, it is the recorded base of training.
        """
        settings = self._settings(options, samples)
        if calibrated:  # by what stands in the trained part
            settings["calibrated"] = True
        if base:  # what was trained has no part in it; the seed has, where the base's head is a fresh one
            facts = self.facts.to_json()
            settings |= {"seed": self.recipe.training_seed, "task": facts["task"], "labels": facts["labels"]}
        return {
            "ftengine": versions()["ftengine"],
            "run": str(self.path),
            "model": "base" if base else "tuned",
            "trained": "" if base else folder_hash(self.trained),
            "base": dict(self.base_now or self.facts.base),
            "settings": settings,
        }

    def _calibration(self, base: bool) -> dict[str, Any]:
        """Return what the task fitted on validation (InputError: nothing, or for another model)."""
        if base:
            raise InputError("--calibrated is for the tuned model, and --base asks the base model. Drop one of them.")
        if not self.facts.calibration:
            raise InputError(f"run {str(self.path)!r} has no calibration: {self.facts.uncalibrated}.")
        return self.facts.calibration

    @contextmanager
    def model(self, *, base: bool = False, began: bool = False) -> Iterator[LoadedModel]:
        """Yield the tuned model or its base for inference: evaluation mode, no gradients, the run's precision.

        `began` yields the model as training began: the base, with the trained part that the strategy started from, if
        any. The tuned model stays loaded for the next call; the others are loaded at each call.

        Raises:
            InputError: the base is not the one trained on, needs code that is not trusted to load, or the trained
                part that the strategy started from is gone.
        """
        device, _, loaded = self._model(base, began)
        with device.inference(loaded):
            yield loaded

    def merge(self, out: str | Path, dtype: str = "auto") -> MergeReport:
        """Merge the trained part into the base and save a plain model, after checking that outputs agree.

        Args:
            out: a folder that does not exist yet or is empty.
            dtype: of the merged weights; "auto" keeps the dtype of the base, or float32 where that cannot represent
                the learnt numbers.

        Raises:
            RunError: `out` is in use.
            InputError: the dtype does not exist.
            NotMergeable: the strategy cannot be merged.
            MergeChangedOutputs: merging, or the dtype, changed the outputs by too much; nothing is written.
        """
        if dtype not in MERGED_DTYPES:
            raise InputError(f"dtype {dtype!r}: merged weights are stored as {listed(MERGED_DTYPES)}.")
        target = RunDirectory(out)
        target.require_free("another folder")
        labelled = self.without_model(check_source=True)
        strategy = check_merge(labelled.experiment.make_strategy())
        loaded = load_base_of(labelled, self.facts, self.trained)
        write_calibration(loaded.module, self.facts.calibration)
        return merge_into(target, labelled, strategy, loaded, self.trained, dtype)

    def open_model(self) -> LoadedModel:
        labelled = self.without_model(check_source=True)
        loaded, strategy = load_base_of(labelled, self.facts, self.trained), labelled.experiment.make_strategy()
        apply_strategy(strategy, loaded)
        load_trained_part(strategy, loaded, self.trained)
        return loaded

    def without_model(self, *, check_source: bool = False) -> LabelledTask:
        """Return the run's task with its labels, without components that only act in training.

        `check_source` also checks the model's source.
        """
        with made_with(self.directory, self._registry):
            experiment = self._experiment(self.facts.strategy)
        if check_source:
            self._check_source(experiment)
        task = experiment.make_task()
        task.labels = self.facts.labels
        return LabelledTask(experiment, task)

    def require_trusted_code(self, names: Collection[str | None] | None = None) -> None:
        """Apply `require_trust` to the code of the named evaluators, or of the task and all evaluators (None)."""
        labelled = self.without_model()
        if names is None and is_on_policy(labelled.task):
            self.require_trust(labelled.task.runs_code(), "draws or scores answers by")
        for evaluator in labelled.evaluators():
            if isinstance(evaluator, CodeEvaluator) and (names is None or evaluator.name in names):
                self.require_trust(evaluator.runs_code(), "measures its answers by")

    def _model(self, base: bool, began: bool = False) -> tuple[Device, LabelledTask, LoadedModel]:
        if not (base or began) and self._ready is not None:
            return self._ready
        device, labelled = Device.open(self.recipe), self.without_model(check_source=True)
        loaded = load_base_of(labelled, self.facts, self.trained)
        self.base_now = {"source": loaded.source, **loaded.fingerprint}
        starting = reference_model(labelled, self.directory) if began else labelled
        if began and starting.experiment.make_strategy().starts_from is not None:
            prepare_strategy(device, starting, loaded)
            return device, starting, loaded
        if base or began:
            require_finite_weights(loaded, f"the base of run {str(self.path)!r}")
            loaded.module.requires_grad_(False)  # so that all of it is kept in the compute dtype
            device.place(loaded)
            return device, labelled, loaded
        # What trains is float32 from here on, so that nothing of it is rounded.
        load_trained_part(prepare_strategy(device, labelled, loaded), loaded, self.trained)
        require_finite_weights(loaded, f"run {str(self.path)!r}")
        self._ready = device, labelled, loaded
        return self._ready


@contextmanager
def made_with(run: RunDirectory, registry: Registry) -> Iterator[None]:
    """On UnknownName, add the distributions that made the run (environment.json) and what to install."""
    try:
        yield
    except UnknownName as error:
        status = {origin.distribution: origin.status for origin in registry.plugins.origins.values()}
        made = {p["distribution"]: p["version"] for p in Environment.read(run).plugins if p["status"] == "loaded"}
        gone = [name for name in made if status.get(name) != "loaded"]
        if not gone:
            raise
        blocked = [name for name in gone if status.get(name) == "blocked"]
        advice = f"take {', '.join(blocked)} out of {BLOCK_VARIABLE}" if blocked else "install what it was made with"
        raise UnknownName(
            f"{error} Run {str(run.path)!r} was made with {' and '.join(f'{name} {made[name]}' for name in gone)}, "
            f"not loaded here: {advice}."
        ) from None


load_run = Run
"""Open a finished run; weights are read when first needed."""
