"""Runs on preferences: the reference under every strategy, figures and rules, and what is refused before weights."""

import json
import math
import random

import numpy as np
import pytest
import torch
from expected import raises
from processes import together, train
from runs import curve, interrupt, losses
from transformers import AutoModelForCausalLM

from ftengine import Recipe, fine_tune, load_run, plan
from ftengine.errors import DataError, RecipeError, RunError
from ftengine.evaluation.table import Predictions
from ftengine.ops import products
from ftengine.ops.library import use_onednn
from ftengine.training import loop
from ftengine_builtins.tasks import Preference

train_of, predict_of = loop.Trainer.train, Preference.predict

STRATEGIES = ("adapter", "full", "lora", "prefix", "prompt")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Pairs whose answers differ in their words and not in their length."""
    folder, draw = tmp_path_factory.mktemp("preferences"), random.Random(0)
    for name, numbers in (("train", range(24)), ("held", range(50, 62))):
        rows = []
        for i in numbers:
            good, bad = draw.choice(["a red fox", "the fox is"]), draw.choice(["no, never", "go away"])
            rows.append({"prompt": f"question {i}", "chosen": f"{good} {i}", "rejected": f"{bad} {i}"})
        (folder / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return folder


def recipe(model, folder, output, task=None, strategy=None, **train):
    return Recipe.make(
        {
            "model": {"source": str(model)},
            "task": {"name": "preference", **(task or {})},
            "data": {"train": str(folder / "train.jsonl"), "validation": None, "test": str(folder / "held.jsonl")},
            "strategy": strategy or {"name": "lora", "dropout": 0.0},
            "train": {"max_steps": 2, "batch_size": 6, "precision": "float32", "learning_rate": 0.01, **train},
            "evaluation": {"training_sample": None, "resamples": 100, "answers": None},
            "output": str(output),
        }
    )


def predictions(run, side):
    return Predictions.read(run.path / "predictions" / f"test-{side}.parquet").columns


@pytest.fixture(scope="module")
def run(folder, llama_folder):
    return fine_tune(recipe(llama_folder, folder, folder / "run", max_steps=None, epochs=5))


def test_the_base_is_the_reference_of_a_run_that_starts_from_it(run):
    base, tuned = (predictions(run, side) for side in ("base", "tuned"))
    assert losses(run)[0] == pytest.approx(math.log(2), rel=1e-6)
    assert losses(run)[-1] < 0.6
    gap = [tuned[f"{side}_logp"] - base[f"{side}_logp"] for side in ("chosen", "rejected")]
    np.testing.assert_allclose(tuned["margin"], 0.1 * (gap[0] - gap[1]), rtol=1e-3, atol=1e-4)
    assert not base["margin"].any()


@pytest.mark.slow
@pytest.mark.parametrize("validation", [None, 0.25])
def test_a_held_out_row_that_repeats_a_training_row_is_left_out_of_the_check_too(
    folder, llama_folder, tmp_path, validation
):
    """The reference is asked of what is measured alone; the check of what was saved takes its rows from there."""
    first, *held = [(folder / f"{name}.jsonl").read_text().splitlines() for name in ("train", "held")]
    (tmp_path / "held.jsonl").write_text("\n".join([first[0], *held[0]]))
    content = recipe(llama_folder, folder, tmp_path / "run").resolved()
    content["data"] |= {"test": str(tmp_path / "held.jsonl"), "leaks": "warn", "validation": validation}
    assert len(predictions(fine_tune(Recipe.make(content)), "tuned")["row"]) == len(held[0])


def test_the_reference_is_what_rows_come_to_one_by_one(folder, llama_folder, tmp_path, monkeypatch):
    """Beginnings that are shared, and products by what is quicker, which training takes too, change its rounding."""
    seen, quick = [], []
    monkeypatch.setattr(loop.Trainer, "train", lambda self: seen.append(self.setup.train) or train_of(self))
    monkeypatch.setattr(Preference, "predict", lambda *args: quick.append(products._USE.users) or predict_of(*args))
    with use_onednn(1):
        fine_tune(recipe(llama_folder, folder, tmp_path / "run", max_steps=1))
    assert quick
    assert all(quick)
    model = AutoModelForCausalLM.from_pretrained(llama_folder, dtype=torch.float32).eval()
    for i in range(len(seen[0])):
        batch = seen[0].batch(np.array([i]))
        rows = zip(batch["input_ids"], batch["attention_mask"], batch["labels"], strict=True)
        for side, (ids, mask, labels) in zip(("chosen", "rejected"), rows, strict=True):
            ids, labels = ids[mask.bool()], labels[mask.bool()]
            with torch.no_grad():
                logps = model(input_ids=ids[None]).logits[0, :-1].log_softmax(-1).gather(-1, ids[1:, None])[:, 0]
            alone = float(logps[labels[1:] != -100].sum())
            assert float(batch["reference"][f"{side}_logp"]) == pytest.approx(alone, rel=1e-5)


def test_figures_are_paired_with_the_base_and_come_again_when_reopened(run):
    found = run.evaluation
    assert list(found["tuned"]) == [
        *("preference_accuracy", "ranking_accuracy", "margin", "chosen_logp", "rejected_logp", "divergence")
    ]
    assert found["base"]["preference_accuracy"]["value"] == 0.5
    assert found["base"]["divergence"]["value"] == 0 < found["tuned"]["divergence"]["value"]
    assert found["tuned"]["preference_accuracy"]["value"] > 0.9
    assert found["difference"]["preference_accuracy"]["low"] > 0
    assert {"Lengths of answers", "Margins"} <= {one["title"] for one in found["displays"]["tuned"]}
    again = load_run(run.path).evaluate()
    assert again["tuned"] == found["tuned"]


def test_a_tuned_model_is_never_its_own_reference(run, monkeypatch):
    from ftengine.engine import evaluate

    monkeypatch.setattr(evaluate, "ask_reference", lambda *_, **__: None)
    with raises(AssertionError, "reference", "test"):
        load_run(run.path).evaluate()


@pytest.mark.slow
def test_predict_answers_prompts_and_rows_of_pairs(run):
    asked = {"prompt": "question 1"}
    one, two = run.predict([asked, {**asked, "chosen": "yes", "rejected": "no"}], options={"max_new_tokens": 4})
    assert one == two
    assert isinstance(one["completion"], str)


@pytest.mark.slow
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_the_reference_is_the_same_under_every_strategy(strategy, run, folder, llama_folder, tmp_path, monkeypatch):
    """The base, whatever the strategy adds: virtual tokens change what is predicted before the first step."""
    seen = {}

    def watched(self):
        seen.update(self.setup.train.reference)
        return train_of(self)

    monkeypatch.setattr(loop.Trainer, "train", watched)
    found = fine_tune(recipe(llama_folder, folder, tmp_path / strategy, strategy=strategy))
    assert len(set(losses(found))) == 2
    monkeypatch.undo()
    assert set(seen) == {"chosen_logp", "rejected_logp"}
    base, tuned = predictions(run, "base"), predictions(found, "tuned")
    gap = [tuned[f"{side}_logp"] - base[f"{side}_logp"] for side in ("chosen", "rejected")]
    np.testing.assert_allclose(tuned["margin"], 0.1 * (gap[0] - gap[1]), rtol=1e-3, atol=1e-4)
    begins_as_base = losses(found)[0] == pytest.approx(math.log(2), rel=1e-5)
    assert begins_as_base == (strategy not in ("prompt", "prefix"))


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["adapter", "lora", "prefix"])
def test_a_run_that_starts_from_an_adapter_has_that_adapter_as_its_reference(
    strategy, run, folder, llama_folder, tmp_path
):
    first = run if strategy == "lora" else fine_tune(recipe(llama_folder, folder, tmp_path / "1", strategy=strategy))
    began = {"name": strategy, "start_from": str(first.trained), "dropout": 0.0}
    if strategy == "prefix":
        del began["dropout"]
    second = fine_tune(recipe(llama_folder, folder, tmp_path / "2", strategy=began))
    assert losses(second)[0] == pytest.approx(math.log(2), rel=1e-5)
    tuned, reference = predictions(second, "tuned"), predictions(first, "tuned")
    gap = [tuned[f"{side}_logp"] - reference[f"{side}_logp"] for side in ("chosen", "rejected")]
    np.testing.assert_allclose(tuned["margin"], 0.1 * (gap[0] - gap[1]), rtol=1e-3, atol=1e-4)
    before = predictions(second, "base")
    assert not before["margin"].any()
    for key in ("chosen_logp", "rejected_logp"):  # before is what training began from, so a fall of DPO's own is seen
        np.testing.assert_allclose(before[key], reference[key], rtol=1e-4, atol=1e-3)
    if strategy == "lora":
        again = load_run(second.path).evaluate()
        assert [again[side] for side in ("base", "tuned")] == [second.evaluation[side] for side in ("base", "tuned")]


@pytest.mark.slow
def test_a_scale_of_the_adapter_that_no_tensor_holds_makes_another_reference(run, folder, llama_folder, tmp_path):
    import shutil

    adapter = shutil.copytree(run.trained, tmp_path / "adapter")
    file, facts = adapter / "adapter_config.json", adapter / "ftengine.json"
    facts.write_text(json.dumps({**json.loads(facts.read_text()), "files": {}}))  # as of a version without hashes
    content = json.loads(file.read_text())
    for alpha in (content["lora_alpha"], 4 * content["lora_alpha"]):
        file.write_text(json.dumps({**content, "lora_alpha": alpha}))
        began = {"name": "lora", "start_from": str(adapter), "dropout": 0.0}
        found = fine_tune(recipe(llama_folder, folder, tmp_path / str(alpha), strategy=began, max_steps=1))
        assert losses(found)[0] == pytest.approx(math.log(2), rel=1e-5)


@pytest.mark.slow
def test_a_reference_that_is_gone_is_named(run, folder, llama_folder, tmp_path):
    import shutil

    adapter = shutil.copytree(run.trained, tmp_path / "adapter")
    began = {"name": "lora", "start_from": str(adapter), "dropout": 0.0}
    second = fine_tune(recipe(llama_folder, folder, tmp_path / "run", strategy=began))
    shutil.rmtree(adapter)
    with raises(RunError, "strategy.start_from"):
        load_run(second.path).evaluate()


@pytest.mark.slow
def test_what_the_reference_predicts_is_kept_for_later_runs(folder, llama_folder, tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(Preference, "predict", lambda *args: asked.append(1) or predict_of(*args))
    first = fine_tune(recipe(llama_folder, folder, tmp_path / "1", {"max_length": 200}))
    once = len(asked)
    second = fine_tune(recipe(llama_folder, folder, tmp_path / "2", {"max_length": 200}))
    assert losses(second) == losses(first)
    assert len(asked) - once < once
    before = len(asked)
    fine_tune(recipe(llama_folder, folder, tmp_path / "beta", {"max_length": 200, "beta": 0.7, "loss": "ipo"}))
    swept = len(asked) - before  # of the held-out rows the margin, and nothing of the training rows
    before = len(asked)
    fine_tune(recipe(llama_folder, folder, tmp_path / "3", {"max_length": 100}))  # other tokens could be cut
    assert len(asked) - before == once > swept


@pytest.mark.slow
@pytest.mark.parametrize("loss", ["ipo", "simpo", "orpo"])
def test_other_losses_train(loss, folder, llama_folder, tmp_path):
    found = fine_tune(recipe(llama_folder, folder, tmp_path / loss, {"loss": loss}))
    assert len(set(losses(found))) == 2
    accuracy = found.evaluation["base"]["preference_accuracy"]["value"]
    assert (accuracy == 0.5) == (loss == "ipo") or accuracy in (0.0, 1.0)


@pytest.mark.slow
def test_length_that_tells_the_chosen_answer_is_found_before_and_after_training(llama_folder, tmp_path):
    rows = [{"prompt": f"q {i}", "chosen": f"a longer answer {i}", "rejected": f"no {i}"} for i in range(30)]
    for name, part in (("train", rows[:18]), ("held", rows[18:])):
        (tmp_path / f"{name}.jsonl").write_text("\n".join(map(json.dumps, part)))
    found = fine_tune(recipe(llama_folder, tmp_path, tmp_path / "run"))
    audit = json.loads((found.path / "audit.json").read_text())
    [told] = [one for one in audit["findings"] if one["source"] == "preference-lengths"]
    assert (told["figures"]["preferred"], told["figures"]["share"]) == ("longer", 1.0)
    details = found.evaluation["details"]["tuned"]["preferences"]["baseline"]
    assert (details["way"], details["figures"]["preference_accuracy"]) == ("preferring the longer answer", 1.0)
    assert any(one.source == "constant-answer" and one.level == "note" for one in found.verdict.findings)


@pytest.mark.slow
def test_two_processes_ask_the_reference_as_one_does(folder, llama_folder, tmp_path):
    """Side by side, and divided over both, where what trains is all of the model."""
    alone = [
        fine_tune(recipe(llama_folder, folder, tmp_path / f"{name}-1", strategy=strategy, batch_size=8))
        for name, strategy in (("lora", None), ("full", "full"))
    ]
    both = [
        recipe(llama_folder, folder, tmp_path / "lora-2", batch_size=4),
        recipe(llama_folder, folder, tmp_path / "full-2", strategy="full", batch_size=4, parallel="fsdp"),
    ]
    files = [tmp_path / f"{number}.yaml" for number in range(len(both))]
    for file, one in zip(files, both, strict=True):
        file.write_text(json.dumps(one.resolved()))  # JSON is YAML
    together(tmp_path, train, *map(str, files))
    for one, two in zip(alone, ("lora-2", "full-2"), strict=True):
        found = load_run(tmp_path / two)
        assert losses(found) == pytest.approx(losses(one), rel=1e-4)
        np.testing.assert_allclose(
            predictions(found, "tuned")["margin"], predictions(one, "tuned")["margin"], atol=1e-3
        )


@pytest.mark.slow
def test_a_run_resumes_to_the_same_curve(folder, llama_folder, tmp_path):
    options = {"max_steps": None, "epochs": 3, "checkpoint_every": 3}
    whole = fine_tune(recipe(llama_folder, folder, tmp_path / "whole", **options))
    killed = recipe(llama_folder, folder, tmp_path / "killed", **options)
    interrupt(killed, after=7)
    assert curve(fine_tune(killed, resume=True).path) == curve(whole.path)


@pytest.mark.parametrize(
    ("row", "facts"),
    [
        ({"prompt": "a", "chosen": "b", "rejected": "b"}, ["pairs.jsonl:2", "same"]),
        ({"prompt": "a", "chosen": "", "rejected": "b"}, ["pairs.jsonl:2", "`chosen`"]),
        ({"prompt": "a", "chosen": "c", "rejected": None}, ["pairs.jsonl:2", "`chosen`"]),
    ],
)
def test_rows_are_refused_by_their_line_before_weights_are_read(row, facts, llama_folder, tmp_path, no_weights):
    good = {"prompt": "a", "chosen": "b", "rejected": "c"}
    rows = [good, row, good, *(row | {"prompt": str(i)} for i in range(7))]
    (tmp_path / "pairs.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (tmp_path / "train.jsonl").symlink_to(tmp_path / "pairs.jsonl")
    content = recipe(llama_folder, tmp_path, tmp_path / "run").resolved()
    content["data"] |= {"train": str(tmp_path / "pairs.jsonl"), "test": None}
    with raises(DataError, *facts, "8 rows", "pairs.jsonl:4, ", "pairs.jsonl:7."):  # all, and the first five
        fine_tune(Recipe.make(content))


def test_augmenters_are_refused_where_the_reference_knows_rows_as_they_stand(
    folder, llama_folder, tmp_path, no_weights
):
    for task, refused in (({}, True), ({"loss": "simpo"}, False)):
        content = recipe(llama_folder, folder, tmp_path / "run", task).resolved()
        content["augment"] = ["keyboard"]
        if refused:
            with raises(RecipeError, "augment.0", "keyboard"):
                fine_tune(Recipe.make(content))


def test_dropout_of_the_model_itself_beside_a_reference_is_reported(folder, gpt2_folder, llama_folder, tmp_path):
    def told(model, task=None, regularize=(), strategy=None):
        made = recipe(model, folder, tmp_path / "run", task, strategy).resolved()
        found = plan(Recipe.make(made | {"regularize": list(regularize)}), measure=False)
        return [text for text in found.warnings if "dropout" in text]

    [text] = told(gpt2_folder)
    assert "transformer.drop" in text
    assert "p: 0" in text
    assert not told(gpt2_folder, regularize=[{"name": "dropout", "p": 0.0}])
    assert not told(gpt2_folder, {"loss": "simpo"})
    rewards = [{"name": "regex", "pattern": "x"}]
    [text] = told(gpt2_folder, {"name": "grpo", "rewards": rewards, "max_new_tokens": 4})
    assert "transformer.drop" in text
    assert not told(llama_folder, strategy={"name": "lora", "dropout": 0.2})  # the recipe's own
