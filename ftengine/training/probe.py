"""Losses and gradients of a small batch, by which another way to compute a model is compared with its own."""

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
from torch.overrides import TorchFunctionMode

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
from ftengine.text import percent
from ftengine.training.losses import loss_of
from ftengine.training.modes import statistics_kept, train_mode

LOSS = "the loss"

REROUNDED = 3
"""How often the model's own way is rounded otherwise before a way is found to be farther from float32 than it.

Rounding is no fixed distance: gradients of SmolLM2 on texts of random words are 1 % from float32 in one mode and 4 % in
the other, those of single layers 5 or 50 %.
"""
LONG = 128
"""Tokens of a row in which a way shows that it computes long rows, or many positions, otherwise."""

SAMPLE = 1 << 14
"""Numbers of a gradient that are compared, at equal distances; its norm counts all."""

MOST_TOKENS, BEYOND = 160, 32
"""Tokens of a probe's sequences at most, and so many beyond the longest window that the model attends by."""

CANDIDATES = 16
"""Examples of which one is looked for that has something to train on in its first or last `MOST_TOKENS` tokens."""

Around = Callable[[Sequence[int], Batch, Callable[[], Tensor]], AbstractContextManager[None]]


@dataclass(frozen=True)
class Outcome:
    """What a pass came to: the loss, and of each parameter that trains a sample of its gradient, with its norm."""

    tensors: dict[str, Tensor]

    def distances(self, other: Outcome) -> dict[str, float]:
        """Return how far another outcome of the same tensors is from each of them."""
        return block_distances(other.tensors, self.tensors, LOSS)

    def fault(self, other: Outcome, allowed: Mapping[str, float] | None = None) -> str:
        """Say where another outcome differs by more than is allowed of a tensor, by `GRADIENTS` else; "" nowhere."""
        if missing := self.tensors.keys() ^ other.tensors.keys():
            return f"{min(missing)} exists with it or without it, but not both"
        for name, apart in self.distances(other).items():
            if not apart <= (most := GRADIENTS if allowed is None else allowed[name]):
                return f"{name} differs by {apart:.2g} of its size (at most {most:.2g} is rounding)"
        return ""


class ProbeBatch:
    """A small batch of a run's own examples, and the model that computes it.

    Trainable tensors of zeros, as strategies add them, are small numbers meanwhile, so that all of the model counts.
    Nothing is left behind: no gradient, no moved statistics, no drawn random number.

    Args:
        batch: for `task`, on the device where the model is.
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
        """Return a probe of two of a split's shorter examples: one of LONG tokens where some have so many, one padded.

        Longer ones are cut, as the task cuts what exceeds its max_length, so that comparing takes less than training.
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
        """Return what the batch holds, tensors as hashes, as JSON has it; None where it holds something else."""
        held: list[Any] = [list(self._members)]
        reference = self._batch.get("reference", {})
        values = {**self._batch, **{f"reference.{key}": value for key, value in reference.items()}}
        for name, value in values.items():
            if value is reference:
                continue
            if isinstance(value, Tensor):
                bits = value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
                held.append([name, str(value.dtype), list(value.shape), xxhash.xxh3_128_hexdigest(bits.data)])
            elif value is None or isinstance(value, (bool, int, float, str)):
                held.append([name, value])
            else:
                return None
        return held

    def fault(self, way: Way, *, training: bool) -> str:
        """Say where a way differs from the model's own, in float32 and in the run's precision; "" nowhere.

        Args:
            way: what is compared.
            training: whether in training mode, with dropout.
        """
        outcome = self._passed(training, True, way)
        exact = self.own(training=training)
        told = exact.fault(outcome)
        if told or self._half is None:
            return told
        self.own(training=training, wide=False)
        outcome = self._passed(training, False, way)
        told = exact.fault(outcome, self._rounding(self._half))
        # Processes that share a model's parameters compute alike, whatever each of them finds.
        for seed in range(0 if told == "" or is_sharded(self.loaded.module) else REROUNDED):
            if (training, seed) not in self._rerounded:
                self._rerounded[training, seed] = self._passed(training, False, reround=seed)
            if not (told := exact.fault(outcome, self._rounding(self._half))):
                break
        return f"in {str(self._half)[6:]}, {told}" if told else ""

    def drift(self) -> str:
        """Say where the model's own way comes to something else when it is computed again; "" nowhere."""
        return self.own(training=True).fault(self._passed(True, True))

    def _rounding(self, half: torch.dtype) -> dict[str, float]:
        """Return how far a way may be from float32 in half precision, by where the model's own is farthest from it.

        A gradient that is small, as those of queries in the first layers are, may come near it once by chance.
        """
        halves = [(mode, own) for (mode, wide), own in self._own.items() if not wide]
        halves += [(mode, own) for (mode, _), own in self._rerounded.items()]
        apart = [self._own[mode, True].distances(own) for mode, own in halves]
        return {name: HALF_RATIO * max(one[name] for one in apart) + rounding(half) for name in apart[0]}

    def own(self, *, training: bool, wide: bool = True) -> Outcome:
        """Return what the model's own way comes to, in float32 or in the run's precision (whatever that raises)."""
        if (training, wide) not in self._own:
            self._own[training, wide] = self._passed(training, wide)
        return self._own[training, wide]

    @contextmanager
    def computing(
        self, *, training: bool, wide: bool = True, way: Way | None = None, reround: int | None = None
    ) -> Iterator[Around | None]:
        """Have the model compute in one of its modes, its own way or another; yields what holds around each batch.

        Args:
            wide: in float32, and not in the run's precision.
            reround: rounds otherwise, by this seed.
        """
        module = self.loaded.module
        with ExitStack() as stack:
            for context in (evaluating(module), statistics_kept(module), visible(module), quick_products()):
                stack.enter_context(context)
            around = None if way is None else stack.enter_context(way())
            if reround is not None:
                stack.enter_context(_rounded_otherwise(module, torch.finfo(self._half or torch.float32).eps, reround))
            if training:
                train_mode(module)
            stack.enter_context(in_float32(module) if wide else torch.autocast(self._device.type, self._half))
            yield around

    def loss(self, around: Around | None, seed: int = 0) -> Tensor:
        """Return the loss of the batch, with all generators seeded; within `computing`."""

        def loss() -> Tensor:
            return loss_of(self._task, self.loaded.module, self._batch, Criterion())[0]

        with reproducible(self._device, seed), (around or _nothing)(self._members, self._batch, loss):
            return loss()

    def evaluated(self, way: Way) -> str:
        """Say where the loss in evaluation mode, as validation has it, is another by a way, in float32; "" nowhere."""
        with torch.no_grad():
            outcomes = list[Outcome]()
            for one in (None, way):
                with self.computing(training=False, way=one) as around:
                    outcomes.append(Outcome({LOSS: self.loss(around)}))
        fault = outcomes[0].fault(outcomes[1])
        return f"in evaluation mode, {fault}" if fault else ""

    def _passed(self, training: bool, wide: bool, way: Way | None = None, reround: int | None = None) -> Outcome:
        with self.computing(training=training, wide=wide, way=way, reround=reround) as around:
            if around is not None:
                self._computed(around)  # what goes by examples shows where they come again
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
    """Move what each block returns by random parts of a rounding."""
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
    """Yield a task that cuts examples to what `encode` is given, as its own options ask and so that their ends stay."""
    for options in ({"max_length": None}, {"max_length": None, "truncate": "left"}):
        if options.keys() <= type(task.config).model_fields.keys():
            other = copy(task)
            other.config = task.config.model_copy(update=options)
            yield other


def _trains(split: EncodedSplit, member: int) -> bool:
    """Say whether something of an example is trained on."""
    try:
        return bool(split.features(int(split.index[member])).weight)
    except DataError:
        return False


def _windows(module: nn.Module) -> list[int]:
    """Return the windows, in tokens, that a model of transformers attends by."""
    config = getattr(module, "config", None)
    configs = [config, getattr(config, "text_config", None)]
    windows = [getattr(one, name, None) for one in configs for name in ("sliding_window", "attention_chunk_size")]
    return [window for window in windows if isinstance(window, int)]


Way = Callable[[], AbstractContextManager["Around | None"]]
"""Another way to compute, entered for each comparison; it yields what holds around each batch, None for nothing."""


class Dropouts(TorchFunctionMode):
    """Looks at each dropout that a model computes: a share of 1 - p is kept, times 1 / (1 - p), gradients alike."""

    def __init__(self) -> None:
        super().__init__()
        self.fault = ""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        y = func(*args, **(kwargs or {}))
        if getattr(func, "__name__", "") == "dropout" and not self.fault:
            with torch.no_grad(), torch.autocast(y.device.type, enabled=False):
                self.fault = _dropout_fault(y, *args, **(kwargs or {}))
        return y


def _dropout_fault(y: Tensor, x: Tensor, p: float, train: bool = True, *_: Any, **__: Any) -> str:
    """Say why y is no dropout of x; "" where it is."""
    there = x != 0
    if not train or not 0 < p < 1 or y is x or not there.any():
        return ""
    kept, close = (y != 0)[there], 2**-14 + rounding(x.dtype)  # a probability may be rounded to 16 bits
    scaled = y.double()[there][kept] * (1 - p) / x.double()[there][kept]
    if bool(((scaled - 1).abs() > close).any()):
        return f"dropout of {p:g} does not scale what it keeps by 1 / (1 - {p:g})"
    share, spread = float(kept.double().mean()), (p * (1 - p) / kept.numel()) ** 0.5
    if abs(share - (1 - p)) > 6 * spread + 1 / kept.numel():
        return f"dropout of {p:g} keeps {percent(share)} of its input"
    if y.requires_grad and x.requires_grad:
        (slope,) = torch.autograd.grad(y, x, torch.ones_like(y), retain_graph=True)
        expected = kept.double() / (1 - p)
        if bool(((slope.double()[there] - expected).abs() > close * expected).any()):
            return f"the gradient of dropout of {p:g} does not follow its mask"
    return ""


def _nothing(*_: Any) -> AbstractContextManager[None]:
    return nullcontext()


@contextmanager
def reproducible(device: torch.device, seed: int = 0) -> Iterator[None]:
    """Seed every generator that a model may draw from, and put all back."""
    with generators_kept(), seeded(seed, device):
        random.seed(seed)
        np.random.seed(seed)
        yield


def _sample(gradient: Tensor) -> Tensor:
    flat = (gradient.to_local() if isinstance(gradient, DTensor) else gradient).detach().flatten()
    some = flat[:: max(1, -(-len(flat) // SAMPLE))].double()
    return torch.cat([some, flat.double().norm()[None]]).cpu()
