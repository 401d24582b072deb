"""How the routers of a mixture spread tokens over its experts: losses that balance them, and counts for the report."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from statistics import fmean
from typing import Any
from weakref import WeakKeyDictionary, ref

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from ftengine.api import Batch, LoadedModel, Regularizer, RegularizerTraits, Task
from ftengine.errors import RecipeError
from ftengine_builtins.strategies.expert_layers import expert_modules, experts_per_token, names, text_config

ASKED = "asks_for_router_losses"
"""The attribute of a model whose configuration said `output_router_logits`; the loader takes that out, because
transformers does not generate with it."""

EVERY_TOKEN: WeakKeyDictionary[nn.Module, RouterLosses] = WeakKeyDictionary()
"""Models with a loss over all tokens of all layers, also over those that several rows share."""

PARTS = 10
"""The first and the last of so many parts of the steps are compared."""

FEW = 100
"""Tokens; an expert's update of rank 8 in OLMoE has 40,960 numbers."""

LAYERS = "expert_layers"
"""The key of the layers' facts in training.json."""

See = Callable[[int, tuple[Any, ...], Any, Tensor | None], None]
"""Gets the number of a part, its arguments, its output, and the (B, T) attention mask of the call, if it has one."""


class TrainingCalls:
    """Hooks on parts of a decoder that call `see` where it computes with gradients, but not where layers recompute."""

    def __init__(self, module: nn.Module, parts: list[nn.Module], see: See) -> None:
        self._see, self._mask, self._runs = see, None, False
        around = [m for m in module.modules() if hasattr(m, "get_input_embeddings") and {*parts} <= {*m.modules()}]
        decoder = around[-1] if around else module
        self._handles: list[RemovableHandle] = [
            decoder.register_forward_pre_hook(self._begin, with_kwargs=True),
            decoder.register_forward_hook(self._end, always_call=True),
            *(part.register_forward_hook(self._hook(number)) for number, part in enumerate(parts)),
        ]

    def remove(self) -> None:
        for handle in self._handles:
            handle.remove()

    def _begin(self, decoder: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        self._runs = decoder.training and torch.is_grad_enabled()
        mask = kwargs.get("attention_mask")
        self._mask = mask if isinstance(mask, Tensor) and mask.ndim == 2 else None

    def _end(self, *_: Any) -> None:
        self._runs, self._mask = False, None

    def _hook(self, number: int) -> Callable[..., None]:
        def hook(part: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            if self._runs:
                self._see(number, args, output, self._mask)

        return hook


class RouterLosses:
    """What a mixture's training adds to the loss, from the logits of its routers, as transformers computes it.

    coefficient · E Σ_e f_e p_e + z · mean of (log Σ_e exp(logit_e))²

    f_e is the number of choices of expert e for each token, and p_e its mean probability, both over all layers and
    tokens but padding (Fedus et al. 2021, arXiv:2101.03961, eq. 4; Zoph et al. 2022, arXiv:2202.08906, eq. 5).

    Raises:
        RecipeError: the model's configuration has no such loss.
    """

    def __init__(self, module: Any, coefficient: float | None, z: float | None) -> None:
        config = text_config(module)
        self._balance = getattr(config, "router_aux_loss_coef", None) if coefficient is None else coefficient
        self._z = (getattr(config, "router_z_loss_coef", None) or 0.0) if z is None else z
        routers = _routers(module)
        if not routers or getattr(config, "router_aux_loss_coef", None) is None:
            what = "has no experts with a router" if not routers else "has no router_aux_loss_coef in its configuration"
            raise RecipeError(
                f"{type(module).__name__} {what}, so there is no load-balancing loss for it. Remove load-balancing "
                "from regularize."
            )
        self._top, self._index = experts_per_token(module) or 1, list(routers.values())
        self._module = ref(module)  # the module itself would keep its own entry of `EVERY_TOKEN` for ever
        self._rows: list[tuple[Tensor, Tensor | None]] = []
        self._calls = TrainingCalls(module, list(routers), self._keep)
        if module in EVERY_TOKEN:  # the recipe's come after the configuration's
            EVERY_TOKEN[module].remove()
        EVERY_TOKEN[module] = self

    def remove(self) -> None:
        self._calls.remove()
        self._rows.clear()
        module = self._module()
        if module is not None and EVERY_TOKEN.get(module) is self:
            del EVERY_TOKEN[module]

    def _keep(self, number: int, args: tuple[Any, ...], output: Any, mask: Tensor | None) -> None:
        logits = (output[self._index[number]] if isinstance(output, tuple) else output).flatten(0, -2)
        if mask is not None:  # of virtual tokens in front it may have more columns
            mask = mask[:, -(len(logits) // len(mask)) :].reshape(-1)
        self._rows.append((logits, mask))

    def take(self) -> Tensor | None:
        """Return the losses of the tokens that were computed since the last call; None without any."""
        rows, self._rows = self._rows, []
        if not rows:
            return None
        device, experts = rows[0][0].device, rows[0][0].shape[-1]
        chosen, probability = (torch.zeros(experts, device=device) for _ in "fp")
        z, count = torch.zeros((), device=device), torch.zeros((), device=device)
        for logits, mask in rows:
            logits = logits.to(device, torch.promote_types(logits.dtype, torch.float32))
            kept = torch.ones_like(logits[:, 0]) if mask is None else mask.to(logits)
            shares = logits.softmax(-1)
            places = torch.zeros_like(shares).scatter_(1, shares.topk(self._top).indices, 1.0)
            chosen, probability = chosen + kept @ places, probability + kept @ shares
            z, count = z + kept @ logits.logsumexp(-1).square(), count + kept.sum()
        return self._balance * experts * (chosen @ probability) / count**2 + self._z * z / count


def _routers(module: nn.Module) -> dict[nn.Module, int]:
    """Return the modules that compute routers' logits, with their place in the output, as transformers records them."""
    found: dict[nn.Module, int] = {}
    for part in module.modules():
        recorder = (getattr(part, "_can_record_outputs", None) or {}).get("router_logits")
        for recorded in recorder if isinstance(recorder, list) else [recorder] if recorder is not None else []:
            if (cls := getattr(recorded, "target_class", None)) is not None:
                found |= {child: recorded.index for child in part.modules() if isinstance(child, cls)}
    return found


class ExpertLoads(Regularizer):
    """Counts, layer by layer, how many tokens each expert of a mixture trains on, and adds the losses of its routers
    where the model's configuration asks for them and the recipe has no `load-balancing`.

    Each process counts its own tokens; a prefix that rows share is counted as often as it is computed.

    Args:
        steps: of the run.
    """

    traits = RegularizerTraits(supports_sharding=True, by_tokens=True)
    _losses: RouterLosses | None = None
    _calls: TrainingCalls | None = None

    def __init__(self, steps: int) -> None:
        super().__init__()
        self._part = max(1, steps // PARTS)

    def attach(self, loaded: LoadedModel, task: Task) -> None:
        experts = expert_modules(loaded.module)
        parts = list(experts.values())
        self._names, self._done = list(experts), 0
        numbers = [len(part._parameters[names(part)[0]]) for part in parts]
        device = next(loaded.module.parameters()).device
        self._counts = torch.zeros(4, len(parts), max(numbers, default=0), dtype=torch.int64, device=device)
        self._numbers = numbers
        self._trained = [any(p.requires_grad for p in part.parameters()) for part in parts]
        self._calls = TrainingCalls(loaded.module, parts, self._count)
        if getattr(loaded.module, ASKED, False) or getattr(text_config(loaded.module), "output_router_logits", False):
            self._losses = RouterLosses(loaded.module, None, None)

    def detach(self, loaded: LoadedModel) -> None:
        for hooks in (self._calls, self._losses):
            if hooks is not None:
                hooks.remove()
        self._calls = self._losses = None

    @torch.no_grad()
    def _count(self, number: int, args: tuple[Any, ...], output: Any, mask: Tensor | None) -> None:
        chosen, row = args[1], self._counts[3, number]
        flat = chosen.reshape(-1).to(row.device)
        ones = torch.ones_like(flat, dtype=row.dtype)
        if mask is not None and mask.numel() == len(chosen):  # a tree of prefixes has no padding
            ones = mask.reshape(-1).to(row).repeat_interleave(chosen.shape[-1])
        row.scatter_add_(0, flat, ones)

    def penalty(self, model: nn.Module, batch: Batch, loss: Tensor) -> Tensor | None:
        return None if self._losses is None else self._losses.take()

    def on_step_end(self, model: nn.Module, step: int) -> None:
        total, first, last, now = self._counts
        self._done = step
        if step % self._part == 0:
            if step == self._part:
                first.copy_(now)
            total += now
            last.copy_(now)
            now.zero_()

    def state_dict(self) -> dict[str, Tensor]:
        return {"counts": self._counts.cpu()}

    def load_state_dict(self, tensors: Mapping[str, Tensor]) -> None:
        self._counts.copy_(tensors["counts"])

    def on_train_end(self, model: nn.Module, measure: Callable[[], Mapping[str, float]]) -> dict[str, Any]:
        """Return how tokens were spread in the first and the last tenth of the steps: means, and each layer."""
        total, first, last, now = self._counts.cpu()
        total, last = total + now, last if bool(last.any()) else now
        first = first if bool(first.any()) else now
        layers = [
            spread(self._names[i], total[i, :number], first[i, :number], last[i, :number], trained=self._trained[i])
            for i, number in enumerate(self._numbers)
            if bool(total[i].any())
        ]
        return summary(layers) | {LAYERS: layers} if layers else {}


def summary(layers: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the means over layers of what `spread` returned for each."""
    facts: dict[str, Any] = {}
    for what in ("entropy", "busiest"):
        for when, of in (("before", f"in the first 1/{PARTS} of steps"), ("after", f"in the last 1/{PARTS}")):
            values = [layer[f"{what}_{when}"] for layer in layers if layer[f"{what}_{when}"] is not None]
            name = "entropy of experts' tokens" if what == "entropy" else "share of the busiest expert"
            facts |= {f"{name} {of}": round(fmean(values), 4)} if values else {}
    starved = [(layer["few"], layer["experts"]) for layer in layers if layer["few"] is not None]
    few, number = map(sum, zip(*starved, strict=True)) if starved else (0, 0)
    return facts | ({f"experts with fewer than {FEW} tokens": f"{few:,} of {number:,}"} if starved else {})


def spread(layer: str, total: Tensor, first: Tensor, last: Tensor, *, trained: bool = True) -> dict[str, Any]:
    """Return how the tokens of a layer fell on its E experts.

    Args:
        layer: path of its experts.
        total, first, last: (E,) counts in the whole training, and in its first and its last steps.
        trained: whether the experts train.
    """
    return {
        "layer": layer,
        "experts": len(total),
        "few": int((total < FEW).sum()) if trained else None,
        "entropy_before": entropy(first),
        "entropy_after": entropy(last),
        "busiest_before": busiest(first),
        "busiest_after": busiest(last),
    }


def entropy(counts: Tensor) -> float | None:
    """Return the entropy of the experts' shares over its maximum, from 0 (one takes all) to 1; None without tokens."""
    if not (total := int(counts.sum())):
        return None
    shares = counts.double() / total
    return round(float(torch.special.entr(shares).sum()) / math.log(max(2, len(counts))), 4)


def busiest(counts: Tensor) -> float | None:
    """Return the share of the expert with most tokens; None without tokens."""
    return round(float(counts.max() / counts.sum()), 4) if bool(counts.any()) else None
