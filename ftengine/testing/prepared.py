"""A strategy on a model, prepared as often as checks need it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from ftengine.api import Batch, LoadedModel, Strategy
from ftengine.engine.prepared_data import apply_strategy
from ftengine.training.modes import train_mode


class Prepared:
    """Makes prepared models, and looks at them.

    Args:
        make: returns a fresh strategy.
        load: returns the same model each time.
        batch: its inputs with labels.
    """

    def __init__(self, make: Callable[[], Strategy], load: Callable[[], LoadedModel], batch: Batch) -> None:
        self.make, self.load, self.batch = make, load, batch

    def new(self, loaded: LoadedModel | None = None) -> tuple[Strategy, LoadedModel]:
        """Return a strategy and the model that it prepared, always with the same seed, as the engine does."""
        torch.manual_seed(0)
        strategy, loaded = self.make(), self.load() if loaded is None else loaded
        apply_strategy(strategy, loaded)
        return strategy, loaded

    def outputs(self, loaded: LoadedModel) -> Tensor:
        """Return logits of the batch in evaluation mode."""
        with torch.no_grad():
            return loaded.module.eval()(**self.batch).logits

    def step(self, strategy: Strategy, loaded: LoadedModel, optimizer: torch.optim.Optimizer | None = None) -> None:
        """Train a step with a learning rate of 0.01."""
        optimizer = optimizer or torch.optim.AdamW(strategy.param_groups(loaded.module, 0.01, 0.1))
        optimizer.zero_grad()
        train_mode(loaded.module)
        loaded.module(**self.batch).loss.backward()
        optimizer.step()


@contextmanager
def quiet() -> Iterator[None]:
    """Keep transformers from drawing bars while it reads weights."""
    from transformers.utils import logging

    drawn = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if drawn:
            logging.enable_progress_bar()
