"""Runs in one process that share rows and base: read once, and each ends as it does alone."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import pyarrow.parquet as pq
import pytest
import torch
from expected import raises
from runs import curve, interrupt
from safetensors.torch import load_file, save_file
from torch import nn

from ftengine import Shared, api, fine_tune, hookimpl, plan, registry_of
from ftengine.api import LoadedModel
from ftengine.data.encoding import EncodedSplit
from ftengine.engine.shared_base import SharedBase
from ftengine.errors import RecipeError, RunError
from ftengine.parallel.precision import Precision, apply_precision
from ftengine.training import checkpoint, optimizer_step

RECORDS = ("audit.json", "environment.json", "evaluation.json")


def contents(run: Path) -> dict[str, object]:
    """What a run leaves, without the time and memory that it took."""
    trained = {file.name: file.read_bytes() for file in (run / "adapter").rglob("*") if file.is_file()}
    tables = {file.name: pq.read_table(file) for file in (run / "predictions").iterdir()}
    return {
        "steps": curve(run),
        **trained,
        **tables,
        **{name: json.loads((run / name).read_text()) for name in RECORDS},
    }


@pytest.fixture
def reads(monkeypatch):
    """The times that weights were read."""
    loader, times = registry_of().get("loader", "transformers").cls, []
    read = loader.load
    monkeypatch.setattr(loader, "load", lambda self, request: times.append(request.source) or read(self, request))
    return times


def shared_and_alone(recipes, **options):
    """Train recipes one after another that share, then each alone; return what they leave, in pairs."""
    shared = Shared()
    together = [contents(fine_tune(recipe, shared=shared, **options).path) for recipe in recipes]
    alone = [recipe.model_copy(update={"output": f"{recipe.output}-alone"}) for recipe in recipes]
    return [(one, contents(fine_tune(other, **options).path)) for one, other in zip(together, alone, strict=True)]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("first", "second", "times"),
    [
        ({}, {"train__seed": 1, "train__learning_rate": 0.003}, 1),
        ({"strategy": {"name": "lora", "rank": 2, "init": "pissa", "dora": True}}, {"strategy": "prompt"}, 1),
        ({"strategy": "full"}, {"train__seed": 1}, 3),  # twice for the first: the base that it changed is not shared
    ],
    ids=["seed", "strategy", "full"],
)
def test_runs_that_share_end_as_alone_bit_for_bit(chat_recipe, tmp_path, reads, first, second, times):
    recipes = [
        chat_recipe(output=str(tmp_path / name), train__epochs=1, **options)
        for name, options in (("a", first), ("b", second))
    ]
    pairs = shared_and_alone(recipes)
    assert len(reads) == times + 2 * 2
    for together, alone in pairs:
        assert together == alone
    assert pairs[0][0]["steps"] != pairs[1][0]["steps"]


@pytest.mark.slow
def test_a_new_head_is_each_seeds_own(label_recipe, tmp_path, reads):
    common = {"strategy": {"name": "lora", "rank": 4}, "train__epochs": 1}
    recipes = [label_recipe(output=str(tmp_path / str(seed)), train__seed=seed, **common) for seed in (0, 1)]
    pairs = shared_and_alone(recipes)
    assert len(reads) == 2 + 2 * 2  # alone, each reads the base to train and to check what was saved
    for together, alone in pairs:
        assert together == alone


@pytest.mark.slow
def test_a_run_that_shares_is_resumed(chat_recipe, tmp_path):
    recipes = [chat_recipe(output=str(tmp_path / str(seed)), train__seed=seed) for seed in (0, 1)]
    interrupt(recipes[1], after=5)
    shared = Shared()
    together = [fine_tune(recipe, resume=True, shared=shared).path for recipe in recipes]
    alone = fine_tune(recipes[1].model_copy(update={"output": str(tmp_path / "alone")}))
    assert contents(together[1]) == contents(alone.path)


@pytest.mark.slow
def test_other_data_or_another_base_is_refused(chat_recipe, tmp_path):
    shared = Shared()
    fine_tune(chat_recipe(train__max_steps=1), shared=shared)
    for key, value in (("seed", 3), ("data__validation", 0.3), ("task", {"name": "causal-lm", "max_length": 64})):
        other = chat_recipe(output=str(tmp_path / "other"), train__max_steps=1, **{key: value})
        with raises(RecipeError, key.replace("__", "."), "train"):
            fine_tune(other, shared=shared)
    assert not (tmp_path / "other").exists()


def rows_of_the_first(patch):
    """The second run trains on the first one's batches."""
    epoch = EncodedSplit.epoch
    patch.setattr(EncodedSplit, "epoch", lambda split, size, seed, number: epoch(split, size, 0, number))


def dropout_of_the_first(patch):
    """The second run draws the first one's dropout masks."""
    draw = optimizer_step.draw_randomness
    patch.setattr(optimizer_step, "draw_randomness", lambda seed, *path: draw(0, *path))


@pytest.mark.slow
@pytest.mark.parametrize("plant", [None, rows_of_the_first, dropout_of_the_first])
def test_what_goes_from_one_run_to_the_next_is_found(chat_recipe, tmp_path, monkeypatch, plant):
    first, second, alone = (
        chat_recipe(output=str(tmp_path / name), train__seed=seed, train__max_steps=3)
        for name, seed in (("first", 0), ("second", 1), ("alone", 1))
    )
    shared = Shared()
    fine_tune(first, shared=shared)
    with monkeypatch.context() as patch:
        if plant is not None:
            plant(patch)
        together = contents(fine_tune(second, shared=shared).path)
    assert (together == contents(fine_tune(alone).path)) == (plant is None)


@pytest.mark.slow
def test_an_optimizer_state_of_another_run_is_found(chat_recipe, tmp_path, monkeypatch):
    """In a file it is refused; handed over in memory, the run does not end as it does alone."""
    recipes = [chat_recipe(output=str(tmp_path / str(seed)), train__seed=seed) for seed in (0, 1)]
    for recipe in recipes:
        interrupt(recipe, after=5)
    others, own = (sorted((tmp_path / name).rglob("optimizer.safetensors"))[-1] for name in "01")
    kept = own.read_bytes()
    shutil.copy(others, own)
    with raises(RunError, "damaged", str(tmp_path / "1")):
        fine_tune(recipes[1], resume=True, shared=Shared())
    own.write_bytes(kept)
    restore, slots = checkpoint.restore_optimizer, load_file(others)
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "restore_optimizer", lambda module, it, _, state: restore(module, it, slots, state))
        together = fine_tune(recipes[1], resume=True, shared=Shared())
    alone = fine_tune(recipes[1].model_copy(update={"output": str(tmp_path / "alone")}))
    assert curve(together.path)[-1] != curve(alone.path)[-1]


class Doubling(api.Strategy):
    """Changes the frozen base in place, as a careless strategy may, and trains a vector."""

    name = "doubling"

    def prepare(self, loaded):
        loaded.module.requires_grad_(False)
        with torch.no_grad():
            next(loaded.module.parameters()).mul_(2)
        layer = next(part for part in loaded.module.modules() if isinstance(part, nn.Linear))
        layer.shift = nn.Parameter(torch.zeros(layer.out_features))
        layer.register_forward_hook(lambda layer, args, output: output + layer.shift)


@pytest.mark.slow
def test_a_base_that_a_strategy_changed_is_read_again(chat_recipe, tmp_path, reads):
    registry = registry_of({"p": SimpleNamespace(ftengine_strategies=hookimpl(lambda: [Doubling]))})
    common = {"strategy": "doubling", "train__max_steps": 2}
    recipes = [chat_recipe(output=str(tmp_path / str(seed)), train__seed=seed, **common) for seed in (0, 1)]
    for together, alone in shared_and_alone(recipes, registry=registry):
        assert together == alone


@pytest.mark.parametrize(("strategy", "reads"), [("lora", 1), ("full", 6)])
def test_a_plan_says_what_several_seeds_cost(chat_recipe, strategy, reads):
    recipe = chat_recipe(strategy=strategy, train__seeds=3, train__seed=5)
    assert plan(recipe, measure=False).seeds == {"runs": 3, "first": 5, "seconds": None, "base_reads": reads}


class Small(nn.Module):
    """A base with a statistic, and a new head."""

    def __init__(self):
        super().__init__()
        self.body, self.norm, self.head = nn.Linear(3, 3), nn.BatchNorm1d(3), nn.Linear(3, 2)
        self.tied = self.body


def kept(shared, trained=(), **options):
    loaded = LoadedModel(
        Small(), {"vocabulary": ["a"]}, "x", "h", new_modules=("head",), fingerprint={"config": {}}, **options
    )
    shared.keep("key", 0, loaded, trained)
    return loaded


def test_models_have_the_same_frozen_tensors_and_heads_of_their_own():
    shared = SharedBase()
    first = kept(shared)
    first.module.requires_grad_(False)
    second = shared.model("key", 0)
    one, other = first.module, second.module
    assert other is not one
    assert other.body is other.tied
    assert other.body.weight.data_ptr() == one.body.weight.data_ptr()
    assert other.norm.running_mean.data_ptr() == one.norm.running_mean.data_ptr()
    assert torch.equal(other.head.weight, one.head.weight)
    assert other.head.weight.data_ptr() != one.head.weight.data_ptr()
    assert all(parameter.requires_grad for parameter in other.parameters())  # as the loader left it
    other.requires_grad_(False)
    second.processor["vocabulary"].append("b")
    third = shared.model("key", 0)
    assert all(parameter.requires_grad for parameter in third.module.parameters())
    assert not any(parameter.requires_grad for model in (one, other) for parameter in model.parameters())
    assert third.processor == first.processor == {"vocabulary": ["a"]}
    second.fingerprint["config"]["changed"] = 1
    assert shared.model("key", 0).fingerprint == {"config": {}}


@pytest.mark.parametrize("name", ["body.weight", "norm.running_mean"])
def test_a_changed_tensor_is_not_handed_out(name):
    shared = SharedBase()
    first = kept(shared)
    first.module.state_dict()[name].view(-1)[0] += 1e-6  # less than bfloat16 shows
    assert shared.model("key", 0) is None
    assert shared.model("key", 0) is None


def test_another_base_or_head_is_not_handed_out():
    for key, seed in (("other", 0), ("key", 1)):
        shared = SharedBase()
        kept(shared)
        assert shared.model(key, seed) is None
    shared = SharedBase()
    kept(shared, trained=["head.weight", "body.bias"])  # a part of the base trains
    assert shared.model("key", 0) is None
    kept(shared, trained=["head.weight"])
    assert shared.model("key", 0) is not None


@pytest.mark.parametrize("trained", [None, ["head.weight", "body.weight"], []])
def test_a_base_with_rounded_weights_is_not_handed_out_to_a_run_that_trains_others(trained):
    """The kept parameters that did not train have the dtype of frozen weights."""
    shared = SharedBase()
    loaded = LoadedModel(Small(), None, "x", "h", new_modules=("head",))
    for name, parameter in loaded.module.named_parameters():
        parameter.requires_grad_(name == "head.weight")
    apply_precision(loaded.module, Precision(torch.bfloat16, torch.bfloat16, ""))
    shared.keep("key", 0, loaded, ["head.weight"])
    shared.forget_unless(["head.weight"])
    assert shared.model("key", 0).module.body.weight.dtype is torch.bfloat16
    shared.forget_unless(trained)
    assert shared.model("key", 0) is None


@pytest.mark.slow
def test_a_base_that_trains_begins_with_its_own_values(chat_recipe, tmp_path):
    """A base kept for LoRA is rounded to bfloat16; full tuning keeps the checkpoint's float32 as its start."""
    recipes = [
        chat_recipe(output=str(tmp_path / name), strategy=name, train__precision="bfloat16", train__max_steps=3)
        for name in ("lora", "full")
    ]
    for together, alone in shared_and_alone(recipes):
        assert together == alone


@pytest.mark.slow
def test_a_model_folder_that_is_written_again_is_read_again(chat_recipe, tmp_path, reads):
    model = shutil.copytree(chat_recipe().model.source, tmp_path / "model")
    common = {"model__source": str(model), "train__max_steps": 1}
    recipes = [chat_recipe(output=str(tmp_path / str(seed)), train__seed=seed, **common) for seed in (0, 1)]
    shared = Shared()
    fine_tune(recipes[0], shared=shared)
    file = next(model.glob("*.safetensors"))
    tensors = load_file(file)
    save_file({name: tensor + 0.01 for name, tensor in tensors.items()}, file, {"format": "pt"})
    together = fine_tune(recipes[1], shared=shared)
    assert len(reads) == 2
    alone = fine_tune(recipes[1].model_copy(update={"output": str(tmp_path / "alone")}))
    assert contents(together.path) == contents(alone.path)
