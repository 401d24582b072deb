"""The regularizers of a training, as one object for the loop."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from typing import Any

import torch
from torch import Tensor, nn

from ftengine.api import Batch, Component, LoadedModel, Regularizer, Strategy, Task, overrides
from ftengine.errors import PluginError
from ftengine.model import Criterion
from ftengine.parallel.sharding import is_sharded, require_sharding_support
from ftengine.plugins.attribution import contract_error, is_scalar, json_mapping, named, without
from ftengine.training.criterion_faults import criterion_fault, outputs_of


def own_regularizers(strategy: Strategy, steps: int) -> list[Regularizer]:
    """Return the regularizer that a strategy brings for a run of so many steps, in a list; [] if it brings none.

    Raises:
        RecipeError: the strategy's options do not suit so many steps.
        PluginError: the strategy returned something else.
    """
    regularizer = strategy.regularizer(steps)
    if regularizer is None:
        return []
    if not isinstance(regularizer, Regularizer):
        raise contract_error(strategy, "regularizer", regularizer, "a Regularizer")
    regularizer.name = strategy.name  # type: ignore[misc]  # recipes do not name it
    return [regularizer]


class Attached:
    """Regularizers attached to a model after `strategy.prepare`, in the recipe's order.

    Raises:
        RecipeError: a regularizer does not suit model or task; all are detached again.
    """

    criterion: Criterion
    """The criterion for training; each regularizer may wrap the one before."""

    def __init__(self, regularizers: Sequence[Regularizer], loaded: LoadedModel, task: Task) -> None:
        self._loaded, self._task, self._attached = loaded, task, list[Regularizer]()
        self._criteria = list[tuple[Regularizer, Criterion]]()
        self.criterion = Criterion()
        try:
            for regularizer in regularizers:
                if is_sharded(loaded.module):
                    require_sharding_support(regularizer, "regularizer")
                self._attached.append(regularizer)  # first, so that a partial attachment is undone too
                regularizer.attach(loaded, task)
            for regularizer in regularizers:
                self.criterion = regularizer.criterion(self.criterion)
                self._criteria.append((regularizer, self.criterion))
        except BaseException:
            self.detach()
            raise

    def require_falling(self) -> None:
        """Raise PluginError if a regularizer's criterion does not fall when labels become likelier."""
        module, task = self._loaded.module, self._task
        first = next(module.parameters(), None)
        device = torch.device("cpu") if first is None or first.is_meta else first.device
        for regularizer, criterion in self._criteria:
            fault = ""
            if overrides(regularizer, "criterion"):
                with suppress(Exception):  # the logits are invented; the first step reports failures on real ones
                    fault = criterion_fault(criterion, task.labels, outputs_of(task, module), device)
            if fault:
                raise PluginError(f"{named(regularizer)}: its criterion is wrong: {fault}.{without(regularizer)}")

    def penalty(self, batch: Batch, loss: Tensor, by_tokens: Tensor | float = 1.0) -> Tensor | None:
        """Return the sum of all penalties on a micro-batch, whose mean loss is `loss`; None if there are none.

        `by_tokens` is its share of the effective batch's tokens over that of the loss's weight.
        """
        penalties = []
        for regularizer in self._attached:
            penalty = regularizer.penalty(self._loaded.module, batch, loss)
            if penalty is None:
                continue
            if not is_scalar(penalty, tensor=True):
                raise contract_error(regularizer, "penalty", penalty, "a tensor of floats without dimensions, or None")
            penalties.append(penalty * by_tokens if regularizer.traits.by_tokens else penalty)
        return torch.stack(penalties).sum() if penalties else None

    def on_step_end(self, step: int) -> None:
        """Call `on_step_end` of the regularizers that have it."""
        for regularizer in self._attached:
            regularizer.on_step_end(self._loaded.module, step)

    @property
    def average(self) -> bool:
        """Whether a regularizer keeps an average instead of the trained weights."""
        return any(overrides(regularizer, "averaged_weights") for regularizer in self._attached)

    @contextmanager
    def averaged_weights(self) -> Iterator[None]:
        """Meanwhile set the weights that the model would keep."""
        with ExitStack() as stack:
            for regularizer in self._attached:
                if overrides(regularizer, "averaged_weights"):
                    stack.enter_context(regularizer.averaged_weights(self._loaded.module))
            yield

    def state_dict(self) -> dict[str, Tensor]:
        """Return the tensors for a checkpoint, named "POSITION|NAME"."""
        return {
            f"{place}|{name}": tensor
            for place, regularizer in enumerate(self._attached)
            for name, tensor in regularizer.state_dict().items()
        }

    def load_state_dict(self, tensors: Mapping[str, Tensor]) -> None:
        """Restore the tensors of `state_dict`."""
        for place, regularizer in enumerate(self._attached):
            mark = f"{place}|"
            own = {key.removeprefix(mark): tensor for key, tensor in tensors.items() if key.startswith(mark)}
            if own or regularizer.state_dict():  # some have no state before their first step
                regularizer.load_state_dict(own)

    def require_restored(self, tensors: Mapping[str, Tensor]) -> None:
        """Raise PluginError if a regularizer did not restore its state from a checkpoint."""
        now = self.state_dict()
        for key, tensor in tensors.items():
            place, _, name = key.partition("|")
            own = now.get(key)
            if own is not None and own.shape == tensor.shape and own.equal(tensor.to(own)):
                continue
            regularizer = self._attached[int(place)]
            raise PluginError(
                f"{named(regularizer)}: after load_state_dict(), {name!r} of its state_dict() differs from the "
                "checkpoint, so the resumed run would differ. Restore everything that state_dict() returned."
                f"{without(regularizer)}"
            )

    @property
    def keeping(self) -> dict[Component, bool]:
        """The attached regularizers, each with whether a checkpoint holds state of it."""
        return {regularizer: bool(regularizer.state_dict()) for regularizer in self._attached}

    def on_train_end(self, module: nn.Module, measure: Callable[[], Mapping[str, float]]) -> list[dict[str, Any]]:
        """Call `on_train_end`, which may change the weights to keep; return the reports for training.json.

        "needs_validation" is whether the regularizer chose by validation loss.
        """
        facts: list[dict[str, Any]] = [{"name": regularizer.name} for regularizer in self._attached]
        for regularizer, report in zip(self._attached, facts, strict=True):
            if overrides(regularizer, "on_train_end"):
                report |= {"needs_validation": regularizer.traits.needs_validation}
                report |= json_mapping(regularizer, "on_train_end", regularizer.on_train_end(module, measure))
        return facts

    def detach(self) -> None:
        """Undo all attachments, the last first; a second call does nothing."""
        while self._attached:
            self._attached.pop().detach(self._loaded)
