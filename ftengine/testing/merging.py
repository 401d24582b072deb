"""Checks of merging: the merged model has the base's architecture, in memory and on disk."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from ftengine.api import Batch, LoadedModel, Strategy, overrides
from ftengine.engine.prepared_data import apply_strategy
from ftengine.equivalence import OUTPUTS, distance
from ftengine.errors import NotMergeable
from ftengine.model import save_model, trainable
from ftengine.model.modes import hooks
from ftengine.model.saving import is_pretrained, open_model
from ftengine.testing.checks import Checks, skip
from ftengine.training.modes import train_mode
from ftengine.training.optimizer_step import given_groups


@dataclass
class MergeChecks(Checks):
    """Checks of a strategy that merges, on one model; each is skipped where it does not."""

    make: Callable[[], Strategy]
    load: Callable[[], LoadedModel]
    batch: Batch

    def merging_keeps_the_outputs(self) -> None:
        before, loaded = self._merged
        difference = distance(self._outputs(loaded), before)
        assert difference < OUTPUTS, f"merging changes outputs by {difference:.3g} of their size"

    def merging_leaves_nothing_behind(self) -> None:
        _, loaded = self._merged
        base = self.load().module
        names = [dict.fromkeys(module.state_dict()) for module in (base, loaded.module)]
        extra, missing = [[n for n in names_a if n not in other] for names_a, other in (names[::-1], names)]
        advice = "merge must return the base's architecture with other weights"
        assert not extra, f"after merge the model has {extra[0]!r}, which the base has not: {advice}"
        assert not missing, f"after merge the model lacks {missing[0]!r}, which the base has: {advice}"
        modules = dict(base.named_modules())
        for path, part in loaded.module.named_modules():
            where = f"after merge {path or 'the model'!r}"
            actual, expected = type(part).__name__, type(modules.get(path)).__name__
            assert actual == expected, f"{where} is a {actual}, in the base a {expected}: {advice}"
            more = hooks(part) - hooks(modules[path])
            assert more <= 0, f"{where} still has {more} hooks of the strategy: remove them"
            assert "forward" not in vars(part), f"{where} keeps the strategy's forward: remove it"

    def the_merged_model_opens_without_the_strategy(self) -> None:
        before, loaded = self._merged
        with tempfile.TemporaryDirectory() as folder:
            save_model(loaded.module, None, Path(folder))
            if not is_pretrained(Path(folder)):
                skip("the model is none of transformers")
            opened, wrong = open_model(Path(folder), torch.float32)
        again = LoadedModel(opened, loaded.processor, loaded.source, loaded.head)
        difference = distance(self._outputs(again), before)
        assert difference < OUTPUTS, (
            f"the merged model was saved and opened by transformers alone, and its outputs differ by {difference:.3g} "
            f"of their size: the base's weights lack something (keys: {', '.join(wrong[:3]) or 'none is missing'})"
        )

    def _new(self, loaded: LoadedModel | None = None) -> tuple[Strategy, LoadedModel]:
        """Return what `_prepared` does; skip where nothing trains, which `something_trains` tells."""
        strategy, loaded = self._prepared(loaded)
        if not trainable(loaded.module):
            skip("nothing trains")
        return strategy, loaded

    def _prepared(self, loaded: LoadedModel | None = None) -> tuple[Strategy, LoadedModel]:
        """Return a strategy and the model that it prepared, always with the same seed, as the engine does."""
        torch.manual_seed(0)
        strategy, loaded = self.make(), self.load() if loaded is None else loaded
        apply_strategy(strategy, loaded)
        return strategy, loaded

    def _outputs(self, loaded: LoadedModel) -> Tensor:
        """Return logits of the batch in evaluation mode."""
        with torch.no_grad():
            return loaded.module.eval()(**self.batch).logits

    def _train(self, strategy: Strategy, loaded: LoadedModel, steps: int) -> None:
        """Train with a learning rate of 0.01."""
        optimizer = torch.optim.AdamW(given_groups(strategy, loaded.module, 0.01, 0.1))
        train_mode(loaded.module)
        for _ in range(steps):
            optimizer.zero_grad()
            loaded.module(**self.batch).loss.backward()
            optimizer.step()

    @cached_property
    def _merged(self) -> tuple[Tensor, LoadedModel]:
        """Return the unmerged outputs of a model that trained some steps, and the model merged."""
        strategy, loaded = self._new()
        if not overrides(strategy, "merge"):
            skip("it does not merge")
        try:
            strategy.check_merge()
        except NotMergeable as error:
            skip(str(error))
        self._train(strategy, loaded, 2)
        before = self._outputs(loaded)
        strategy.merge(loaded)
        return before, loaded
