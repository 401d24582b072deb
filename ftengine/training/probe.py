"""Comparison of a model's own computation with another, such as fast paths, by losses and gradients of a batch."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from copy import copy
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
import xxhash
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from ftengine.api import Batch, LoadedModel, Task
from ftengine.data.encoding import EncodedSplit
from ftengine.equivalence import GRADIENTS, HALF_RATIO, block_distances, rounding
from ftengine.errors import DataError
from ftengine.model import Criterion, seeded, trainable
from ftengine.model.in_float32 import in_float32, module_blocks
from ftengine.model.modes import evaluating, generators_kept
from ftengine.model.probing import visible
from ftengine.parallel.arithmetic import quick_products
from ftengine.parallel.device import to_device
from ftengine.parallel.sharding import is_sharded, reshard
from ftengine.training.losses import loss_of
from ftengine.training.modes import can_checkpoint_gradients, statistics_kept, train_mode

LOSS = "the loss"

REROUNDED = 3
"""How often the model's own computation is rounded differently before another one counts as less exact than it.

Rounding errors vary: on random words, gradients of SmolLM2 differ from float32 by 1 % in one mode and by 4 % in the
other, those of single layers by 5 or 50 %.
"""
LONG = 128
"""Tokens of a row that suffice to show differences in long rows, or at many positions."""

SAMPLE = 1 << 14
"""Values of a gradient that are compared, evenly spaced; its norm counts all."""

MOST_TOKENS, BEYOND = 160, 32
"""Most tokens of a probe's sequences; with sliding windows, so many beyond the longest window."""

CANDIDATES = 16
"""Examples that are searched for one with trained tokens among its first or last `MOST_TOKENS`."""

Around = Callable[[Sequence[int], Batch, Callable[[], Tensor]], AbstractContextManager[None]]


@dataclass(frozen=True)
class Outcome:
    """The result of a pass: the loss, and a sample and the norm of each trainable parameter's gradient."""

    tensors: dict[str, Tensor]

    def distances(self, other: Outcome) -> dict[str, float]:
        """Return the distance of each tensor from the same tensor of another outcome."""
        return block_distances(other.tensors, self.tensors, LOSS)

    def fault(self, other: Outcome, allowed: Mapping[str, float] | None = None) -> str:
        """Return where another outcome differs by more than `allowed` (by default `GRADIENTS`); "" if nowhere."""
        if missing := self.tensors.keys() ^ other.tensors.keys():
            return f"{min(missing)} exists only with it or only without it"
        for name, distance in self.distances(other).items():
            if not distance <= (most := GRADIENTS if allowed is None else allowed[name]):
                return f"{name} differs by {distance:.2g} of its size (at most {most:.2g} is rounding)"
        return ""


class ProbeBatch:
    """A small batch of a run's examples, with the model.

    Meanwhile trainable tensors of zeros, which strategies add, have small random values, so that all of the model has
    an effect. Everything is restored: gradients, running statistics and random states.

    Args:
        batch: a batch of `task`, on the model's device.
        compute: the run's precision.
        members: numbers of the batch's examples.
    """

    def __init__(
        self,
        loaded: LoadedModel,
        task: Task,
        batch: Batch,
        device: torch.device,
        compute: torch.dtype = torch.float32,
        members: Sequence[int] = (),
    ) -> None:
        self.loaded, self._task, self._batch, self._device, self._members = loaded, task, batch, device, members
        self._half = None if compute is torch.float32 else compute
        self._own: dict[tuple[bool, bool], Outcome] = {}
        self._rerounded: dict[tuple[bool, int], Outcome] = {}

    @classmethod
    def of(cls, split: EncodedSplit, loaded: LoadedModel, device: torch.device, compute: torch.dtype) -> ProbeBatch:
        """Return a probe of two of a split's shorter examples: if possible one of LONG tokens, and one that is padded.

        Longer examples are cut, as the task cuts examples to its max_length, so that comparing is cheaper than
        training.
        """
        order = np.argsort(split.lengths, kind="stable")
        long = min(int(np.searchsorted(split.lengths[order], LONG)), len(order) - 1)
        places = [order[max(len(order) // 4, long) :], order]
        members = [int(some[0]) for some in places]
        most = max((window + BEYOND for window in _windows(loaded.module)), default=0)
        if split.sequences[members].max() > (most := max(MOST_TOKENS, most)):
            for task in _cutting(split.task):
                cut = replace(split, task=task, max_length=most, cached=None)
                trained = [next((i for i in some[:CANDIDATES] if _trains(cut, i)), None) for some in places]
                if None not in trained:
                    split, members = cut, [int(i) for i in trained if i is not None]
                    break
        members = list(dict.fromkeys(members))
        batch = to_device(split.batch(np.array(members)), device)
        return cls(loaded, split.task, batch, device, compute, members)

    def content(self) -> list[Any] | None:
        """Return the content of the batch as JSON, with hashes of tensors; None if it has other values."""
        content: list[Any] = [list(self._members)]
        reference = self._batch.get("reference", {})
        own = {name: value for name, value in self._batch.items() if name != "reference"}
        for name, value in {**own, **{f"reference.{key}": value for key, value in reference.items()}}.items():
            if isinstance(value, Tensor):
                bits = value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
                content.append([name, str(value.dtype), list(value.shape), xxhash.xxh3_128_hexdigest(bits.data)])
            elif value is None or isinstance(value, (bool, int, float, str)):
                content.append([name, value])
            else:
                return None
        return content

    def fault(self, computation: Computation, *, training: bool) -> str:
        """Return where a computation differs from the model's own, in float32 and in the run's precision; "" if
        nowhere.

        Args:
            computation: the computation to compare.
            training: whether in training mode, with dropout.
        """
        outcome = self._passed(training, True, computation)
        exact = self.own(training=training)
        fault = exact.fault(outcome)
        if fault or self._half is None:
            return fault
        self.own(training=training, wide=False)
        outcome = self._passed(training, False, computation)
        fault = exact.fault(outcome, self._rounding(self._half))
        # Processes with a sharded model must run the same passes, whatever each of them finds.
        for seed in range(0 if fault == "" or is_sharded(self.loaded.module) else REROUNDED):
            if (training, seed) not in self._rerounded:
                self._rerounded[training, seed] = self._passed(training, False, reround=seed)
            if not (fault := exact.fault(outcome, self._rounding(self._half))):
                break
        return f"in {str(self._half)[6:]}, {fault}" if fault else ""

    def drift(self) -> str:
        """Return where the model's own computation differs when it is repeated; "" if nowhere."""
        return self.own(training=True).fault(self._passed(True, True))

    def _rounding(self, half: torch.dtype) -> dict[str, float]:
        """Return how far a computation in half precision may be from float32, judged by the model's own largest error.

        The largest counts, because a small gradient, such as of queries in the first layers, may once be close by
        chance.
        """
        halves = [(mode, own) for (mode, wide), own in self._own.items() if not wide]
        halves += [(mode, own) for (mode, _), own in self._rerounded.items()]
        distances = [self._own[mode, True].distances(own) for mode, own in halves]
        return {
            name: HALF_RATIO * max(measured[name] for measured in distances) + rounding(half) for name in distances[0]
        }

    def own(self, *, training: bool, wide: bool = True) -> Outcome:
        """Return the model's own result, in float32 or in the run's precision; any error of the model is raised."""
        if (training, wide) not in self._own:
            self._own[training, wide] = self._passed(training, wide)
        return self._own[training, wide]

    @contextmanager
    def computing(
        self, *, training: bool, wide: bool = True, computation: Computation | None = None, reround: int | None = None
    ) -> Iterator[Around | None]:
        """Set the model's mode and activate a computation (None: its own); yield the context for each batch.

        Args:
            wide: whether to compute in float32 instead of in the run's precision.
            reround: seed to round differently; None to round as usual.
        """
        module = self.loaded.module
        with ExitStack() as stack:
            for context in (evaluating(module), statistics_kept(module), visible(module), quick_products()):
                stack.enter_context(context)
            around = None if computation is None else stack.enter_context(computation())
            if reround is not None:
                stack.enter_context(_rounded_otherwise(module, torch.finfo(self._half or torch.float32).eps, reround))
            if training:
                train_mode(module)
            if wide:  # where the run computes in half precision, float32 would take twice the memory of a step
                recompute = self._half is not None and can_checkpoint_gradients(module) and not is_sharded(module)
                stack.enter_context(in_float32(module, recompute=recompute))
            else:
                stack.enter_context(torch.autocast(self._device.type, self._half))
            yield around

    def loss(self, around: Around | None, seed: int = 0) -> Tensor:
        """Return the loss of the batch, with all generators seeded; to be called within `computing`."""

        def loss() -> Tensor:
            return loss_of(self._task, self.loaded.module, self._batch, Criterion())[0]

        with reproducible(self._device, seed), (around or _nothing)(self._members, self._batch, loss):
            return loss()

    def evaluated(self, computation: Computation) -> str:
        """Return how a computation's loss in evaluation mode differs in float32; "" if it does not."""
        with torch.no_grad():
            outcomes = list[Outcome]()
            for candidate in (None, computation):
                with self.computing(training=False, computation=candidate) as around:
                    outcomes.append(Outcome({LOSS: self.loss(around)}))
        fault = outcomes[0].fault(outcomes[1])
        return f"in evaluation mode, {fault}" if fault else ""

    def _passed(
        self, training: bool, wide: bool, computation: Computation | None = None, reround: int | None = None
    ) -> Outcome:
        with self.computing(training=training, wide=wide, computation=computation, reround=reround) as around:
            if around is not None:
                self._computed(around)  # a cache by examples shows when they are repeated
            return self._computed(around)

    def _computed(self, around: Around | None) -> Outcome:
        module = self.loaded.module
        try:
            value = self.loss(around)
            with reproducible(self._device):
                value.backward()
            values = {LOSS: value.detach().cpu()}
            for name, parameter in trainable(module).items():
                if parameter.grad is not None:
                    values[f"the gradient of {name!r}"] = _sample(parameter.grad)
            return Outcome(values)
        finally:
            module.zero_grad(set_to_none=True)
            reshard(module)


@contextmanager
def _rounded_otherwise(module: nn.Module, eps: float, seed: int) -> Iterator[None]:
    """Change the output of each block by random fractions of a rounding error."""
    blocks = module_blocks(module) or [part for part in module.modules() if not any(part.children())]
    generators = dict[torch.device, torch.Generator]()

    def move(_: nn.Module, args: Any, output: Any) -> Any:
        first = output[0] if isinstance(output, tuple) and output else output
        if not isinstance(first, Tensor) or not first.is_floating_point():
            return output
        if first.device not in generators:
            generators[first.device] = torch.Generator(first.device).manual_seed(seed)
        noise = torch.empty_like(first, dtype=torch.float32).uniform_(-1, 1, generator=generators[first.device])
        moved = (first * (1 + eps / 2 * noise)).to(first.dtype)
        return (moved, *output[1:]) if isinstance(output, tuple) else moved

    handles = [block.register_forward_hook(move) for block in blocks]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _cutting(task: Task) -> Iterator[Task]:
    """Yield variants of a task that cut examples: as its options set, and so that their ends stay."""
    for options in ({"max_length": None}, {"max_length": None, "truncate": "left"}):
        if options.keys() <= type(task.config).model_fields.keys():
            other = copy(task)
            other.config = task.config.model_copy(update=options)
            yield other


def _trains(split: EncodedSplit, member: int) -> bool:
    """Return whether an example has trained tokens."""
    try:
        return bool(split.features(int(split.index[member])).weight)
    except DataError:
        return False


def _windows(module: nn.Module) -> list[int]:
    """Return the attention windows, in tokens, of a transformers model."""
    config = getattr(module, "config", None)
    configs = [config, getattr(config, "text_config", None)]
    windows = [getattr(config, name, None) for config in configs for name in ("sliding_window", "attention_chunk_size")]
    return [window for window in windows if isinstance(window, int)]


Computation = Callable[[], AbstractContextManager["Around | None"]]
"""A function that activates another computation for a comparison; it yields the context for each batch, or None."""


def _nothing(*_: Any) -> AbstractContextManager[None]:
    return nullcontext()


@contextmanager
def reproducible(device: torch.device, seed: int = 0) -> Iterator[None]:
    """Seed every generator that a model may use, and restore them afterwards."""
    with generators_kept(), seeded(seed, device):
        random.seed(seed)
        np.random.seed(seed)
        yield


def _sample(gradient: Tensor) -> Tensor:
    flat = (gradient.to_local() if isinstance(gradient, DTensor) else gradient).detach().flatten()
    some = flat[:: max(1, -(-len(flat) // SAMPLE))].double()
    return torch.cat([some, flat.double().norm()[None]]).cpu()
