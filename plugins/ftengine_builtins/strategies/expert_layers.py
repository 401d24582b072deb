"""LoRA on the experts of a mixture, which transformers keeps in parameters of three dimensions, and on their router.

A module of experts is adapted in place, as other layers are: its class changes, and each adapted parameter gains A and
B for every expert. transformers' own implementations (`experts_implementation`) are not called any more.
"""

from __future__ import annotations

import functools
import math
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ftengine.model import widen
from ftengine.ops import ExpertMap, lowrank_experts, lowrank_merge_
from ftengine.text import counted, percent

FLAGS = ("has_gate", "has_bias", "is_transposed", "is_concatenated", "_apply_gate")
"""What transformers' `use_experts_implementation` gives a class of experts."""


def is_experts(module: nn.Module) -> bool:
    """Say whether a module holds experts as transformers 5 does, in parameters (experts, …, …)."""
    return all(hasattr(module, flag) for flag in FLAGS) and all(name in module._parameters for name in names(module))


def names(module: Any) -> tuple[str, str]:
    """Return the names of the experts' parameters, that of the first map and that of the second."""
    return "gate_up_proj" if module.has_gate else "up_proj", "down_proj"


def why_not(module: Any) -> str:
    """Return why an update of these experts cannot be computed; "" if it can."""
    weights = [module._parameters[name] for name in names(module)]
    if any(not weight.is_floating_point() or weight.dtype.itemsize < 2 for weight in weights):
        return "holds experts with packed weights"  # numbers of 8 bits have scales elsewhere
    if module._is_expert_parallel:
        return "holds a part of the experts: they are spread over devices"
    if module.has_post_expert_norm:
        return "normalises the output of each expert, which is not supported"
    return ""


def expert_modules(module: nn.Module) -> dict[str, nn.Module]:
    return {path: part for path, part in module.named_modules() if is_experts(part)}


def other_experts(module: nn.Module) -> dict[str, str]:
    """Return why modules of experts that are kept in another way, such as packed in 4 bits, cannot be adapted, by path.

    Experts that are modules with linear layers are not among them.
    """
    return {
        path: f"is a {type(part).__name__}, whose experts are kept in a way that LoRA has no update for"
        for path, part in module.named_modules()
        if type(part).__name__.endswith("Experts")
        and not is_experts(part)
        and any(True for _ in part.parameters())
        and not any(isinstance(inner, nn.Linear) for inner in part.modules())
    }


def parameters_of(path: str, experts: nn.Module) -> list[str]:
    """Return the paths of the experts' parameters."""
    return [f"{path}.{name}" for name in names(experts)]


class LoRAExperts(nn.Module):
    """Experts with a low-rank update of each: A (E, r, in), or (r, in) for all of a layer, and B (E, out, r).

    y = Σ_e w_e · down_e(gate(up_e(x)))      see ftengine.ops.experts

    With one A for all experts of a layer, each learns B alone, as in Tian et al. 2024 (HydraLoRA, arXiv:2404.19245,
    §3), where A's of several tasks hardly differ and B's do.
    """

    lora_base: ClassVar[type[nn.Module]]
    lora_dropout: float
    lora_scales: dict[str, float]
    """alpha / r by parameter."""

    def forward(self, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
        up, down = map(self.lora_map, names(self))
        gate = self._apply_gate if self.has_gate else self.act_fn
        return lowrank_experts(hidden_states, top_k_index, top_k_weights, up, down, gate, self.lora_p)

    @property
    def lora_p(self) -> float:
        """Probability of dropout as it is now."""
        return self.lora_dropout if self.training else 0.0

    @property
    def lora_names(self) -> list[str]:
        """The adapted parameters, in the module's order."""
        return [name for name in self._parameters if name in self.lora_scales]

    def lora_map(self, name: str) -> ExpertMap:
        weight, bias = getattr(self, name), getattr(self, f"{name}_bias") if self.has_bias else None
        weight = weight.transpose(1, 2) if self.is_transposed else weight
        if name not in self.lora_scales:
            return ExpertMap(weight, bias)
        return ExpertMap(weight, bias, *self.lora_factors(name), self.lora_scales[name])

    def lora_factors(self, name: str) -> tuple[nn.Parameter, nn.Parameter]:
        """Return A and B of a parameter."""
        return getattr(self, f"lora_{name}_a"), getattr(self, f"lora_{name}_b")

    @torch.no_grad()
    def lora_merge(self) -> None:
        """Add the updates to the experts' weights in place, rounded once."""
        for name in self.lora_names:
            weight, _, a, b, scale = self.lora_map(name)
            for expert in range(len(weight)):
                own = a if a.dim() == 2 else a[expert]
                lowrank_merge_(weight[expert], own, b[expert], scale)

    def lora_remove(self) -> None:
        """Restore the module without its updates."""
        for name in [*self._parameters, *vars(self)]:
            if name.startswith("lora_"):
                delattr(self, name)
        self.__class__ = self.lora_base


class LoRARouter(nn.Module):
    """A router whose weight (E, in) has a low-rank update; its own forward reads the weight with the update in it.

    Not dropped out, because it is the weight that changes. E is small, so that the sum costs next to nothing.
    """

    lora_base: ClassVar[type[nn.Module]]
    lora_a: nn.Parameter  # (r, in)
    lora_b: nn.Parameter  # (E, r)
    lora_scale: float

    @property
    def weight(self) -> Tensor:
        weight = self._parameters["weight"]
        return self.lora_merged(weight).to(weight.dtype)

    def lora_merged(self, weight: Tensor) -> Tensor:
        return widen(weight) + self.lora_scale * (self.lora_b @ self.lora_a).to(widen(weight).dtype)

    @torch.no_grad()
    def lora_merge(self) -> None:
        """Add the update to the weight in place, rounded once."""
        weight = self._parameters["weight"]
        weight.copy_(self.lora_merged(weight))

    lora_remove = LoRAExperts.lora_remove


def routers(module: nn.Module) -> set[str]:
    """Return the paths of routers: modules beside experts, with a forward of their own and a weight (E, in)."""
    found = set[str]()
    for path in (*expert_modules(module), *other_experts(module)):
        parent = path.rpartition(".")[0]
        rows = next((len(p) for p in module.get_submodule(path).parameters() if p.ndim == 3), 0)
        for name, part in module.get_submodule(parent).named_children():
            weight = part._parameters.get("weight")
            if type(part).forward is not nn.Linear.forward and weight is not None and len(weight) == rows:
                found.add(f"{parent}.{name}" if parent else name)
    return found


def text_config(module: Any) -> Any:
    """Return the configuration of a model's text part, None without any."""
    return module.config.get_text_config() if hasattr(module, "config") else None


def experts_per_token(module: Any) -> int | None:
    """Return how many experts a token passes, as the model's configuration says; None if it does not."""
    config = text_config(module)
    keys = ("num_experts_per_tok", "num_experts_per_token", "moe_topk", "moe_k", "top_k_experts")
    return next((n for n in (getattr(config, key, None) for key in keys) if isinstance(n, int)), None)


def expert_notes(module: nn.Module) -> tuple[list[str], list[str]]:
    """Return facts about the experts that have updates, and warnings about those that have none."""
    parts, tuned = expert_modules(module), expert_layers(module)
    own = {path: [part._parameters[name] for name in names(part)] for path, part in parts.items()}
    every = [parameter for parameters in own.values() for parameter in parameters]
    total = sum(parameter.numel() for parameter in module.parameters())
    others = [
        f"{path!r} {why}: {percent(sum(p.numel() for p in module.get_submodule(path).parameters()) / total)} of the "
        "model's parameters, and as much in each layer like it, stay as they are."
        for path, why in [*other_experts(module).items()][:1]
    ]
    if not every or any(parameter.requires_grad for parameter in every):
        return [], others
    numbers = sorted({len(parameter) for parameter in every})
    what = (
        f"{' or '.join(map(str, numbers))} experts in each of {counted(len(parts), 'layer')}, "
        f"{percent(sum(parameter.numel() for parameter in every) / total)} of the model's parameters"
    )
    facts, adapted = list[str](), {f"{path}.{name}" for path, part in tuned.items() for name in part.lora_names}
    if adapted:
        added = sum(factor.numel() for p in tuned.values() for name in p.lora_names for factor in p.lora_factors(name))
        kinds = " and ".join(sorted({name.rpartition(".")[2] for name in adapted}))
        facts = [f"{what}; {kinds} of {len(tuned):,} train by {added:,} parameters, {percent(added / total)} of all"]
    left = [name for path, part in parts.items() for name in parameters_of(path, part) if name not in adapted]
    if not left:
        return facts, others
    whole = f"are left out in part, such as {left[0]!r}" if adapted else "are left out"
    why = next((f" ({path!r} {reason})" for path, part in parts.items() if (reason := why_not(part))), "")
    return facts, [*others, f"{what}, {whole}{why}: strategy.targets all-linear or experts takes them in."]


def expert_layers(module: nn.Module) -> dict[str, LoRAExperts]:
    return {path: part for path, part in module.named_modules() if isinstance(part, LoRAExperts)}


def lora_routers(module: nn.Module) -> dict[str, LoRARouter]:
    return {path: part for path, part in module.named_modules() if isinstance(part, LoRARouter)}


def add_to_experts(
    experts: nn.Module, name: str, rank: int, scale: float, dropout: float, init: str, *, one_a: bool = False
) -> None:
    """Give a parameter of experts an update of zero.

    Args:
        experts: of a kind that `is_experts` takes.
        name: of the parameter.
        rank, scale: of each expert's update.
        dropout: of its input, while training; the same for all parameters of a module.
        init: how A starts, "kaiming" or "gaussian".
        one_a: one A for all experts.
    """
    if not isinstance(experts, LoRAExperts):
        experts.__class__ = _subclass(type(experts), LoRAExperts)
        experts.lora_scales, experts.lora_dropout = {}, dropout
    count, n_out, n_in = experts.lora_map(name).weight.shape
    device = experts._parameters[name].device
    shape = (rank, n_in) if one_a else (count, rank, n_in)
    setattr(experts, f"lora_{name}_a", nn.Parameter(_drawn(shape, init, device)))
    setattr(experts, f"lora_{name}_b", nn.Parameter(torch.zeros(count, n_out, rank, device=device)))
    experts.lora_scales = {**experts.lora_scales, name: scale}


def add_to_router(router: nn.Module, rank: int, scale: float, init: str) -> None:
    """Give a router an update of zero."""
    weight = router._parameters["weight"]
    router.__class__ = _subclass(type(router), LoRARouter)
    router.lora_a = nn.Parameter(_drawn((rank, weight.shape[1]), init, weight.device))
    router.lora_b = nn.Parameter(torch.zeros(len(weight), rank, device=weight.device))
    router.lora_scale = scale


def _drawn(shape: tuple[int, ...], init: str, device: torch.device) -> Tensor:
    """Return A's for (…, r, in), drawn on the CPU so that one seed gives one A on every kind of device."""
    a = torch.empty(shape, device="meta" if device.type == "meta" else "cpu")
    if init == "gaussian":
        nn.init.normal_(a, std=1 / shape[-2])
    else:  # torch counts the inputs of three dimensions otherwise
        bound = math.sqrt(1 / shape[-1])  # kaiming_uniform_ with a = √5
        nn.init.uniform_(a, -bound, bound)
    return a.to(device)


@functools.cache
def _subclass(base: type[nn.Module], cls: type[nn.Module]) -> type[nn.Module]:
    return type(f"LoRA{base.__name__}", (cls, base), {"lora_base": base})
