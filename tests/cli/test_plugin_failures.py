"""What a plugin's component raises is told with its kind, name, distribution, version, file and line."""

import re

import pytest
from cli_samples import ENTRY

from ftengine import registry_of
from ftengine.cli.failure import describe

CALLED = {
    "augmenter": ("Augmenter", "ftengine_augmenters", "augment(self, row, task, rng)", ({}, None, None)),
    "regularizer": ("Regularizer", "ftengine_regularizers", "penalty(self, model, batch, loss)", (None, {}, None)),
    "strategy": ("Strategy", "ftengine_strategies", "prepare(self, loaded)", (None,)),
    "evaluator": ("Evaluator", "ftengine_evaluators", "score(self, rows, weights)", ({}, None)),
    "audit": ("Audit", "ftengine_audits", "look(self, data)", (None,)),
    "rule": ("Rule", "ftengine_rules", "judge(self, run)", (None,)),
}
"""For each kind its base class, its hook, the method that is called, and with what."""


def plugin(kind, body="return looked_up({})"):
    base, hook, method, _ = CALLED[kind]
    return (
        f"from ftengine import api, hookimpl\n"
        f"def looked_up(found):\n    return found['nothing']\n"
        f"class Thing(api.{base}):\n    'Fail.'\n    name = 'thing'\n    def {method}:\n        {body}\n"
        f"@hookimpl\ndef {hook}():\n    return [Thing]\n"
    )


@pytest.mark.parametrize("kind", CALLED)
def test_a_component_that_raises_is_named(distribution, kind):
    distribution(plugin(kind), ENTRY)
    _, _, method, arguments = CALLED[kind]
    with pytest.raises(KeyError) as error:
        getattr(registry_of().build(kind, "thing", kind), method.partition("(")[0])(*arguments)
    told = describe(error.value)
    start = f"{kind} 'thing' of ftengine-thing 1.2 failed: KeyError: 'nothing' (ftengine_thing.py:3; run with --debug"
    assert told.startswith(start)
    # What no recipe names cannot be left out of one.
    assert ("FTENGINE_BLOCK_PLUGINS=ftengine-thing" in told) == (kind in ("audit", "rule"))


def test_code_beside_a_component_is_named_as_the_plugins(distribution):
    distribution(plugin("rule"), ENTRY)
    import ftengine_thing

    with pytest.raises(KeyError) as error:
        ftengine_thing.looked_up({})
    assert describe(error.value).startswith("plugin 'thing' of ftengine-thing 1.2 failed: KeyError: 'nothing' (")


@pytest.mark.parametrize(
    ("body", "cause", "place"),
    [
        ("return looked_up({})", "KeyError: 'nothing'", "ftengine_thing"),
        ("return None", "TypeError: 'NoneType' object is not iterable", "verdict"),
        ("return ['all is well']", "AttributeError: 'str' object has no attribute 'source'", "verdict"),
    ],
)
def test_a_report_that_a_rule_prevents_says_how_to_do_without_it(
    ftengine, distribution, run, tmp_path, monkeypatch, body, cause, place
):
    target = tmp_path / "report.html"
    distribution(plugin("rule", body), ENTRY)
    line = ftengine("report", run, "--output", target, code=1).stderr
    expected = rf"rule 'thing' of ftengine-thing 1\.2 failed: {cause} \({place}\.py:\d+; .*FTENGINE_BLOCK_PLUGINS="
    assert re.search(expected, line), line
    monkeypatch.setenv("FTENGINE_BLOCK_PLUGINS", "ftengine-thing")
    ftengine("report", run, "--output", target)
    assert target.exists()


@pytest.mark.parametrize("body", ["return looked_up({})", "return None"])
def test_a_plan_that_an_audit_prevents_names_it(ftengine, distribution, recipe, body):
    distribution(plugin("audit", body), ENTRY)
    line = ftengine("plan", recipe, "--no-measure", code=1).stderr
    assert "\nerror: audit 'thing' of ftengine-thing 1.2 failed: " in line


def test_what_the_engine_cannot_go_on_with_is_named_too(distribution):
    distribution(plugin("evaluator", "return {'nothing': 'much'}"), ENTRY)
    import numpy as np

    from ftengine.evaluation.figures import measure
    from ftengine.evaluation.weights import Weights

    evaluator = registry_of().build("evaluator", "thing", "evaluate")
    with pytest.raises(ValueError, match="much") as error:
        measure(evaluator, {}, Weights(np.arange(3), 0, 10))
    told = describe(error.value)
    assert told.startswith("evaluator 'thing' of ftengine-thing 1.2 failed: ValueError: could not convert"), told


def test_errors_of_the_engine_blame_no_plugin(distribution):
    distribution(plugin("rule"), ENTRY)
    with pytest.raises(KeyError) as error:
        registry_of().entries("no-such-kind")
    assert describe(error.value).startswith("unexpected KeyError")
