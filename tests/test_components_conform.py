"""Every component that ships keeps what the engine relies on: with its defaults, and with the options that change most.

The models, rows and records are those of `ftengine.testing`; loaders have sources of their own in
tests/plugins/loaders/test_loaders_conform.py.
"""

from __future__ import annotations

import pytest

from ftengine.plugins.registry import KINDS, Registry
from ftengine.testing import check_augmenter, check_results, check_strategy, fixture
from ftengine.testing.components import SUITES

REGISTRY = Registry()
SLOW = {"exporter", "fast-path", "regularizer", "strategy", "grpo"}
"""Kinds (and a task) that train on every model, for seconds, or start a process: with `make test-slow`."""
BOX = [
    pytest.param(kind, entry.name, marks=[pytest.mark.slow] if kind in SLOW or entry.name in SLOW else [])
    for kind in KINDS
    for entry in REGISTRY.entries(kind)
]
TEXTS, ANSWERS = "sequence-classification", "causal-lm"
VARIANTS = [
    (TEXTS, {"name": "adapter", "placement": "houlsby", "init": "bert", "dropout": 0.1}),
    (ANSWERS, {"name": "adapter", "placement": "parallel", "bottleneck": 3}),
    (TEXTS, {"name": "full", "layer_decay": 0.5, "unfreeze_every": 1}),
    (TEXTS, {"name": "lora", "rslora": True, "lr_ratio": 4}),
    (ANSWERS, {"name": "lora", "dora": True, "dropout": 0.2}),
    (ANSWERS, {"name": "lora", "init": "pissa", "dora": True}),
    (TEXTS, {"name": "lora", "init": "olora"}),
    (ANSWERS, {"name": "prefix", "projection": 8}),
    (TEXTS, {"name": "prompt", "init": "random"}),
]
MISSING = {("augmenter", "back-translation"), ("augmenter", "synonyms"), ("task", "distillation")}
"""Components with options that have to be given; those of augmenters are checked below, task distillation beside its
tests."""


def failures(results):
    return [(result.check, result.reason) for result in results if result.outcome == "failed"]


def test_every_kind_has_checks():
    assert SUITES.keys() == KINDS.keys()


@pytest.mark.parametrize(("kind", "name"), BOX, ids=str)
def test_components_in_the_box_pass(kind, name):
    results = check_results(REGISTRY.get(kind, name).cls)
    assert failures(results) == []
    passed = sum(result.outcome == "passed" for result in results)
    assert (passed > 0) is ((kind, name) not in MISSING)


@pytest.mark.slow
@pytest.mark.parametrize(("head", "spec"), VARIANTS, ids=str)
def test_strategies_in_the_box_pass_with_other_options(head, spec):
    one = fixture(head)
    check_strategy(lambda: REGISTRY.build("strategy", spec, "strategy"), one.load, one.batch)


def test_synonyms_pass(tmp_path):
    file = tmp_path / "synonyms.tsv"
    file.write_text("film\tmovie\nreset\tclear\ncapital\tchief city\ndraw\ttie\nprofits\tgains\n")
    results = check_results(REGISTRY.get("augmenter", "synonyms").cls, options={"file": str(file), "rate": 1.0})
    assert failures(results) == []


@pytest.mark.slow
def test_back_translation_passes(t5_folder):
    spec = {"name": "back-translation", "forward": str(t5_folder), "backward": str(t5_folder), "max_length": 12}
    one = fixture("sequence-classification")
    check_augmenter(lambda: REGISTRY.build("augmenter", spec, "augment"), one.task, one.rows[:2])
