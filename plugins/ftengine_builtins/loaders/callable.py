"""Models that the user's Python code builds."""

from __future__ import annotations

import importlib.util
import inspect
import os
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from torch import nn

from ftengine.api import LoadedModel, LoadRequest, ModelLoader
from ftengine.errors import FtengineError, SourceError, did_you_mean
from ftengine.identity import fingerprint_code
from ftengine_builtins.loaders.pretrained import longest_input
from ftengine_builtins.loaders.quiet import cause

SHAPE = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_][\w.]*")


class CallableLoader(ModelLoader):
    """Call module:function for the model. It runs your code, so the recipe must set `loader: callable`.

    The function is called as `function(request)` if it takes one argument (a `LoadRequest`), else as `function()`. It
    returns a torch module, or (module, processor), or a `LoadedModel`. One that takes the request is first called for
    its processor alone, with `head=""`. Modules are imported as Python does, with the working directory searched last.
    """

    name = "callable"

    def __init__(self, config: Any = None) -> None:
        super().__init__(config)
        self._waiting: dict[str, Any] = {}

    def accepts(self, source: str) -> bool:
        """Return False, as running code requires `loader: callable`."""
        return False

    def check_source(self, source: str) -> None:
        """Check the spelling, and find the module without importing it."""
        if not SHAPE.fullmatch(source):
            raise SourceError(f"{source!r}: loader callable takes module:function, for example my_models:small.")
        top = source.partition(":")[0].partition(".")[0]
        with _working_directory_importable():
            if top not in sys.modules and importlib.util.find_spec(top) is None:
                raise SourceError(f"{source!r}: module {top!r} is neither installed nor in {os.getcwd()!r}.")

    def runs_code(self, source: str) -> str:
        return f"the function {source}"

    def load_processor(self, source: str) -> Any:
        """Return the processor that the function returns with the model; None if it returns only a model."""
        self.check_source(source)
        function = _find(source)
        result = _call(function, LoadRequest(source, head=""))
        _, processor = _parts(result, source)
        if not _wants_request(function, source):  # a second call would return the same
            self._waiting[source] = result
        return processor

    def load(self, request: LoadRequest) -> LoadedModel:
        # Each model is returned once, so that no caller gets one that was trained.
        self.check_source(request.source)
        waiting = self._waiting.pop(request.source, None)
        result = waiting if waiting is not None else _call(_find(request.source), request)
        module, processor = _parts(result, request.source)
        if not isinstance(result, LoadedModel):
            limit = longest_input(module, processor)
            result = LoadedModel(module, processor, request.source, request.head, max_length=limit)
        if result.head != request.head:
            raise SourceError(
                f"{request.source!r} returned a model with head {result.head!r}; use request.head {request.head!r}."
            )
        if result.labels not in (None, request.labels):
            raise SourceError(
                f"{request.source!r} returned a model for {result.labels}; the data has {request.labels}. "
                "Take the labels, and their order, from the request."
            )
        # The fingerprint includes the code of the module, as the model's classes may come from elsewhere.
        code = {"code": fingerprint_code(request.source.partition(":")[0])}
        own = {**result.fingerprint, **code}
        return replace(result, source=request.source, labels=request.labels, fingerprint=own)


def _find(source: str) -> Callable[..., Any]:
    module_name, _, path = source.partition(":")
    with _running(f"cannot import {module_name!r} for {source!r}"):
        value = importlib.import_module(module_name)
    for step in path.split("."):
        if not hasattr(value, step):
            raise SourceError(f"{source!r}: {module_name} has no {path!r}." + did_you_mean(step, dir(value)))
        value = getattr(value, step)
    if not callable(value):
        raise SourceError(f"{source!r} is of type {type(value).__name__}; it must be a function that returns a model.")
    return value


def _wants_request(function: Callable[..., Any], source: str) -> bool:
    """Return whether to pass the request: to a parameter of that name, or to the only required one."""
    try:
        parameters = list(inspect.signature(function).parameters.values())
    except (TypeError, ValueError):  # built-in callables have no signature
        return False
    positional = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    needed = [p for p in parameters if p.default is p.empty and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
    if len(needed) > 1 or (needed and needed[0] not in positional):
        names = ", ".join(p.name for p in needed)
        raise SourceError(f"{source!r} requires the arguments {names}; it must require at most one, the LoadRequest.")
    return bool(needed) or bool(positional and positional[0].name == "request")


def _call(function: Callable[..., Any], request: LoadRequest) -> Any:
    arguments = [request] if _wants_request(function, request.source) else []
    with _running(f"{request.source!r} failed"):
        return function(*arguments)


def _parts(result: Any, source: str) -> tuple[nn.Module, Any]:
    if isinstance(result, LoadedModel):
        return result.module, result.processor
    if isinstance(result, nn.Module):
        return result, None
    if isinstance(result, tuple) and len(result) == 2 and isinstance(result[0], nn.Module):
        return result
    names = [type(item).__name__ for item in (result if isinstance(result, tuple) else [result])]
    shown = f"({', '.join(names)})" if isinstance(result, tuple) else names[0]
    raise SourceError(f"{source!r} returned {shown}; return a torch module, (module, processor) or a LoadedModel.")


@contextmanager
def _running(failure: str) -> Iterator[None]:
    """Run the user's code, which may raise anything; `failure` is the beginning of the message."""
    with _working_directory_importable():
        try:
            yield
        except FtengineError:
            raise
        except Exception as error:
            raise SourceError(f"{failure}: {cause(error)}") from error


@contextmanager
def _working_directory_importable() -> Iterator[None]:
    """Search the working directory for modules, as `python -m` does, but after everything installed."""
    here = os.getcwd()
    if here in sys.path:
        yield
        return
    sys.path.append(here)
    try:
        yield
    finally:
        sys.path.remove(here)
