"""What a launcher asks for is honoured or refused by name."""

import pytest
from click.testing import CliRunner
from expected import raises

from ftengine import fine_tune
from ftengine.cli import main
from ftengine.errors import RecipeError
from ftengine.parallel.device import Device
from ftengine.parallel.launch import resolve_launch

FSDP2 = {
    "ACCELERATE_USE_FSDP": "true",
    "FSDP_VERSION": "2",
    "FSDP_SHARDING_STRATEGY": "FULL_SHARD",
    "FSDP_RESHARD_AFTER_FORWARD": "true",
    "FSDP_OFFLOAD_PARAMS": "false",
    "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP",
    "FSDP_STATE_DICT_TYPE": "SHARDED_STATE_DICT",
    "FSDP_CPU_RAM_EFFICIENT_LOADING": "true",
    "FSDP_ACTIVATION_CHECKPOINTING": "false",
}
"""What `accelerate launch` sets for the answers that `accelerate config` proposes for version 2."""


@pytest.mark.parametrize(
    ("variable", "value", "named"),
    [
        ("ACCELERATE_USE_FSDP", "true", "fsdp_version"),
        ("ACCELERATE_USE_DEEPSPEED", "true", "DeepSpeed"),
        ("ACCELERATE_DYNAMO_BACKEND", "INDUCTOR", "torch.compile"),
        ("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "4", "train.accumulate=4"),
    ],
)
def test_what_is_not_offered_is_refused_before_data_is_read(chat_recipe, monkeypatch, tmp_path, variable, value, named):
    monkeypatch.setenv(variable, value)
    with raises(RecipeError, named):
        fine_tune(chat_recipe(data__train=str(tmp_path / "missing.jsonl")))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("variable", "value", "named"),
    [
        ("FSDP_OFFLOAD_PARAMS", "true", "fsdp_offload_params"),
        ("FSDP_RESHARD_AFTER_FORWARD", "false", "fsdp_reshard_after_forward"),
        ("FSDP_AUTO_WRAP_POLICY", "SIZE_BASED_WRAP", "fsdp_auto_wrap_policy"),
        ("FSDP_STATE_DICT_TYPE", "FULL_STATE_DICT", "fsdp_state_dict_type"),
        ("FSDP_ACTIVATION_CHECKPOINTING", "true", "train.gradient_checkpointing"),
    ],
)
def test_settings_of_fsdp_are_honoured_or_refused(chat_recipe, monkeypatch, variable, value, named):
    for name, usual in {**FSDP2, variable: value}.items():
        monkeypatch.setenv(name, usual)
    with raises(RecipeError, named):
        resolve_launch(chat_recipe())
    monkeypatch.setenv(variable, FSDP2[variable])
    assert resolve_launch(chat_recipe()).train.parallel == "fsdp"
    with raises(RecipeError, "train.parallel", "ddp"):
        resolve_launch(chat_recipe(train__parallel="ddp"))


def test_precision_is_the_recipes(chat_recipe, monkeypatch):
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    with raises(RecipeError, "bf16", "train.precision"):
        Device.open(chat_recipe())
    Device.open(chat_recipe(train__precision="bfloat16"))
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "no")
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "false")
    Device.open(chat_recipe())


@pytest.mark.parametrize("command", [["predict", "run", "--input", "rows.jsonl"], ["merge", "run", "out"]])
def test_commands_with_one_writer_are_refused_in_several_processes(monkeypatch, command):
    monkeypatch.setenv("WORLD_SIZE", "2")
    result = CliRunner().invoke(main, command)
    assert result.exit_code == 2
    assert f"{command[0]} writes" in result.stderr
    assert "without torchrun" in result.stderr
