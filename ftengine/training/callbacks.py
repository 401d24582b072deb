"""Calls a recipe's callbacks at the events of a run."""

from __future__ import annotations

from pathlib import Path
from threading import Thread

from ftengine.api import BeforeStep, Callback, Event, Failed, Finished, Listener
from ftengine.errors import TrainingError, naming
from ftengine.model.modes import generators_kept
from ftengine.plugins.attribution import cause_in
from ftengine.plugins.registry import Registry
from ftengine.run.recipe import Recipe
from ftengine.training.model_watch import ModelWatch
from ftengine.training.process_watch import ProcessWatch, running


class Callbacks:
    """A recipe's callbacks; one that raises is reported and switched off.

    Raises:
        UnknownName, RecipeError: a callback does not exist, or lacks something that it needs.
    """

    def __init__(self, recipe: Recipe, registry: Registry, listener: Listener) -> None:
        self.listener = listener
        self._threads: dict[int, list[Thread]] = {}  # by id of the callback, which may be unhashable
        self._moved: set[int] = set()
        self._watch: ModelWatch | None = None  # from the first step on
        self.callbacks: list[tuple[Callback, str]] = []
        described: list[object] = []
        for key, spec in ((f"callbacks.{i}", spec) for i, spec in enumerate(recipe.callbacks)):
            factory = registry.factory("callback", spec if len(spec) > 1 else spec["name"], key)
            if factory.described in described:  # named twice in the recipe
                continue
            described.append(factory.described)
            callback = factory()
            with naming(key):
                callback.check_options()
            self.callbacks.append((callback, str(factory.entry.origin)))

    def notify(self, event: Event) -> None:
        """Call the method for an event of every callback; only in the main process.

        Raises:
            TrainingError: a callback ends the run with an error, or changed the model.
        """
        if isinstance(event, BeforeStep) and (self._watch is None or not self._watch.is_of(event.model)):
            self._watch = ModelWatch(event.model)
        elif isinstance(event, Finished | Failed):
            self._watch = None
        if self._watch is not None and self.callbacks:
            self._watch.look(event.step, gradients=isinstance(event, BeforeStep))
        for callback, origin in tuple(self.callbacks):
            process = ProcessWatch()
            try:
                with generators_kept(), process:
                    getattr(callback, event.moment)(event)
            # A run survives any error of a callback, even sys.exit.
            except (Exception, SystemExit) as error:
                who, cause = f"callback {callback.name!r} of {origin}", cause_in(callback, error)
                self.callbacks = [pair for pair in self.callbacks if pair[0] is not callback]
                if isinstance(error, TrainingError) and not isinstance(event, Failed):
                    raise TrainingError(f"{who} ends the run: {cause}") from error
                self.listener.message(f"{who} failed and is switched off for the rest of the run: {cause}")
            self._tell_changes(callback, origin, event, process)
            if self._watch is not None and (changed := self._watch.changed()):
                raise TrainingError(
                    f"callback {callback.name!r} of {origin} changed {changed} in {event.moment}() at step "
                    f"{event.step}: a callback must not change the model, so that the run is the same without it. Take "
                    "it out of the recipe's callbacks; write a regularizer or a strategy to change a model."
                )

    def _tell_changes(self, callback: Callback, origin: str, event: Event, process: ProcessWatch) -> None:
        """Report the working directory or threads that a callback changed in the process, each once."""
        threads, changes = self._threads.setdefault(id(callback), []), list[str]()
        threads += process.started()
        if process.moved_to and id(callback) not in self._moved:
            self._moved.add(id(callback))
            changes.append(
                f"changes the working directory to {process.moved_to!r} in {event.moment}(); it is restored: "
                "use absolute paths for programs and files, such as event.run"
            )
        if isinstance(event, Finished | Failed) and (name := running(self._threads.pop(id(callback)))):
            changes.append(
                f"may have left the thread {name!r}, which was started while it ran and still runs after the run: end "
                f"its threads in {Finished.moment}() and in {Failed.moment}()"
            )
        for text in changes:
            self.listener.message(f"callback {callback.name!r} of {origin} {text}")

    def view_commands(self, run: Path) -> list[str]:
        """Return the commands that show what callbacks wrote; report a callback that fails."""
        commands: list[str] = []
        for callback, origin in self.callbacks:
            try:
                commands += filter(None, [callback.view_command(run)])
            # The run is complete even if a third-party callback raises.
            except (Exception, SystemExit) as error:
                self.listener.message(f"callback {callback.name!r} of {origin} failed: {cause_in(callback, error)}")
        return commands
