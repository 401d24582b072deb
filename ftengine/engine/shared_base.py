"""One copy of a base for several models in one process, each of which trains its own part beside it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from copy import deepcopy
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor, nn

from ftengine.api import LoadedModel
from ftengine.equivalence import differing
from ftengine.identity.base import tensor_hashes


@dataclass(frozen=True)
class _Kept:
    """A base on its device, before a strategy changed it.

    Args:
        key: what it was read from and for.
        seed: of its new modules; None without any.
        trained: names of the parameters that trained in its run; the others have the dtype of frozen weights.
        hashes: of the shared tensors.
    """

    key: Any
    seed: int | None
    loaded: LoadedModel
    trained: frozenset[str]
    hashes: dict[str, str]


class SharedBase:
    """A base that is read once: models have modules of their own, whose frozen parameters share their values.

    Parameters of new modules (a classifier head) have each model's own values.
    """

    def __init__(self) -> None:
        self._kept: _Kept | None = None

    def forget_unless(self, trained: Iterable[str] | None) -> None:
        """Forget the base before a run that does not train the same parameters, by name (None: not known).

        What was frozen may have been rounded.
        """
        if self._kept is not None and (trained is None or self._kept.trained != frozenset(trained)):
            self._kept = None

    def keep(self, key: Any, seed: int, loaded: LoadedModel, trained: Iterable[str]) -> None:
        """Keep a base, unless a part of it trains, is packed, or cannot be copied.

        Args:
            key: what it was read from and for.
            seed: of its new modules.
            loaded: the model on its device.
            trained: names of the parameters that will train.
        """
        trained = frozenset(trained)
        plain = all(type(tensor) in (Tensor, nn.Parameter) for _, tensor in _tensors(loaded.module))
        if not plain or trains_base(loaded, trained):
            return
        try:
            copied = _beside(loaded)
        except Exception:  # modules or a processor that hold what cannot be copied
            return
        self._kept = _Kept(key, seed if loaded.new_modules else None, copied, trained, tensor_hashes(_shared(copied)))

    def model(self, key: Any, seed: int) -> LoadedModel | None:
        """Return a model on the kept tensors as if it were read anew; None if it must be, and nothing is kept then.

        It must be if `key`, or the seed of new modules, is another, or if the bits of a shared tensor have changed.
        """
        kept, self._kept = self._kept, None
        if kept is None or kept.key != key or kept.seed not in (None, seed):
            return None
        if differing(kept.hashes, tensor_hashes(_shared(kept.loaded))):
            return None
        self._kept = kept
        return _beside(kept.loaded)


def trains_base(loaded: LoadedModel, trained: Iterable[str]) -> bool:
    """Return whether parameters that train, by name, are among those that the base brought."""
    return any(not name.startswith(_new(loaded)) for name in trained)


def _new(loaded: LoadedModel) -> tuple[str, ...]:
    return tuple(f"{name}." for name in loaded.new_modules)


def _tensors(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    yield from module.named_parameters()
    yield from module.named_buffers()


def _shared(loaded: LoadedModel) -> dict[str, Tensor]:
    new = _new(loaded)
    return {name: tensor for name, tensor in _tensors(loaded.module) if not name.startswith(new)}


def _beside(loaded: LoadedModel) -> LoadedModel:
    """Return a model with modules, parameters and a processor of its own; only new modules have values of their own."""
    own = {
        id(tensor): nn.Parameter(tensor.data, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else tensor
        for tensor in _shared(loaded).values()
    }
    module, processor = deepcopy(loaded.module, own), deepcopy(loaded.processor)
    return replace(loaded, module=module, processor=processor, fingerprint=deepcopy(loaded.fingerprint))
