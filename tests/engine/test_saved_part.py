"""A run ends only where its saved files give the tuned model back; new modules are saved whatever a strategy does."""

import gc
import time
import weakref
from pathlib import Path

import pytest
import torch
from expected import raises
from installed import registry_with
from runs import Heard, save_anew
from transformers import AutoTokenizer

from ftengine import api, fine_tune, load_run
from ftengine.engine import saved_part
from ftengine.engine.saved_part import NEW_MODULES
from ftengine.errors import BaseMismatch, RunError, SavedPartDiffers, TrainingError
from ftengine.model import copy_into, default_param_groups, read_tensors, save_tensors, trainable
from ftengine.model.saving import save_processor
from ftengine.run.directory import RunDirectory
from ftengine.run.records import TrainedPart


class Biases(api.Strategy):
    """Train biases; `kept` says which tensors its files hold."""

    name = "biases"

    def prepare(self, loaded):
        for name, parameter in loaded.module.named_parameters():
            parameter.requires_grad_(name.endswith("bias"))

    def kept(self, name, tensor):
        return tensor

    def tensors(self, loaded):
        found = {name: self.kept(name, tensor) for name, tensor in trainable(loaded.module).items()}
        return {name: tensor for name, tensor in found.items() if tensor is not None}

    def save(self, loaded, directory):
        save_tensors(self.tensors(loaded), directory / "biases.safetensors")

    def load(self, loaded, directory):
        stored, own = read_tensors(directory / "biases.safetensors"), trainable(loaded.module)
        copy_into({name: own[name] for name in stored}, stored, str(directory))


class Nothing(Biases):
    """Save nothing."""

    def kept(self, name, tensor):
        return None


class OneShort(Biases):
    """Forget one of many tensors."""

    def kept(self, name, tensor):
        return None if name == "bert.encoder.layer.1.output.dense.bias" else tensor


class HeadForgotten(Biases):
    """Forget the fresh head."""

    def kept(self, name, tensor):
        return None if name.startswith("classifier") else tensor


class Halves(Biases):
    """Save in bfloat16."""

    def kept(self, name, tensor):
        return tensor.to(torch.bfloat16)


class Unreadable(Biases):
    """Write what it cannot read."""

    def load(self, loaded, directory):
        return {}["nothing"]


class Unsaved(Biases):
    """Fail to save."""

    def save(self, loaded, directory):
        return {}["nothing"]


class OtherKeys(Biases):
    """Write keys that it does not look for."""

    def load(self, loaded, directory):
        stored = read_tensors(directory / "biases.safetensors")
        copy_into(trainable(loaded.module), {f"x.{name}": tensor for name, tensor in stored.items()}, "biases")


class Elsewhere(Biases):
    """Change a frozen weight of the base in `prepare`, and forget to when the run is opened again."""

    class Config(api.Config):
        grown: float = 1.5

    def prepare(self, loaded):
        super().prepare(loaded)
        with torch.no_grad():
            loaded.module.get_parameter("bert.encoder.layer.0.output.dense.weight").mul_(self.config.grown)

    def loading_options(self):
        return {"grown": 1.0}


def registry(*classes):
    return registry_with(*classes, distribution="ftengine-biases")


each_precision = pytest.mark.parametrize("precision", ["float32", pytest.param("bfloat16", marks=pytest.mark.slow)])


@pytest.fixture
def recipe(label_recipe):
    return lambda **overrides: label_recipe(
        **{"strategy": "biases", "train__max_steps": 4, "train__learning_rate": 0.05, **overrides}
    )


@pytest.mark.parametrize(
    ("strategy", "told"),
    [
        (OneShort, "saved files that do not restore the tuned"),
        *(
            pytest.param(strategy, "saved files that do not restore the tuned", marks=pytest.mark.slow)
            for strategy in (Nothing, Elsewhere)
        ),
        (Unsaved, "cannot save what it trained: KeyError: 'nothing' (test_saved_part.py:"),
    ],
)
def test_files_that_do_not_give_the_tuned_model_back_end_the_run(recipe, strategy, told):
    with pytest.raises(SavedPartDiffers) as error:
        fine_tune(recipe(), registry=registry(strategy))
    message, run = str(error.value), recipe().output
    assert message.startswith(f"strategy 'biases' of ftengine-biases unversioned {told}")
    assert "--resume" in message
    assert ("such as 'bert." in message) == (strategy in (Nothing, OneShort))
    left = [folder.name for folder in Path(run).glob("adapter*")]
    assert left == ([] if strategy is Unsaved else ["adapter"])
    if left:
        with raises(RunError, run, "failed its check", "--resume"):
            load_run(run)
        assert TrainedPart.read(RunDirectory(Path(run) / "adapter")).check == "failed"
    repaired = fine_tune(recipe(), resume=True, registry=registry(Biases if strategy is not Elsewhere else _Kept))
    assert repaired.evaluation["tuned"] == repaired.evaluate()["tuned"]


class Shrinks(api.Regularizer):
    """Multiply frozen weights, however little."""

    name = "shrinks"
    traits = api.RegularizerTraits(needs_validation=False)

    def attach(self, loaded, task):
        pass

    def detach(self, loaded):
        pass

    def on_step_end(self, model, step):
        with torch.no_grad():
            for parameter in model.parameters():
                if not parameter.requires_grad:
                    parameter.mul_(0.99)


class Touches(api.Callback):
    """Change the last bit of one number of a frozen weight."""

    name = "touches"

    def on_pre_optimizer_step(self, event):
        if event.step == 2:
            weight = event.model.get_parameter("bert.encoder.layer.0.output.dense.weight").data
            weight.view(torch.int16 if weight.dtype is torch.bfloat16 else torch.int32)[0, 0] ^= 1


@each_precision
@pytest.mark.parametrize("changes", [{"regularize": ["shrinks"]}, {"callbacks": ["touches"]}])
def test_who_changes_frozen_weights_is_named_and_not_the_strategy(recipe, precision, changes):
    known = registry(Biases, Shrinks, Touches)
    with pytest.raises(TrainingError) as error:
        fine_tune(recipe(train__precision=precision, **changes), registry=known)
    [name] = [spec if isinstance(spec, str) else spec["name"] for spec in next(iter(changes.values()))]
    assert repr(name) in str(error.value)
    assert ("output.dense.weight" in str(error.value)) == (name == "touches")
    run = RunDirectory(recipe().output)
    assert not run.trained.exists()
    assert not run.finished


class Drawn(Biases):
    """Change a frozen weight a little, by numbers that another preparation does not draw."""

    def prepare(self, loaded):
        super().prepare(loaded)
        weight = loaded.module.get_parameter("bert.encoder.layer.0.output.dense.weight")
        noise = torch.randn(weight.shape, generator=torch.Generator().manual_seed(time.time_ns()))
        weight.data.mul_(1 + 0.01 * noise)


class Almost(Biases):
    """Save a little more than was trained, which outputs do not show."""

    def kept(self, name, tensor):
        return tensor * 1.000003


@each_precision
@pytest.mark.parametrize("strategy", [Drawn, Almost])
def test_small_differences_of_what_is_opened_again_end_the_run_in_every_dtype(recipe, strategy, precision):
    with raises(SavedPartDiffers, "such as 'bert"):
        fine_tune(recipe(train__precision=precision), registry=registry(strategy))


class _Kept(Elsewhere):
    """Change the base alike when it is opened again."""

    def loading_options(self):
        return {"grown": self.config.grown}


@pytest.mark.parametrize(
    ("strategy", "cause"),
    [(Unreadable, "KeyError: 'nothing'"), (OtherKeys, "keys missing")],
)
def test_files_that_cannot_be_opened_again_end_the_run(recipe, strategy, cause):
    with raises(SavedPartDiffers, "ftengine-biases", cause):
        fine_tune(recipe(train__max_steps=1), registry=registry(strategy))


def test_new_modules_are_saved_and_read_back_whatever_the_strategy_does(recipe):
    known = registry(HeadForgotten)
    run = fine_tune(recipe(), registry=known)
    stored = read_tensors(run.trained / NEW_MODULES)
    assert set(stored) == {"classifier.weight", "classifier.bias"}
    assert run.evaluation["tuned"] != run.evaluation["base"]
    assert load_run(run.path, registry=known).evaluate()["tuned"] == run.evaluation["tuned"]
    rows = [{"text": "a fine day"}, {"text": "rain again"}]
    told = list(run.predict(rows))
    save_tensors({name: tensor.neg() for name, tensor in stored.items()}, run.trained / NEW_MODULES)
    save_anew(run.path)
    assert list(load_run(run.path, registry=known).predict(rows)) != told
    save_tensors({"classifier.scale": torch.ones(1)}, run.trained / NEW_MODULES)
    save_anew(run.path)
    with raises(BaseMismatch, "classifier.scale"):
        list(load_run(run.path, registry=known).predict(rows))


def test_a_strategy_may_save_in_half_precision(recipe):
    heard = Heard()
    run = fine_tune(recipe(), registry=registry(Halves), listener=heard)
    assert not any("trained tensors differ" in line for line in heard.said)
    assert (run.trained / NEW_MODULES).exists()  # the engine rounds nothing
    stored = read_tensors(run.trained / "biases.safetensors")
    assert all(tensor.dtype is torch.bfloat16 for tensor in stored.values())


@pytest.mark.slow
def test_a_run_killed_before_its_files_were_verified_verifies_them_when_it_is_resumed(recipe, monkeypatch):
    whole = fine_tune(recipe(output=recipe().output + "-whole"), registry=registry(Biases))
    with monkeypatch.context() as patch:
        patch.setattr(saved_part, "load_base_of", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            fine_tune(recipe(), registry=registry(Biases))
    run = fine_tune(recipe(), resume=True, registry=registry(Biases))
    assert run.evaluation == whole.evaluation
    assert not list(run.path.glob("*.partial"))


@pytest.mark.slow
def test_memory_holds_one_base_at_a_time(recipe, monkeypatch):
    frozen, load, seen = [], saved_part.load_base_of, []

    class Watched(Biases):
        def param_groups(self, model, learning_rate, weight_decay):
            frozen.append(weakref.ref(model.get_parameter("bert.embeddings.word_embeddings.weight")))
            return default_param_groups(model, learning_rate, weight_decay)

    # tests/conftest.py leaves that out elsewhere.
    monkeypatch.setattr("accelerate.utils.memory.clear_device_cache", lambda garbage_collection: gc.collect())
    monkeypatch.setattr(saved_part, "load_base_of", lambda *x: (seen.append(frozen[0]() is None), load(*x))[1])
    fine_tune(recipe(train__max_steps=1), registry=registry(Watched))
    assert seen == [True]


def test_a_tensor_is_lost_where_more_than_rounding_is():
    tuned = torch.randn(1 << 20, generator=torch.Generator().manual_seed(0)) / 50
    before = tuned + torch.randn(1 << 20, generator=torch.Generator().manual_seed(1)) * 1e-5
    added_again = before + (tuned - before)
    assert not torch.equal(added_again, tuned)
    found = {"again": added_again, "halved": tuned.bfloat16().float(), "forgotten": before, "none": None}
    for name, lost, rounded in (
        ("again", [], False),
        ("halved", [], True),
        ("forgotten", ["w"], False),
        ("none", ["w"], False),
    ):
        reopened = {} if found[name] is None else {"w": found[name]}
        assert saved_part._compare({"w": tuned}, reopened) == (lost, rounded), name


class Reopened(Biases):
    """Open again under other options, which change nothing."""

    class Config(api.Config):
        fresh: bool = True

    def loading_options(self):
        return {"fresh": False}


@pytest.mark.parametrize(
    ("call", "error", "raised"),
    [
        (2, RuntimeError("no kernel"), SavedPartDiffers),  # the tuned model's outputs are of float32
        (1, torch.OutOfMemoryError("full"), torch.OutOfMemoryError),
        (2, torch.OutOfMemoryError("full"), torch.OutOfMemoryError),
    ],
)
def test_both_models_are_asked_in_one_precision_and_full_memory_is_reported_as_such(
    recipe, monkeypatch, call, error, raised
):
    calls, real = [], saved_part.in_float32

    def failing(module):
        calls.append(module)
        if len(calls) == call:
            raise error
        return real(module)

    monkeypatch.setattr(saved_part, "in_float32", failing)
    with raises(raised, str(error)):
        fine_tune(recipe(train__max_steps=1, train__precision="bfloat16"), registry=registry(Reopened))


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full")
def test_a_disk_that_is_full_while_the_tokenizer_is_saved_is_reported(llama_folder, tmp_path):
    """Of tokenizers, it is a bare Exception."""
    (tmp_path / "tokenizer.json").symlink_to("/dev/full")
    with raises(RunError, "No space left"):
        save_processor(AutoTokenizer.from_pretrained(llama_folder), tmp_path)
