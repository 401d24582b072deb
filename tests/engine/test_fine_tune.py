"""A whole run, small and real: what is learnt, what is written, what stays still."""

import json
import math
import shutil
import types

import pytest
import torch
import yaml
from expected import raises
from installed import registry_with
from peft import PeftModel
from runs import losses
from transformers import AutoModelForCausalLM, AutoTokenizer

from ftengine import Recipe, fine_tune, load_run, plan
from ftengine.api import Task
from ftengine.engine.memory import choose_memory
from ftengine.errors import BaseMismatch, MergeChangedOutputs, RecipeError, RunError, TrainingError
from ftengine.evaluation.runner import EvalRunner
from ftengine.identity import fingerprint_weights
from ftengine.model import probe_tokens, read_tensors
from ftengine.run.directory import RunDirectory
from ftengine.run.records import Environment
from ftengine.training.estimate import Trial
from ftengine.training.optimizer_step import OptimizerStep
from ftengine_builtins.loaders.transformers import TransformersLoader


def validations(run):
    return {line["step"]: line["validation_loss"] for line in run.metrics if "validation_loss" in line}


def trained_tensors(run):
    return read_tensors(run.trained / "adapter_model.safetensors")


@pytest.fixture(scope="module")
def finished(request, llama_folder, chat_file, tmp_path_factory):
    """One LoRA run that several tests look at."""
    return fine_tune(
        Recipe.make(
            {
                "model": {"source": str(llama_folder)},
                "task": "causal-lm",
                "data": {"train": str(chat_file), "validation": 0.2, "test": 0.2},
                "strategy": {"name": "lora", "rank": 4},
                "train": {"epochs": 3, "batch_size": 4, "learning_rate": 0.01, "precision": "float32"},
                "evaluation": {"resamples": 400},  # 100 resolve no interval of twelve texts of unequal length
                "output": str(tmp_path_factory.mktemp("finished") / "run"),
            }
        )
    )


def test_the_loss_falls_and_the_tuned_model_beats_its_base_on_held_out_data(finished):
    assert sum(losses(finished)[-3:]) < 0.95 * sum(losses(finished)[:3])
    figures = finished.evaluation
    assert figures["split"] == "test"
    assert figures["tuned"]["loss"]["value"] < figures["base"]["loss"]["value"]
    assert figures["difference"]["loss"]["better"] is True


def test_the_resolved_recipe_writes_every_default_out_and_runs_again(finished):
    content = yaml.safe_load((finished.path / "recipe.yaml").read_text())
    assert content["strategy"]["dropout"] == 0.05
    assert content["model"]["loader"]["name"] == "transformers"
    assert Recipe.read(finished.path / "recipe.yaml").strategy["rank"] == 4


def test_a_run_predicts_and_its_base_predicts_otherwise(finished):
    rows = [{"prompt": "the printer is very slow (3)"}, {"prompt": "my screen shows an error"}]
    tuned = list(finished.predict(rows, options={"max_new_tokens": 12}))
    base = list(finished.predict(rows, base=True, options={"max_new_tokens": 12}))
    assert len(tuned) == len(base) == 2
    assert tuned != base


def test_a_merged_run_loads_with_transformers_alone_and_gives_the_same_logits(finished, llama_folder, tmp_path):
    report = finished.merge(tmp_path / "merged")
    assert report.difference <= report.tolerance < report.effect
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "merged").eval()
    AutoTokenizer.from_pretrained(tmp_path / "merged")
    adapted = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(llama_folder), finished.trained).eval()
    probe = probe_tokens(model)
    with torch.no_grad():
        unmerged = adapted(**probe).logits
        difference = model(**probe).logits - unmerged
    assert difference.norm() <= report.tolerance * unmerged.norm()
    with raises(RunError, "not empty"):
        finished.merge(tmp_path / "merged")


@pytest.mark.parametrize(
    ("factor", "dtype"), [(0.0, "bfloat16"), (0.5, "float32"), (1.01, "float32"), (1.01, "bfloat16")]
)
def test_a_merge_that_changes_the_outputs_is_refused_and_writes_nothing(finished, tmp_path, monkeypatch, factor, dtype):
    from ftengine_builtins.strategies import lora_layers

    merge = lora_layers.lowrank_merge_
    monkeypatch.setattr(lora_layers, "lowrank_merge_", lambda w, a, b, scale: merge(w, a, b, factor * scale))
    with raises(MergeChangedOutputs, "strategy 'lora' of ftengine 0"):
        finished.merge(tmp_path / "merged", dtype)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("told", [True, False])
def test_weights_that_a_loader_changes_are_known_by_what_they_were(finished, tmp_path, told):
    class Rounded(TransformersLoader):
        """Rounds weights, as a quantiser does."""

        name = "rounded"

        def load(self, request):
            loaded = super().load(request)
            if told:
                loaded.fingerprint = {"weights": fingerprint_weights(loaded.module, loaded.new_modules)}
            for parameter in loaded.module.parameters():
                parameter.data = (parameter.data * 64).round() / 64
            return loaded

    run = shutil.copytree(finished.path, tmp_path / "run")
    content = yaml.safe_load((run / "recipe.yaml").read_text())
    content["model"]["loader"] = "rounded"
    (run / "recipe.yaml").write_text(yaml.safe_dump(content))
    opened = load_run(run, registry=registry_with(Rounded))
    if told:
        assert opened.evaluate()["tuned"]["loss"] != finished.evaluation["tuned"]["loss"]
    else:
        with raises(BaseMismatch, "weights"):
            opened.evaluate()


@pytest.mark.slow
def test_the_same_recipe_gives_the_same_run(chat_recipe, tmp_path):
    first = fine_tune(chat_recipe(train__max_steps=5, output=str(tmp_path / "a")))
    second = fine_tune(chat_recipe(train__max_steps=5, output=str(tmp_path / "b")))
    other = fine_tune(chat_recipe(train__max_steps=5, seed=1, output=str(tmp_path / "c")))
    assert losses(first) == losses(second)
    assert losses(first) != losses(other)


@pytest.mark.slow
def test_early_stopping_ends_with_the_best_weights(chat_recipe):
    run = fine_tune(
        chat_recipe(
            train__epochs=30, train__validate_every=2, train__learning_rate=0.3, train__early_stopping={"patience": 2}
        )
    )
    facts = json.loads((run.path / "training.json").read_text())
    assert facts["stopped_early"]
    assert facts["steps"] < facts["planned_steps"]
    measured = validations(run)
    assert facts["best_step"] == min(measured, key=measured.get)
    assert run.evaluation["tuned"]["loss"]["value"] == pytest.approx(min(measured.values()), rel=1e-5)


def test_a_loss_that_is_not_finite_ends_training_and_keeps_the_checkpoint(chat_recipe, tmp_path):
    with pytest.raises(TrainingError):
        fine_tune(
            chat_recipe(
                train__learning_rate=1e30, train__checkpoint_every=1, train__warmup=0, train__max_grad_norm=None
            )
        )
    assert (tmp_path / "run" / "checkpoints").is_dir()
    assert not (tmp_path / "run" / "adapter").exists()


def test_weights_that_the_last_step_broke_are_not_saved(chat_recipe, tmp_path, monkeypatch):
    step = OptimizerStep.step

    def overflowing(self, *arguments):
        figures = step(self, *arguments)
        next(iter(self.parameters)).data[0] = math.nan
        return figures

    monkeypatch.setattr(OptimizerStep, "step", overflowing)
    with raises(TrainingError, "step 1", "1 of 28"):
        fine_tune(chat_recipe(data__validation=None, train__max_steps=1))
    assert not (tmp_path / "run" / "adapter").exists()
    assert not list((tmp_path / "run" / "checkpoints").glob("*"))


def test_a_plan_says_what_training_then_does(chat_recipe, tmp_path, capsys, monkeypatch):
    recipe = chat_recipe()
    monkeypatch.setattr(Task, "notes", lambda self, loaded, strategy: ([strategy.name], [f"{self.name} warns."]))
    planned = plan(recipe)
    assert not (tmp_path / "run").exists()
    assert capsys.readouterr() == ("", "")
    run = fine_tune(recipe)
    out, err = capsys.readouterr()
    assert out == ""
    assert f"train: {planned.steps['total']}" in err.splitlines()  # as `ftengine train` shows it
    facts = json.loads((run.path / "training.json").read_text())
    steps = [line for line in run.metrics if "loss" in line]
    assert planned.steps["total"] == facts["steps"] == len(steps)
    assert planned.model["trainable_parameters"] == facts["trainable_parameters"]
    assert planned.model["total_parameters"] == facts["total_parameters"]
    assert sum(line["tokens"] for line in steps) == pytest.approx(planned.steps["tokens"], rel=0.01)
    assert planned.estimate["peak_bytes"] > 0
    assert any(trained for _, trained in planned.examples[0]["pieces"])
    assert any(not trained for _, trained in planned.examples[0]["pieces"])
    assert planned.notes == ["lora"]
    unmeasured = plan(recipe, measure=False)
    assert "causal-lm warns." in {*planned.warnings} & {*unmeasured.warnings}
    assert unmeasured.estimate is None
    assert unmeasured.targets == planned.targets


GB = 10**9


@pytest.mark.slow
def test_activations_are_computed_twice_where_only_that_keeps_to_the_memory_limit(chat_recipe, tmp_path, monkeypatch):
    taken = {False: 3 * GB, True: 2 * GB}
    monkeypatch.setattr(
        "ftengine.training.estimate.Trial.memory",
        lambda trial, *_: (GB, taken[trial.loaded.module.is_gradient_checkpointing]),
    )
    monkeypatch.setattr("ftengine.engine.memory.held_bytes", lambda device: GB // 2)

    def auto(limit, wanted="auto", **more):
        return chat_recipe(train__max_steps=2, train__gradient_checkpointing=wanted, train__memory_limit=limit, **more)

    recipe = auto("2.5 GB", output=str(tmp_path / "a"))
    chosen = Environment.read(RunDirectory(fine_tune(recipe).path)).memory
    assert chosen.gradient_checkpointing
    assert (chosen.peak_bytes, chosen.limit_bytes) == (2 * GB, 2.5 * GB)
    told = "with gradient checkpointing: expected peak 1.9 GiB (without it, 2.8 GiB)"
    assert chosen.reason.startswith(told)
    ready = types.SimpleNamespace(
        ready=types.SimpleNamespace(recipe=recipe), experiment=types.SimpleNamespace(listener=None)
    )
    resumed = RunDirectory(tmp_path / "a")
    assert choose_memory(ready, None, None, None, None, None, resumed) == chosen  # whatever is free by then
    assert plan(recipe).estimate["memory"].startswith(told)
    assert plan(auto("3.5 GB")).estimate["memory"].startswith("without gradient checkpointing: expected peak 2.8 GiB,")
    for refused, tried in (
        (auto("1 GB"), "2.8 GiB of memory, 1.9 GiB with"),
        (auto("1 GB", False), "2.8 GiB of memory,"),
    ):
        for start in (fine_tune, plan):
            with raises(RecipeError, tried, "train.memory_limit"):
                start(refused)
    # What cuts micro-batches is what to lower; elsewhere it would change nothing.
    for batch_tokens, advice in (
        (8, "train.batch_tokens (8 here)"),
        (None, "Lower train.batch_size"),
    ):
        with raises(RecipeError, advice):
            plan(auto("1 GB", train__batch_tokens=batch_tokens))
    monkeypatch.setattr(EvalRunner, "run", None)  # what cannot be kept is refused before the base is measured
    for start in (fine_tune, plan):
        with raises(RecipeError, "477 MiB", "381 MiB"):
            start(auto("400 MB", output=str(tmp_path / "none")))
    assert not (tmp_path / "run").exists()
    assert not (tmp_path / "none").exists()


def test_activations_are_computed_twice_where_memory_ends_without(chat_recipe, monkeypatch):
    run = Trial.run

    def short(trial, *args):
        if not trial.loaded.module.is_gradient_checkpointing:
            raise torch.OutOfMemoryError
        return run(trial, *args)

    monkeypatch.setattr(Trial, "run", short)
    recipe = chat_recipe(train__max_steps=1, train__gradient_checkpointing="auto")
    memory = Environment.read(RunDirectory(fine_tune(recipe).path)).memory
    assert memory.gradient_checkpointing
    assert "(without it, more than there is)" in memory.reason


@pytest.mark.slow
def test_bfloat16_keeps_what_trains_in_float32(chat_recipe):
    run = fine_tune(chat_recipe(train__precision="bfloat16", train__max_steps=6))
    assert all(tensor.dtype == torch.float32 for tensor in trained_tensors(run).values())
    assert run.evaluation["tuned"]["loss"]["value"] < run.evaluation["base"]["loss"]["value"]
