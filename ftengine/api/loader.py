"""Model loaders."""

from __future__ import annotations

from typing import Any

from ftengine.api.component import Component
from ftengine.api.types import LoadedModel, LoadRequest


class ModelLoader(Component):
    """Turns a model source into a module and its processor.

    Abilities: BuildsSkeletons (without it, patterns are checked only after loading), ChecksSource, RunsCode.
    """

    def accepts(self, source: str) -> bool:
        """Say whether this loader can read `source`; must be quick and must not raise."""
        raise NotImplementedError

    def load_processor(self, source: str) -> Any:
        """Load the tokenizer (or image processor) alone, so that data is checked before the model loads."""
        raise NotImplementedError

    def load(self, request: LoadRequest) -> LoadedModel:
        """Load the model (SourceError: nothing can be loaded from the source)."""
        raise NotImplementedError
