"""A model whose parameters are divided over processes, by torch's FSDP2 (Zhao et al. 2023, arXiv:2304.11277).

Each process keeps its part of every parameter, and with that its part of gradients and optimiser state. A block of the
model is whole only while it computes. What is no block (embeddings, the output head) is whole from its first use in a
forward to the end of the backward, so that a head may be called outside of the model's own forward.
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from ftengine.api import Optimizer, Regularizer, Strategy
from ftengine.errors import RecipeError


def is_sharded(module: nn.Module) -> bool:
    """Say whether the parameters are divided, so that every process has to take part in every forward."""
    return any(isinstance(part, FSDPModule) for part in module.modules())


def require_shardable(module: nn.Module) -> None:
    """Refuse parameters that cannot be divided (RecipeError, which names one)."""
    for name, parameter in module.named_parameters():
        if not parameter.is_floating_point() or not parameter.ndim:
            what = "a single number" if not parameter.ndim else f"packed as {str(parameter.dtype)[6:]}"
            raise RecipeError(
                f"train.parallel fsdp shards parameters by rows, and {name!r} of {type(module).__name__} is "
                f"{what}. Set train.parallel to ddp."
            )


def require_sharding_support(component: Strategy | Regularizer | Optimizer, kind: str) -> None:
    """Refuse what would be wrong, or fail, where parameters are divided (RecipeError)."""
    if not component.traits.supports_sharding:
        raise RecipeError(
            f"{kind} {component.name!r} does not work on sharded parameters, and train.parallel is fsdp. Set that to "
            f"ddp, or choose another {kind}."
        )


@torch.no_grad()
def shard(module: nn.Module, device: torch.device, classes: Collection[str] = ()) -> None:
    """Divide a model over all processes, in place.

    The first process has its weights, on the CPU; those of the others do not matter and may be on the meta device.
    Gradients are added up over processes and not divided. They are reduced after every micro-batch: kept until the
    last one, as they could be, they would be whole on every process.

    Args:
        device: where each process computes.
        classes: names of the classes of blocks; by default the model says it.

    Raises:
        RecipeError: a parameter cannot be divided, or the model has no such class.
    """
    require_shardable(module)
    mesh = init_device_mesh(device.type, (dist.get_world_size(),))
    whole = {name: parameter.detach() for name, parameter in module.named_parameters()}
    for block in blocks(module, classes):
        fully_shard(block, mesh=mesh)
    fully_shard(module, mesh=mesh)
    for part in sharded_parts(module):
        part.set_gradient_divide_factor(1.0)
        part.set_force_sum_reduction_for_comms(True)  # gloo knows no other
    # Of torch 2.13: a parameter that one process's examples leave out (an expert) has a gradient of zeros there.
    if (settle := getattr(module, "set_reduce_scatter_unused_params", None)) is not None:
        settle(True)
    if any(tensor.is_meta for tensor in (*module.parameters(), *module.buffers())):
        module.to_empty(device=device)
    for name, parameter in module.named_parameters():
        _hand_out(whole.pop(name), parameter, mesh)
    for buffer in module.buffers():
        _broadcast(buffer)


def _hand_out(whole: Tensor, parameter: nn.Parameter, mesh: DeviceMesh) -> None:
    """Give each process its part of a tensor that the first one has."""
    assert isinstance(parameter, DTensor)
    if mesh.get_rank():
        whole = torch.empty(whole.shape, dtype=whole.dtype, device=parameter.device)
    parameter.copy_(distribute_tensor(whole.to(parameter.device), mesh, parameter.placements))


def _broadcast(buffer: Tensor) -> None:
    """Give a buffer the first process's values, as bytes: gloo and nccl do not know every dtype."""
    flat = buffer.contiguous().reshape(-1).view(torch.uint8).clone()
    dist.broadcast(flat, 0)
    buffer.copy_(flat.view(buffer.dtype).view_as(buffer))


def blocks(module: nn.Module, classes: Collection[str] = ()) -> list[nn.Module]:
    """Return the blocks that are gathered one at a time, inner ones first.

    They are of the classes named, else of those that a model of transformers never divides (`_no_split_modules`), else
    the members of its module lists that are alike. Blocks without parameters are left out, and those that share one
    with the rest of the model (tied embeddings).

    Raises:
        RecipeError: classes are named, and the model has none of them.
    """
    names = set(classes) or set(getattr(module, "_no_split_modules", None) or ())
    parts = [part for part in module.modules() if names & {cls.__name__ for cls in type(part).__mro__}]
    if classes and not parts:
        raise RecipeError(
            f"the launcher asks for blocks of class {', '.join(sorted(classes))}, and {type(module).__name__} has "
            "none. Correct fsdp_transformer_layer_cls_to_wrap, or take it out."
        )
    if not parts:
        parts = [member for part in module.modules() for member in _alike(part)]
    uses = Counter(id(p) for part in module.modules() for p in part.parameters(recurse=False))
    kept = []
    for block in dict.fromkeys(reversed(parts)):
        inside = Counter(id(p) for part in block.modules() for p in part.parameters(recurse=False))
        if block is not module and inside and all(uses[key] == count for key, count in inside.items()):
            kept.append(block)
    return kept


def _alike(part: nn.Module) -> list[nn.Module]:
    """Return the members of a module list that are all of one class and made of further modules."""
    members = list(part.children()) if isinstance(part, (nn.ModuleList, nn.Sequential)) else []
    same = len(members) > 1 and len({type(member) for member in members}) == 1
    return members if same and next(members[0].children(), None) is not None else []


def not_finite(tensors: Mapping[str, Tensor]) -> list[str]:
    """Return the names of tensors that hold a number which is not finite, of divided ones in any process's part."""
    parts = [tensor.to_local() if isinstance(tensor, DTensor) else tensor for tensor in tensors.values()]
    flags = torch.stack([_ends(part).isfinite().all().logical_not().float() for part in parts])
    if any(isinstance(tensor, DTensor) for tensor in tensors.values()):
        dist.all_reduce(flags)
    return [name for name, wrong in zip(tensors, flags.tolist(), strict=True) if wrong]


def _ends(tensor: Tensor) -> Tensor:
    """Return a tensor's least and largest number, (2,), which are NaN where one is; itself where torch has none.

    Both are found in one pass, where to ask each number takes copies and fifteen times as long.
    """
    known = tensor.dtype in (torch.float32, torch.bfloat16, torch.float16, torch.float64) and tensor.numel()
    return torch.stack(torch.aminmax(tensor)) if known else tensor


def got_gradients(module: nn.Module) -> set[str]:
    """Return a set that gets the name of each parameter of a divided model to which a backward pass gives a gradient.

    Afterwards it cannot be told: what nothing computed with has a gradient of zeros then (see `shard`).
    """
    names: set[str] = set()
    known: set[nn.Parameter] = set()
    for path, part in module.named_modules():

        def listen(part: nn.Module, args: Any, path: str = path) -> None:
            for name, parameter in part.named_parameters(path):  # whole by now, unless another part has them
                if parameter.requires_grad and not isinstance(parameter, DTensor) and parameter not in known:
                    known.add(parameter)
                    parameter.register_post_accumulate_grad_hook(lambda _, name=name: names.add(name))

        if isinstance(part, FSDPModule):
            nn.Module.register_forward_pre_hook(cast(nn.Module, part), listen)
    return names


def sharded_parts(module: nn.Module) -> Iterator[Any]:
    """Yield the modules that are gathered as one: the blocks, and the model itself."""
    return (part for part in module.modules() if isinstance(part, FSDPModule))


def reshard(module: nn.Module) -> None:
    """Have a model hold its parts alone, also after a forward without a backward; another one stays as it is."""
    for part in sharded_parts(module):
        part.reshard()


def without_weights(module: nn.Module) -> nn.Module:
    """Return a copy on the meta device, which `gathered` fills."""
    return _copied(module, lambda weights: torch.empty_like(weights, device="meta"))


def beside(module: nn.Module) -> nn.Module:
    """Return a copy that shares the weights until it is divided or moved to another device."""
    return _copied(module, lambda weights: weights)


def _copied(module: nn.Module, weights: Callable[[Tensor], Tensor]) -> nn.Module:
    copies = {id(p): nn.Parameter(weights(p.detach()), p.requires_grad) for p in module.parameters()}
    return copy.deepcopy(module, copies)


@torch.no_grad()
def gathered(module: nn.Module, empty: nn.Module) -> nn.Module:
    """Return a model as a whole, on the CPU, in the first process; in the others `empty`, of which nothing is known.

    Args:
        module: divided; all processes take part.
        empty: what `without_weights` made of it before it was divided.
    """
    reshard(module)
    targets = dict(empty.named_parameters())
    first = dist.get_rank() == 0
    for name, parameter in module.named_parameters():
        whole = parameter.full_tensor() if isinstance(parameter, DTensor) else parameter  # one at a time
        if first:
            target = nn.Parameter(whole.detach().to("cpu", copy=True), parameter.requires_grad)
            torch.utils.swap_tensors(targets[name], target)  # in place: a tied one stays one
    for name, buffer in module.named_buffers():
        owner, _, own = name.rpartition(".")
        empty.get_submodule(owner)._buffers[own] = buffer.detach().cpu()
    return empty.train(module.training)


def whole_norm(norm: Tensor) -> Tensor:
    """Return the norm of gradients that may be divided, over all processes."""
    return norm.full_tensor() if isinstance(norm, DTensor) else norm
