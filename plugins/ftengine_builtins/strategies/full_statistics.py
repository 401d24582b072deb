"""BatchNorm's running statistics: kept still, or moved by training."""

from __future__ import annotations

from functools import cache

from torch import nn

from ftengine.api import LoadedModel


class StillStatistics:
    """Mixed into a normalisation layer's class: it normalises with its running statistics in training too."""

    def train(self, mode: bool = True) -> nn.Module:
        return super().train(False)  # type: ignore[misc]


def keep_statistics(loaded: LoadedModel) -> list[str]:
    """Keep running statistics as they are, also in training mode, and return the layers' paths.

    Weight and bias still train. A layer that was initialised afresh is left alone: its statistics say nothing yet.
    """
    new = tuple(f"{name}." for name in loaded.new_modules)
    kept = []
    for path, layer in loaded.module.named_modules():
        if getattr(layer, "running_mean", None) is None or f"{path}.".startswith(new):
            continue
        if not isinstance(layer, StillStatistics):
            layer.__class__ = _still(type(layer))
        layer.eval()
        kept.append(path)
    return kept


@cache
def _still(cls: type[nn.Module]) -> type[nn.Module]:
    # The name stays: it is what a model prints and what error messages show.
    return type(cls.__name__, (StillStatistics, cls), {"__module__": cls.__module__})
