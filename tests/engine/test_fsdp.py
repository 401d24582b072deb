"""A model divided over processes by FSDP2 trains, saves and resumes as a whole one does."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from accelerate.utils import patch_environment
from expected import raises
from processes import together
from runs import interrupt, losses
from tiny import tiny_bert, tiny_gpt2, tiny_llama

from ftengine import Recipe, fine_tune, load_run
from ftengine.errors import BaseMismatch, RecipeError
from ftengine.model import default_param_groups, open_model, read_tensors, state_tensors
from ftengine.parallel.device import Device, processes
from ftengine.parallel.sharded_files import read_parts
from ftengine.parallel.sharding import blocks, gathered, require_shardable, shard, without_weights
from ftengine.training import loop
from ftengine.training.checkpoint import checkpoint_folders, load_checkpoint

FULL, LORA = "full", {"name": "lora", "rank": 4, "dropout": 0.0}
STEPS = 5
OTHERS = ("alone", "of-three")
LAUNCHED = {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2", "FSDP_TRANSFORMER_CLS_TO_WRAP": "LlamaDecoderLayer"}


def recipe_of(folder, kind, strategy, side, **train):
    """A few steps of two micro-batches; 2 processes have an odd number of validation rows and answers to share."""
    options = {"max_steps": STEPS, "accumulate": 2, "learning_rate": 0.01, "precision": "float32", "epochs": 3}
    options |= {"weight_decay": 1.0, "max_steps": 2} if kind == "gpt2" else {}
    options |= {"gradient_checkpointing": strategy == LORA, "checkpoint_every": 3 if kind == "llama" else None}
    content = {
        "model": {"source": str(folder / kind)},
        "task": "text-classification" if kind == "bert" else "causal-lm",
        "data": {"train": str(folder / f"{kind}.jsonl"), "validation": 0.22},
        "strategy": strategy,
        "train": {**options, "batch_size": 4 if side == "one" else 2, **train},
        "evaluation": {
            "resamples": 100,
            "training_sample": None,
            **({"answers": 5, "generate": {"max_new_tokens": 3}} if kind == "llama" else {}),
        },
        "output": str(folder / f"{kind}-{strategy if strategy == FULL else 'lora'}-{side}"),
    }
    return Recipe.make(content)


CELLS = [("llama", FULL), ("llama", LORA), ("bert", FULL), ("bert", LORA), ("gpt2", FULL)]


def child(folder):
    """Train each cell, divided; the first is interrupted and resumed, the second has it from the launcher alone."""
    folder = Path(folder)
    first, second, *others = (recipe_of(folder, *cell, "two", parallel="fsdp") for cell in CELLS)
    interrupt(first, after=4)
    if not processes().process_index:  # to go on with 1 process and with 3
        for side in OTHERS:
            shutil.copytree(first.output, recipe_of(folder, "llama", FULL, side).output)
    processes().wait_for_everyone()
    fine_tune(first, resume=True)
    second.train.parallel = "ddp"
    second.train.model_fields_set.remove("parallel")
    with patch_environment(**LAUNCHED):
        fine_tune(second)
    if processes().process_index:  # as if its clock were ahead: processes save together or not at all
        loop.SAVE_SECONDS = 0
    for recipe in others:
        fine_tune(recipe)


@pytest.fixture(scope="module")
def folder(tmp_path_factory, chat_file, label_file):
    """Models and data; each cell trained in one process, and in two of which each has a part."""
    folder = tmp_path_factory.mktemp("fsdp")
    tiny_llama(folder / "llama")
    tiny_bert(folder / "bert", hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    off = {"attn_pdrop": 0.0, "embd_pdrop": 0.0, "resid_pdrop": 0.0}
    tiny_gpt2(folder / "gpt2", add_cross_attention=True, n_layer=1, **off)  # which nothing here computes with
    for kind in ("llama", "gpt2"):
        shutil.copy(chat_file, folder / f"{kind}.jsonl")
    shutil.copy(label_file, folder / "bert.jsonl")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ACCELERATE_USE_CPU", "1")
        for cell in CELLS:  # in one process there is nothing to divide, whatever the recipe says
            fine_tune(recipe_of(folder, *cell, "one", parallel="fsdp"))
    together(folder / "said", child, str(folder))
    return folder


def run_of(folder, kind, strategy, side):
    return load_run(recipe_of(folder, kind, strategy, side).output)


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "strategy"), CELLS, ids=lambda value: value if isinstance(value, str) else "lora")
def test_two_processes_with_a_part_each_equal_one_with_all(folder, kind, strategy):
    one, two = (run_of(folder, kind, strategy, side) for side in ("one", "two"))
    assert losses(two) == pytest.approx(losses(one), rel=1e-4)  # float32 sums in another order
    norms = [[line["grad_norm"] for line in run.metrics if "grad_norm" in line] for run in (one, two)]
    assert norms[1] == pytest.approx(norms[0], rel=1e-3)
    validated = [[line["validation_loss"] for line in run.metrics if "validation_loss" in line] for run in (one, two)]
    assert validated[1] == pytest.approx(validated[0], rel=1e-4)
    for side in ("base", "tuned"):
        for metric, figure in one.evaluation[side].items():
            assert two.evaluation[side][metric]["n"] == figure["n"]
    file = "model.safetensors" if strategy == FULL else "adapter_model.safetensors"
    first, second = (read_tensors(run.trained / file) for run in (one, two))
    assert first.keys() == second.keys()
    config = "config.json" if strategy == FULL else "adapter_config.json"
    assert (two.trained / config).read_text() == (one.trained / config).read_text()
    for name, tensor in first.items():
        # Adam divides by the root of a mean of squares, which enlarges rounding where that is small.
        torch.testing.assert_close(second[name], tensor, rtol=0, atol=2e-3 * max(1e-2, tensor.abs().max()), msg=name)
    if kind == "gpt2":  # without a gradient nothing decays; one that is divided has zeros
        base = read_tensors(folder / kind / "model.safetensors")
        unused = [name for name in base if "crossattention" in name]
        assert unused
        assert all(torch.equal(base[name], one[name]) for name in unused for one in (first, second))


def last_checkpoint(folder, side):
    run = run_of(folder, "llama", FULL, side)
    assert [line["step"] for line in run.metrics][-1] == STEPS
    return checkpoint_folders(run.directory)[-1]


@pytest.mark.slow
def test_each_process_writes_its_half_of_weights_and_optimiser(folder):
    whole, parts = (sorted(last_checkpoint(folder, side).glob("*.safetensors")) for side in ("one", "two"))
    size = sum(file.stat().st_size for file in whole)
    assert len(parts) == 2
    for file in parts:
        assert 0.4 * size < file.stat().st_size < 0.6 * size
    hashed = json.loads((last_checkpoint(folder, "two") / "state.json").read_text())["sha256"]
    assert {file.name for file in parts} <= hashed.keys()


def trained_llama(folder):
    return open_model(run_of(folder, "llama", FULL, "two").trained, torch.float32)[0]


def restored(module, checkpoint):
    """Read a checkpoint; return the optimiser's state by parameter and key."""
    optimizer = torch.optim.AdamW(default_param_groups(module, 0.0, 0.0), fused=True)
    progress, _ = load_checkpoint(checkpoint, module, optimizer)
    assert progress.step == STEPS
    names = {id(parameter): name for name, parameter in module.named_parameters()}
    return {
        f"{names[id(parameter)]}|{key}": tensor
        for parameter, state in optimizer.state.items()
        for key, tensor in state.items()
    }


@pytest.mark.slow
def test_one_process_reads_the_checkpoint_of_two(folder):
    module = open_model(folder / "llama", torch.float32)[0]
    state = restored(module, last_checkpoint(folder, "two"))
    expected = trained_llama(folder).state_dict()  # the last step was the best
    for name, tensor in state_tensors(module).items():
        assert torch.equal(tensor, expected[name])
    other = read_tensors(last_checkpoint(folder, "one") / "optimizer.safetensors")
    assert state.keys() == other.keys()
    for name, tensor in other.items():
        torch.testing.assert_close(state[name], tensor, rtol=1e-3, atol=1e-3 * float(tensor.abs().max()), msg=name)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("targets", "told"),
    [
        ({"model.norm.weight": torch.zeros(3)}, "'model.norm.weight'"),
        ({"model.norm.bias": torch.zeros(3)}, "'model.norm.bias'"),
    ],
)
def test_a_checkpoint_of_another_model_is_refused(folder, targets, told):
    with raises(BaseMismatch, told):
        read_parts(last_checkpoint(folder, "two"), targets)


def child_of_three(folder):
    """Read the checkpoint of two, and of one; compare what comes of it with the weights that were saved."""
    import torch.distributed as dist

    folder = Path(folder)
    processes()
    for side in ("two", "one"):
        plain = open_model(folder / "llama", torch.float32)[0]
        whole = restored(plain, last_checkpoint(folder, side))
        module = open_model(folder / "llama", torch.float32)[0]
        empty = without_weights(module)
        shard(module, torch.device("cpu"))
        state = restored(module, last_checkpoint(folder, side))
        for name, tensor in state.items():
            assert torch.equal(tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor, whole[name]), name
        module = gathered(module, empty)
        if dist.get_rank() == 0:
            assert module.lm_head.weight is module.model.embed_tokens.weight
            for name, tensor in plain.named_parameters():
                assert torch.equal(module.get_parameter(name), tensor), name
    fine_tune(recipe_of(folder, "llama", FULL, "of-three", parallel="fsdp"), resume=True)


@pytest.mark.slow
def test_three_processes_read_the_checkpoints_of_two_and_of_one_and_go_on(folder):
    together(folder / "three", child_of_three, str(folder), ranks=3)
    check_rest(folder, "of-three")


@pytest.mark.slow
def test_one_process_goes_on_where_two_stopped(folder):
    fine_tune(recipe_of(folder, "llama", FULL, "alone", parallel="fsdp"), resume=True)
    check_rest(folder, "alone")


def check_rest(folder, side):
    """Compare a run that two processes began with that of one."""
    went_on, one = (run_of(folder, "llama", FULL, name) for name in (side, "one"))
    assert losses(went_on) == pytest.approx(losses(one), rel=1e-4)  # float32 sums in another order


@pytest.mark.slow
def test_blocks_are_found_in_the_tree_of_modules(folder):
    llama = open_model(folder / "llama", torch.float32)[0]
    named = blocks(llama)
    assert {type(block).__name__ for block in named} == {"LlamaDecoderLayer"}
    type(llama)._no_split_modules, known = None, type(llama)._no_split_modules
    try:
        assert blocks(llama) == named
    finally:
        type(llama)._no_split_modules = known
    assert blocks(llama, ["LlamaMLP"]) == [layer.mlp for layer in reversed(llama.model.layers)]
    with raises(RecipeError, "LlamaBlock", "LlamaForCausalLM"):
        blocks(llama, ["LlamaBlock"])


def test_blocks_that_share_a_parameter_with_others_are_no_blocks():
    layers = torch.nn.ModuleList(torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.ReLU()) for _ in range(3))
    layers[2][0].weight = layers[0][0].weight
    model = torch.nn.Sequential(torch.nn.Linear(2, 2), layers)
    assert blocks(model) == [layers[1]]


@pytest.mark.parametrize(
    ("overrides", "named"),
    [
        ({"regularize": ["ema"]}, "'ema'"),
        ({"train__optimizer": "muon"}, "'muon'"),
    ],
)
def test_what_does_not_work_on_parts_is_refused_before_data_is_read(chat_recipe, tmp_path, overrides, named):
    overrides = {"train__parallel": "fsdp", "data__train": str(tmp_path / "missing.jsonl"), **overrides}
    with raises(RecipeError, named):
        fine_tune(chat_recipe(**overrides))


@pytest.mark.parametrize(
    ("weight", "told"),
    [
        (torch.zeros(2, 2, dtype=torch.uint8), "uint8"),
        (torch.zeros(()), "single number"),
    ],
)
def test_what_has_no_rows_of_numbers_is_refused(weight, told):
    module = torch.nn.Linear(2, 2)
    module.weight = torch.nn.Parameter(weight, requires_grad=False)
    with raises(RecipeError, told):
        require_shardable(module)


def test_only_training_divides(chat_recipe, monkeypatch):
    for name, value in LAUNCHED.items():
        monkeypatch.setenv(name, value)
    with raises(RecipeError, "ftengine train"):
        Device.open(chat_recipe(train__parallel="fsdp"))
