"""`ftengine cross-validate`: a run for each fold, figures of all of them, and going on from what is there."""

import json
import re
from html import unescape

import pytest
from runs import start_commands_here

from ftengine.engine.cross_validate import divide
from ftengine.errors import InputError


@pytest.fixture(scope="module")
def validated(ftengine, recipe, tmp_path_factory):
    """What the command printed; its runs are in `folder`."""
    folder = tmp_path_factory.mktemp("folds") / "runs"
    with pytest.MonkeyPatch.context() as patch:
        start_commands_here(patch)
        return validate(ftengine, recipe, folder), folder


def validate(ftengine, recipe, folder, *options, code=0):
    settings = ("--set", "train.max_steps=2", "--set", "evaluation.resamples=1000")
    return ftengine("cross-validate", recipe, "--folds", 2, *settings, "--output", folder, *options, code=code)


def test_figures_of_all_rows_and_of_each_fold_are_printed(validated):
    text = validated[0].stdout
    headline, lines = text.split("\n\n")[0], text.split("\n\n", 1)[1].splitlines()
    assert "distinct examples of the pooled test split" in " ".join(headline.split())
    assert lines[0].startswith("2 folds, 40 distinct examples")
    assert lines[1].split() == ["metric", "base", "tuned", "difference"]
    assert "fold 0" in text
    assert "fold 1" in text
    assert "Bengio & Grandvalet 2004" in text
    assert "fold 1: train: 2" in validated[0].stderr


def test_finished_folds_are_taken_as_they_are(ftengine, recipe, validated, no_process):
    content = json.loads(validate(ftengine, recipe, validated[1], "--json").stdout)
    before = json.loads((validated[1] / "crossvalidation.json").read_text())
    assert [run["reused"] for run in content["runs"]] == [True, True]
    assert content["tuned"] == before["tuned"]


@pytest.mark.parametrize("by", [("random",), ("stratified",), ("group", "messages")])
def test_without_validation_the_folds_are_all_that_is_divided(ftengine, recipe, tmp_path, monkeypatch, by):
    seen = []

    def stop(recipe, folds, **_):
        seen.append(divide(recipe, folds))
        raise InputError("seen")

    monkeypatch.setattr("ftengine.engine.cross_validate.cross_validate", stop)
    settings = ["data.validation=null", f"data.split.by={by[0]}"] + [f"data.split.column={name}" for name in by[1:]]
    options = [word for setting in settings for word in ("--set", setting)]
    ftengine("cross-validate", recipe, "--folds", 3, *options, "--output", tmp_path / "folds", code=2)
    assert [child.recipe.data.split.fold for child in seen[0]] == [0, 1, 2]
    assert {child.recipe.data.split.by for child in seen[0]} == {by[0]}


def test_folds_that_cannot_be_are_refused(ftengine, recipe):
    error = ftengine("cross-validate", recipe, "--folds", 1, code=2).stderr
    assert "--folds 1: cross-validation needs at least two folds" in error
    error = ftengine("cross-validate", recipe, "--set", "data.test=0.2", code=2).stderr
    assert "with data.split.folds the test split is one of" in error


def test_the_report_on_a_folder_of_folds_begins_with_the_pooled_figures(ftengine, validated):
    folder = validated[1]
    content = json.loads((folder / "crossvalidation.json").read_text())
    result = ftengine("report", folder)
    assert f"report: {folder / 'report.html'}" in result.stdout
    assert result.stdout.index("each held out once") < result.stdout.index("fold-0:")
    page = " ".join(unescape(re.sub(r"<[^>]+>", " ", (folder / "report.html").read_text().split("<body>")[1])).split())
    assert page.index("Cross-validation, 2 folds") < page.index("Pooled figures") < page.index("fold-0")
    assert "Not the same examples" not in page
    assert content["verdict"]["text"] in page
    assert content["statement"] in page
    row = re.search(r"Pooled figures.*? loss (.*?) perplexity ", page)[1]
    assert [float(word) for word in re.findall(r"^[\d.]+|(?<=\) )[\d.]+", row)][:2] == [
        pytest.approx(content[side]["loss"]["value"], rel=0.01) for side in ("base", "tuned")
    ]
    assert f"{content['spread']['loss']['least']:.4g} to {content['spread']['loss']['greatest']:.4g}" in row
