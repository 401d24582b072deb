"""Recording which options of a component are read while it is checked."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator, Set
from contextlib import contextmanager
from functools import partial
from typing import Any
from unittest.mock import patch

from pydantic import BaseModel

from ftengine.testing.checks import Check, skip

READ = "every_option_is_read"
WHOLE = ("__dict__", "model_dump", "model_dump_json")
"""Attributes by which all options are read at once."""
COPIES = ("pydantic.main", "copy", "copyreg", "pickle")
"""Modules that read them all to copy or compare a Config, which is no use of any."""


USED = {
    "task": ("the_criterion_is_what_is_summed",),
    "strategy": ("training_moves_the_outputs",),
    "augmenter": ("given_examples_stay",),
    "regularizer": ("detaching_restores_the_model",),
    "fast-path": ("leaving_it_restores_the_model",),
    "evaluator": ("scores_are_pure", "the_same_examples_are_asked_again"),
    "loader": ("it_loads_what_was_asked",),
    "reader": ("rows_have_places_and_json_values",),
    "optimizer": ("the_loss_falls",),
    "schedule": ("some_step_trains",),
    "audit": ("what_it_yields_can_be_shown",),
    "rule": ("what_it_yields_can_be_shown",),
    "callback": ("it_takes_every_event",),
    "exporter": ("the_artifact_is_the_tuned_model",),
}
"""For each kind checks of which one, where it passes, has had a component do what it is for."""
SAMPLED = ("callback", "rule", "audit")
"""Kinds that are shown a few of the events, runs and rows that they may be written for."""


def with_options_checked(kind: str, config: type[BaseModel], checks: Iterable[Check]) -> Iterator[Check]:
    """Yield a component's checks, and at the end a check that all its options were read."""
    if not config.model_fields:
        yield from checks
        return
    passed = set[str]()
    with _options_read(config) as read:
        for name, check in checks:
            yield name, partial(_noted, name, check, passed)
        yield READ, partial(_require_read, kind, config, read, passed)


def _noted(name: str, check: Callable[[], None], passed: set[str]) -> None:
    """Run a check, and note it where it passes: what fails may end before an option is read."""
    check()
    passed.add(name)


def _require_read(kind: str, config: type[BaseModel], read: Set[str], passed: Set[str]) -> None:
    if passed.isdisjoint(USED[kind]):
        skip("it could not be used with what is at hand")
    unread = [name for name in config.model_fields if name not in read]
    if unread and kind in SAMPLED:
        skip(f"its option {unread[0]!r} was not read, but may be read in a real run")
    assert not unread, (
        f"its option {unread[0]!r} is never read, so it has no effect: use it or remove it. If it is only read with "
        "another option, check the component with that option set (`options`, --set)"
    )


@contextmanager
def _options_read(config: type[BaseModel]) -> Iterator[set[str]]:
    """Collect the names of the options of a Config that are read meanwhile, but for reads of the checks' own."""
    read = set[str]()
    before: Any = config.__getattribute__

    def noted(self: BaseModel, name: str) -> Any:
        if name in config.model_fields or name in WHOLE:
            frame = sys._getframe(1)
            module = frame.f_globals.get("__name__", "")
            if not ((module in COPIES and frame.f_code.co_name != "__iter__") or module.startswith(f"{__package__}.")):
                read.update(config.model_fields if name in WHOLE else (name,))
        return before(self, name)

    with patch.object(config, "__getattribute__", noted):
        yield read
