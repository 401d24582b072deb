"""Fast paths."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from ftengine.api.component import Component
from ftengine.api.optimizer import ShardingTraits
from ftengine.api.types import Batch, LoadedModel

if TYPE_CHECKING:
    import torch
    from torch import nn


@dataclass(frozen=True)
class TrainingContext:
    """The training that a fast path is for.

    Args:
        device: where the model computes.
        repeats: whether later epochs of this process read the same examples again, unchanged.
        tokens: number of tokens of all training examples; for images, number of images.
        room: returns the bytes of memory that are still available.
        message: shows a message to the user.
        paths: names of all fast paths that may be active together.
        one_row: whether a batch has one row per example; False where it has several, such as the two answers of a pair.
    """

    device: torch.device
    repeats: bool
    tokens: int
    room: Callable[[], int]
    message: Callable[[str], None]
    paths: Collection[str] = ()
    one_row: bool = True


@dataclass(frozen=True)
class FastPathTraits(ShardingTraits):
    """Facts about a fast path.

    Args:
        draws_randomness: whether its dropout draws other random numbers than the model's. Losses and gradients are then
            compared without dropout; the conformance check `dropout_keeps_its_rate_and_mean` tests the dropout.
    """

    draws_randomness: bool = False


class FastPath(Component):
    """Changes how a model computes while it trains, without changing results.

    Named under `train.fast_paths` in a recipe. Before it is used, the losses and gradients of a small batch are
    compared with the model's own. A path that differs by more than rounding is not used, and a message names it; if the
    recipe names that path, this is an error.
    """

    traits: FastPathTraits = FastPathTraits()

    @abstractmethod
    def activate(
        self, loaded: LoadedModel, context: TrainingContext
    ) -> AbstractContextManager[Mapping[str, int] | None]:
        """Return a context (`contextlib.contextmanager`) within which the model computes in another way.

        The context yields how many parts of each kind are replaced, such as {"RMS norms": 5}, or None if the model has
        no such part. Counts that are known only after the first batch may be added to the mapping before the context
        ends. The engine enters such a context several times, one after another, after the strategy has prepared the
        model.

        Where a run computes in bfloat16 or float16, frozen weights have that dtype, trained ones are float32, and the
        model is called under autocast; the comparison calls it in float32 without autocast as well. So go by the dtype
        of inputs and weights in each call, not by what it is on entering.
        """

    # What some write.

    def check_device(self, device: torch.device) -> None:
        """Raise RecipeError where this device is not supported; called before weights are read."""

    def around_batch(
        self, members: Sequence[int], batch: Batch, loss: Callable[[], torch.Tensor]
    ) -> AbstractContextManager[None]:
        """Wrap the computation of a micro-batch's loss, for paths that depend on its examples.

        Args:
            members: the examples' numbers in the training split.
            batch: the batch that the task gets, on the device.
            loss: computes the batch's loss; may be called several times.
        """
        return nullcontext()

    def computed_tokens(self, batch: Batch) -> int | None:
        """Return how many tokens of a micro-batch the model computes with this path; None: all, padding included."""
        return None

    def order(self, batch: Batch) -> Sequence[int] | None:
        """Return the order in which a batch's examples are best divided into micro-batches; None: any order.

        Called with one process's part of an effective batch while the path is active, so that no sum changes.
        """
        return None


class Decoder(Protocol):
    """Computes next-token logits of growing sequences, whose keys and values it caches.

    A sequence is identified by a number. `append` queues tokens; `compute` runs the model on all queued tokens at once.
    """

    def fork(self, sequence: int, length: int) -> int:
        """Return a new sequence with the first `length` tokens of another one, whether computed or only queued.

        With length 0 the new sequence is empty.
        """

    def append(self, sequence: int, tokens: Sequence[int]) -> None:
        """Queue tokens at the end of a sequence; call it at most once per sequence before each `compute`."""

    def compute(self) -> torch.Tensor:
        """Return next-token logits (sequences, vocabulary) of the sequences with queued tokens, in queued order."""

    def free(self, sequence: int) -> None:
        """Delete a sequence; keys and values that other sequences share with it stay."""


class InferencePath(FastPath):
    """A fast path that is also used for prediction and generation, in every run, whatever `train.fast_paths` is.

    The engine gives a model one object of each class that needs no options (`LoadedModel.inference_paths`). Predictions
    with and without the path are not compared by the engine: `suits` has to find out whether they are the same.
    """

    @abstractmethod
    def suits(self, model: nn.Module) -> bool:
        """Return whether a model may predict with this path; all processes of a sharded model call it."""

    def around_prediction(self, model: nn.Module, batch: Batch) -> AbstractContextManager[None]:
        """Return the context in which a task predicts a batch (`Task.predict`), without gradients."""
        return nullcontext()

    def predicted_tokens(self, model: nn.Module, batch: Batch) -> int | None:
        """Return how many tokens of a batch a model computes in `around_prediction`; None: all, padding included."""
        return None

    def around_generation(self, model: nn.Module) -> AbstractContextManager[Any]:
        """Return the context in which a model generates, in evaluation mode and without gradients."""
        return nullcontext()

    def decoder(self, model: nn.Module) -> AbstractContextManager[Decoder] | None:
        """Return a context that yields a `Decoder` for a decoder model; None if this path has none."""
        return None

    def probe_result(self, model: nn.Module) -> Any:
        """Return JSON values that spare later runs of the same model this path's tests; None: nothing to keep."""
        return None

    def restore_probe_result(self, model: nn.Module, result: Any) -> None:
        """Restore what `probe_result` returned for the same model in an earlier run."""
