"""The recipe's regularizers while a model trains: one object for the loop, whatever their number."""

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
    """Return what a strategy brings for a run of so many steps, [] where it brings nothing.

    Raises:
        RecipeError: its options do not suit so many steps.
        PluginError: it is no regularizer.
    """
    regularizer = strategy.regularizer(steps)
    if regularizer is None:
        return []
    if not isinstance(regularizer, Regularizer):
        raise contract_error(strategy, "regularizer", regularizer, "a Regularizer")
    regularizer.name = strategy.name  # type: ignore[misc]  # no recipe names it
    return [regularizer]


class Attached:
    """Regularizers attached to a model after `strategy.prepare`, in the recipe's order.

    Raises:
        RecipeError: one of them cannot regularize this; all are detached again.
    """

    criterion: Criterion
    """What the model trains on: each regularizer that chooses wraps what those before it chose."""

    def __init__(self, regularizers: Sequence[Regularizer], loaded: LoadedModel, task: Task) -> None:
        self._loaded, self._task, self._attached = loaded, task, list[Regularizer]()
        self._criteria = list[tuple[Regularizer, Criterion]]()
        self.criterion = Criterion()
        try:
            for regularizer in regularizers:
                if is_sharded(loaded.module):
                    require_sharding_support(regularizer, "regularizer")
                self._attached.append(regularizer)  # first, so that half an attachment is undone too
                regularizer.attach(loaded, task)
            for regularizer in regularizers:
                self.criterion = regularizer.criterion(self.criterion)
                self._criteria.append((regularizer, self.criterion))
        except BaseException:
            self.detach()
            raise

    def require_falling(self) -> None:
        """Refuse a regularizer whose criterion does not fall where labels get likelier (PluginError)."""
        module, task = self._loaded.module, self._task
        first = next(module.parameters(), None)
        device = torch.device("cpu") if first is None or first.is_meta else first.device
        for regularizer, criterion in self._criteria:
            fault = ""
            if overrides(regularizer, "criterion"):
                with suppress(Exception):  # the logits are made up; of what fails on real ones the first step tells
                    fault = criterion_fault(criterion, task.labels, outputs_of(task, module), device)
            if fault:
                raise PluginError(f"{named(regularizer)}: of its criterion, {fault}.{without(regularizer)}")

    def penalty(self, batch: Batch, loss: Tensor) -> Tensor | None:
        """Return the sum of all penalties on a micro-batch of so much mean loss, None where there is none."""
        penalties = []
        for regularizer in self._attached:
            penalty = regularizer.penalty(self._loaded.module, batch, loss)
            if penalty is None:
                continue
            if not is_scalar(penalty, tensor=True):
                raise contract_error(regularizer, "penalty", penalty, "a tensor of floats without dimensions, or None")
            penalties.append(penalty)
        return torch.stack(penalties).sum() if penalties else None

    def on_step_end(self, step: int) -> None:
        """Tell those who look of an optimiser step."""
        for regularizer in self._attached:
            regularizer.on_step_end(self._loaded.module, step)

    @property
    def average(self) -> bool:
        """Whether one of them keeps other weights than those that train."""
        return any(overrides(regularizer, "averaged_weights") for regularizer in self._attached)

    @contextmanager
    def averaged_weights(self) -> Iterator[None]:
        """Give the model the weights that it would keep."""
        with ExitStack() as stack:
            for regularizer in self._attached:
                if overrides(regularizer, "averaged_weights"):
                    stack.enter_context(regularizer.averaged_weights(self._loaded.module))
            yield

    def state_dict(self) -> dict[str, Tensor]:
        """Return what a checkpoint has to hold, by place and name."""
        return {
            f"{place}|{name}": tensor
            for place, regularizer in enumerate(self._attached)
            for name, tensor in regularizer.state_dict().items()
        }

    def load_state_dict(self, tensors: Mapping[str, Tensor]) -> None:
        """Set what `state_dict` returned."""
        for place, regularizer in enumerate(self._attached):
            mark = f"{place}|"
            own = {key.removeprefix(mark): tensor for key, tensor in tensors.items() if key.startswith(mark)}
            if own or regularizer.state_dict():  # some have nothing to keep before their first step
                regularizer.load_state_dict(own)

    def require_restored(self, tensors: Mapping[str, Tensor]) -> None:
        """Refuse a regularizer that did not take back what a checkpoint holds of it (PluginError)."""
        now = self.state_dict()
        for key, tensor in tensors.items():
            place, _, name = key.partition("|")
            own = now.get(key)
            if own is not None and own.shape == tensor.shape and own.equal(tensor.to(own)):
                continue
            regularizer = self._attached[int(place)]
            raise PluginError(
                f"{named(regularizer)}: after load_state_dict(), {name!r} of its state_dict() is not what the "
                "checkpoint holds, so that the run would go another way: set all that state_dict() returned."
                f"{without(regularizer)}"
            )

    @property
    def keeping(self) -> dict[Component, bool]:
        """Those that are attached, and whether a checkpoint holds something of each."""
        return {regularizer: bool(regularizer.state_dict()) for regularizer in self._attached}

    def on_train_end(self, module: nn.Module, measure: Callable[[], Mapping[str, float]]) -> list[dict[str, Any]]:
        """Let those who do change the weights that are kept; return what they report, for training.json.

        "needs_validation" says whether one chose by the validation loss.
        """
        facts: list[dict[str, Any]] = [{"name": regularizer.name} for regularizer in self._attached]
        for regularizer, told in zip(self._attached, facts, strict=True):
            if overrides(regularizer, "on_train_end"):
                told |= {"needs_validation": regularizer.traits.needs_validation}
                told |= json_mapping(regularizer, "on_train_end", regularizer.on_train_end(module, measure))
        return facts

    def detach(self) -> None:
        """Undo all attachments, the last first; a second time does nothing."""
        while self._attached:
            self._attached.pop().detach(self._loaded)
