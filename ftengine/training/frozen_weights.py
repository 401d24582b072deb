"""Check that training left frozen weights unchanged, bit for bit."""

from __future__ import annotations

from collections.abc import Collection

import torch.distributed as dist
from torch import nn

from ftengine.equivalence import differing
from ftengine.errors import TrainingError
from ftengine.identity.base import tensor_hashes
from ftengine.model.parameters import frozen_tensors
from ftengine.parallel.sharding import is_sharded
from ftengine.training.setup import Setup


class FrozenWeights:
    """Hashes of frozen parameters and buffers: in the first process, or of each process's shards.

    If a strategy brings a regularizer, tensors that the strategy added are not checked.
    """

    def __init__(self, setup: Setup, brought: bool) -> None:
        self._setup, self._module = setup, setup.loaded.module
        self._only = setup.loaded.pretrained if brought else None
        self._hashes = self._now()

    def require_unchanged(self) -> None:
        """Raise TrainingError if one changed: the change would affect the figures, but not be saved."""
        if not (changed := _of_any_process(differing(self._hashes, self._now()), self._module)):
            return
        setup = self._setup
        suspects = [f"regularizer {regularizer.name!r}" for regularizer in setup.regularizers]
        suspects += [f"callback {name!r}" for name in setup.callbacks]
        suspects += [f"a layer of strategy {setup.strategy.name!r}", "the model's own code"]
        who = f"Possible causes: {', '.join(suspects[:-1])} or {suspects[-1]}"
        raise TrainingError(
            f"{len(changed):,} of {len(self._hashes):,} frozen tensors changed while the model trained, such as "
            f"{changed[0]!r}. Strategy {setup.strategy.name!r} does not train or save them. {who}. Only "
            "parameters that require a gradient may change. The checkpoints are kept; repair the cause, then continue "
            "from the last one with the same command and --resume."
        )

    def _now(self) -> dict[str, str]:
        if not (self._setup.accelerator.is_main_process or is_sharded(self._module)):
            return {}
        tensors = frozen_tensors(self._module)
        return tensor_hashes({n: x for n, x in tensors.items() if self._only is None or n in self._only})


def _of_any_process(names: Collection[str], module: nn.Module) -> list[str]:
    """Return the names of all processes of a sharded model; for other models the names as given."""
    if not is_sharded(module):
        return sorted(names)
    gathered: list[list[str]] = [[] for _ in range(dist.get_world_size())]
    dist.all_gather_object(gathered, list(names))
    return sorted({name for part in gathered for name in part})
