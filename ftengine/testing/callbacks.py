"""Checks of callbacks, which get all events of a run in a temporary folder."""

from __future__ import annotations

import copy
import random
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from ftengine import api
from ftengine.errors import InputError, TrainingError
from ftengine.model.modes import generators_kept, hooks
from ftengine.testing.checks import Checks, not_suited, run_checks, skip
from ftengine.testing.runs import stored_runs
from ftengine.testing.values import equal, explained
from ftengine.training.process_watch import ProcessWatch, running


def check_callback(make: Callable[[], api.Callback], expected_failed_checks: Mapping[str, str] | None = None) -> None:
    """Check a callback on the events of a small run.

    Args:
        make: returns a fresh callback.
        expected_failed_checks: names of checks that fail, with reasons.
    """
    run_checks(CallbackChecks(make), expected_failed_checks)


def events(run: Path) -> list[api.Event]:
    """Return the events of a run of two steps and of a run that fails; `run` is an existing folder."""
    records = stored_runs()["a sound run"]
    recipe = records.recipe.model_dump(mode="json")
    step = {"epoch": 0, "loss": 1.5, "learning_rate": 2e-4, "grad_norm": 1.0, "examples": 16, "tokens": 512}
    figures = records.evaluation.to_json()
    saved = run / "checkpoints" / "step-000002"
    saved.mkdir(parents=True, exist_ok=True)
    return [
        api.Started(run, 0, recipe),
        api.BeforeStep(run, 1, _with_gradients(), 1.5),
        api.Stepped(run, 1, {"step": 1, **step}),
        api.Stepped(run, 2, {"step": 2, **step, "loss": float("inf")}),
        api.Validated(run, 2, {"step": 2, "epoch": 0, "validation_loss": 1.4, "training_loss": 1.5}),
        api.Saved(run, 2, saved),
        api.Finished(run, 2, figures),
        api.Started(run, 2, recipe),
        api.Failed(run, 2, ValueError("something went wrong")),
    ]


def steps_of(run: Path, began: int, ended: int) -> list[api.Event]:
    """Return the events of a run of two steps that resumes after step `began` and is killed after step `ended`."""
    all_events = events(run)
    later = [
        event for event in all_events if not isinstance(event, api.Started | api.Failed) and began < event.step <= ended
    ]
    return [replace(all_events[0], step=began), *later]


@dataclass
class CallbackChecks(Checks):
    """Checks of a callback on the events of a small run."""

    make: Callable[[], api.Callback]

    def it_takes_every_event(self) -> None:
        for callback, event in self._events():
            with explained(f"{event.moment}() fails", "an event may have any value that its class allows"):
                _tell(callback, event)

    def events_stay_as_they_are(self) -> None:
        for callback, event in self._events():
            before = copy.deepcopy(_fields(event))
            _tell(callback, event)
            assert equal(_fields(event), before), f"{event.moment}() changes a value of its event: copy it first"

    def the_model_stays_as_it_is(self) -> None:
        models: list[tuple[nn.Module, dict[str, Any]]] = []
        for callback, event in self._events():
            if isinstance(event, api.BeforeStep):
                models.append((event.model, copy.deepcopy(_tensors(event.model))))
            _tell(callback, event)
            for model, before in models:
                assert equal(_tensors(model), before), (
                    f"it changes the model's weights, gradients or mode in {event.moment}(): only read them in "
                    f"{api.BeforeStep.moment}(), or change a copy"
                )
                hooks_left = sum(map(hooks, model.modules()))
                assert not hooks_left, (
                    f"it leaves {hooks_left} hooks on the model: remove them before {event.moment}() returns"
                )

    def random_numbers_stay_as_they_are(self) -> None:
        for callback, event in self._events():
            before = _drawn_next()
            _tell(callback, event)
            assert _drawn_next() == before, (
                f"it draws from, or seeds, a global generator in {event.moment}(), which changes the run: use "
                "your own generator (random.Random(), numpy's default_rng)"
            )

    def the_process_stays_as_it_is(self) -> None:
        with ProcessWatch() as run:
            for callback, event in self._events():
                moved_to = _tell(callback, event)
                assert not moved_to, (
                    f"it changes the working directory to {moved_to!r} in {event.moment}(), which changes "
                    "the meaning of the run's relative paths: use absolute paths, such as event.run"
                )
                if isinstance(event, api.Finished | api.Failed) and (name := running(run.started())):
                    raise AssertionError(
                        f"it leaves the thread {name!r} running after {event.moment}(): end and join it there"
                    )

    def a_resumed_run_leaves_the_files_of_an_uninterrupted_one(self) -> None:
        uninterrupted, again, resumed = (self._files_after(steps) for steps in ([0, 2], [0, 2], [0, 2, 1, 2]))
        same = {name for name, content in uninterrupted.items() if again.get(name) == content}
        other = sorted(name for name in same if resumed.get(name) != uninterrupted[name])
        assert not other, (
            f"{other[0]!r} differs if a run is interrupted after step 2 and resumed from the checkpoint of step 1: in "
            "on_train_begin(), remove entries after event.step, because those steps are repeated"
        )

    def its_viewer_is_a_command(self) -> None:
        callback = self._fresh()
        if not api.overrides(callback, "view_command"):
            skip("it names no viewer")
        command = callback.view_command(Path("a-run"))
        is_command = isinstance(command, str) and bool(command.strip())
        assert is_command, f"view_command returns {command!r}"

    def _events(self) -> Iterator[tuple[api.Callback, api.Event]]:
        callback = self._fresh()
        with tempfile.TemporaryDirectory() as folder:
            for event in events(Path(folder)):
                yield callback, event

    def _files_after(self, steps: Sequence[int]) -> dict[str, bytes]:
        """Return the files after a run whose parts begin and end at pairs of `steps`."""
        with tempfile.TemporaryDirectory() as folder:
            run = Path(folder) / "run"
            run.mkdir()
            for began, ended in zip(steps[::2], steps[1::2], strict=True):
                callback = self._fresh()
                for event in steps_of(run, began, ended):
                    _tell(callback, event)
            return {str(x.relative_to(run)): x.read_bytes() for x in sorted(run.rglob("*")) if x.is_file()}

    def _fresh(self) -> api.Callback:
        callback = self.make()
        if api.overrides(callback, "check_options"):
            try:
                callback.check_options()
            except InputError as error:
                not_suited(str(error))
        return callback


def _tell(callback: api.Callback, event: api.Event) -> str:
    """Call a callback for an event; it may raise TrainingError to end the run.

    Returns:
        The working directory that it changed to, which is restored; "" if it did not.
    """
    with suppress(TrainingError), ProcessWatch() as process:
        getattr(callback, event.moment)(event)
    return process.moved_to


def _drawn_next() -> tuple[float, float, float]:
    """Return the next numbers of the global generators without advancing them."""
    with generators_kept():
        return random.random(), float(np.random.random()), float(torch.rand(()))


def _fields(event: api.Event) -> dict[str, Any]:
    excluded = (Path, BaseException, nn.Module)
    return {name: value for name, value in vars(event).items() if not isinstance(value, excluded)}


def _with_gradients() -> nn.Module:
    """Return a small model in training mode, one of whose parameters has no gradient."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 2))
    model[0].bias.requires_grad_(False)
    model(torch.ones(2, 4)).sum().backward()
    return model


def _tensors(model: nn.Module) -> dict[str, Any]:
    values: dict[str, Any] = {name: (p.detach(), p.grad) for name, p in model.named_parameters()}
    return {**values, "": [part.training for part in model.modules()]}
