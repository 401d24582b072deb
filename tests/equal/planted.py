"""Faults that are planted on purpose, to show what each row of the table catches.

A fault holds in one of the two ways of its dimension alone. The small ones say where the comparison begins to see: a
factor of `SLIGHTLY` is 8,389 roundings.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch
import torch.distributed as dist
from cells import Cell
from dimensions import DIMENSIONS
from torch.nn import functional as F

from ftengine.api import RegularizerTraits
from ftengine.model import packing
from ftengine.ops import autograd
from ftengine.ops.attention import Sequences
from ftengine.training import loop, optimizer_step
from ftengine_builtins.fast_paths import dropout, grouped_layers, norms
from ftengine_builtins.fast_paths.frozen_prefix import KeptOutputs
from ftengine_builtins.fast_paths.shared_prefix import sharing
from ftengine_builtins.regularizers.load_balancing import LoadBalancing
from ftengine_builtins.strategies import expert_layers, lora_layers
from ftengine_builtins.tasks.labelled import LabelledTask

SLIGHTLY = 1.001

Change = Callable[[Any, Any], Any]
"""What becomes of a function's result; it is given its arguments as well."""


@dataclass(frozen=True)
class Fault:
    """A fault of a dimension, the cell in which it is planted, and what plants it for a while."""

    dimension: str
    cell: Cell
    plant: Callable[[], AbstractContextManager[Any]]


def _changed(owner: Any, name: str, change: Change) -> AbstractContextManager[Any]:
    """Change what a function returns."""
    before = getattr(owner, name)
    return mock.patch.object(owner, name, lambda *args, **kwargs: change(before(*args, **kwargs), args))


@contextmanager
def _both(*contexts: AbstractContextManager[Any]) -> Iterator[None]:
    with ExitStack() as stack:
        for context in contexts:
            stack.enter_context(context)
        yield


def _operator(name: str, change: Change) -> AbstractContextManager[Any]:
    """Change what a low-rank operator returns where layers call it."""

    def operators(found: SimpleNamespace, args: Any) -> SimpleNamespace:
        before = getattr(found, name)
        return SimpleNamespace(**{**vars(found), name: lambda *given: change(before(*given), given)})

    return _changed(autograd, "operators", operators)


def mean_of_means() -> AbstractContextManager[Any]:
    return _changed(optimizer_step, "loss_of", lambda found, _: (found[0] / found[1], 1.0))


def slightly_more() -> AbstractContextManager[Any]:
    return _changed(optimizer_step, "loss_of", lambda found, _: (found[0] * SLIGHTLY, found[1]))


def last_part_dropped() -> AbstractContextManager[Any]:
    return _changed(optimizer_step, "batches_in_step", lambda parts, _: parts[:-1] if len(parts) > 1 else parts)


def _packed(positions: Callable[[torch.Tensor], torch.Tensor]) -> AbstractContextManager[Any]:
    in_one_row = packing.in_one_row

    def other(batch: Any) -> dict[str, torch.Tensor]:
        row = in_one_row(batch)
        return {**row, "position_ids": positions(row["position_ids"])}

    return mock.patch.multiple(packing, _require_apart=lambda model, batch: None, in_one_row=other)


def all_leak() -> AbstractContextManager[Any]:
    return _packed(lambda positions: torch.arange(positions.numel())[None])


def first_token_leaks() -> AbstractContextManager[Any]:
    """Examples begin a token late, so that the first one of each belongs to the example before."""
    return _packed(lambda p: torch.where(p == 0, p.roll(1) + 1, p - 1).index_fill(1, torch.tensor([0]), 0))


def _seen(change: Callable[[torch.Tensor], torch.Tensor]) -> AbstractContextManager[Any]:
    """Change which keys the queries of a prefix tree see, in what follows shared tokens."""

    def changed(found: Sequences, _: Any) -> Sequences:
        queries = found.sizes[:, 0].tolist()
        before = found.keys.split(found.sizes[:, 1].tolist())
        keys = [change(part) if len(part) > n else part for part, n in zip(before, queries, strict=True)]
        sizes = torch.tensor([(n, len(part)) for part, n in zip(keys, queries, strict=True)])
        return Sequences(found.queries, torch.cat(keys), sizes)

    return _both(
        _changed(sharing.PrefixTree, "sequences", changed),
        mock.patch.object(sharing, "_check", return_value=1),
    )


def first_key_unseen() -> AbstractContextManager[Any]:
    return _seen(lambda keys: keys[1:])


def next_token_seen() -> AbstractContextManager[Any]:
    return _seen(lambda keys: torch.cat([keys, keys[-1:]]))


def two_slices_swapped() -> AbstractContextManager[Any]:
    return _changed(grouped_layers, "lowrank_linears", lambda ys, _: (*ys[:-2], ys[-1], ys[-2]))


def one_slice_slightly_more() -> AbstractContextManager[Any]:
    return _changed(grouped_layers, "lowrank_linears", lambda ys, _: (*ys[:-1], ys[-1] * SLIGHTLY))


def _kept(change: Callable[[torch.Tensor], torch.Tensor]) -> AbstractContextManager[Any]:
    keep = KeptOutputs._keep

    def other(self: Any, members: Any, keys: Any, batch: Any, hidden: torch.Tensor) -> None:
        keep(self, members, keys, batch, change(hidden))

    return mock.patch.object(KeptOutputs, "_keep", other)


def neighbours_output() -> AbstractContextManager[Any]:
    return _kept(lambda hidden: hidden.roll(1, 0))


def kept_in_bfloat16() -> AbstractContextManager[Any]:
    return _kept(lambda hidden: hidden.bfloat16().float())


def other_masks_on_recompute() -> AbstractContextManager[Any]:
    def enable(module: Any) -> None:
        module.gradient_checkpointing_enable({"use_reentrant": False, "preserve_rng_state": False})

    return mock.patch.object(loop, "checkpoint_gradients", enable)


def tail_of_norm_dropped() -> AbstractContextManager[Any]:
    return _changed(norms, "rms_norm", lambda y, _: F.pad(y[..., :-1], (0, 1)))


def norm_slightly_more() -> AbstractContextManager[Any]:
    return _changed(norms, "rms_norm", lambda y, _: y * SLIGHTLY)


def keys_in_another_order() -> AbstractContextManager[Any]:
    attend = F.scaled_dot_product_attention

    def other(q: Any, k: Any, v: Any, **kwargs: Any) -> Any:
        return attend(q, k.flip(1) if kwargs.get("enable_gqa") else k, v, **kwargs)

    return mock.patch.object(F, "scaled_dot_product_attention", other)


def tail_of_gradient_dropped() -> AbstractContextManager[Any]:
    """The last of B's rows gets no gradient."""
    return _operator("lowrank_backward", lambda found, _: (found[0], F.pad(found[1][:-1], (0, 0, 0, 1)), found[2]))


def gradient_slightly_more() -> AbstractContextManager[Any]:
    return _operator("lowrank_backward", lambda found, _: (found[0] * SLIGHTLY, *found[1:]))


def other_mask() -> AbstractContextManager[Any]:
    draw = dropout.draw_seed
    return mock.patch.object(dropout, "draw_seed", side_effect=lambda: draw() + 1)


def _experts(change: Callable[..., tuple[Any, ...]]) -> AbstractContextManager[Any]:
    """Change what the experts of a mixture compute with: x, chosen, shares, up, down, gate."""
    compute = expert_layers.lowrank_experts

    def other(*given: Any) -> torch.Tensor:
        return compute(*change(*given[:6]), *given[6:])

    return mock.patch.object(expert_layers, "lowrank_experts", other)


def counted_by_labels() -> AbstractContextManager[Any]:
    return mock.patch.object(LoadBalancing, "traits", RegularizerTraits())


def update_of_an_expert_lost() -> AbstractContextManager[Any]:
    def change(x: Any, chosen: Any, shares: Any, up: Any, down: Any, gate: Any) -> tuple[Any, ...]:
        kept = torch.arange(len(down.b)).view(-1, 1, 1) != 1
        return x, chosen, shares, up, down._replace(b=down.b * kept), gate

    return _experts(change)


def gate_and_up_swapped() -> AbstractContextManager[Any]:
    return _experts(lambda *given: (*given[:5], lambda hidden: given[5](hidden.roll(hidden.shape[1] // 2, 1))))


def shares_in_another_order() -> AbstractContextManager[Any]:
    return _experts(lambda x, chosen, shares, *rest: (x, chosen, shares.flip(1), *rest))


def tokens_dropped() -> AbstractContextManager[Any]:
    """An expert takes at most eight tokens."""

    def change(x: Any, chosen: Any, shares: Any, *rest: Any) -> tuple[Any, ...]:
        places = F.one_hot(chosen.flatten()).cumsum(0).gather(1, chosen.flatten()[:, None]).view_as(chosen)
        return x, chosen, shares * (places <= 8), *rest

    return _experts(change)


def _restored(change: Callable[[Any], None]) -> AbstractContextManager[Any]:
    """Change progress or optimiser behind a checkpoint."""

    def changed(found: Any, args: Any) -> Any:
        change(SimpleNamespace(progress=found[0], optimizer=args[2]))
        return found

    return _changed(loop, "load_checkpoint", changed)


def _state(key: str, change: Callable[[torch.Tensor], Any]) -> AbstractContextManager[Any]:
    return _restored(lambda one: [change(state[key]) for state in one.optimizer.state.values()] and None)


def first_moment_lost() -> AbstractContextManager[Any]:
    return _state("exp_avg", torch.Tensor.zero_)


def second_moment_rounded() -> AbstractContextManager[Any]:
    return _state("exp_avg_sq", lambda moment: moment.copy_(moment.bfloat16()))


def steps_not_counted() -> AbstractContextManager[Any]:
    return _state("step", torch.Tensor.zero_)


def epoch_begun_again() -> AbstractContextManager[Any]:
    return _restored(lambda one: setattr(one.progress, "step_in_epoch", 0))


@contextmanager
def randomness_begun_again() -> Iterator[None]:
    resume, draw, resumed_at = loop.Trainer.resume, optimizer_step.draw_randomness, [0]

    def resumed(self: Any) -> None:
        resume(self)
        resumed_at[0] = self.progress.step

    def drawn(seed: int, step: int, *rest: int) -> None:
        draw(seed, step - resumed_at[0], *rest)

    with (
        mock.patch.object(loop.Trainer, "resume", resumed),
        mock.patch.object(optimizer_step, "draw_randomness", drawn),
    ):
        yield


def merged_with_another_scale() -> AbstractContextManager[Any]:
    merge = lora_layers.lowrank_merge_
    return mock.patch.object(lora_layers, "lowrank_merge_", lambda w, a, b, scale: merge(w, a, b, scale * 1.01))


def padding_read() -> AbstractContextManager[Any]:
    predict = LabelledTask.predict

    def other(self: Any, model: Any, batch: Any) -> Any:
        return predict(self, model, {**batch, "attention_mask": torch.ones_like(batch["attention_mask"])})

    return mock.patch.object(LabelledTask, "predict", other)


def _sent(change: Callable[[torch.Tensor], Any]) -> AbstractContextManager[Any]:
    """Change what a process sends of its gradients."""
    send = dist.all_reduce

    def other(tensor: torch.Tensor, *args: Any, **options: Any) -> Any:
        if options.get("async_op"):
            change(tensor)
        return send(tensor, *args, **options)

    return mock.patch.object(dist, "all_reduce", other)


def averaged() -> AbstractContextManager[Any]:
    return _sent(lambda flat: flat.div_(2))


def gradient_of_one_slightly_more() -> AbstractContextManager[Any]:
    return _sent(lambda flat: flat.mul_(SLIGHTLY if dist.get_rank() else 1.0))


FAULTS = [
    Fault(dimension, cell, plant)
    for dimension, cell, plants in (
        ("accumulation", Cell("full", "gpt2"), (slightly_more, mean_of_means, last_part_dropped)),
        ("token-limit", Cell("adapter", "llama"), (slightly_more, mean_of_means)),
        ("router-losses", Cell("full", "olmoe"), (counted_by_labels,)),
        ("packing", Cell("full", "qwen3"), (first_token_leaks, all_leak)),
        ("shared-prefix", Cell("lora", "llama"), (first_key_unseen, next_token_seen)),
        ("grouped-layers", Cell("lora", "llama"), (one_slice_slightly_more, two_slices_swapped)),
        ("frozen-prefix", Cell("lora", "llama"), (kept_in_bfloat16, neighbours_output)),
        ("checkpointing", Cell("lora", "gpt2", True), (other_masks_on_recompute,)),
        ("norms", Cell("full", "llama", True), (norm_slightly_more, tail_of_norm_dropped)),
        ("grouped-keys", Cell("dora", "mistral"), (keys_in_another_order,)),
        ("kernels", Cell("lora", "gpt2", True), (gradient_slightly_more, tail_of_gradient_dropped, other_mask)),
        (
            "kernels",
            Cell("lora", "olmoe", True),
            (update_of_an_expert_lost, tokens_dropped, shares_in_another_order, gate_and_up_swapped),
        ),
        *(
            (name, Cell("lora", "gpt2", True), (gradient_slightly_more, tail_of_gradient_dropped))
            for name in DIMENSIONS
            if name.startswith("instructions")
        ),
        (
            "resume",
            Cell("lora", "gpt2", True),
            (second_moment_rounded, first_moment_lost, steps_not_counted, epoch_begun_again, randomness_begun_again),
        ),
        ("merge", Cell("lora", "gpt2"), (merged_with_another_scale,)),
        ("answers-together", Cell("prompt", "bert"), (padding_read,)),
    )
    for plant in plants
]
"""The smallest of each dimension first."""

OF_PROCESSES = {plant.__name__: plant for plant in (gradient_of_one_slightly_more, averaged)}
