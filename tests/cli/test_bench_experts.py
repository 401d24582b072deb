"""`ftengine bench experts` on a layer so small that it takes a second."""

import json

import pytest
import torch

from ftengine.equivalence import distance
from ftengine_bench.experts import EXPERT_PRESETS, EXPERT_PROVIDERS, ExpertLayer, ExpertShape

LIGHT = ("frozen", "loop", "grouped", "ftengine")
SMALL = ("bench", "experts", "--scale", "128", "--tokens", "8", "--rank", "4", "--seconds", "0.001", "--device", "cpu")


@pytest.mark.parametrize("name", ["grouped", "peft", "ftengine"])
def test_providers_compute_the_same(name):
    layer = ExpertLayer(ExpertShape(16, 32, 4, 2), tokens=6, rank=4, dtype=torch.float32, p=0.0, device="cpu")
    found = {}
    for provider in ("loop", name):
        step = EXPERT_PROVIDERS[provider](layer)
        step.forward()
        step.backward()
        found[provider] = step.y, step.gradients[0]
    assert all(distance(a, b) < 1e-5 for a, b in zip(*found.values(), strict=True))
    assert distance(found[name][0], layer(layer.x)) > 0.01


def test_a_measurement_is_printed_and_written(ftengine, tmp_path):
    file = tmp_path / "a.json"
    result = ftengine(*SMALL, "--preset", "gpt-oss-20b", "--providers", ",".join(LIGHT), "--json", file)
    content = json.loads(file.read_text())
    assert {*content["layers"]} == {*LIGHT}
    assert (content["width"], content["inner"], content["experts"], content["chosen"]) == (16, 16, 32, 4)
    assert content["layers"]["frozen"]["of_frozen"] == 1
    assert all(name in result.stdout for name in LIGHT)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (("--preset", "olmo"), "Did you mean 'olmoe'?"),
        (("--providers", "frozen,unsloth"), "unsloth"),
        (("--scale", "0"), "--scale"),
        (("--dtype", "float16"), "float16"),
    ],
)
def test_wrong_options_are_named(ftengine, options, expected):
    assert expected in ftengine(*SMALL, *options, code=2).stderr


def test_presets_have_the_published_sizes():
    per_layer = {name: 3 * s.width * s.inner * s.experts for name, s in EXPERT_PRESETS.items()}
    assert per_layer == {"olmoe": 402_653_184, "qwen3-30b-a3b": 603_979_776, "gpt-oss-20b": 796_262_400}
