"""Opening an exported artifact in a process of its own, which has only the artifact's files."""

from __future__ import annotations

import pickle
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import torch

from ftengine.api import Component, Exporter, ExportSource, Labels, Runtime, Task
from ftengine.engine.artifact import opened_by
from ftengine.evaluation.questions import Question, as_runtime, scored

SECONDS = 300
"""What opening a small model and asking it a few questions may take."""
PATHS, PAYLOAD, RESULT = "paths", "payload", "result"
"""Files by which two processes talk: where modules are found, what is asked, and what came of it."""


def answers_of(exporter: Exporter, source: ExportSource, folder: Path, ask: Callable[[Runtime], Any]) -> Any:
    """Return the result of `ask` on the runtime that an exporter opens."""
    with opened_by(exporter, folder, source) as opened:
        return ask(opened)


def refused(*_: object) -> NoReturn:
    """Raise an error: replaces functions that opening an artifact must not call."""
    raise AssertionError("open() asks for the merged model, which is not in the artifact")


@dataclass(frozen=True)
class LogProbabilities:
    """Asks an opened runtime for the log-probabilities of the tuned model's answers."""

    questions: Sequence[Question]

    def __call__(self, opened: Runtime) -> list[np.ndarray]:
        return scored(as_runtime(opened, torch.device("cpu")).log_probabilities, self.questions)


class _Pickler(pickle.Pickler):
    """Pickles components as class and options, so that another process builds them without earlier state."""

    def reducer_override(self, value: Any) -> Any:
        if isinstance(value, Component):
            return _built, (type(value), value.config, getattr(value, "labels", None))
        return NotImplemented


def _built(cls: type[Component], config: Any, labels: Labels | None) -> Component:
    component = cls(config)
    if isinstance(component, Task):
        component.labels = labels
    return component


def in_another_process(
    exporter: Exporter, source: ExportSource, folder: Path, ask: Callable[[Any], Any], place: Path
) -> Any:
    """Return the result of `answers_of` in another process (AssertionError, pickle.PicklingError: it fails)."""
    (place / PATHS).write_text("\n".join(sys.path), encoding="utf-8")
    try:
        with (place / PAYLOAD).open("wb") as file:
            _Pickler(file).dump((exporter, source, folder, ask))
    except (TypeError, AttributeError, RuntimeError) as error:
        raise pickle.PicklingError(str(error)) from error
    command = [sys.executable, "-c", _MAIN, str(place)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS)
    if done.returncode == _CANNOT_BE_READ:
        raise pickle.PicklingError(done.stderr.strip().splitlines()[-1])
    assert done.returncode == 0, (
        f"it cannot be opened in another process: {(done.stderr.strip() or '?').splitlines()[-1]}"
    )
    return pickle.loads((place / RESULT).read_bytes())


_CANNOT_BE_READ = 3
_MAIN = f"""
import pickle, sys
from pathlib import Path
place = Path(sys.argv[1])
sys.path[:] = (place / {PATHS!r}).read_text(encoding="utf-8").splitlines()
try:
    exporter, source, folder, ask = pickle.loads((place / {PAYLOAD!r}).read_bytes())
except (AttributeError, ImportError) as error:
    sys.exit(print(error, file=sys.stderr) or {_CANNOT_BE_READ})
from ftengine.testing.opening import answers_of
(place / {RESULT!r}).write_bytes(pickle.dumps(answers_of(exporter, source, folder, ask)))
"""
