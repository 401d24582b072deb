"""One optimiser step: gradients of an effective batch are accumulated, clipped and applied."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ftengine.api import Batch, BeforeStep, Strategy, overrides
from ftengine.api.task_sorts import compares_examples
from ftengine.data.batching import batches_in_step
from ftengine.data.encoding import EncodedSplit
from ftengine.errors import PluginError, TrainingError
from ftengine.model import Criterion, default_param_groups, trainable
from ftengine.parallel.device import to_device
from ftengine.parallel.precision import widened_by
from ftengine.parallel.reduction import Reduction
from ftengine.parallel.sharding import got_gradients, is_sharded, not_finite, whole_norm
from ftengine.plugins.attribution import contract_error, described, named
from ftengine.plugins.class_validation import written
from ftengine.run.own_code import package_of
from ftengine.run.recipe import TrainSection
from ftengine.text import number
from ftengine.training.checkpoint import Progress
from ftengine.training.drawing import Examples, OnPolicyLoss
from ftengine.training.joint_loss import JointLoss
from ftengine.training.losses import loss_of, stacked, zeros
from ftengine.training.modes import draw_randomness, frozen, frozen_at, statistics_kept, train_mode
from ftengine.training.optimizer import build_optimizer
from ftengine.training.regularizing import Attached
from ftengine.training.setup import Setup
from ftengine.training.source_losses import SourceLosses
from ftengine.training.steps import batch_tokens, plan_steps
from ftengine.training.stopping import Stop

GROUPS = "a list of groups of parameters: mappings with 'params', the parameters, and 'lr', their learning rate"
"""A description, for messages, of what `Strategy.param_groups` must return."""


class OptimizerStep:
    """The optimiser of a run, for the trainable parameters (TrainingError: there are none).

    The loss is divided once, by the weight of the whole effective batch over all micro-batches and processes, so that
    8×1 equals 1×8. `Reduction` sums gradients over processes.
    """

    def __init__(self, setup: Setup) -> None:
        self.setup, self.section = setup, setup.section
        self.accelerator, self.module = setup.accelerator, setup.loaded.module
        self._trained = trainable(self.module)
        self.parameters = list(self._trained.values())
        self._sharded = is_sharded(self.module)
        self._got = got_gradients(self.module) if self._sharded else set[str]()
        if not self.parameters:
            raise TrainingError(
                f"strategy {setup.strategy.name!r} leaves nothing to train: no parameter requires a gradient."
            )
        groups = groups_of(setup.strategy, self.module, self.section)
        self.optimizer = build_optimizer(setup.optimizer, groups)
        self.stop = Stop(single_process=self.accelerator.num_processes == 1)
        self._idle, self._postponed = set[nn.Parameter](), False
        self._peaks = [group["lr"] for group in self.optimizer.param_groups]
        self._scaled = self.accelerator.prepare_optimizer(self.optimizer)
        self.steps = plan_steps(len(setup.train), self.section, setup.processes)
        self._by_source = SourceLosses(setup.train)
        self._learnt = OnPolicyLoss(setup.task)

    def step(
        self,
        members: np.ndarray,
        progress: Progress,
        regularizers: Attached,
        examples: EncodedSplit | Examples,
        update: int = 0,
    ) -> dict[str, Any]:
        """Take one step over an effective batch of some examples, with the criterion and penalties of regularizers.

        Regularizers' `on_step_end` is called before the gradients are dropped. `update` counts the steps that an
        on-policy task takes with the same answers.

        Returns:
            The step's mean losses, learning rate, and gradient norm before clipping (None if not finite).

        Raises:
            TrainingError: a loss or gradient is not finite.
        """
        rate = self.steps.factor(self.setup.schedule, progress.step)
        for group, peak in zip(self.optimizer.param_groups, self._peaks, strict=True):
            group["lr"] = peak * rate
        path = (self.setup.seed, progress.step, self.accelerator.process_index, update)
        draw_randomness(*path[: None if update else 3])  # so that resuming replays the same dropout masks
        with frozen(frozen_at(self.setup.strategy, self.module, progress.step, self.steps)):
            train_mode(self.module)
            first = progress.step == 0 or self._postponed
            self._postponed = first and not len(members)  # an idle step has no gradients to check
            losses, norm = self._descend(members, progress, regularizers, examples, first=first and not update)
        regularizers.on_step_end(progress.step + 1)
        self.optimizer.zero_grad(set_to_none=True)
        learning_rate, rates = self.section.learning_rate * rate, {group["lr"] for group in self.optimizer.param_groups}
        return {
            **losses,
            "learning_rate": learning_rate,
            **({"learning_rates": sorted(rates)} if rates - {learning_rate} else {}),
            "grad_norm": norm if math.isfinite(norm) else None,
        }

    def _descend(
        self,
        members: np.ndarray,
        progress: Progress,
        regularizers: Attached,
        examples: EncodedSplit | Examples,
        *,
        first: bool,
    ) -> tuple[dict[str, Any], float]:
        several = self.accelerator.num_processes > 1
        # Parameters without a gradient in the last step come last, so that nothing waits for them.
        parameters = [p for p in sorted(self.parameters, key=lambda p: p not in self._idle) if p.requires_grad]
        gradients = Reduction(parameters if several and not self._sharded else [])
        self._got.clear()
        totals = self._accumulate(members, progress, regularizers, gradients, examples)
        got = [name in self._got if self._sharded else p.grad is not None for name, p in self._trained.items()]
        flags = totals.new_tensor([self.stop.requested, *got])
        gradients.send()
        loss_sum, penalty_sum, weight, penalties, computed, *others = self.accelerator.reduce(
            torch.cat([totals, flags]), "sum"
        ).tolist()
        sums, (stop_requests, *touches) = others[: -len(flags)], others[-len(flags) :]
        sources, learnt = sums[: len(self._by_source.names)], sums[len(self._by_source.names) :]
        gradients.wait()
        self.stop.agreed = stop_requests > 0
        self._idle = {parameter for parameter, times in zip(self.parameters, touches, strict=True) if not times}
        for parameter in self._idle:  # idle in all processes, so the optimiser skips it as with one process
            parameter.grad = None
        for term, value in (("loss", loss_sum), ("penalty of the regularizers", penalty_sum)):
            if not math.isfinite(value):
                raise TrainingError(
                    f"the {term} is {value} at step {progress.step + 1}. {self.not_finite(progress.step)}"
                )
        if first and weight:
            self._tell_untouched(members, progress.epoch, examples)
        norm = self._update(weight, progress.step) if len(members) else 0.0
        if first and norm == 0 and loss_sum:
            self._refuse_flat(loss_sum / weight)
        losses: dict[str, Any] = {"loss": loss_sum / weight if weight else 0.0}
        losses |= self._by_source.means(members, sources, loss_sum, "loss/") | self._learnt.means(learnt)
        if penalties:
            losses["penalty"] = penalty_sum / weight if weight else 0.0
        if self.setup.fast_paths.compute_fewer_tokens:
            losses["computed_tokens"] = int(computed)
        return losses, norm

    def _accumulate(
        self,
        members: np.ndarray,
        progress: Progress,
        regularizers: Attached,
        gradients: Reduction,
        train: EncodedSplit | Examples,
    ) -> Tensor:
        """Accumulate gradients of this process's share; return the sums of loss, penalty times weight, weight,
        penalties, tokens, the loss of each source, and what an on-policy task sums over tokens."""
        accelerator, epoch, learnt = self.accelerator, progress.epoch, self._learnt
        totals = zeros(5 + len(self._by_source.names) + learnt.count, accelerator.device)
        rank, ranks, paths = accelerator.process_index, accelerator.num_processes, self.setup.fast_paths
        fewer, factor = paths.compute_fewer_tokens, train.weight_factor if isinstance(train, Examples) else 1.0
        whole = float(train.weights[members].sum()) * factor / (float(train.lengths[members].sum()) or 1.0)
        mine = batches_in_step(
            members,
            self.section.batch_size,
            rank,
            ranks,
            fill=self._sharded,
            lengths=train.lengths,
            tokens=batch_tokens(self.section, accelerator.device),
            computed=(lambda some: paths.computed_tokens(train.batch(some, epoch))) if fewer else None,
            order=(lambda some: paths.ordered(some, train.batch(some, epoch))) if fewer else None,
        )
        joint = None
        if compares_examples(self.setup.task) and (ranks > 1 or len(mine) > 1):
            joint = JointLoss(self.setup, progress.step)
            joint.compare(mine, epoch)
        for position, (chosen, counts) in enumerate(mine, 1):
            batch = to_device(train.batch(chosen, epoch), accelerator.device)
            criterion = self._by_source.noting(regularizers.criterion)
            compute: Callable[[], tuple[Tensor, Tensor | float]] = partial(
                loss_of, self.setup.task, self.module, batch, criterion
            )
            if joint is not None:
                compute = partial(joint.share, batch, position)
            elif learnt.count:
                compute = partial(learnt.loss, self.module, batch)
            with accelerator.autocast():
                with self._around(chosen, batch, regularizers.criterion):
                    loss_sum, weight = self._loss(compute)
                weight = weight * factor
                share = whole * float(train.lengths[chosen].sum()) / (weight or 1.0)
                penalty = regularizers.penalty(batch, loss_sum / weight, share) if weight else None
            # The gradient is later divided by the weight of the whole effective batch, hence the factor.
            added = 0.0 if penalty is None else penalty * weight
            if not counts:
                loss_sum, added, weight, penalty = loss_sum * 0, 0.0, 0.0, None
            if (total := loss_sum + added).requires_grad:
                with gradients.overlapping() if position == len(mine) else nullcontext():
                    (accelerator.scaler.scale(total) if accelerator.scaler else total).backward()
            computed = float(self._computed(chosen, batch, train)) if counts and fewer else 0.0
            sums = [loss_sum, added, weight, float(penalty is not None), computed]
            sources = self._by_source.sums(chosen, criterion) if counts else [0.0] * len(self._by_source.names)
            totals += stacked(accelerator.device, *sums, *sources, *learnt.sums)
        return totals

    def _loss(self, compute: Callable[[], tuple[Tensor, Tensor | float]]) -> tuple[Tensor, Tensor | float]:
        """Return the loss of a batch (PluginError: a layer of the strategy returns a wrong dtype)."""
        try:
            return compute()
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            strategy = self.setup.strategy
            package = package_of(type(strategy))
            own = [(path, x) for path, x in self.module.named_modules() if package_of(type(x)) == package]
            wide = widened_by(own, compute)
            if not wide:
                raise
            layer = type(self.module.get_submodule(wide[-1]))
            raise PluginError(
                f"{named(strategy)}: its {layer.__name__} {wide[-1]!r} returns float32 for an input of another dtype, "
                f"which the model cannot use. Return the input's dtype ({written(layer)}); "
                "train.precision float32 avoids the error."
            ) from error

    def _computed(self, members: np.ndarray, batch: Batch, examples: EncodedSplit | Examples) -> int:
        """Return how many tokens of a micro-batch are computed, padding included."""
        return self.setup.fast_paths.computed_tokens(batch) or int(examples.lengths[members].max()) * len(members)

    def _around(self, members: np.ndarray, batch: Batch, criterion: Criterion) -> AbstractContextManager[None]:
        """Return the fast paths' context for the loss of these examples."""

        def loss() -> Tensor:
            with statistics_kept(self.module):
                return loss_of(self.setup.task, self.module, batch, criterion)[0]

        return self.setup.fast_paths.around_batch(members.tolist(), batch, loss)

    def not_finite(self, step: int) -> str:
        """Return the likely cause of a number that is not finite at a step (from 0), and what to do."""
        broken = next(iter(not_finite(dict(self.module.named_parameters()))), None)
        where = f"Parameter {broken!r} is not finite. " if broken else ""
        if step == 0:
            who = f"the base or strategy {self.setup.strategy.name!r}" if broken else "model and data"
            return f"{where}No step was taken yet, so it comes from {who}; train.precision float32 may help."
        return (
            f"{where}Lower train.learning_rate (now {self.section.learning_rate:g}, optimizer "
            f"{self.setup.optimizer.name!r}), or use train.precision float32, in a new run; `--resume` continues "
            "from the last checkpoint with the same recipe."
        )

    def _tell_untouched(self, members: np.ndarray, epoch: int, examples: EncodedSplit | Examples) -> None:
        """Report trainable parameters that are not part of the computation.

        Raises:
            PluginError: the task's loss has no gradient, or frozen weights have one.
            TrainingError: no trainable parameter is part of the computation.
        """
        self._refuse_frozen_gradients()
        training = trainable(self.module)
        untouched = [name for name, p in training.items() if p.grad is None]
        if len(untouched) == len(training):
            if not self._sharded:
                self._require_gradient(to_device(examples.batch(members[:1], epoch), self.accelerator.device))
            raise TrainingError(
                f"strategy {self.setup.strategy.name!r} trains {len(training)} tensors, e.g. {untouched[0]}, but none "
                "got a gradient in the first step: the model does not use them. Choose other layers."
            )
        if untouched:
            self.setup.listener.message(
                f"{len(untouched)} of {len(self.parameters)} trainable tensors got no gradient in the first step and "
                f"do not change, e.g. {untouched[0]}. This is normal for parts that the task does not use, "
                "such as a pooler"
            )

    def _refuse_frozen_gradients(self) -> None:
        """Raise an error if frozen weights have gradients, which nothing clips, applies or frees.

        Raises:
            PluginError: the strategy's layers or a regularizer computed them.
        """
        own = set(self.parameters)
        frozen_ones = [n for n, p in self.module.named_parameters() if p not in own and p.grad is not None]
        if frozen_ones:
            raise PluginError(
                f"the first step leaves gradients on {len(frozen_ones)} frozen weights, such as {frozen_ones[0]!r}. "
                f"The layers of {named(self.setup.strategy)}, or a regularizer, must not compute gradients for frozen "
                "weights."
            )

    def _refuse_flat(self, loss: float) -> None:
        """Raise TrainingError: all gradients are 0."""
        setup, names = self.setup, list(self._trained)
        raise TrainingError(
            f"the loss of the first step is {number(loss)}, and its gradient is 0 in all {len(names)} trainable "
            f"tensors, e.g. {names[0]}: nothing would be learnt. {named(setup.task)} may detach, round or take the "
            f"argmax of the model's output before the loss is computed, or {named(setup.strategy)} multiplies its "
            "trainable tensors by 0. `ftengine plugins check` checks both."
        )

    def _require_gradient(self, batch: Batch) -> None:
        """Raise PluginError if the model's output has a gradient but the task's loss has none."""
        had: list[bool] = []

        def look(part: nn.Module, inputs: Any, output: Any) -> None:
            first = output[0] if isinstance(output, (tuple, list)) else output
            had.append(not torch.is_grad_enabled() or getattr(first, "requires_grad", False))

        parts = [x for x in self.module.modules() if any(p.requires_grad for p in x.parameters(recurse=False))]
        handles = [part.register_forward_hook(look) for part in parts]
        try:
            with self.accelerator.autocast():
                if on_policy := self._learnt.count > 0:
                    loss, _ = self._learnt.loss(self.module, batch)
                else:
                    loss, _ = loss_of(self.setup.task, self.module, batch, Criterion())
        finally:
            for handle in handles:
                handle.remove()
        if any(had) and not loss.requires_grad:
            expected = "a sum of losses that has a gradient: leave out detach(), item() and no_grad()"
            raise contract_error(self.setup.task, "learn" if on_policy else "loss", loss, expected)

    def _update(self, weight: float, step: int) -> float:
        """Divide the gradients by the effective batch's weight, clip and step; return their norm before clipping."""
        if self.accelerator.scaler is not None:
            self.accelerator.scaler.unscale_(self.optimizer)
        grads = [parameter.grad for parameter in self.parameters if parameter.grad is not None]
        if grads:
            torch._foreach_div_(grads, weight or 1.0)
        limit = self.section.max_grad_norm or math.inf
        total = whole_norm(torch.nn.utils.get_total_norm(grads))
        torch.nn.utils.clip_grads_with_norm_(self.parameters, limit, total)
        norm = float(total)
        if not math.isfinite(norm) and self.accelerator.scaler is None:
            raise TrainingError(f"the gradient's norm is {norm} at step {step + 1}. {self.not_finite(step)}")
        if math.isfinite(norm):  # otherwise the scaler skips this step
            self.setup.events(BeforeStep(self.setup.run.path, step + 1, self.module, norm))
        self._scaled.step()
        return norm


def given_groups(strategy: Strategy, module: nn.Module, learning_rate: float, weight_decay: float) -> Any:
    """Return a strategy's parameter groups; by default one of matrices and one of vectors."""
    build = strategy.param_groups if overrides(strategy, "param_groups") else default_param_groups
    return build(module, learning_rate, weight_decay)


def groups_of(strategy: Strategy, module: nn.Module, section: TrainSection) -> list[dict[str, Any]]:
    """Return a strategy's parameter groups (PluginError: they are not all trainable parameters, each once)."""
    rates = section.learning_rate, 2 * section.learning_rate
    groups, doubled = (given_groups(strategy, module, rate, section.weight_decay) for rate in rates)
    if not isinstance(groups, list):
        raise contract_error(strategy, "param_groups", groups, GROUPS)
    for position, group in enumerate(groups, 1):
        missing = [key for key in ("params", "lr") if key not in group] if isinstance(group, Mapping) else None
        if missing is None or missing:
            had = described(group) if missing is None else f"a mapping without {' and '.join(map(repr, missing))}"
            raise PluginError(
                f"{named(strategy)}: param_groups() returned a list whose group {position} is {had}; it must return "
                f"{GROUPS}."
            )
    if groups and [float(group["lr"]) for group in groups] == [float(group["lr"]) for group in doubled]:
        raise PluginError(
            f"{named(strategy)}: param_groups() returned the learning rates of "
            f"{', '.join(sorted({format(float(group['lr']), 'g') for group in groups}))} whatever its argument is, so "
            "train.learning_rate would have no effect. Return the argument or a multiple of it."
        )
    # torch's optimisers use their own default decay if a group has none.
    groups = [{"weight_decay": 0.0, **group, "params": list(group["params"])} for group in groups]
    counts = Counter(id(parameter) for group in groups for parameter in group["params"])
    names, trains = {id(p): name for name, p in module.named_parameters()}, trainable(module)
    faults = {
        "leaves out": [name for name, p in trains.items() if id(p) not in counts],
        "holds twice": [names.get(parameter, "a tensor") for parameter, times in counts.items() if times > 1],
        "holds, although they do not train,": [
            n for parameter in counts if (n := names.get(parameter, "a tensor")) not in trains
        ],
    }
    for fault, faulty in faults.items():
        if faulty:
            raise PluginError(
                f"{named(strategy)}: what param_groups() returned {fault} {len(faulty):,} parameters, such as "
                f"{faulty[0]!r}. Put each parameter that requires a gradient (also those of new modules in the "
                "base model) into one group, once, and no others."
            )
    return groups
