"""Whole runs with LoRA's variants: trained, interrupted and resumed, evaluated again, merged."""

from __future__ import annotations

import pytest
from runs import interrupt

from ftengine import Recipe, fine_tune, load_run

VARIANTS = {
    "dora": {"dora": True, "lr_ratio": 4},
    "pissa": {"init": "pissa_niter_4", "rslora": True, "rank_pattern": {"q_proj": 2}},
    "olora with dora": {"init": "olora", "dora": True, "targets": ["q_proj", "v_proj"]},
    "embeddings": {"targets": ["embed_tokens", "q_proj"]},
}


@pytest.mark.slow
@pytest.mark.parametrize("variant", VARIANTS)
def test_a_run_learns_resumes_reopens_and_merges(llama_folder, sums, tmp_path, variant: str) -> None:
    def recipe(output: str) -> Recipe:
        content = {
            "model": {"source": str(llama_folder)},
            "task": "causal-lm",
            "data": {"train": str(sums), "validation": 0.25},
            "strategy": {"name": "lora", "rank": 4, "dropout": 0.1, **VARIANTS[variant]},
            "train": {"epochs": 3, "batch_size": 6, "learning_rate": 0.01, "precision": "float32"},
            "evaluation": {"resamples": 100, "answers": None, "training_sample": None},
            "output": str(tmp_path / output),
        }
        content["train"]["checkpoint_every"] = 2
        return Recipe.make(content)

    whole = fine_tune(recipe("whole"))
    figures = whole.evaluation
    assert figures["tuned"]["loss"]["value"] < figures["base"]["loss"]["value"]

    interrupt(recipe("interrupted"), after=4)
    resumed = fine_tune(recipe("interrupted"), resume=True)
    name = "adapter_model.safetensors"
    assert (resumed.trained / name).read_bytes() == (whole.trained / name).read_bytes()
    assert resumed.evaluation == figures

    first = next(line for line in whole.metrics if "learning_rate" in line)
    rate, ratio = first["learning_rate"], VARIANTS[variant].get("lr_ratio", 1)
    assert first.get("learning_rates", [rate]) == pytest.approx([rate, ratio * rate] if ratio > 1 else [rate])

    again = load_run(whole.path)
    assert again.evaluate()["tuned"] == figures["tuned"]
    if variant != "embeddings":  # the tiny Llama ties them to its head
        report = again.merge(tmp_path / "merged")
        assert report.difference <= report.tolerance < report.effect
