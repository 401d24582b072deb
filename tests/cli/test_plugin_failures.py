"""What a plugin's component raises is told with its kind, name, distribution, version, file and line."""

import json
import re
import shutil

import pytest
from cli_samples import ENTRY
from expected import raises

from ftengine import registry_of
from ftengine.cli.failure import describe
from ftengine.data.read import read_rows
from ftengine.errors import InputError, PluginError
from ftengine.plugins.registry import KINDS, RECIPE_KEYS

CALLED = {
    "augmenter": ("Augmenter", "ftengine_augmenters", "augment(self, row, task, rng)", ({}, None, None)),
    "regularizer": ("Regularizer", "ftengine_regularizers", "penalty(self, model, batch, loss)", (None, {}, None)),
    "strategy": ("Strategy", "ftengine_strategies", "prepare(self, loaded)", (None,)),
    "evaluator": ("Evaluator", "ftengine_evaluators", "score(self, rows, weights)", ({}, None)),
    "audit": ("Audit", "ftengine_audits", "examine(self, data)", (None,)),
    "rule": ("Rule", "ftengine_rules", "judge(self, run)", (None,)),
    "loader": ("ModelLoader", "ftengine_model_loaders", "load_processor(self, source)", (None,)),
    "reader": ("Reader", "ftengine_readers", "read(self, source)", (None,)),
    "task": ("Task", "ftengine_tasks", "encode(self, example, processor, *, max_length=None)", (None, None)),
    "fast-path": ("FastPath", "ftengine_fast_paths", "activate(self, loaded, context)", (None, None)),
    "optimizer": ("Optimizer", "ftengine_optimizers", "build(self, param_groups)", ([],)),
    "schedule": ("Schedule", "ftengine_schedules", "factor(self, step, steps, warmup)", (1, 2, 0)),
    "callback": ("Callback", "ftengine_callbacks", "on_save(self, event)", (None,)),
    "exporter": ("Exporter", "ftengine_exporters", "check(self, source)", (None,)),
}
"""For each kind its base class, its hook, the method that is called, and with what."""


def plugin(kind, body="return looked_up({})"):
    base, hook, method, _ = CALLED[kind]
    others = "".join(f"    def {name}(self, *_, **__): pass\n" for name in sorted(KINDS[kind][0].__abstractmethods__))
    others += "    head, modality = 'causal-lm', 'text'\n" if kind == "task" else ""
    return (
        f"from ftengine import api, hookimpl\n"
        f"def looked_up(found):\n    return found['nothing']\n"
        f"class Thing(api.{base}):\n    'Fail.'\n    name = 'thing'\n{others}    def {method}:\n        {body}\n"
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
    assert ("FTENGINE_BLOCK_PLUGINS=ftengine-thing" in told) == (kind not in RECIPE_KEYS)


@pytest.mark.slow
@pytest.mark.parametrize("kind", [kind for kind in CALLED if kind in RECIPE_KEYS and kind != "callback"])
def test_a_run_that_a_component_ends_names_it_in_its_last_line(ftengine, distribution, recipe, tmp_path, kind):
    distribution(plugin(kind), ENTRY)
    settings = (f"{RECIPE_KEYS[kind]}=thing", "train.max_steps=2", f"output={tmp_path / 'run'}")
    line = ftengine("train", recipe, *(word for one in settings for word in ("--set", one)), code=1).stderr
    last = line.rstrip().splitlines()[-1]
    assert re.match(rf"error: {kind} 'thing' of ftengine-thing 1\.2 .*Error: .* \(ftengine_thing\.py:\d+[;)]", last), (
        line
    )


def test_code_that_is_no_component_is_named_as_its_distributions(distribution):
    body = "from ftengine_builtins.tasks import PreferenceLoss\nclass Own(PreferenceLoss):\n    name = 'own'\n"
    distribution(f"{body}    def loss(self, margin):\n        return looked_up(margin)\n{plugin('rule')}", ENTRY)
    import ftengine_thing

    for fails in (ftengine_thing.Own().loss, ftengine_thing.looked_up):
        with pytest.raises(KeyError) as error:
            fails({})
        assert describe(error.value).startswith("plugin 'thing' of ftengine-thing 1.2 failed: KeyError: 'nothing' (")


@pytest.mark.parametrize(
    ("body", "cause"),
    [
        ("return looked_up({})", "KeyError: 'nothing' (ftengine_thing.py:"),
        ("return None", "judge() returned None"),
        ("return ['all is well']", "judge() returned 'all is well'"),
        ("yield api.Finding(kind='x', level='bad', text='')", "ValidationError"),
    ],
)
def test_a_verdict_that_a_rule_prevents_says_how_to_do_without_it(
    ftengine, distribution, run, tmp_path, monkeypatch, body, cause
):
    copy = shutil.copytree(run, tmp_path / "run")
    (copy / "report.html").unlink()
    distribution(plugin("rule", body), ENTRY)
    line = ftengine("evaluate", copy, "--evaluators", "perplexity", code=1).stderr
    assert [one for one in ("'thing' of ftengine-thing 1.2", cause, "FTENGINE_BLOCK_PLUGINS=") if one not in line] == []
    monkeypatch.setenv("FTENGINE_BLOCK_PLUGINS", "ftengine-thing")
    ftengine("evaluate", copy, "--evaluators", "perplexity")
    assert (copy / "report.html").exists()


@pytest.mark.parametrize(
    "body", ["return looked_up({})", "return None", "raise SystemExit(0)", "raise SystemExit('bye')"]
)
def test_a_plan_that_an_audit_prevents_names_it(ftengine, distribution, recipe, body):
    distribution(plugin("audit", body), ENTRY)
    line = ftengine("plan", recipe, "--no-measure", code=1).stderr
    assert re.search(r"\nerror: audit 'thing' of ftengine-thing 1\.2(: examine\(\) returned None| failed: )", line), (
        line
    )
    assert "FTENGINE_BLOCK_PLUGINS=ftengine-thing" in line


@pytest.mark.parametrize(
    ("body", "told"),
    [
        ("return {'nothing': 'much'}", r"returned metrics \['nothing'\] and declares \[\]"),
        ("return None", "returned None; it must return a mapping"),
        ("return {}[0]", "failed: KeyError: 0"),
    ],
)
def test_what_an_evaluator_scores_is_looked_at(distribution, body, told):
    distribution(plugin("evaluator", body), ENTRY)
    import numpy as np

    from ftengine.evaluation.figures import measure
    from ftengine.evaluation.weights import Weights

    evaluator = registry_of().build("evaluator", "thing", "evaluate")
    with pytest.raises((PluginError, KeyError)) as error:
        measure(evaluator, {}, Weights(np.arange(3), 0, 10))
    assert re.match(rf"evaluator 'thing' of ftengine-thing 1\.2(: score\(\))? {told}", describe(error.value))


@pytest.mark.parametrize("method", ["def score(self)", "def score(self, rows, *, weights)"])
def test_a_method_of_another_signature_is_refused_where_it_is_written(distribution, method):
    distribution(plugin("evaluator").replace("def score(self, rows, weights)", method), ENTRY)
    with pytest.raises(PluginError) as error:
        registry_of()
    told = r"ftengine-thing 1\.2 offers 'thing' as an evaluator, but its method Thing\.score\(.*\) cannot be called as "
    assert re.match(rf"{told}score\(self, rows, weights\) \(ftengine_thing\.py:8\)\.", str(error.value)), error.value


def test_what_goes_wrong_between_engine_and_component_is_reported_where_that_is_written(distribution):
    body = plugin("augmenter", "return None").replace(f"api.{CALLED['augmenter'][0]}", "api.TextAugmenter")
    head = f"    def {CALLED['augmenter'][2]}:"
    distribution(
        body.replace(head, "    def change(self, text, rng): return None\n    def score(self, rows, weights):"), ENTRY
    )
    with pytest.raises(TypeError) as error:
        registry_of().build("augmenter", "thing", "augmenter")._changed("a text", None)
    assert re.match(
        r"augmenter 'thing' of ftengine-thing 1\.2 failed: TypeError: change\(\) of augmenter 'thing' returned None "
        r"for a text; it must return a text.* \(ftengine_thing\.py:\d; ",
        describe(error.value),
    )


def test_a_blocked_distribution_is_reported_for_where_a_name_is_unknown(distribution, tmp_path, monkeypatch):
    distribution(plugin("evaluator"), ENTRY)
    monkeypatch.setenv("FTENGINE_BLOCK_PLUGINS", "ftengine-thing")
    (tmp_path / "rows.odd").write_text("x")
    for ask in (
        lambda known: known.get("evaluator", "thing", "evaluate"),
        lambda known: known.get("reader", "thing", "data.reader"),
        lambda known: read_rows(str(tmp_path / "rows.odd"), registry=known),
        lambda known: read_rows(str(tmp_path / "missing.odd"), registry=known),
    ):
        with raises(InputError, "FTENGINE_BLOCK_PLUGINS", "ftengine-thing"):
            ask(registry_of())


def test_a_run_opened_without_its_plugin_names_what_made_it(ftengine, distribution, recipe, tmp_path, monkeypatch):
    distribution(plugin("strategy", "[p.requires_grad_(n.endswith('norm.weight')) for n, p in "
                        "loaded.module.named_parameters()]"), ENTRY)  # fmt: skip
    run = tmp_path / "run"
    ftengine("train", recipe, "--set", "strategy=thing", "--set", "train.max_steps=1", "--set", f"output={run}")
    monkeypatch.setenv("FTENGINE_BLOCK_PLUGINS", "ftengine-thing")
    line = ftengine("evaluate", run, code=2).stderr
    assert "no strategy named 'thing'" in line
    assert "ftengine-thing 1.2, not loaded here: take ftengine-thing out of FTENGINE_BLOCK" in line
    monkeypatch.delenv("FTENGINE_BLOCK_PLUGINS")
    (tmp_path / "ftengine_thing-1.2.dist-info").rename(tmp_path / "gone")
    line = ftengine("merge", run, tmp_path / "merged", code=2).stderr
    assert "ftengine-thing 1.2, not loaded here: install" in line


def test_a_strategy_that_saves_nothing_ends_the_command_with_its_name(ftengine, distribution, recipe, tmp_path):
    body = (
        "loaded.module.requires_grad_(False); loaded.module.get_submodule('model.norm').requires_grad_(True)\n"
        "    def save(self, loaded, directory): pass\n"
        "    def load(self, loaded, directory): pass"
    )
    distribution(plugin("strategy", body), ENTRY)
    settings = ("strategy=thing", "train.max_steps=2", "train.learning_rate=0.1", f"output={tmp_path / 'run'}")
    line = ftengine("train", recipe, *(part for text in settings for part in ("--set", text)), code=1).stderr
    assert "\nerror: strategy 'thing' of ftengine-thing 1.2 " in line
    assert "1 of 1 trained tensors differ, such as 'model.norm.weight'" in line
    assert json.loads((tmp_path / "run" / "adapter" / "ftengine.json").read_text())["check"] == "failed"
    assert list((tmp_path / "run" / "checkpoints").glob("step-*"))


def test_an_option_without_a_type_is_reported_where_it_is_written(distribution):
    body = plugin("audit").replace("class Thing(", "class Options(api.Config):\n    size = 3\n\n\nclass Thing(")
    distribution(body, ENTRY)
    with pytest.raises(PluginError) as error:
        registry_of().plugins.raise_if_broken()
    told = str(error.value)
    assert ("size = 3" in told, "ftengine_thing.py:" in told) == (True, True), told
