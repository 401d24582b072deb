"""Models whose parameters are sharded over processes, by torch's FSDP2 (Zhao et al. 2023, arXiv:2304.11277).

Each process keeps its part of every parameter, gradient and optimiser state. A block of the model is gathered only
while it computes. Parameters outside blocks (embeddings, the output head) are gathered from their first use in a
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
    """Return whether the parameters are sharded, so that every process must take part in every forward."""
    return any(isinstance(part, FSDPModule) for part in module.modules())


def require_shardable(module: nn.Module) -> None:
    """Refuse parameters that cannot be sharded (RecipeError names one)."""
    for name, parameter in module.named_parameters():
        if not parameter.is_floating_point() or not parameter.ndim:
            what = "a single number" if not parameter.ndim else f"packed as {str(parameter.dtype)[6:]}"
            raise RecipeError(
                f"train.parallel fsdp shards parameters by rows, and {name!r} of {type(module).__name__} is "
                f"{what}. Set train.parallel to ddp."
            )


def require_sharding_support(component: Strategy | Regularizer | Optimizer, kind: str) -> None:
    """Refuse a component that does not support sharded parameters (RecipeError)."""
    if not component.traits.supports_sharding:
        raise RecipeError(
            f"{kind} {component.name!r} does not support sharded parameters, but train.parallel is fsdp. Set that to "
            f"ddp, or choose another {kind}."
        )


@torch.no_grad()
def shard(module: nn.Module, device: torch.device, classes: Collection[str] = ()) -> None:
    """Shard a model over all processes, in place.

    Process 0 has its weights, on the CPU; the weights of other processes are ignored and may be on the meta device.
    Gradients are summed over processes, not averaged. They are reduced after every micro-batch; if that waited for the
    last one, every process would hold full gradients.

    Args:
        device: device of each process.
        classes: names of the classes of blocks; by default those that the model declares.

    Raises:
        RecipeError: a parameter cannot be sharded, or the model has no such class.
    """
    require_shardable(module)
    mesh = init_device_mesh(device.type, (dist.get_world_size(),))
    full = {name: parameter.detach() for name, parameter in module.named_parameters()}
    for block in blocks(module, classes):
        fully_shard(block, mesh=mesh)
    fully_shard(module, mesh=mesh)
    for part in sharded_parts(module):
        part.set_gradient_divide_factor(1.0)
        part.set_force_sum_reduction_for_comms(True)  # gloo supports no other
    # From torch 2.13: a parameter unused by one process (such as an expert) gets a gradient of zeros there.
    if (settle := getattr(module, "set_reduce_scatter_unused_params", None)) is not None:
        settle(True)
    if any(tensor.is_meta for tensor in (*module.parameters(), *module.buffers())):
        module.to_empty(device=device)
    for name, parameter in module.named_parameters():
        _hand_out(full.pop(name), parameter, mesh)
    for buffer in module.buffers():
        _broadcast(buffer)


def _hand_out(full: Tensor, parameter: nn.Parameter, mesh: DeviceMesh) -> None:
    """Give each process its part of a tensor of process 0."""
    assert isinstance(parameter, DTensor)
    if mesh.get_rank():
        full = torch.empty(full.shape, dtype=full.dtype, device=parameter.device)
    parameter.copy_(distribute_tensor(full.to(parameter.device), mesh, parameter.placements))


def _broadcast(buffer: Tensor) -> None:
    """Set a buffer to process 0's values, sent as bytes: gloo and nccl do not support every dtype."""
    flat = buffer.contiguous().reshape(-1).view(torch.uint8).clone()
    dist.broadcast(flat, 0)
    buffer.copy_(flat.view(buffer.dtype).view_as(buffer))


def blocks(module: nn.Module, classes: Collection[str] = ()) -> list[nn.Module]:
    """Return the blocks that are gathered one at a time, inner ones first.

    Blocks are instances of `classes`; by default, of a transformers model's `_no_split_modules`; else members of module
    lists of one class. Blocks without parameters are left out, and blocks that share a parameter with the rest of the
    model (tied embeddings).

    Raises:
        RecipeError: the model has none of `classes`.
    """
    names = set(classes) or set(getattr(module, "_no_split_modules", None) or ())
    parts = [part for part in module.modules() if names & {cls.__name__ for cls in type(part).__mro__}]
    if classes and not parts:
        raise RecipeError(
            f"the launcher asks for blocks of class {', '.join(sorted(classes))}, but {type(module).__name__} has "
            "none. Correct or remove fsdp_transformer_layer_cls_to_wrap."
        )
    if not parts:
        parts = [member for part in module.modules() for member in _alike(part)]
    uses = Counter(id(p) for part in module.modules() for p in part.parameters(recurse=False))
    result = []
    for block in dict.fromkeys(reversed(parts)):
        inside = Counter(id(p) for part in block.modules() for p in part.parameters(recurse=False))
        if block is not module and inside and all(uses[key] == count for key, count in inside.items()):
            result.append(block)
    return result


def _alike(part: nn.Module) -> list[nn.Module]:
    """Return the members of a module list if all are of one class and have submodules; else none."""
    members = list(part.children()) if isinstance(part, (nn.ModuleList, nn.Sequential)) else []
    same = len(members) > 1 and len({type(member) for member in members}) == 1
    return members if same and next(members[0].children(), None) is not None else []


def not_finite(tensors: Mapping[str, Tensor]) -> list[str]:
    """Return the names of tensors with a number that is not finite, for sharded ones in any process."""
    parts = [tensor.to_local() if isinstance(tensor, DTensor) else tensor for tensor in tensors.values()]
    flags = torch.stack([_ends(part).isfinite().all().logical_not().float() for part in parts])
    if any(isinstance(tensor, DTensor) for tensor in tensors.values()):
        dist.all_reduce(flags)
    return [name for name, wrong in zip(tensors, flags.tolist(), strict=True) if wrong]


def _ends(tensor: Tensor) -> Tensor:
    """Return a tensor's minimum and maximum, (2,), or NaN if it has one; the tensor if torch cannot compute them.

    That takes one pass; testing each number takes copies and fifteen times as long.
    """
    supported = tensor.dtype in (torch.float32, torch.bfloat16, torch.float16, torch.float64) and tensor.numel()
    return torch.stack(torch.aminmax(tensor)) if supported else tensor


def got_gradients(module: nn.Module) -> set[str]:
    """Return a set to which a backward pass adds the name of each parameter of a sharded model that gets a gradient.

    The gradients do not show it afterwards: an unused parameter then has a gradient of zeros (see `shard`).
    """
    names: set[str] = set()
    hooked: set[nn.Parameter] = set()
    for path, part in module.named_modules():

        def listen(part: nn.Module, args: Any, path: str = path) -> None:
            for name, parameter in part.named_parameters(path):  # gathered by now, unless they belong to another part
                if parameter.requires_grad and not isinstance(parameter, DTensor) and parameter not in hooked:
                    hooked.add(parameter)
                    parameter.register_post_accumulate_grad_hook(lambda _, name=name: names.add(name))

        if isinstance(part, FSDPModule):
            nn.Module.register_forward_pre_hook(cast(nn.Module, part), listen)
    return names


def sharded_parts(module: nn.Module) -> Iterator[Any]:
    """Yield the modules that are gathered as a unit: the blocks, and the model itself."""
    return (part for part in module.modules() if isinstance(part, FSDPModule))


def reshard(module: nn.Module) -> None:
    """Free gathered parameters, even after a forward without a backward; an unsharded model stays as it is."""
    for part in sharded_parts(module):
        part.reshard()


def without_weights(module: nn.Module) -> nn.Module:
    """Return a copy on the meta device, which `gathered` fills."""
    return _copied(module, lambda weights: torch.empty_like(weights, device="meta"))


def beside(module: nn.Module) -> nn.Module:
    """Return a copy that shares the weights until it is sharded or moved to another device."""
    return _copied(module, lambda weights: weights)


def _copied(module: nn.Module, weights: Callable[[Tensor], Tensor]) -> nn.Module:
    copies = {id(p): nn.Parameter(weights(p.detach()), p.requires_grad) for p in module.parameters()}
    return copy.deepcopy(module, copies)


@torch.no_grad()
def gathered(module: nn.Module, empty: nn.Module) -> nn.Module:
    """Return the gathered model on the CPU in process 0; in other processes `empty`, with undefined weights.

    Args:
        module: the sharded model; all processes must take part.
        empty: its copy by `without_weights` before it was sharded.
    """
    reshard(module)
    targets = dict(empty.named_parameters())
    first = dist.get_rank() == 0
    for name, parameter in module.named_parameters():
        full = parameter.full_tensor() if isinstance(parameter, DTensor) else parameter  # one at a time
        if first:
            target = nn.Parameter(full.detach().to("cpu", copy=True), parameter.requires_grad)
            torch.utils.swap_tensors(targets[name], target)  # in place, so that tied parameters stay tied
    for name, buffer in module.named_buffers():
        owner, _, own = name.rpartition(".")
        empty.get_submodule(owner)._buffers[own] = buffer.detach().cpu()
    return empty.train(module.training)


def whole_norm(norm: Tensor) -> Tensor:
    """Return the norm of gradients over all processes, sharded or not."""
    return norm.full_tensor() if isinstance(norm, DTensor) else norm
