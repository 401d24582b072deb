"""A sound strategy passes; each that is broken in one way fails by the check that is meant, and says what to do."""

from __future__ import annotations

import pickle
import random

import pytest
import torch
from broken import failed, variant
from tiny import write
from torch import nn
from torch.nn.utils import parametrize
from transformers import MistralConfig, MistralForCausalLM

from ftengine.api import Strategy
from ftengine.errors import NoMatch
from ftengine.model import default_param_groups, load_trained, save_trained
from ftengine.testing import check_component, check_results, fixture_of, fixtures, models
from ftengine.testing.checks import results_of, skip

pytestmark = pytest.mark.slow


class Shifted(nn.Module):
    """A linear layer and a trained vector that is added to its output."""

    def __init__(self, base):
        super().__init__()
        self.base, self.shift = base, nn.Parameter(torch.zeros_like(base.bias))

    def forward(self, x):
        return (self.base(x) + self.shift).to(x.dtype)


class Shift(Strategy):
    """Train a vector behind each dense layer of a classifier of texts."""

    name = "shift"

    def prepare(self, loaded):
        if loaded.head != "sequence-classification":
            raise NoMatch("this is about classifiers of texts.")
        loaded.module.requires_grad_(False)
        found = {name: part for name, part in loaded.module.named_modules() if name.endswith("dense")}
        for path, part in found.items():
            put(loaded.module, path, self.wrapped(part))
        self.paths = list(found)

    def wrapped(self, base):
        return Shifted(base)

    def matches(self):
        return {"dense": self.paths}

    def check_merge(self):
        pass

    @torch.no_grad()
    def merge(self, loaded):
        for path in self.paths:
            part = loaded.module.get_submodule(path)
            part.base.bias += part.shift
            put(loaded.module, path, part.base)


def put(module, path, part):
    parent, _, name = path.rpartition(".")
    setattr(module.get_submodule(parent), name, part)


def test_a_sound_strategy_passes():
    results = check_results(Shift)
    assert [one for one in results if one.outcome == "failed"] == []
    skipped = {one.check: one.reason for one in results if one.outcome == "does not apply"}
    assert skipped["LlamaForCausalLM"] == "this is about classifiers of texts."


class OfMistral(Shift):
    """Refuses every model that is shipped."""

    def prepare(self, loaded):
        if type(loaded.module).__name__ != "MistralForCausalLM":
            raise NoMatch("this is about Mistral.")
        for name, parameter in loaded.module.named_parameters():
            parameter.requires_grad_(name.endswith("norm.weight"))

    def matches(self):
        return {}

    def merge(self, loaded):
        pass


def test_a_strategy_of_other_models_passes_on_a_model_that_is_given(tmp_path):
    model, tokenizer = models.tiny_llama()
    settings = {k: v for k, v in model.config.to_dict().items() if k in MistralConfig().to_dict() and k != "model_type"}
    write(tmp_path, MistralForCausalLM(MistralConfig(**{**settings, "architectures": None})), tokenizer)
    results = {one.check: one for one in check_results(OfMistral)}
    assert results["it_suits_a_model"].outcome == "does not apply"
    assert [one.check for one in results.values() if one.outcome == "failed"] == []
    with pytest.raises(AssertionError, match="nothing was checked"):
        check_component(OfMistral)
    on = [fixture_of(str(tmp_path), "causal-lm")]
    results = {one.check: one for one in check_results(OfMistral, models=on)}
    assert [(one.check, one.reason) for one in results.values() if one.outcome == "failed"] == []
    assert results["training_moves_the_outputs"].outcome == "passed"


class OfNothing(Shift):
    """Finds nothing in a language model, and goes on."""

    def prepare(self, loaded):
        loaded.module.requires_grad_(False)
        self.paths = []

    def matches(self):
        return {}

    def merge(self, loaded):
        pass


class Faint(Shift):
    """What trains has hardly any effect beside the new head: it is scaled away."""

    class Part(Shifted):
        def forward(self, x):
            return (self.base(x) + 1e-5 * self.shift).to(x.dtype)

    def wrapped(self, base):
        return self.Part(base)

    def merge(self, loaded):
        for path in self.paths:
            put(loaded.module, path, loaded.module.get_submodule(path).base)


class Grades(Shift):
    """Puts gradients on the weights beside its vector, which it froze."""

    class Part(Shifted):
        def forward(self, x):
            if self.training:
                self.base.weight.grad = torch.ones_like(self.base.weight)
            return super().forward(x)

    def wrapped(self, base):
        return self.Part(base)


class Thaws(Shift):
    """Has the weights beside its vector train from the first pass on."""

    class Part(Shifted):
        def forward(self, x):
            self.base.weight.requires_grad_(True)
            return super().forward(x)

    def wrapped(self, base):
        return self.Part(base)


class LeavesOut(Shift):
    """Leaves the new head out of its groups."""

    def param_groups(self, model, learning_rate, weight_decay):
        groups = default_param_groups(model, learning_rate, weight_decay)
        return [{**group, "params": [p for p in group["params"] if len(p) != 3]} for group in groups]


class LosesOne(Shift):
    """Forgets one tensor of many."""

    def save(self, loaded, directory):
        save_trained(loaded.module, directory)

    def load(self, loaded, directory):
        kept = loaded.module.get_submodule(self.paths[0]).shift
        before = kept.detach().clone()
        load_trained(loaded.module, directory)
        with torch.no_grad():
            kept.copy_(before)


class Headless(Shift):
    """Saves what it added alone; the new head is the engine's to save."""

    def save(self, loaded, directory):
        from ftengine.model import save_tensors

        tensors = {path: loaded.module.get_submodule(path).shift for path in self.paths}
        save_tensors(tensors, directory / "shifts.safetensors")

    @torch.no_grad()
    def load(self, loaded, directory):
        from ftengine.model import read_tensors

        for path, tensor in read_tensors(directory / "shifts.safetensors").items():
            loaded.module.get_submodule(path).shift.copy_(tensor)


class Pickles(Shift):
    """Writes and reads a pickle."""

    def save(self, loaded, directory):
        torch.save({path: loaded.module.get_submodule(path).shift for path in self.paths}, directory / "shifts")

    @torch.no_grad()
    def load(self, loaded, directory):
        for path, tensor in torch.load(directory / "shifts", weights_only=False).items():
            loaded.module.get_submodule(path).shift.copy_(tensor)


class Unpickles(Headless):
    """Reads a pickle beside what it wrote."""

    def load(self, loaded, directory):
        super().load(loaded, directory)
        pickle.loads(pickle.dumps(Shift))


class Beside(Headless):
    """Writes notes beside what it saves."""

    def save(self, loaded, directory):
        super().save(loaded, directory)
        (directory.parent / "notes.txt").write_text("saved")


class Counts(Shift):
    """Freezes the first vector once it has seen a step, which it counts itself."""

    def prepare(self, loaded):
        super().prepare(loaded)
        self.steps = set()

    def frozen_parameters(self, model, step, steps, steps_per_epoch):
        self.steps.add(step)
        return [model.get_submodule(self.paths[0]).shift] if len(self.steps) > 1 else []


class LeavesHooks(Shift):
    """Merges nothing: a hook adds the vector."""

    @torch.no_grad()
    def merge(self, loaded):
        for path in self.paths:
            part = loaded.module.get_submodule(path)
            put(loaded.module, path, part.base)
            part.base.register_forward_hook(lambda module, args, output, shift=part.shift: output + shift)


class Added(nn.Module):
    def __init__(self, shift):
        super().__init__()
        self.shift = shift

    def forward(self, bias):
        return bias + self.shift


class LeavesParametrizations(Shift):
    """Leaves a parametrization on each bias, which changes its keys in the file."""

    def merge(self, loaded):
        for path in self.paths:
            part = loaded.module.get_submodule(path)
            put(loaded.module, path, part.base)
            parametrize.register_parametrization(part.base, "bias", Added(part.shift))


class WrongMerge(Shift):
    """Forgets to add the vector."""

    def merge(self, loaded):
        for path in self.paths:
            put(loaded.module, path, loaded.module.get_submodule(path).base)


class ReadsValues(Shift):
    """Looks at weights while it prepares."""

    def prepare(self, loaded):
        super().prepare(loaded)
        self.largest = max(p.detach().abs().max().item() for p in loaded.module.parameters())


class OnTheCpu(Shift):
    """Makes its parameters on the CPU, whatever the model is on."""

    def wrapped(self, base):
        part = Shifted(base)
        part.shift = nn.Parameter(torch.zeros(base.bias.shape))
        return part


class Widens(Shift):
    """Makes float32 of whatever it is given."""

    class Part(Shifted):
        def forward(self, x):
            return self.base(x) + self.shift

    def wrapped(self, base):
        return self.Part(base)


class Unseeded(Shift):
    """Draws dropout from Python's own generator."""

    class Part(Shifted):
        def forward(self, x):
            return super().forward(x) + (random.random() if self.training else 0.0)

    def wrapped(self, base):
        return self.Part(base)


class Rebased(Shift):
    """Changes the base while it prepares."""

    @torch.no_grad()
    def prepare(self, loaded):
        super().prepare(loaded)
        for path in self.paths:
            loaded.module.get_submodule(path).base.weight.mul_(1.001)


class RandomConstant(Shift):
    """Holds a constant, which does not train, of a generator that is not torch's."""

    def wrapped(self, base):
        part = Shifted(base)
        part.register_buffer("constant", torch.full((), random.random(), device=base.bias.device))
        return part


class Random(Shift):
    """Begins with numbers of a generator that is not torch's."""

    def wrapped(self, base):
        part = Shifted(base)
        if not base.bias.is_meta:
            nn.init.constant_(part.shift, random.random() / 1e3)
        return part


class Shared(Shift):
    """Reaches its parameter past the module, so that copies share it."""

    def wrapped(self, base):
        part = Shifted(base)
        shift = part.shift
        part.forward = lambda x: base(x) + shift
        return part


OPENED = "the_merged_model_opens_without_the_strategy"


@pytest.mark.parametrize(
    ("cls", "expected"),
    [
        (
            variant(Shift, wrapped=lambda self, base: Shifted(base).requires_grad_(False)),
            {"matched_modules_exist_and_train"},
        ),
        (Faint, {"training_moves_the_outputs"}),
        (
            LeavesOut,
            {"groups_hold_each_trainable_parameter_once"},
        ),
        (Grades, {"frozen_weights_do_not_move"}),
        (variant(Shift, save=lambda *_: None, load=lambda *_: None), {"saved_and_loaded_outputs_are_equal"}),
        (LosesOne, {"saved_and_loaded_outputs_are_equal"}),
        (Pickles, {"saved_and_loaded_outputs_are_equal"}),
        (Unpickles, {"saved_and_loaded_outputs_are_equal"}),
        (Beside, {"saved_and_loaded_outputs_are_equal"}),
        (Counts, {"a_resumed_run_is_the_uninterrupted_one"}),
        (LeavesHooks, {"merging_leaves_nothing_behind", OPENED}),
        (LeavesParametrizations, {"merging_leaves_nothing_behind", OPENED}),
        (WrongMerge, {"merging_keeps_the_outputs", OPENED}),
        (ReadsValues, {"a_model_without_values_is_prepared_alike"}),
        (OnTheCpu, {"a_model_without_values_is_prepared_alike"}),
        (Unseeded, {"a_seed_decides_a_training_pass", "a_resumed_run_is_the_uninterrupted_one"}),
        (Widens, {"it_trains_in_bfloat16"}),
        (Rebased, {"prepare_leaves_the_base_as_it_is"}),
        (variant(Shift, environment=lambda *_: {"dtype": torch.float32}), {"environment_is_json"}),
        (
            variant(Shift, matches=lambda self: {"dense": [f"model.{path}" for path in self.paths]}),
            {"matched_modules_exist_and_train"},
        ),
        (variant(Shift, matches=lambda *_: {"dense": ["bert.embeddings"]}), {"matched_modules_exist_and_train"}),
    ],
)
def test_a_broken_strategy_fails_the_check_that_is_meant(cls, expected):
    assert failed(cls).keys() == expected


@pytest.mark.parametrize(
    ("cls", "check"),
    [
        (Random, "a_seed_decides_what_it_prepares"),
        (RandomConstant, "a_seed_decides_what_it_prepares"),
        (Thaws, "frozen_weights_do_not_move"),
        (Shared, "a_copy_is_independent"),
    ],
)
def test_a_strategy_with_several_faults_fails_the_check_that_is_meant(cls, check):
    assert check in failed(cls)


def test_where_nothing_trains_that_is_all_that_fails():
    language = [one for one in fixtures() if one.head == "causal-lm"]
    assert failed(OfNothing, models=language).keys() == {"something_trains"}


def test_the_new_head_is_left_to_the_engine():
    assert failed(Headless) == {}


def test_an_expected_failure_keeps_its_reason_and_has_to_fail():
    def wrong():
        raise AssertionError("it is wrong")

    checks = [("right", lambda: None), ("wrong", wrong), ("open", lambda: skip("later"))]

    def result(check, reason):
        return next(result for result in results_of(checks, {check: reason}) if result.check == check)

    assert (result("wrong", "a bug").outcome, result("wrong", "a bug").reason) == ("expected", "a bug")
    assert {result(check, "?").outcome for check in ("right", "open", "no")} == {"failed"}
