"""A base model that answers without training: the model of a recipe, or a model by itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ftengine.api import Listener, LoadedModel, SilentListener, Task
from ftengine.api.task_sorts import generated_keys
from ftengine.engine.answering import Answering
from ftengine.engine.finished import load_run
from ftengine.engine.prepared_data import LabelledTask, inferring
from ftengine.engine.prepared_model import load_base
from ftengine.errors import InputError, SourceError
from ftengine.evaluation.finite import require_finite_weights
from ftengine.parallel.device import Device
from ftengine.plugins.registry import AUTO, Registry
from ftengine.run.directory import RunDirectory
from ftengine.run.environment import versions
from ftengine.run.recipe import Recipe

RECIPES = (".yaml", ".yml")
ROWS = "rows"
"""What stands for the data in the recipe of a model that is named alone."""
TRAIN = "Train it (`ftengine train`), and name the run."


def load_model(
    source: str | Path,
    *,
    registry: Registry | None = None,
    listener: Listener | None = None,
    precision: str | None = None,
    trust_code: bool = False,
) -> Answering:
    """Open a model that answers rows: a finished run, the base model of a recipe, or a base model by itself.

    Args:
        source: a run's folder, a recipe (.yaml), or what `model.source` of a recipe may be. A model by itself has the
            task that `ftengine init` proposes for it.
        registry, listener, precision, trust_code: as of `Run`. A recipe, which you wrote, is trusted.

    Raises:
        InputError: the source is none of these, or its task cannot answer without training.
        RunError: the run is not finished, or its trained part failed its check.
    """
    settings: dict[str, Any] = {"registry": registry or Registry(), "listener": listener or SilentListener()}
    if RunDirectory(source).is_run():
        return load_run(source, precision=precision, trust_code=trust_code, **settings)
    if str(source).lower().endswith(RECIPES):
        set_ = [f"train.precision={precision}", "model.dtype=auto"] if precision else []
        return Untrained(Recipe.read(source, set_), source, trust_code=True, **settings)
    try:
        return Untrained(
            _recipe_of(str(source), settings["registry"], precision), source, trust_code=trust_code, **settings
        )
    except SourceError as error:
        raise InputError(
            f"{str(source)!r} is neither the folder of a run, nor a recipe (.yaml), nor a model: {error}"
        ) from None


class Untrained(Answering):
    """A recipe's base model and task, with nothing trained.

    Args:
        name: names the model in messages.

    Raises:
        InputError: the task needs training before it can answer, or never answers rows.
        SourceError: the model cannot be loaded.
    """

    def __init__(
        self, recipe: Recipe, name: str | Path, *, registry: Registry, listener: Listener, trust_code: bool
    ) -> None:
        self.recipe, self.path, self.listener, self.trust_code = recipe, Path(name), listener, trust_code
        self.day, self.base_now, self._registry = None, {}, registry
        self._ready: tuple[Device, LabelledTask, LoadedModel] | None = None
        task = inferring(self.without_model(check_source=True).task)
        if not answers_untrained(task):
            raise InputError(f"{self._untrained(task)} answers by what training learns. {TRAIN}")

    def _untrained(self, task: Task) -> str:
        return f"{str(self.path)!r}: nothing is trained yet, and task {task.name!r}"

    def answering(self, *, base: bool = False, calibrated: bool = False, **settings: Any) -> dict[str, Any]:
        """Return what the answers depend on besides the rows; this loads the model."""
        if calibrated:
            self._calibration(base)
        self._model(base)
        return {
            "ftengine": versions()["ftengine"],
            "run": str(self.path),
            "model": "base",
            "trained": "",
            "base": dict(self.base_now),
            "settings": {**self._settings(settings.get("options"), settings.get("samples")), "task": self.recipe.task},
        }

    def without_model(self, *, check_source: bool = False) -> LabelledTask:
        experiment = self._experiment(self.recipe.strategy)
        if check_source:
            self._check_source(experiment)
        return LabelledTask(experiment, experiment.make_task())

    def open_model(self) -> LoadedModel:
        return load_base(self.without_model(check_source=True))

    def _calibration(self, base: bool) -> dict[str, Any]:
        raise InputError(f"{str(self.path)!r} has no calibration, as nothing is trained yet. {TRAIN}")

    def _model(self, base: bool) -> tuple[Device, LabelledTask, LoadedModel]:
        if self._ready is None:
            device, labelled = Device.open(self.recipe), self.without_model(check_source=True)
            loaded = load_base(labelled)
            if loaded.new_modules:
                raise InputError(
                    f"{self._untrained(labelled.task)} answers by {', '.join(loaded.new_modules)}, which "
                    f"{loaded.source!r} does not have. {TRAIN}"
                )
            self.base_now = {"source": loaded.source, **loaded.fingerprint}
            require_finite_weights(loaded, repr(str(self.path)))
            loaded.module.requires_grad_(False)  # so that all of it is kept in the compute dtype
            device.place(loaded)
            self._ready = device, labelled, loaded
        return self._ready


def answers_untrained(task: Task) -> bool:
    """Return whether a base model can answer the task without training, with text or vectors."""
    return bool(generated_keys(task)) or task.traits.answers_vectors


def _recipe_of(source: str, registry: Registry, precision: str | None) -> Recipe:
    """Return a recipe for a model with the first task (by traits, then by name) that it can answer untrained.

    Raises:
        SourceError: it is not a model, or fits none of these tasks.
    """
    loader = registry.loader_of(source, {"name": AUTO})
    loader.check_source(source)
    entries = [entry for entry in registry.buildable("task") if answers_untrained(entry.cls())]
    reason = None
    for entry in sorted(entries, key=lambda entry: not entry.cls.traits.is_default):
        try:
            loader.check_head(source, entry.cls().head)
        except SourceError as error:
            reason = reason or error
            continue
        content: dict[str, Any] = {"model": {"source": source}, "task": entry.name, "data": {"train": ROWS}}
        content["strategy"] = registry.usual("strategy", {"name": AUTO}, "strategy").described
        return Recipe.make(content | ({"train": {"precision": precision}} if precision else {}))
    raise reason or SourceError(f"no installed task answers with {source!r} before it is trained.")
