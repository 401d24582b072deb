"""Tells a recipe's callbacks what happens in a run."""

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
    """A recipe's callbacks; one that raises is named and left out from then on.

    Raises:
        UnknownName, RecipeError: one does not exist, or lacks what it needs.
    """

    def __init__(self, recipe: Recipe, registry: Registry, listener: Listener) -> None:
        self.listener = listener
        self._threads: dict[int, list[Thread]] = {}  # by id of the callback, which may be unhashable
        self._moved: set[int] = set()
        self._watch: ModelWatch | None = None  # from the first step on
        self.callbacks: list[tuple[Callback, str]] = []
        seen: list[object] = []
        for key, spec in ((f"callbacks.{i}", spec) for i, spec in enumerate(recipe.callbacks)):
            factory = registry.factory("callback", spec if len(spec) > 1 else spec["name"], key)
            if factory.described in seen:  # named twice is told once
                continue
            seen.append(factory.described)
            callback = factory()
            with naming(key):
                callback.check_options()
            self.callbacks.append((callback, str(factory.entry.origin)))

    def tell(self, event: Event) -> None:
        """Call the method of an event's moment of each; in the main process alone.

        Raises:
            TrainingError: one ends the run by it, or changed the model, so that it would be another run.
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
            # Whatever a callback may raise, sys.exit among it, the run is worth more.
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
                    f"{event.step}: a callback looks at the model, and a run is the same with it and without. Take it "
                    "out of the recipe's callbacks; what changes a model is a regularizer or a strategy."
                )

    def _tell_changes(self, callback: Callback, origin: str, event: Event, process: ProcessWatch) -> None:
        """Say what a callback changed of the process, which other code of the run shares; each once."""
        threads, found = self._threads.setdefault(id(callback), []), list[str]()
        threads += process.started()
        if process.moved_to and id(callback) not in self._moved:
            self._moved.add(id(callback))
            found.append(
                f"changes the working directory to {process.moved_to!r} in {event.moment}(); it is put back: "
                "give programs and files whole paths, such as event.run"
            )
        if isinstance(event, Finished | Failed) and (name := running(self._threads.pop(id(callback)))):
            found.append(
                f"may have left the thread {name!r}, which was started while it ran and still runs after the run: end "
                f"what it starts in {Finished.moment}() and in {Failed.moment}()"
            )
        for text in found:
            self.listener.message(f"callback {callback.name!r} of {origin} {text}")

    def view_commands(self, run: Path) -> list[str]:
        """Return the commands that show what callbacks wrote; a callback that fails is named."""
        commands: list[str] = []
        for callback, origin in self.callbacks:
            try:
                commands += filter(None, [callback.view_command(run)])
            # The run is complete, whatever a third-party callback raises.
            except (Exception, SystemExit) as error:
                self.listener.message(f"callback {callback.name!r} of {origin} failed: {cause_in(callback, error)}")
        return commands
