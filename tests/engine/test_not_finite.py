"""Numbers that are not finite: no answer is made of them, and no JSON holds them."""

import json
import math
from types import SimpleNamespace

import pytest
import torch
from click.testing import CliRunner
from expected import raises
from runs import save_anew
from safetensors.torch import load_file, save_file
from tiny import tiny_llama

from ftengine import fine_tune, load_run
from ftengine.api import LoadRequest, Stepped
from ftengine.cli import main
from ftengine.cli.page import print_json
from ftengine.errors import RunError, TrainingError
from ftengine.evaluation.finite import require_finite_answers, require_finite_weights
from ftengine.generation import GenerationOptions, generate
from ftengine.parallel.sharding import not_finite
from ftengine.plugins.registry import Registry
from ftengine.run.directory import RunDirectory
from ftengine.training.setup import Setup


def strict(text):
    """Read JSON as every other program does."""
    return json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64, torch.float8_e5m2])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_single_number_that_is_not_finite_is_found(dtype, value):
    good = torch.linspace(-200, 200, 1000).reshape(10, 100).to(dtype)
    wrong = good.clone()
    wrong[3, 7] = value
    tensors = {"good": good, "none": good[:0], "one": good[0, 0], "wrong": wrong, "whole": torch.arange(3)}
    assert not_finite(tensors) == ["wrong"]


def test_a_classifier_with_broken_weights_answers_nothing(label_recipe, tmp_path):
    run = fine_tune(label_recipe(strategy="lora", train__max_steps=1))
    file = run.trained / "adapter_model.safetensors"
    tensors = load_file(file)
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"text": "the film was good"}\n')
    (answer,) = strict(f"[{CliRunner().invoke(main, ['predict', str(run.path), '--input', str(rows)]).stdout}]")
    assert math.isfinite(sum(answer["prediction"]["scores"].values()))
    name = next(name for name in tensors if name.endswith("lora_B.weight"))
    tensors[name][0, 0] = math.nan
    save_file(tensors, file)
    save_anew(run.path)
    output = tmp_path / "out.jsonl"
    result = CliRunner().invoke(main, ["predict", str(run.path), "--input", str(rows), "--output", str(output)])
    assert (result.exit_code, output.exists()) == (2, False)
    assert "not finite" in result.stderr
    with raises(RunError, "1 tensors"):
        list(load_run(run.path).predict([{"text": "the film"}]))
    assert list(load_run(run.path).predict([{"text": "the film"}], base=True))


@pytest.fixture
def llama(tmp_path):
    source = str(tiny_llama(tmp_path / "base"))
    return Registry().loader_of(source, {"name": "auto"}).load(LoadRequest(source, "causal-lm"))


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_language_model_whose_logits_overflow_writes_nothing(llama, temperature):
    options = GenerationOptions(max_new_tokens=2, temperature=temperature, seed=0)
    assert generate(llama, [[5, 6]], options, [])
    llama.module.model.norm.weight.data.fill_(3e38)  # finite weights whose products are not
    require_finite_weights(llama, "the run")
    with raises(TrainingError, "logits"):
        generate(llama, [[5, 6]], options, [])


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("place", [lambda x: {"score": x}, lambda x: {"scores": {"a": x}}, lambda x: {"v": [[1.0, x]]}])
def test_an_answer_that_is_not_finite_is_named(place, value):
    require_finite_answers([place(0.5)], 1)
    with raises(TrainingError, "example 4"):
        require_finite_answers([place(0.5), place(value)], 3)


def test_what_is_undefined_is_null_in_every_json(tmp_path, capsys):
    heard = []
    setup = SimpleNamespace(
        accelerator=SimpleNamespace(is_main_process=True), run=RunDirectory(tmp_path), events=heard.append
    )
    Setup.record(setup, Stepped, {"step": 1, "loss": 2.0, "norms": [math.inf, 1.0], "extra": math.nan})
    assert strict((tmp_path / "metrics.jsonl").read_text()) == {
        "step": 1,
        "loss": 2.0,
        "norms": [None, 1.0],
        "extra": None,
    }
    print_json({"value": math.nan, "limit": [math.inf]})
    assert strict(capsys.readouterr().out) == {"value": None, "limit": [None]}
