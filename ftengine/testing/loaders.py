"""Checks of model loaders."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass

import torch

from ftengine.api import LoadedModel, LoadRequest, ModelLoader, Reader, overrides
from ftengine.errors import SourceError
from ftengine.identity import fingerprint_processor
from ftengine.testing.checks import Checks, run_checks, skip
from ftengine.testing.values import equal, require_meta, require_named_code, without_pickles

MOST_SECONDS = 0.1
"""Most seconds of `accepts` for a source: it is called for every loader before any progress is shown."""

ODD_SOURCES = ("", ".", "/", "nowhere/at/all", "no such thing", "scheme://name", "a:b", "x" * 300, "nul\0byte")


def check_loader(
    make: Callable[[], ModelLoader], request: LoadRequest, expected_failed_checks: Mapping[str, str] | None = None
) -> None:
    """Check a model loader on a small local source.

    Args:
        make: returns a fresh loader, e.g. its class.
        request: the request to load; the loader accepts its source, or a recipe names the loader for it.
        expected_failed_checks: names of checks that fail, with reasons.

    Raises:
        AssertionError: names every check that failed, or passed though it was expected to fail.
    """
    run_checks(LoaderChecks(make, request.source, request), expected_failed_checks)


@dataclass
class AcceptingChecks(Checks):
    """Checks of `accepts` of a loader or reader."""

    make: Callable[[], ModelLoader | Reader]
    source: str

    def accepting_is_quick_and_raises_nothing(self) -> None:
        loader = self.make()
        for source in (self.source, *ODD_SOURCES):
            begun = time.perf_counter()
            answer = loader.accepts(source)
            seconds = time.perf_counter() - begun
            assert isinstance(answer, bool), f"accepts({source[:40]!r}) returns {answer!r}"
            assert seconds < MOST_SECONDS, f"accepts({source[:40]!r}) takes {seconds:.2f} s of {MOST_SECONDS}"


@dataclass
class LoaderChecks(AcceptingChecks):
    """Checks of a loader on a source that it reads."""

    make: Callable[[], ModelLoader]
    request: LoadRequest

    def it_loads_what_was_asked(self) -> None:
        loaded = self.make().load(self.request)
        expected = {"source": self.request.source, "head": self.request.head, "labels": self.request.labels}
        actual = {key: getattr(loaded, key) for key in expected}
        assert actual == expected, f"asked for {expected}, got {actual}"
        on_meta = [name for name, p in loaded.module.named_parameters() if p.is_meta]
        assert not on_meta, f"{on_meta[0]!r} has no values"
        paths = dict(loaded.module.named_modules())
        unknown = [name for name in loaded.new_modules if name not in paths]
        assert not unknown, f"new_modules names {unknown[0]!r}, which is not a module"

    def nothing_is_unpickled(self) -> None:
        with without_pickles():
            self.make().load(self.request)

    def a_seed_decides_what_it_loads(self) -> None:
        states = []
        for _ in "ab":
            torch.manual_seed(0)
            states.append(self.make().load(self.request).module.state_dict())
        differing = [name for name, tensor in states[0].items() if not equal(tensor, states[1].get(name))]
        assert not differing, (
            f"{differing[0]!r} differs if the same source is loaded again with the same seed: initialise new weights "
            "with torch's global generator"
        )

    def the_skeleton_is_the_model_without_values(self) -> None:
        loader = self.make()
        if not overrides(loader, "load_skeleton"):
            skip("it builds no skeleton")
        skeleton, loaded = loader.load_skeleton(self.request), self.make().load(self.request)
        require_meta(skeleton.module)
        differing = sorted(set(_shapes(skeleton).items()) ^ set(_shapes(loaded).items()))
        assert not differing, f"{differing[0][0]!r} differs in name or shape from the loaded model's"
        for key in ("head", "labels", "new_modules", "max_length"):
            ours, theirs = getattr(skeleton, key), getattr(loaded, key)
            assert ours == theirs, f"{key} of the skeleton is {ours!r}, of the model {theirs!r}"

    def a_head_that_loads_is_not_refused(self) -> None:
        loader = self.make()
        if not overrides(loader, "check_head"):
            skip("it checks no head before it loads")
        loader.check_head(self.request.source, self.request.head)
        with suppress(SourceError):
            loader.check_head(self.request.source, "no such head")
            raise AssertionError("check_head finds nothing wrong with a head that does not exist")

    def the_processor_alone_is_the_models(self) -> None:
        processor, loaded = self.make().load_processor(self.request.source), self.make().load(self.request).processor
        assert type(processor) is type(loaded), (
            f"load_processor gives {type(processor).__name__}, load {type(loaded).__name__}"
        )
        same = fingerprint_processor(processor) == fingerprint_processor(loaded)
        assert same, "load_processor and load give processors that differ"

    def what_runs_beside_plugins_is_named(self) -> None:
        loader = self.make()
        if not overrides(loader, "runs_code"):
            skip("it runs no code beside its own")
        require_named_code(loader.runs_code(self.request.source))

    def missing_sources_are_source_errors(self) -> None:
        loader = self.make()
        if not overrides(loader, "check_source"):
            skip("it checks no source before it loads")
        loader.check_source(self.request.source)
        with suppress(SourceError):
            loader.check_source("no such thing")
            raise AssertionError("check_source finds nothing wrong with a source that does not exist")


def _shapes(loaded: LoadedModel) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in loaded.module.state_dict().items()}
