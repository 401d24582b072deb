"""Experiment trackers (TensorBoard and whatever else Accelerate knows): told of every line of metrics.jsonl."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ftengine.api import Listener, SilentListener
from ftengine.errors import RecipeError, did_you_mean

FOLDER = "trackers"
"""Folder inside a run where trackers that keep files put them."""
PROJECT = "ftengine"
"""Under which trackers with projects file a run."""


def check_trackers(names: Sequence[str]) -> None:
    """Refuse trackers that do not exist or whose package is missing.

    Raises:
        RecipeError: names what is installed, what there is, and the package to install.
    """
    if not names:
        return
    known, installed = _known(), _installed()
    for name in names:
        if name not in known:
            raise RecipeError(
                f"train.trackers: no tracker named {name!r}. Accelerate knows {', '.join(known)}; installed: "
                f"{', '.join(installed) or 'none'}.{did_you_mean(name, known)}"
            )
        if name not in installed:
            raise RecipeError(
                f"train.trackers: {name!r} is not installed. Install it with `pip install {name.replace('_', '-')}`, "
                f"or take it out; installed: {', '.join(installed) or 'none'}."
            )


def open_trackers(
    names: Sequence[str], run: Path, recipe: Mapping[str, Any], step: int = 0, listener: Listener | None = None
) -> Trackers:
    """Start trackers on the main process.

    Args:
        names: such as `check_trackers` accepts.
        run: the run's folder; files go into `trackers/` there.
        recipe: the resolved recipe, told once, when a run begins.
        step: optimiser steps done before, where a run is resumed.
        listener: told of trackers that fail.
    """
    if not names:
        return Trackers([])
    folder = run / FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    classes = _known()
    started = []
    for name in dict.fromkeys(names):
        place = [str(folder)] if classes[name].requires_logging_directory else []
        # Lines after the checkpoint are written again; TensorBoard is told to forget the former ones.
        options = {"purge_step": step + 1} if name == "tensorboard" and step else {}
        tracker = classes[name](PROJECT, *place, **options)
        if hasattr(tracker, "start"):  # trackers registered by third parties may do without
            tracker.start()
        if not step:
            tracker.store_init_configuration(flat(recipe))
        started.append(tracker)
    return Trackers(started, listener)


class Trackers:
    """Those that were started; none is a Trackers as well. One that fails is told no more, and training goes on.

    Args:
        started: Accelerate's trackers.
        listener: told of those that fail.
    """

    def __init__(self, started: Sequence[Any] = (), listener: Listener | None = None) -> None:
        self.started, self._listener = list(started), listener or SilentListener()
        self.step = 0

    def log(self, line: Mapping[str, Any]) -> None:
        """Pass on the numbers of a line of metrics.jsonl, under its names, at its step."""
        figures = {name: value for name, value in line.items() if name != "step" and _is_number(value)}
        self.step = max(self.step, line["step"])
        if figures:
            self._tell(lambda tracker: tracker.log(figures, step=line["step"]))

    def evaluated(self, evaluation: Mapping[str, Any]) -> None:
        """Pass on the figures of evaluation.json (base/METRIC, tuned/METRIC, difference/METRIC)."""
        figures = {
            f"{side}/{metric}": figure["value"]
            for side in ("base", "tuned", "difference")
            for metric, figure in evaluation[side].items()
        }
        self.log({"step": self.step, **figures})

    def finish(self) -> None:
        """End all of them, whether the run came to its end or failed."""
        self._tell(lambda tracker: tracker.finish())

    def _tell(self, call: Callable[[Any], object]) -> None:
        for tracker in tuple(self.started):
            try:
                call(tracker)
            except Exception as error:  # whatever a service or its client may raise, the run is worth more
                self.started.remove(tracker)
                self._listener.message(f"tracker {tracker.name!r} failed and is left out from here on: {error}")


def flat(content: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested values under dotted keys; what trackers do not take as a hyper-parameter becomes JSON."""
    values: dict[str, Any] = {}
    for key, value in content.items():
        if isinstance(value, Mapping):
            values |= flat(value, f"{prefix}{key}.")
        else:
            simple = isinstance(value, (bool, int, float, str))
            values[prefix + key] = value if simple else json.dumps(value)
    return values


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _known() -> dict[str, Any]:
    """Return Accelerate's tracker classes by name, registered ones included."""
    from accelerate.tracking import LOGGER_TYPE_TO_CLASS

    return {str(name): cls for name, cls in sorted(LOGGER_TYPE_TO_CLASS.items())}


def _installed() -> list[str]:
    from accelerate.tracking import get_available_trackers
    from accelerate.utils import LoggerType

    available = {str(name) for name in get_available_trackers()}
    own = {name for name in _known() if name not in LoggerType.list()}
    return sorted(available | own)
