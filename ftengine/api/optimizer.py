"""Optimisers."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ftengine.api.component import Component, Traits

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class ShardingTraits(Traits):
    """Facts about a component that works on parameters.

    Args:
        supports_sharding: it works where parameters are sharded (`train.parallel: fsdp`). Between passes a parameter is
            then a DTensor, of which each process holds some rows. Element-wise changes work; a penalty on weights would
            count once in every process. `save` of a strategy gets a complete copy of the module, in the first process.
            Components without this trait are refused.
    """

    supports_sharding: bool = False


class Optimizer(Component):
    """Builds the optimiser; named under `train.optimizer` in a recipe."""

    traits: ShardingTraits = ShardingTraits()

    @abstractmethod
    def build(self, param_groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
        """Return one torch optimiser over all groups.

        A group has "params", "lr" (its peak) and "weight_decay", as `Strategy.param_groups` returned them. Before each
        step the engine sets "lr" of every group by the schedule. A checkpoint holds the optimiser's `state` and further
        entries of its groups: tensors of any dtype, numbers and text, in lists and mappings. Other attributes are lost
        on `--resume`.

        The parameters may be on the meta device, when `ftengine plan` estimates memory.
        """
