"""Calls a recipe's callbacks at the events of a run."""

from __future__ import annotations

from pathlib import Path

from ftengine.api import Callback, Event, Failed, Listener
from ftengine.errors import TrainingError, naming
from ftengine.model.modes import generators_kept
from ftengine.plugins.attribution import cause_in
from ftengine.plugins.registry import Registry
from ftengine.run.recipe import Recipe


class Callbacks:
    """A recipe's callbacks; one that raises is reported and switched off.

    Raises:
        UnknownName, RecipeError: a callback does not exist, or lacks something that it needs.
    """

    def __init__(self, recipe: Recipe, registry: Registry, listener: Listener) -> None:
        self.listener = listener
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

    def tell(self, event: Event) -> None:
        """Call the method for an event of every callback; only in the main process.

        Raises:
            TrainingError: a callback ends the run with an error.
        """
        for callback, origin in tuple(self.callbacks):
            try:
                with generators_kept():
                    getattr(callback, event.moment)(event)
            # A run survives any error of a callback, even sys.exit.
            except (Exception, SystemExit) as error:
                who, cause = f"callback {callback.name!r} of {origin}", cause_in(callback, error)
                self.callbacks = [pair for pair in self.callbacks if pair[0] is not callback]
                if isinstance(error, TrainingError) and not isinstance(event, Failed):
                    raise TrainingError(f"{who} ends the run: {cause}") from error
                self.listener.message(f"{who} failed and is switched off for the rest of the run: {cause}")

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
