"""What a launcher asks for is honoured or refused by name."""

import pytest
from click.testing import CliRunner

from ftengine import fine_tune
from ftengine.cli import main
from ftengine.engine.device import Device
from ftengine.errors import RecipeError


@pytest.mark.parametrize(
    ("variable", "value", "named"),
    [
        ("ACCELERATE_USE_FSDP", "true", r"sharded parameters \(FSDP\)"),
        ("ACCELERATE_USE_DEEPSPEED", "true", "DeepSpeed"),
        ("ACCELERATE_DYNAMO_BACKEND", "INDUCTOR", r"torch\.compile"),
        ("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "4", r"train\.accumulate=4"),
    ],
)
def test_what_is_not_offered_is_refused_before_data_is_read(chat_recipe, monkeypatch, tmp_path, variable, value, named):
    monkeypatch.setenv(variable, value)
    with pytest.raises(RecipeError, match=named):
        fine_tune(chat_recipe(data__train=str(tmp_path / "missing.jsonl")))
    assert not (tmp_path / "run").exists()


def test_precision_is_the_recipes(chat_recipe, monkeypatch):
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    with pytest.raises(RecipeError, match=r"mixed_precision bf16, and train\.precision is float32"):
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
