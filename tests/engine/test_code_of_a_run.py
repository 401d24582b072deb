"""A run made elsewhere may load its model by code: that runs only if the user agrees, each time."""

import json
import shutil
import sys

import pytest
import yaml
from click.testing import CliRunner
from expected import raises
from runs import save_anew

from ftengine import Run, fine_tune, load_run, plan
from ftengine.cli import main
from ftengine.engine.reproduce import reproduce
from ftengine.errors import BaseMismatch, InputError
from ftengine.run.recipe import Recipe

MODULE = """
from pathlib import Path

from transformers import AutoModelForSequenceClassification, AutoTokenizer


def small(request):
    Path({marker!r}).touch()
    tokenizer = AutoTokenizer.from_pretrained({folder!r})
    if not request.head:
        return AutoModelForSequenceClassification.from_pretrained({folder!r}), tokenizer
    names = dict(enumerate(request.labels.names))
    model = AutoModelForSequenceClassification.from_pretrained({folder!r}, id2label=names)
    model.__class__ = type("Own", (type(model),), {{"__module__": __name__}})
    return model, tokenizer
"""


@pytest.fixture
def run_with_code(label_recipe, bert_folder, tmp_path, monkeypatch):
    """A finished run whose recipe names a function; the file `ran` appears when the function is called."""
    (tmp_path / "its_model.py").write_text(MODULE.format(marker=str(tmp_path / "ran"), folder=str(bert_folder)))
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "its_model", raising=False)  # of another test
    recipe = label_recipe(model={"source": "its_model:small", "loader": "callable"}, train__max_steps=1)
    run = fine_tune(recipe)
    sys.modules.pop("its_model")
    (tmp_path / "ran").unlink()
    return run.path


def test_commands_run_code_of_a_run_only_with_the_flag(run_with_code, tmp_path):
    rows = tmp_path / "rows.jsonl"
    rows.write_text(json.dumps({"text": "a goal"}) + "\n")
    for command in (["predict", "--input", str(rows)], ["evaluate"], ["merge", str(tmp_path / "merged")]):
        asked = [command[0], str(run_with_code), *command[1:]]
        result = CliRunner().invoke(main, asked)
        assert result.exit_code == 2, result.output
        assert "loads its model with the function its_model:small" in result.stderr
        assert "--trust-code" in result.stderr
        assert not (tmp_path / "ran").exists()
    assert (
        CliRunner().invoke(main, ["predict", str(run_with_code), "--input", str(rows), "--trust-code"]).exit_code == 0
    )
    assert (tmp_path / "ran").exists()


@pytest.mark.slow
def test_code_that_comes_with_a_model_is_asked_about(label_recipe, tmp_path):
    run = fine_tune(label_recipe(train__max_steps=1))
    recipe = (run.path / "recipe.yaml").read_text()
    (run.path / "recipe.yaml").write_text(recipe.replace("trust_remote_code: false", "trust_remote_code: true"))
    assert "trust_remote_code: true" in (run.path / "recipe.yaml").read_text()
    with raises(InputError, "Python code"):
        load_run(run.path).evaluate()
    assert load_run(run.path, trust_code=True).evaluate()["tuned"]


def test_a_function_that_scores_answers_is_imported_by_neither_plan_nor_an_untrusted_run(talking_run, tmp_path):
    marker, file, run = tmp_path / "ran", tmp_path / "score.py", shutil.copytree(talking_run, tmp_path / "run")
    file.write_text(f"open({str(marker)!r}, 'w')\n\n\ndef right(answer):\n    return True\n")
    recipe = yaml.safe_load((run / "recipe.yaml").read_text())
    recipe["evaluate"] = [{"name": "verifier", "function": f"{file}:right"}]
    plan(Recipe.make({**recipe, "output": str(tmp_path / "new")}), measure=False)
    of_task = {"name": "grpo", "rewards": [{"name": "exact-match"}], "reply": f"{file}:right"}
    for content in ({}, {"task": of_task, "evaluate": ["mean-reward"]}):
        (run / "recipe.yaml").write_text(yaml.safe_dump({**recipe, **content}))
        save_anew(run)
        for again in (lambda run: reproduce(run, tmp_path / "again"), Run.evaluate):
            with raises(InputError, "score.py:right", "--trust-code"):
                again(load_run(run))
    assert not marker.exists()


@pytest.mark.slow
def test_changed_code_of_a_model_is_another_base(run_with_code, tmp_path):
    assert load_run(run_with_code, trust_code=True).evaluate()["tuned"]
    file = tmp_path / "its_model.py"
    file.write_text(file.read_text() + "\nHEADS = 2\n")
    with raises(BaseMismatch, "its_model.py"):
        load_run(run_with_code, trust_code=True).evaluate()
