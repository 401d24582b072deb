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
        repeats: whether this process reads each example again, as it was, in later epochs.
        tokens: number of tokens of all training examples; for images, of images.
        room: returns the bytes of memory that may be taken from here on.
        message: shows a message to the user.
        paths: names of those that may compute together.
        one_row: whether a batch has one row an example, and not several, as of a pair's two answers.
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
        draws_randomness: it draws other random numbers than the model does, for dropout. Losses and gradients are
            compared without dropout then; `dropout_keeps_its_rate_and_mean` of the conformance checks compares dropout.
    """

    draws_randomness: bool = False


class FastPath(Component):
    """Changes how a model computes while it trains, without changing results.

    Named under `train.fast_paths` in a recipe. Before it is used, losses and gradients of a small batch are compared
    with the model's own, and a path that differs by more than rounding is left out by name (an error where the recipe
    names it).
    """

    traits: FastPathTraits = FastPathTraits()

    @abstractmethod
    def activate(
        self, loaded: LoadedModel, context: TrainingContext
    ) -> AbstractContextManager[Mapping[str, int] | None]:
        """Change how the model computes; a `contextlib.contextmanager` that restores it in the end.

        It yields how many parts of each kind are replaced, such as {"RMS norms": 5}, or None where the model has none.
        Counts that only the first batch shows may be added until then. It is entered several times, one after the
        other, after the strategy prepared the model.
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
        """Return how many tokens of a micro-batch the model computes while it is active; None: all, and padding."""
        return None

    def order(self, batch: Batch) -> Sequence[int] | None:
        """Return the order in which a batch's examples are best divided into micro-batches; None: any order.

        Called with one process's part of an effective batch while the path is active, so that no sum changes.
        """
        return None


class Decoder(Protocol):
    """Computes the next token of sequences that grow, whose keys and values it keeps.

    A sequence is a number. What is appended is computed by the next `compute`, for all sequences at once.
    """

    def fork(self, sequence: int, length: int) -> int:
        """Return a new sequence that begins with the first `length` tokens of another, computed or only appended.

        With length 0 it is empty, whatever the other is.
        """

    def append(self, sequence: int, tokens: Sequence[int]) -> None:
        """Append tokens to a sequence, once before each `compute`."""

    def compute(self) -> torch.Tensor:
        """Return (sequences, vocabulary) logits behind the last token of each that was appended to, in that order."""

    def free(self, sequence: int) -> None:
        """Forget a sequence; what others share with it stays."""


class InferencePath(FastPath):
    """A fast path by which models predict and answer as well, in every run, whatever `train.fast_paths` says.

    The engine gives a model one object of each class that needs no options (`LoadedModel.inference_paths`). Nothing is
    compared then: `suits` is to find out whether a model's predictions stay the same.
    """

    @abstractmethod
    def suits(self, model: nn.Module) -> bool:
        """Say whether a model may predict in this way; for a sharded model, all processes call it."""

    def around_prediction(self, model: nn.Module, batch: Batch) -> AbstractContextManager[None]:
        """Hold while a task predicts a batch (`Task.predict`), without gradients."""
        return nullcontext()

    def predicted_tokens(self, model: nn.Module, batch: Batch) -> int | None:
        """Return how many tokens of a batch a model computes in `around_prediction`; None: all, and padding."""
        return None

    def around_generation(self, model: nn.Module) -> AbstractContextManager[Any]:
        """Hold while a model generates, in evaluation mode and without gradients."""
        return nullcontext()

    def decoder(self, model: nn.Module) -> AbstractContextManager[Decoder] | None:
        """Return what computes a decoder model's answers token by token; None where this path does not."""
        return None

    def probe_result(self, model: nn.Module) -> Any:
        """Return what was found out about a model, as JSON, for later runs of the same; None: nothing."""
        return None

    def restore_probe_result(self, model: nn.Module, result: Any) -> None:
        """Take what `probe_result` returned of the same model in an earlier run."""
