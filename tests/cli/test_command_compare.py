"""`ftengine compare`: two strategies and one table."""

import json
import re
import sys
from html import unescape

import pytest
import yaml
from expected import golden
from runs import start_commands_here

from ftengine import load_run
from ftengine.api import Finding
from ftengine.cli.compare import parse_strategies
from ftengine.errors import InputError
from ftengine.run.records import Verdict

STRATEGIES = "full,{name: lora, rank: 2, train.learning_rate: 0.02}"
LORA = "lora rank=2 train.learning_rate=0.02"


@pytest.fixture(scope="module")
def compared(ftengine, recipe, tmp_path_factory):
    """What the command printed, and the folder of its runs, which are ranked whatever their verdicts say."""
    folder = tmp_path_factory.mktemp("compared") / "runs"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("ftengine.engine.compare._alarm", lambda contender: None)  # after two steps it is one
        with pytest.MonkeyPatch.context() as here:
            start_commands_here(here)
            result = compare(ftengine, recipe, folder)
        yield result, folder


def compare(ftengine, recipe, folder, *options, strategies=STRATEGIES, code=0):
    settings = ("--set", "train.max_steps=2", "--set", "evaluation.resamples=1000")
    return ftengine("compare", recipe, "--strategies", strategies, *settings, "--output", folder, *options, code=code)


@pytest.mark.slow
def test_a_strategy_is_trained_in_a_process_of_its_own(ftengine, recipe, tmp_path, monkeypatch):
    started = start_commands_here(monkeypatch, after=1)
    result = compare(ftengine, recipe, tmp_path / "runs")
    assert len(started) == 2
    assert "full: train: 2" in result.stderr
    assert [line.split("  ")[0] for line in result.stdout.splitlines()[2:5]] == ["(base)", "full", LORA]


@pytest.mark.slow
def test_golden_table_has_a_line_for_each_and_for_the_base(compared):
    result = compared[0]
    assert [line.split("  ")[0] for line in result.stdout.splitlines()[2:5]] == ["(base)", "full", LORA]
    golden("compare", result.stdout)
    assert "full: train: 2" in result.stderr


def test_finished_runs_are_taken_as_they_are(ftengine, recipe, compared, no_process):
    result = compare(ftengine, recipe, compared[1], "--json")
    content = json.loads(result.stdout)
    assert [row["reused"] for row in content["strategies"]] == [True, True]
    assert result.stderr.count("is finished already, its figures are used") == 2
    perplexity = json.loads(compare(ftengine, recipe, compared[1], "--json", "--metric", "perplexity").stdout)
    assert perplexity["metric"] == "perplexity"
    assert perplexity["differences"] != content["differences"]


def test_what_judges_prefer_is_repeated(ftengine, recipe, compared, no_process, monkeypatch):
    """The verdict on a run has it from a rule."""
    read = Verdict.read

    def judged(run):
        finding = Finding(kind="judges", level="note", text=f"Judged {run.path.name}.")
        return (verdict := read(run)).model_copy(update={"findings": (*verdict.findings, finding)})

    monkeypatch.setattr(Verdict, "read", judged)
    lines = compare(ftengine, recipe, compared[1]).stdout.splitlines()
    assert lines[-2:] == ["  full: Judged full.", f"  {LORA}: Judged lora-rank=2-train.learning_rate=0.02."]
    monkeypatch.undo()
    assert "Judged" not in compare(ftengine, recipe, compared[1]).stdout


def test_the_recipe_of_each_run_lies_beside_it_and_can_be_run_compare(ftengine, compared):
    folder = compared[1]
    content = yaml.safe_load((folder / "full.yaml").read_text())
    assert content["strategy"]["name"] == "full"
    assert "nothing to resume" in ftengine("train", folder / "full.yaml", "--resume").stderr


def test_a_run_that_fails_is_named_and_the_others_are_kept(ftengine, recipe, compared, tmp_path, monkeypatch):
    program = tmp_path / "python"
    program.write_text("#!/bin/sh\necho 'error: the disk is full.' >&2\necho 'a library says goodbye' >&2\nexit 2\n")
    program.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(program))
    error = compare(ftengine, recipe, compared[1], strategies="full,lora", code=2).stderr.splitlines()[-1]
    assert error.startswith("error: lora: the disk is full. Finished runs are kept")
    assert (compared[1] / "full" / "evaluation.json").is_file()


def test_unknown_strategies_and_torchrun_are_refused(ftengine, recipe, tmp_path, monkeypatch):
    args = ("--output", tmp_path / "runs")
    assert "Did you mean 'lora'?" in ftengine("compare", recipe, "--strategies", "full,lroa", *args, code=2).stderr
    error = ftengine("compare", recipe, "--strategies", "full;lora", *args, code=2).stderr
    assert "1 ('full;lora')" in error
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert "without torchrun" in ftengine("compare", recipe, "--strategies", "full,lora", *args, code=2).stderr
    assert not (tmp_path / "runs").exists()


def test_a_list_of_strategies_is_yaml():
    assert parse_strategies("full, lora") == ["full", "lora"]
    assert parse_strategies("lora,{name: lora, rank: 2}") == ["lora", {"name": "lora", "rank": 2}]
    for text in ("full,{name: lora", "2020-13-45"):
        with pytest.raises(InputError):
            parse_strategies(text)


def test_the_folder_of_a_comparison_has_a_report_of_all_its_runs(ftengine, compared):
    folder = compared[1]
    result = ftengine("report", folder)
    page = (folder / "report.html").read_text()
    assert f"report: {folder / 'report.html'}" in result.stdout
    for name in ("full", "lora-rank=2-train.learning_rate=0.02"):
        assert f"{folder / name}:" in result.stdout
        assert str(folder / name) in page or name in page
    statement = json.loads((folder / "comparison.json").read_text())["statement"].splitlines()
    text = " ".join(unescape(re.sub(r"<[^>]+>", " ", page)).split())
    assert "2 strategies compared" in text
    assert all(line.strip() in text for line in statement)
    assert statement[-1].startswith("Learning rates: full 2e-05, ")
    assert "(base)" in result.stdout
    base, full, _ = re.search(r'<th scope="row">loss</th>(.*?)</tr>', page, re.DOTALL)[1].split("</td>", 2)
    evaluation = load_run(folder / "full").evaluation
    for cell, side in ((base, "base"), (full, "tuned")):
        assert float(re.search(r'"value">([\d.]+)', cell)[1]) == pytest.approx(
            evaluation[side]["loss"]["value"], rel=0.01
        )
    assert len(json.loads(ftengine("report", folder, "--json").stdout)) == 2
