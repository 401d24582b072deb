"""Experiment trackers: those of Accelerate, each as a callback."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ftengine.api import Callback, Failed, Finished, Started, Stepped, Validated
from ftengine.errors import RecipeError

FOLDER = "trackers"
"""Folder inside a run where trackers that keep files put them."""
PROJECT = "ftengine"
"""Under which trackers with projects file a run."""


class Tracker(Callback):
    """Log the recipe, every step and validation, and the figures at the end.

    Figures have the names of metrics.jsonl, and base/METRIC, tuned/METRIC and difference/METRIC.
    """

    _started: Any = None

    def check_options(self) -> None:
        """Raise RecipeError where the tracker's package is not installed."""
        from accelerate.tracking import get_available_trackers

        installed = sorted(map(str, get_available_trackers()))
        if self.name not in installed:
            raise RecipeError(
                f"{self.name!r} is not installed. Install it with `pip install {self.name.replace('_', '-')}`, "
                f"or take it out; installed: {', '.join(installed) or 'none'}."
            )

    def on_train_begin(self, event: Started) -> None:
        from accelerate.tracking import LOGGER_TYPE_TO_CLASS

        cls: Any = {str(name): cls for name, cls in LOGGER_TYPE_TO_CLASS.items()}[self.name]
        folder = event.run / FOLDER
        folder.mkdir(parents=True, exist_ok=True)
        place = [str(folder)] if cls.requires_logging_directory else []
        self._started = cls(PROJECT, *place, **self._options(event))
        self._started.start()
        if not event.step:  # a resumed run has told them
            self._started.store_init_configuration(_flat(event.recipe))

    def on_step_end(self, event: Stepped | Validated) -> None:
        self._log(event.step, event.figures)

    on_evaluate = on_step_end

    def on_run_end(self, event: Finished) -> None:
        sides = {side: event.evaluation[side] for side in ("base", "tuned", "difference")}
        self._log(event.step, {f"{side}/{name}": x["value"] for side, of in sides.items() for name, x in of.items()})
        self.on_exception(event)

    def on_exception(self, event: Failed | Finished) -> None:
        if self._started is not None:
            self._started.finish()

    def _options(self, event: Started) -> dict[str, Any]:
        """Return what the tracker is opened with."""
        return {}

    def _log(self, step: int, figures: Mapping[str, Any]) -> None:
        numbers = {
            name: value
            for name, value in figures.items()
            if name != "step" and isinstance(value, (int, float)) and not isinstance(value, bool)
        }
        if numbers and self._started is not None:  # else the run is only completed here
            self._started.log(numbers, step=step)


class TensorBoard(Tracker):
    """Log to TensorBoard: the recipe, every step and validation, and the figures at the end."""

    name = "tensorboard"

    def _options(self, event: Started) -> dict[str, Any]:
        # Lines after the checkpoint are written again; TensorBoard is told to forget the former ones.
        return {"purge_step": event.step + 1} if event.step else {}

    def view_command(self, run: Path) -> str:
        return f"tensorboard --logdir {run / FOLDER}"


def _tracker(name: str, called: str) -> type[Tracker]:
    doc = f"Log to {called}: the recipe, every step and validation, and the figures at the end."
    return type(called.replace(" ", ""), (Tracker,), {"name": name, "__doc__": doc, "__module__": __name__})


TRACKERS = (
    TensorBoard,
    _tracker("aim", "Aim"),
    _tracker("clearml", "ClearML"),
    _tracker("comet_ml", "Comet"),
    _tracker("dvclive", "DVCLive"),
    _tracker("mlflow", "MLflow"),
    _tracker("swanlab", "SwanLab"),
    _tracker("trackio", "Trackio"),
    _tracker("wandb", "Weights and Biases"),
)
"""What Accelerate knows, under its names."""


def _flat(content: Mapping[str, Any]) -> dict[str, Any]:
    """Return nested values under dotted keys; what trackers do not take as a hyper-parameter becomes JSON."""
    from transformers.utils import flatten_dict

    flat = flatten_dict(content).items()
    return {key: value if isinstance(value, (bool, int, float, str)) else json.dumps(value) for key, value in flat}
