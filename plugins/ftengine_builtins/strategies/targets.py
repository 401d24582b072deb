"""Selecting modules by PEFT's rules of matching: LoRA's `targets`, and heads, which train whole."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any

from torch import nn

from ftengine.api import LoadedModel
from ftengine.errors import NoMatch
from ftengine.model import decayed, matching, near_modules, trainable
from ftengine.model.token_loss import is_encoder_decoder
from ftengine_builtins.strategies import expert_layers
from ftengine_builtins.strategies.expert_layers import LoRAExperts, LoRARouter
from ftengine_builtins.strategies.lora_layers import LoRALayer, is_linear, lora_class

ALL_LINEAR, ATTENTION, EXPERTS = "all-linear", "attention", "experts"
IN_ATTENTION = re.compile("attn|attention", re.IGNORECASE)
"""What a module of attention is called in every architecture of transformers; linear layers are inside of it."""

HEADS = {"sequence-classification": ("classifier", "score"), "token-classification": ("classifier", "score")}
"""Modules that PEFT trains and saves whole for such a task, whether the base brought them or not."""

# Their forward reads the weights of these children directly, so an adapted child would never be called.
BYPASSING = (nn.MultiheadAttention, nn.TransformerEncoderLayer)

_WHOLE = "already trains whole, as part of the head"
_HOOKED = "has its forward replaced on the instance, as accelerate's device_map does"


def whole_modules(loaded: LoadedModel) -> list[str]:
    """Return the modules that train and are saved whole: new ones and a classification head."""
    heads = HEADS.get(loaded.head, ())
    paths = [
        path
        for path, _ in loaded.module.named_modules()
        # PEFT matches these by the bare ending: 'classifier' takes DistilBERT's 'pre_classifier' with it.
        if path and (path in loaded.new_modules or path.endswith(heads))
    ]
    return [path for path in paths if not any(path.startswith(f"{other}.") for other in paths)]


def freeze_base(loaded: LoadedModel) -> None:
    """Freeze everything but the modules that train whole."""
    loaded.module.requires_grad_(False)
    for path in whole_modules(loaded):
        loaded.module.get_submodule(path).requires_grad_(True)


def inside(path: str, modules: Iterable[str]) -> bool:
    """Return whether a path is one of some modules' paths or lies within one."""
    return any(path == module or path.startswith(f"{module}.") for module in modules)


def param_groups(
    model: nn.Module, weight_decay: float, rate: Callable[[str, nn.Parameter], float], vectors: Collection[int] = ()
) -> list[dict[str, Any]]:
    """Group trainable parameters for the optimiser, by learning rate and weight decay.

    Args:
        weight_decay: for the parameters in `ftengine.model.decayed`.
        rate: gives the learning rate of a parameter, from its name and itself.
        vectors: ids of parameters that do not decay, whatever their shape.
    """
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    decays = decayed(model)
    for name, parameter in trainable(model).items():
        decay = weight_decay if name in decays and id(parameter) not in vectors else 0.0
        groups.setdefault((rate(name, parameter), decay), []).append(parameter)
    return [{"params": members, "lr": lr, "weight_decay": decay} for (lr, decay), members in groups.items()]


def select(loaded: LoadedModel, targets: str | Sequence[str], heads_are_welcome: bool = False) -> dict[str, list[str]]:
    """Return the layers that each pattern matches, by path in the model's order (NoMatch: one matches none).

    Args:
        targets: "all-linear" for every linear layer but the output head, and every parameter of experts; "attention"
            for the linear layers of attention; "experts" for the parameters of experts; another string is a regular
            expression for whole paths, which selects the layers and such parameters that LoRA can adapt among its
            matches; each item of a list is a path or its ending after a dot, and must match such layers only. A module
            of experts stands for its parameters.
        heads_are_welcome: pass over names of modules that train whole; PEFT's own files hold such names.
    """
    module = loaded.module
    obstacles = _obstacles(module, whole_modules(loaded))
    if isinstance(targets, str) and (kind := targets.lower()) in KINDS:
        return {kind: KINDS[kind](module, obstacles)}
    if isinstance(targets, str):
        return {targets: _usable(module, targets, matching(obstacles, targets, full_match=True), obstacles)}
    named = {name: _named(obstacles, name) for name in targets}
    if heads_are_welcome:
        named = {n: paths for n, paths in named.items() if not paths or any(obstacles[p] != _WHOLE for p in paths)}
    absent = [name for name, paths in named.items() if not paths]
    if len(absent) > 1:
        raise NoMatch(
            f"targets patterns {', '.join(map(repr, absent))} match no module of {type(module).__name__}. "
            f"{_layers(module, obstacles)}"
        )
    return {name: _usable(module, name, paths, obstacles, strict=True) for name, paths in named.items()}


def experts_of(module: nn.Module) -> dict[str, str]:
    """Return why each parameter of a model's experts cannot be adapted, by path; "" if it can."""
    return {
        name: "has a LoRA already" if name.rpartition(".")[2] in getattr(part, "lora_scales", ()) else why
        for path, part in expert_layers.expert_modules(module).items()
        for why in [expert_layers.why_not(part)]
        for name in expert_layers.parameters_of(path, part)
    }


def _linear(kind: str, module: nn.Module, obstacles: Mapping[str, str]) -> list[str]:
    """Return the linear layers that can be adapted but the output head; a router is none."""
    if hooked := [path for path, why in obstacles.items() if why == _HOOKED]:
        raise NoMatch(f"targets {kind!r}: {hooked[0]!r} {_HOOKED}. Load the model on one device.")
    head, routers = output_head(module), {*expert_layers.routers(module)}
    free = _modules(module, (path for path, why in obstacles.items() if not why and path not in routers))
    return [path for path, layer in free.items() if layer is not head and is_linear(layer)]


def _all_linear(module: nn.Module, obstacles: Mapping[str, str]) -> list[str]:
    linear, experts = _linear(ALL_LINEAR, module, obstacles), experts_of(module)
    taken = [path for path in obstacles if path in {*linear, *(name for name, why in experts.items() if not why)}]
    if not taken:
        raise NoMatch(
            f"targets 'all-linear' finds no linear layer in {type(module).__name__} to adapt. "
            f"{_layers(module, obstacles)}{_instead(module, obstacles)}"
        )
    return taken


def _attention(module: nn.Module, obstacles: Mapping[str, str]) -> list[str]:
    linear = _linear(ATTENTION, module, obstacles)
    taken = [path for path in linear if any(map(IN_ATTENTION.search, path.split(".")[:-1]))]
    if not taken:
        raise NoMatch(
            f"targets 'attention' finds no linear layer inside of attention in {type(module).__name__}. "
            f"{_layers(module, obstacles)}"
        )
    return taken


def _experts(module: nn.Module, obstacles: Mapping[str, str]) -> list[str]:
    experts = experts_of(module)
    if not (taken := [name for name, why in experts.items() if not why]):
        refused = experts or expert_layers.other_experts(module)
        why = "".join(f" {name!r} {why}." for name, why in [*refused.items()][:1])
        raise NoMatch(
            f"targets 'experts' finds no parameters of experts in {type(module).__name__} to adapt.{why} "
            f"{_layers(module, obstacles)}"
        )
    return taken


KINDS = {ALL_LINEAR: _all_linear, ATTENTION: _attention, EXPERTS: _experts}
"""Words for kinds of layers, and what returns the paths."""


def _usable(
    module: nn.Module, pattern: str, matched: list[str], obstacles: Mapping[str, str], strict: bool = False
) -> list[str]:
    if not matched:
        raise NoMatch(
            f"targets pattern {pattern!r} matches no module of {type(module).__name__}."
            f"{_near(obstacles, pattern, strict)} {_layers(module, obstacles)}"
            + ("" if strict else " A string is a regular expression for the whole path; put plain names in a list.")
        )
    taken = _without_modules(module, (path for path in matched if not obstacles[path]))
    # A name says which module is meant, so one that cannot be adapted is a mistake; the head trains anyway.
    wrong = [path for path in matched if obstacles[path] and (not strict or obstacles[path] != _WHOLE)]
    if not taken or (strict and wrong):
        path = (wrong or matched)[0]
        raise NoMatch(
            f"targets pattern {pattern!r} matches {path!r}, which {obstacles[path]}. "
            "LoRA adapts Linear, Conv1D, Conv2d, Embedding and quantised linear layers, and experts. "
            f"{_layers(module, obstacles)}"
        )
    return taken


def _without_modules(module: nn.Module, paths: Iterable[str]) -> list[str]:
    """Replace modules of experts by their parameters."""
    experts = expert_layers.expert_modules(module)
    parts = ([path] if path not in experts else expert_layers.parameters_of(path, experts[path]) for path in paths)
    return list(dict.fromkeys(name for names in parts for name in names))


def _modules(module: nn.Module, paths: Iterable[str]) -> dict[str, nn.Module]:
    """Return those of some paths that are modules."""
    named = dict(module.named_modules())
    return {path: named[path] for path in paths if path in named}


def _obstacles(module: nn.Module, whole: Sequence[str]) -> dict[str, str]:
    """Return for each module, and each parameter of experts, by path, why LoRA cannot adapt it; "" if it can."""
    experts, routers = expert_layers.expert_modules(module), {*expert_layers.routers(module)}
    named = dict(module.named_modules())
    places = Counter(id(part) for _, part in module.named_modules(remove_duplicate=False))
    used = _used_instead(module)

    def obstacle(path: str, layer: nn.Module) -> str:
        parent = named[path.rpartition(".")[0]]
        if inside(path, whole):
            return _WHOLE
        if isinstance(layer, (LoRALayer, LoRAExperts, LoRARouter)):
            return "has a LoRA already"
        if path in experts:
            return expert_layers.why_not(layer)
        if path not in routers and lora_class(layer) is None:
            return f"is a {type(layer).__name__}"
        if why := _inexpressible(layer):
            return why
        if isinstance(parent, BYPASSING):
            return f"is never called: its parent, a {type(parent).__name__}, reads its weight directly"
        if used and layer is input_embeddings(module):
            return f"is never called: {' and '.join(used)} hold its weight and are called instead"
        if places[id(layer)] > 1:
            return "is one module under several names"
        return _HOOKED if "forward" in vars(layer) else ""

    found = {path: obstacle(path, layer) for path, layer in named.items() if path}
    of_experts = experts_of(module)
    result: dict[str, str] = {}
    for path, why in found.items():
        names = expert_layers.parameters_of(path, experts[path]) if path in experts else []
        result |= {path: why, **{name: why or of_experts[name] for name in names}}
    return result


def _inexpressible(layer: nn.Module) -> str:
    """Return why PEFT and a merge cannot express the update of a convolution or an embedding; "" if they can."""
    if isinstance(layer, nn.Conv2d) and layer.groups > 1:
        return f"is a convolution in {layer.groups} groups, which a low-rank update would mix"
    if isinstance(layer, nn.Conv2d) and any(d > 1 < k for d, k in zip(layer.dilation, layer.kernel_size, strict=True)):
        return f"is a convolution with dilation {layer.dilation}, which PEFT leaves out of the update"
    if isinstance(layer, nn.Conv2d) and layer.padding_mode != "zeros":
        return f"is a convolution with {layer.padding_mode} padding"
    if isinstance(layer, nn.Embedding) and layer.max_norm is not None:
        return "is an embedding with max_norm, which rescales its weights when they are read"
    return ""


def _used_instead(module: Any) -> list[str]:
    """Return the embeddings of encoder and decoder if the model uses them instead of its own (T5, BART)."""
    if not is_encoder_decoder(module):
        return []
    own = input_embeddings(module)
    theirs = [input_embeddings(stack) for stack in (module.get_encoder(), module.get_decoder())]
    if any(table is None or table is own for table in theirs):
        return []
    return [path for path, part in module.named_modules() if any(part is table for table in theirs)]


def output_head(module: Any) -> nn.Module | None:
    """Return the module from hidden states to logits, None if the model does not name it."""
    return module.get_output_embeddings() if hasattr(module, "get_output_embeddings") else None


def input_embeddings(module: Any) -> nn.Module | None:
    """Return a model's input embeddings; None for a plain torch module, or if the model does not name them."""
    try:
        return module.get_input_embeddings()
    except (AttributeError, NotImplementedError):
        return None


def _named(paths: Iterable[str], name: str) -> list[str]:
    return matching(paths, name, full_match=False)


def _near(paths: Iterable[str], pattern: str, strict: bool) -> str:
    if not strict:
        listed = re.findall(r"[^\s,|]+", pattern)
        if listed and all(_named(paths, name) for name in listed):  # plain names, which only a list takes as such
            return f" Did you mean [{', '.join(listed)}]?"
    return near_modules(pattern, paths, repr if strict else "[{}]".format)


def _layers(module: nn.Module, obstacles: Mapping[str, str]) -> str:
    """Name the layers that could be adapted."""
    linear, others = _free(module, obstacles)
    parts = [("Its linear layers are named", linear), ("Its convolutions and embeddings are named", others)]
    return " ".join(f"{text} {_few(names)}." for text, names in parts if names)


def _instead(module: nn.Module, obstacles: Mapping[str, str]) -> str:
    """Return names that would match the convolutions and embeddings, and nothing else."""
    _, others = _free(module, obstacles)
    names = [name for name in others if not name.isdigit() and not any(obstacles[p] for p in _named(obstacles, name))]
    return f" Set strategy.targets=[{','.join(names)}]." if names else ""


def _free(module: nn.Module, obstacles: Mapping[str, str]) -> tuple[list[str], list[str]]:
    """Return the names of linear layers that can be adapted, and of other such layers."""
    modules = _modules(module, (path for path, why in obstacles.items() if not why))
    free = {path.rpartition(".")[2]: layer for path, layer in modules.items() if lora_class(layer) is not None}
    linear = [name for name, layer in free.items() if is_linear(layer)]
    return linear, [name for name in free if name not in linear]


def _few(names: Iterable[str]) -> str:
    names = list(names)
    shown = [name for name in names if not name.isdigit()][:12] or names[:12]
    return f"{', '.join(shown)}{', …' if len(names) > len(shown) else ''}"
