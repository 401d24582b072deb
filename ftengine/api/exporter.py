"""Exporters: a finished run as the files that another program serves."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ftengine.api.component import Component
from ftengine.api.types import Example, LoadedModel, Prompt
from ftengine.errors import NoRuntime

if TYPE_CHECKING:
    from torch import nn

    from ftengine.api.task import Task


@dataclass(frozen=True)
class ExportSource:
    """A finished run, as an exporter sees it.

    Args:
        base: the recipe's `model.source`.
        task: the run's task, with its options and labels.
        head: the head that the task needs.
        module: the model as it was prepared for training, on the meta device: its class and config, without weights.
        processor: its tokenizer or image processor.
        trained: folder of the trained part, in its ecosystem's format.
        generation: options of the run's generated answers, such as "max_new_tokens" and "temperature".
        max_length: longest input in tokens that the model reads, or None where it has no limit.
        check_merge: raises NotMergeable where the strategy has no merged form; for `check`.
        merged: returns a folder with the merged and checked model in a dtype, as transformers writes it; made at the
            first call. Files may be linked or moved out of it.
        load_base: loads a new copy of the base.
        stop: tokens that end an answer; known once weights are read, so none in `check`.
    """

    base: str
    task: Task
    head: str
    module: nn.Module
    processor: Any
    trained: Path
    generation: Mapping[str, Any]
    max_length: int | None
    check_merge: Callable[[], object]
    merged: Callable[[str], Path]
    load_base: Callable[[], LoadedModel]
    stop: tuple[int, ...] = ()


@dataclass(frozen=True)
class Exported:
    """What an exporter wrote.

    Args:
        noise: largest mean distance of log-probabilities per token from the tuned model's (or of other outputs,
            relative to their size) that the format's rounding explains.
        facts: facts for manifest.json, as JSON values.
        usage: Python, or a shell's command, that loads the folder's files, for the model card; "" for none.
        library: the hub's name of the library that loads the files; "" for none.
    """

    noise: float
    facts: Mapping[str, Any] = field(default_factory=dict)
    usage: str = ""
    library: str = ""


class Runtime:
    """An exported artifact, opened by the program that serves it; returned by `Exporter.open`.

    For transformers, `Runtime(model=…)` is enough: the engine calls the module as it calls the tuned model. For other
    programs, a subclass writes the methods that the program supports; the others raise NoRuntime.
    """

    name: str = "transformers"
    """The program and its version."""
    model: LoadedModel | None = None
    """The module of transformers' that the artifact is; None where another program runs it."""

    def __init__(self, model: LoadedModel | None = None) -> None:
        self.model = model

    def encode(self, prompt: Prompt) -> Sequence[int]:
        """Return the tokens that the program makes of a prompt: of messages by its own template, else of the text."""
        raise NoRuntime(f"{self.name} cannot be asked prompts.")

    def log_probabilities(self, ids: Sequence[int], answer: Sequence[int]) -> Sequence[float]:
        """Return the log-probability of each token of an answer to a prompt's tokens.

        Where the program reports the likeliest tokens only, return the lowest reported value for any other token; nan
        where it reports nothing.
        """
        raise NoRuntime(f"{self.name} gives no log-probabilities.")

    def answer(self, prompt: Prompt, max_new_tokens: int) -> str:
        """Answer a prompt greedily, with the artifact's own end tokens."""
        raise NoRuntime(f"{self.name} cannot be asked prompts.")

    def infer(self, rows: Sequence[Example], options: Mapping[str, Any]) -> Sequence[Mapping[str, Any]]:
        """Return for each row what `Task.infer` answers with these options; the numbers in it are compared."""
        raise NoRuntime(f"{self.name} answers no rows with numbers.")


class Exporter(Component):
    """Writes a finished run in the format of another program, named by `ftengine export --to`.

    The engine asks the artifact the run's held-out rows and compares it with the tuned model and with the base; an
    artifact that is not the tuned model is deleted.
    """

    @abstractmethod
    def check(self, source: ExportSource) -> None:
        """Raise NotExportable, before weights are read, where the format cannot hold such a model; say what to do."""

    @abstractmethod
    def export(self, source: ExportSource, folder: Path) -> Exported:
        """Write the artifact into an empty folder."""

    # What some write.

    def check_artifact(self, folder: Path, source: ExportSource) -> None:
        """Raise ExportDiffers where files do not hold what the run has, for facts that answers do not show."""

    def open(self, folder: Path, source: ExportSource) -> AbstractContextManager[Runtime]:
        """Open the artifact as its own program does, for the proof; a `contextlib.contextmanager` that closes it.

        `source` has the base, but neither the merged model nor the trained part, so that answers come from the artifact
        alone. Called on a new exporter; `ftengine plugins check` calls it in another process.

        Raise NoRuntime, which says what to install, where the program is missing.
        """
        raise NotImplementedError

    def asks(self, source: ExportSource) -> Sequence[Mapping[str, Any]]:
        """Return the options of `Task.infer` to ask rows with, where the program has `infer`."""
        return ()
