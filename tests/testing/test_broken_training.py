"""Regularizers, optimisers, schedules and callbacks: a sound one passes, a broken one fails the check that is meant."""

from __future__ import annotations

import math
import os
import threading

import pytest
import torch
from broken import failed, variant

from ftengine.api import (
    Callback,
    Optimizer,
    Regularizer,
    RegularizerTraits,
    Schedule,
)
from ftengine.errors import RecipeError, TrainingError
from ftengine.model import trainable
from ftengine.testing import check_results

pytestmark = pytest.mark.slow


class Pull(Regularizer):
    """Pulls weights towards a running mean of theirs, on classifiers of texts."""

    name = "pull"

    def attach(self, loaded, task):
        if loaded.head != "sequence-classification":
            raise RecipeError("this is about classifiers of texts.")
        self.means = {name: p.detach().clone() for name, p in trainable(loaded.module).items()}

    def penalty(self, model, batch, loss):
        return sum((p - self.means[name]).square().sum() for name, p in trainable(model).items())

    def on_step_end(self, model, step):
        for name, p in trainable(model).items():
            self.means[name] = self.means[name].lerp(p.detach(), 0.5)

    def state_dict(self):
        return dict(self.means)

    def load_state_dict(self, tensors):
        self.means = dict(tensors)


class OfLoRA(Regularizer):
    """Keeps the down-projections of LoRA small."""

    name = "of-lora"

    def attach(self, loaded, task):
        self.names = [name for name in trainable(loaded.module) if "lora_a" in name]
        if not self.names:
            raise RecipeError("this is about strategy lora.")

    def penalty(self, model, batch, loss):
        return sum(p.square().sum() for name, p in trainable(model).items() if name in self.names)


def test_a_regularizer_of_one_strategy_is_checked_beside_it():
    alone = {one.check: one.outcome for one in check_results(OfLoRA)}
    assert (alone["it_suits_a_model"], alone["it_is_complete"]) == ("does not apply", "passed")
    beside = {one.check: one.outcome for one in check_results(OfLoRA, strategy={"name": "lora", "rank": 2})}
    assert "failed" not in beside.values()
    assert beside["losses_and_penalties_are_finite_scalars"] == "passed"


class LosesSomeState(Pull):
    """Counts steps, and leaves the count out of the checkpoint."""

    seen = 0

    def on_step_end(self, model, step):
        super().on_step_end(model, step)
        self.seen += 1

    def penalty(self, model, batch, loss):
        return super().penalty(model, batch, loss) * (1 + self.seen)


class Sticky(Pull):
    """Leaves its mark on the model."""

    def attach(self, loaded, task):
        super().attach(loaded, task)
        loaded.module.register_buffer("mark", torch.ones(1, device=loaded.module.device))


class Hooked(Pull):
    """Leaves a hook on the model."""

    def attach(self, loaded, task):
        super().attach(loaded, task)
        loaded.module.register_forward_hook(lambda *_: None)


class Shrinks(Pull):
    """Changes weights when it is attached."""

    @torch.no_grad()
    def attach(self, loaded, task):
        super().attach(loaded, task)
        for parameter in trainable(loaded.module).values():
            parameter.mul_(0.9)


class ReadsValues(Pull):
    """Looks at weights when it is attached."""

    def attach(self, loaded, task):
        super().attach(loaded, task)
        self.norm = sum(p.detach().square().sum().item() for p in loaded.module.parameters())


class Noisy(Pull):
    """Draws from a generator of its own."""

    generator = torch.Generator().manual_seed(0)

    def penalty(self, model, batch, loss):
        return super().penalty(model, batch, loss) + torch.rand((), generator=self.generator)


class OneDtype(Pull):
    """Looks at outputs, in numpy, which has no bfloat16."""

    def penalty(self, model, batch, loss):
        with torch.no_grad():
            logits = model(batch["input_ids"], batch["attention_mask"]).logits
        return super().penalty(model, batch, loss) * float(logits.numpy().mean())


class Silent(Pull):
    """Changes weights at the end, and tells nothing."""

    traits = RegularizerTraits(needs_validation=False)

    def on_train_end(self, model, measure):
        measure()


@pytest.mark.parametrize(
    ("cls", "expected"),
    [
        (Pull, set()),
        (variant(Pull, state_dict=lambda *_: {}), {"a_resumed_run_is_the_uninterrupted_one"}),
        (LosesSomeState, {"a_resumed_run_is_the_uninterrupted_one"}),
        (
            variant(Pull, load_state_dict=lambda *_: None),
            {"state_survives_a_checkpoint", "a_resumed_run_is_the_uninterrupted_one"},
        ),
        (Sticky, {"detaching_restores_the_model"}),
        (Hooked, {"detaching_restores_the_model"}),
        (ReadsValues, {"a_model_without_values_is_attached_alike"}),
        (Silent, {"what_on_train_end_returns_is_json"}),
    ],
)
def test_a_broken_regularizer_fails_the_check_that_is_meant(cls, expected):
    assert failed(cls).keys() == expected


@pytest.mark.parametrize(
    ("cls", "check"),
    [
        (Shrinks, "attaching_leaves_the_weights_as_they_are"),
        (Noisy, "a_seed_decides_a_training_pass"),
        (OneDtype, "it_works_in_bfloat16"),
        (
            variant(Pull, penalty=lambda self, model, batch, loss: model.classifier.bias[:1]),
            "losses_and_penalties_are_finite_scalars",
        ),
    ],
)
def test_what_breaks_several_checks_fails_the_one_that_is_meant(cls, check):
    assert check in failed(cls)


class Plain(Optimizer):
    """torch's Adam."""

    name = "plain"

    def build(self, param_groups):
        return torch.optim.AdamW(param_groups)


class FirstGroup(Plain):
    def build(self, param_groups):
        return torch.optim.AdamW(param_groups[:1])


class Looks(Plain):
    def build(self, param_groups):
        self.size = sum(p.detach().norm().item() for group in param_groups for p in group["params"])
        return super().build(param_groups)


class OwnRate(Plain):
    """Keeps to the learning rate that it began with."""

    class Adam(torch.optim.AdamW):
        def step(self, closure=None):
            for group in self.param_groups:
                group["lr"] = 0.01
            super().step()

    def build(self, param_groups):
        return self.Adam(param_groups)


class Undecayed(Plain):
    """Leaves weight decay aside."""

    class Adam(torch.optim.Adam):
        def step(self, closure=None):
            decays = [group.pop("weight_decay") for group in self.param_groups]
            for group in self.param_groups:
                group["weight_decay"] = 0.0
            super().step()
            for group, decay in zip(self.param_groups, decays, strict=True):
                group["weight_decay"] = decay

    def build(self, param_groups):
        return self.Adam(param_groups)


class Flattened(Plain):
    """Takes all parameters for one group."""

    def build(self, param_groups):
        return torch.optim.AdamW([p for group in param_groups for p in group["params"]], lr=0.01, weight_decay=0.1)


class Counting(Plain):
    """Keeps a count of steps beside its state."""

    class Adam(torch.optim.SGD):
        count = 0

        def step(self, closure=None):
            self.count += 1
            for group in self.param_groups:
                for parameter in group["params"]:
                    if parameter.grad is not None:
                        parameter.grad /= self.count
            super().step()

    def build(self, param_groups):
        return self.Adam(param_groups)


@pytest.mark.parametrize(
    ("cls", "check"),
    [
        (variant(Plain, build=lambda self, param_groups: param_groups), "it_builds_a_torch_optimiser_of_all_groups"),
        (FirstGroup, "it_builds_a_torch_optimiser_of_all_groups"),
        (FirstGroup, "every_parameter_with_a_gradient_moves"),
        (Looks, "it_builds_on_the_meta_device"),
        (OwnRate, "it_goes_by_the_learning_rate_of_its_groups"),
        (Undecayed, "it_goes_by_the_weight_decay_of_its_groups"),
        (Flattened, "it_goes_by_the_weight_decay_of_its_groups"),
        (Flattened, "it_builds_a_torch_optimiser_of_all_groups"),
        (
            variant(Plain, build=lambda self, param_groups: torch.optim.AdamW(param_groups, maximize=True)),
            "the_loss_falls",
        ),
        (Counting, "a_resumed_run_is_the_uninterrupted_one"),
    ],
)
def test_a_broken_optimiser_fails_the_check_that_is_meant(cls, check):
    cls.__doc__ = cls.__doc__ or Plain.__doc__
    assert failed(Plain) == {}
    assert check in failed(cls)


class Falling(Schedule):
    """Fall in a straight line."""

    name = "falling"

    def factor(self, step, steps, warmup):
        return 1 - step / steps


class Remembers(Falling):
    """Fall with every call."""

    last = 1.0

    def factor(self, step, steps, warmup):
        self.last *= 0.9
        return self.last


@pytest.mark.parametrize(
    ("cls", "expected"),
    [
        (Falling, set()),
        (
            variant(Falling, factor=lambda self, step, steps, warmup: 0.5 - step / steps),
            {"factors_are_numbers_from_0_to_1"},
        ),
        (variant(Falling, factor=lambda *_: 1000.0), {"factors_are_numbers_from_0_to_1"}),
        (Remembers, {"factors_depend_on_the_arguments_alone"}),
        (variant(Falling, factor=lambda *_: 0), {"some_step_trains"}),
    ],
)
def test_a_broken_schedule_fails_the_check_that_is_meant(cls, expected):
    assert failed(cls).keys() == expected


class Notes(Callback):
    """Notes losses."""

    name = "notes"

    def on_step_end(self, event):
        self.last = event.figures["loss"]


class Stops(Notes):
    """Ends a run whose loss is not finite."""

    def on_step_end(self, event):
        if not math.isfinite(event.figures["loss"]):
            raise TrainingError("the loss is not finite.")


class Narrow(Notes):
    """Reads what a validation has none of."""

    def on_evaluate(self, event):
        self.last = event.figures["loss"]


class Rewrites(Notes):
    """Changes the figures."""

    def on_step_end(self, event):
        event.figures["loss"] = 0.0


class Clips(Notes):
    """Clips gradients."""

    def on_pre_optimizer_step(self, event):
        torch.nn.utils.clip_grad_value_(event.model.parameters(), 1e-3)


class Keeps(Notes):
    """Keeps the model, and changes it later."""

    def on_pre_optimizer_step(self, event):
        self.model = event.model

    def on_step_end(self, event):
        if hasattr(self, "model"):
            self.model[0].weight.data.mul_(0.9)


class Samples(Notes):
    """Seeds and draws as if it were alone."""

    def on_step_end(self, event):
        torch.manual_seed(event.step)


class Moves(Notes):
    """Works in the run's folder, and stays there."""

    def on_train_begin(self, event):
        os.chdir(event.run)


class Uploads(Notes):
    """Has a thread for each run, which it ends where the run fails and forgets elsewhere."""

    def on_train_begin(self, event):
        self.ended = threading.Event()
        self.thread = threading.Thread(target=self.ended.wait, name="uploads", daemon=True)
        self.thread.start()

    def on_exception(self, event):
        self.ended.set()


class Joins(Uploads):
    """Ends its thread."""

    def on_run_end(self, event):
        self.ended.set()


class Lines(Notes):
    """Writes a line a step, begun with the run."""

    def on_train_begin(self, event):
        if event.step == 0:
            (event.run / "losses.txt").write_text("")

    def on_step_end(self, event):
        with (event.run / "losses.txt").open("a") as file:
            file.write(f"{event.step}\n")


@pytest.mark.parametrize(
    ("cls", "expected"),
    [
        (Notes, set()),
        (Samples, {"random_numbers_stay_as_they_are"}),
        (Moves, {"the_process_stays_as_it_is"}),
        (Uploads, {"the_process_stays_as_it_is"}),
        (Joins, set()),
        (Lines, {"a_resumed_run_leaves_the_files_of_an_uninterrupted_one"}),
        (Stops, set()),
        (
            Narrow,
            {
                *("it_takes_every_event", "events_stay_as_they_are", "the_model_stays_as_it_is"),
                *("random_numbers_stay_as_they_are", "the_process_stays_as_it_is"),
                "a_resumed_run_leaves_the_files_of_an_uninterrupted_one",
            },
        ),
        (Rewrites, {"events_stay_as_they_are"}),
        (Keeps, {"the_model_stays_as_it_is"}),
        (Clips, {"the_model_stays_as_it_is"}),
    ],
)
def test_a_broken_callback_fails_the_check_that_is_meant(cls, expected):
    assert failed(cls).keys() == expected
