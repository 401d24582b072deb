"""Model loaders."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import Any

from ftengine.api.component import Component
from ftengine.api.types import LoadedModel, LoadRequest


@dataclass(frozen=True)
class Provenance:
    """Licence and origin of a model, as its source states them.

    Args:
        repository: its name on the hub, owner/model; "" where that is not known.
        license: the identifier, or name, of its licence; "" where none is stated.
    """

    repository: str = ""
    license: str = ""


class ModelLoader(Component):
    """Turns a model source into a module and its processor."""

    @abstractmethod
    def accepts(self, source: str) -> bool:
        """Return whether this loader can read `source`; must be quick and must not raise."""

    @abstractmethod
    def load_processor(self, source: str) -> Any:
        """Load the tokenizer (or image processor) alone, so that data is checked before the model loads."""

    @abstractmethod
    def load(self, request: LoadRequest) -> LoadedModel:
        """Load the model (SourceError: nothing can be loaded from the source)."""

    # What some write.

    def load_skeleton(self, request: LoadRequest) -> LoadedModel:
        """Load as `load` does, without reading weights: every parameter is on the meta device.

        With it, patterns are checked before weights are read; without it, afterwards.
        """
        raise NotImplementedError

    def check_head(self, source: str, head: str) -> None:
        """Raise SourceError where a model cannot have a head.

        Quick, without building the model, for `ftengine init`.
        """

    def check_source(self, source: str) -> None:
        """Raise SourceError, without reading weights, where a file is missing or of an unsupported kind."""

    def provenance(self, source: str) -> Provenance:
        """Return what a source states of its licence and its name on the hub, offline and without reading weights.

        For the model card; empty where the source cannot be read.
        """
        return Provenance()

    def runs_code(self, source: str) -> str | None:
        """Return what code it runs, such as "Python code that comes with the model"; None: only installed plugins.

        For a run made elsewhere the user has to allow it (--trust-code).
        """
        return None
