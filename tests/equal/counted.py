"""Which way a run took: for each dimension, how often what makes it the other way was called."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest import mock

import torch
import torch.distributed as dist
import traces
import transformers.modeling_utils
from torch.nn import functional as F

from ftengine.data.encoding import EncodedSplit
from ftengine.model.packing import Packer
from ftengine.ops import active_backend, instruction_sets
from ftengine.ops.eligibility import why_ineligible
from ftengine.parallel.sharding import is_sharded
from ftengine.training import loop, optimizer_step
from ftengine_builtins.fast_paths import grouped_layers, norms
from ftengine_builtins.fast_paths.frozen_prefix import KeptOutputs
from ftengine_builtins.fast_paths.shared_prefix import sharing
from ftengine_builtins.regularizers.load_balancing import LoadBalancing

When = Callable[..., bool]


def _always(*_: Any, **__: Any) -> bool:
    return True


def _together(split: Any, members: Any, *_: Any) -> bool:
    return not torch.is_grad_enabled() and len(members) > 1


def _grouped(*_: Any, enable_gqa: bool = False, attn_mask: Any = None, **__: Any) -> bool:
    """Say whether attention gets grouped keys of a padded batch; of others it gets them anyway."""
    return enable_gqa and attn_mask is not None


def _over_a_prefix_tree(module: Any, q: Any, k: Any, v: Any, mask: Any, **_: Any) -> bool:
    """Say whether attention is over a prefix tree, in training; evaluation is in any way."""
    return torch.is_grad_enabled() and isinstance(mask, sharing._Mask)


def _compiled(*_: Any) -> bool:
    """Say whether a layer would take a kernel."""
    return active_backend("cpu")[0] == "compiled" and why_ineligible("cpu", torch.float32, 4) is None


def _on(instructions: str) -> When:
    return lambda *_: instructions in active_backend("cpu")[1].replace(",", "").split()


def _of_parts(one: Any, *_: Any) -> bool:
    return is_sharded(one.module)


def _of_several(*_: Any) -> bool:
    return dist.is_initialized() and dist.get_world_size() > 1


COUNTED: dict[str, tuple[Any, str, When]] = {
    "accumulation": (optimizer_step, "loss_of", _always),
    "token-limit": (optimizer_step, "loss_of", _always),
    "router-losses": (LoadBalancing, "penalty", _always),
    "packing": (Packer, "pack", _always),
    "grouped-layers": (grouped_layers, "lowrank_linears", _always),
    "shared-prefix": (sharing, "_attend", _over_a_prefix_tree),
    "frozen-prefix": (KeptOutputs, "_given", lambda self, *_: self._works),  # not where it is tried
    "checkpointing": (transformers.modeling_utils, "checkpoint", _always),
    "norms": (norms, "rms_norm", _always),
    "grouped-keys": (F, "scaled_dot_product_attention", _grouped),
    "kernels": (loop.Trainer, "step", _compiled),
    **{f"instructions-{name}": (loop.Trainer, "step", _on(name)) for name in instruction_sets()[1:]},
    "resume": (loop, "load_checkpoint", _always),
    "merge": (traces, "check_merge", _always),
    "answers-together": (EncodedSplit, "batch", _together),
    "ddp": (loop.Trainer, "step", _of_several),
    "fsdp": (loop.Trainer, "step", _of_parts),
}
"""Of each dimension: whose function it is, its name, and which calls count."""


@contextmanager
def counting() -> Iterator[Counter[str]]:
    """Count what the dimensions are known by."""
    found = Counter[str]()
    with ExitStack() as stack:
        for name, (owner, function, when) in COUNTED.items():
            counted = _counted(found, name, getattr(owner, function), when)
            stack.enter_context(mock.patch.object(owner, function, counted))
        yield found


def _counted(found: Counter[str], name: str, function: Any, when: When) -> Any:
    def call(*args: Any, **kwargs: Any) -> Any:
        found[name] += bool(when(*args, **kwargs))
        return function(*args, **kwargs)

    return call
