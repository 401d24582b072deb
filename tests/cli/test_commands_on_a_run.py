"""plan, train, evaluate, predict and merge on one tiny run."""

import json
import math
import re
import shutil
from contextlib import nullcontext

import pandas
import pytest
import yaml
from cli_samples import HOSTILE
from expected import golden

from ftengine import load_run
from ftengine.api import Difference, Matrix, SilentListener
from ftengine.cli import predict
from ftengine.cli.figures import show_matrices, verdict
from ftengine.cli.page import page
from ftengine.run import progress
from ftengine.run.evaluation_result import Details, Displays, EvaluationResult
from ftengine_builtins.tasks import causal_lm


def is_safe(text):
    return not set(text) & set(HOSTILE[:1] + "\x07\u202e")


def without_output(recipe, tmp_path):
    return recipe, "--set", f"output={tmp_path / 'other'}"


def test_golden_output_of_plan_train_evaluate_and_report(ftengine, recipe, trained, run, tmp_path):
    golden("train", trained.stdout)
    golden("plan", ftengine("plan", *without_output(recipe, tmp_path)).stdout)
    golden("evaluate", ftengine("evaluate", run).stdout)
    golden("report", ftengine("report", run).stdout)
    assert not (tmp_path / "other").exists()


def test_evaluate_estimates_the_divergence_on_the_model_s_own_answers(ftengine, run):
    text = ftengine("evaluate", run, "--own-answers", "3").stdout
    found = json.loads(ftengine("evaluate", run, "--own-answers", "3", "--json").stdout)
    assert "from the base, on the tuned model's own answers" in text
    assert f"{found['prompts']} to prompts of validation, {found['tokens']} tokens" in text
    assert found["kl"]["value"] > 0
    assert found["started_from"] == ""


def test_plan_marks_what_is_trained_on_and_disarms_what_is_in_the_data(ftengine, recipe, tmp_path):
    text = ftengine("plan", *without_output(recipe, tmp_path), "--no-measure").stdout
    assert is_safe(text)
    assert "[bold]red[/bold]" in text  # markup is text
    marked = text[text.index("⟦It is") : text.rindex("⟧")]
    assert "<|im_end|>" in marked
    assert "What is" not in marked
    assert "not measured" in text


def test_plan_in_json_is_the_plan(ftengine, recipe, tmp_path):
    result = ftengine("plan", *without_output(recipe, tmp_path), "--no-measure", "--json")
    content = json.loads(result.stdout)
    assert content["estimate"] is None
    assert content["steps"]["total"] == 4
    assert content["recipe"]["output"] == str(tmp_path / "other")
    assert result.stderr  # progress


def test_train_refuses_an_output_in_use_and_resume_returns_a_finished_run(ftengine, recipe, run):
    assert "not empty" in ftengine("train", recipe, code=2).stderr
    result = ftengine("train", recipe, "--resume", "--json")
    content = json.loads(result.stdout)
    assert content["run"] == str(run)
    assert content["evaluation"] == load_run(run).evaluation
    assert content["training"]["steps"] == 4
    assert "nothing to resume" in result.stderr


def test_interrupted_training_says_how_to_go_on(ftengine, recipe, monkeypatch):
    def interrupted(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr("ftengine.engine.fine_tune.fine_tune", interrupted)
    result = ftengine("train", recipe, code=130)
    assert "--resume" in result.stderr
    assert "Traceback" not in result.stderr


def test_evaluate_prints_the_figures_of_the_run(ftengine, run):
    content = json.loads(ftengine("evaluate", run, "--json").stdout)
    stored = load_run(run).evaluation
    assert content["tuned"]["loss"]["value"] == pytest.approx(stored["tuned"]["loss"]["value"], rel=1e-5)


def test_evaluate_takes_other_data(ftengine, run, chat_rows):
    content = json.loads(ftengine("evaluate", run, "--data", chat_rows, "--json").stdout)
    assert content["tuned"]["loss"]["n"] == 40
    assert "no data file" in ftengine("evaluate", run, "--data", "no.jsonl", code=2).stderr


def test_predict_writes_a_line_a_row_and_continues(ftengine, run, chat_rows, tmp_path):
    output = tmp_path / "answers.jsonl"
    options = ("--option", "max_new_tokens=3", "--batch-size", 16)
    ftengine("predict", run, "--input", chat_rows, "--output", output, *options)
    rows = [json.loads(line) for line in output.read_text().splitlines()]
    assert len(rows) == 40
    assert all("prediction" in row and "messages" in row for row in rows)
    whole = output.read_bytes()
    output.write_bytes(whole[: len(whole) // 2])
    result = ftengine("predict", run, "--input", chat_rows, "--output", output, *options, "--resume", "--json")
    report = json.loads(result.stdout)
    assert report["written"] + report["kept"] == 40
    assert output.read_bytes() == whole


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".parquet"])
def test_predict_writes_a_table_and_continues(ftengine, run, chat_rows, tmp_path, suffix):
    options = ("--option", "max_new_tokens=3", "--batch-size", 16)
    lines, table = tmp_path / "answers.jsonl", tmp_path / f"answers{suffix}"
    ftengine("predict", run, "--input", chat_rows, "--output", lines, *options)
    rows = [json.loads(line) for line in lines.read_text().splitlines()]
    (tmp_path / f"{table.name}.part").write_text("".join(lines.read_text().splitlines(keepends=True)[:16]))
    shutil.copy(f"{lines}.origin.json", f"{table}.origin.json")
    ftengine("predict", run, "--input", chat_rows, "--output", table, *options, "--resume")
    if suffix == ".parquet":
        found = pandas.read_parquet(table)
    else:
        found = pandas.read_csv(table, sep={".csv": ",", ".tsv": "\t"}[suffix], keep_default_na=False)
    assert list(found.columns) == ["messages", "prediction.completion"]
    assert found["prediction.completion"].tolist() == [row["prediction"]["completion"] for row in rows]
    assert [json.loads(text) for text in found["messages"]] == [row["messages"] for row in rows]
    assert sorted(file.name for file in tmp_path.iterdir()) == sorted(
        f"{name}{ending}" for name in (lines.name, table.name) for ending in ("", ".origin.json")
    )
    again = ftengine("predict", run, "--input", chat_rows, "--output", table, *options, "--resume", code=2)
    assert "exists and is finished" in again.stderr


@pytest.mark.parametrize("name", ["answers.xlsx", "answers"])
def test_predict_refuses_an_output_of_no_known_format(ftengine, run, chat_rows, tmp_path, name):
    error = ftengine("predict", run, "--input", chat_rows, "--output", tmp_path / name, code=2).stderr
    assert ".jsonl, .ndjson, .csv, .tsv, .parquet" in error
    assert error.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_a_line_of_text_is_a_users_turn_for_a_chat_model(ftengine, run, tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(causal_lm, "generate", lambda loaded, prompts, *rest: asked.extend(prompts) or [[5]])
    (tmp_path / "q.txt").write_text("What is 3 and 4?\n")
    (tmp_path / "q.jsonl").write_text(json.dumps({"messages": [{"role": "user", "content": "What is 3 and 4?"}]}))
    for name, *options in (("q.txt",), ("q.jsonl",), ("q.txt", "--option", "continues=true")):
        ftengine("predict", run, "--input", tmp_path / name, *options)
    text, turn, continued = asked
    assert text == turn != continued


def test_predict_without_output_prints_jsonl(ftengine, run, chat_rows):
    result = ftengine("predict", run, "--input", chat_rows, "--option", "max_new_tokens=2", "--base")
    rows = [json.loads(line) for line in result.stdout.splitlines()]
    assert len(rows) == 40
    assert rows[0]["messages"][0]["content"].startswith("What is 0")


def test_answers_that_stream_to_a_terminal_are_not_mixed_with_bars(ftengine, run, chat_rows, tmp_path, monkeypatch):
    bars = []
    monkeypatch.setattr(progress, "terminal_listener", lambda: bars.append("bar") or nullcontext(SilentListener()))
    monkeypatch.setattr(predict, "listening", lambda **given: on_terminal(**given))
    options = ("--input", chat_rows, "--option", "max_new_tokens=1")

    def on_terminal(**given):
        monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
        return progress.listening(**given)

    ftengine("predict", run, *options)
    assert bars == []
    ftengine("predict", run, *options, "--output", tmp_path / "answers.jsonl")
    assert bars == ["bar"]


def test_merge_reports_its_check(ftengine, run, tmp_path):
    out = tmp_path / "merged"
    report = json.loads(ftengine("merge", run, out, "--dtype", "float32", "--json").stdout)
    assert report["dtype"] == "float32"
    assert report["difference"] <= report["tolerance"]
    assert (out / "model.safetensors").is_file()
    assert "not empty" in ftengine("merge", run, out, code=2).stderr
    again = ftengine("merge", run, tmp_path / "again")
    assert re.search(r"check +passed: difference \S+, limit \S+\n", again.stdout)
    assert "shards" not in again.stderr  # transformers draws a bar over them


@pytest.mark.parametrize(
    ("figure", "expected"),
    [
        (Difference(1, 0.5, 2, 0.01, True), "better (p = 0.01)"),
        (Difference(1, 0.5, 2, 0.01, False), "worse (p = 0.01)"),
        (Difference(1, -1, 2, 0.4, None), "no difference beyond chance"),
        (Difference(1, 0.1, 2, 0.06, None), "no difference beyond chance (p = 0.06)"),  # 0 outside
        (Difference(-1, -2, -0.5, 0.01, None), "lower (p = 0.01)"),
        (Difference(1, None, None, None, None), "no interval"),
        (Difference(-1, -2, -0.5, 0.0026116, False), "worse (p = 0.0026)"),
        (Difference(-1, -2, -0.5, 0.0000261, False), "worse (p < 0.001)"),
        (Difference(math.nan, None, None, None, None), ""),
        (None, ""),
    ],
)
def test_a_difference_in_words(figure, expected):
    assert verdict(figure) == expected


@pytest.mark.parametrize(("labels", "shown"), [(2, True), (12, True), (13, False)])
def test_a_small_confusion_matrix_is_shown(capsys, labels, shown):
    cells = tuple(tuple(100 * i + j for j in range(labels)) for i in range(labels))
    matrix = Matrix(title="Confusion matrix", names=tuple(f"label{i}" for i in range(labels)), cells=cells)
    result = EvaluationResult(
        split="test",
        metrics={},
        base={},
        tuned={},
        difference={},
        details=Details(),
        displays=Displays(tuned=(matrix,)),
    )
    show_matrices(page(), result)
    out = capsys.readouterr().out
    assert ("label1" in out) == shown
    assert ("101" in out) == shown


def test_a_run_without_held_out_data_says_so(ftengine, recipe, tmp_path):
    content = yaml.safe_load(recipe.read_text())
    content["data"]["validation"] = None
    content["train"]["max_steps"] = 1
    content["output"] = str(tmp_path / "run")
    (tmp_path / "r.yaml").write_text(yaml.safe_dump(content))
    assert "no held-out data" in ftengine("train", tmp_path / "r.yaml").stdout


RULE = """
from pathlib import Path
from ftengine import hookimpl
from ftengine.api import Finding, Rule

class Beside(Rule):
    name = "beside"
    reads_later_files = True
    def view_command(self, run):
        return f"add to {run.path}"
    def judge(self, run):
        file = Path(run.path) / "note.txt"
        if file.is_file():
            yield Finding(kind="note", level="alarm", text=file.read_text())

@hookimpl
def ftengine_rules():
    return [Beside]
"""


def test_report_judges_a_run_anew_by_what_lies_beside_it(ftengine, run, tmp_path, distribution):
    distribution(RULE, "[ftengine]\nthing = ftengine_thing\n")
    copy = shutil.copytree(run, tmp_path / "copy")
    (copy / "note.txt").write_text("People say no.")
    assert load_run(copy).view_commands == [f"add to {copy}"]
    before = ftengine("report", copy, "--json")
    assert "People say no." not in before.stdout
    assert "People say no" in before.stderr
    assert f"ftengine report {copy} --renew" in before.stderr
    renewed = ftengine("report", copy, "--renew", "--json").stdout
    assert {"People say no."} < {one["text"] for one in json.loads(renewed)["findings"]}
    assert "People say no." in (copy / "report.html").read_text()
    again = ftengine("report", copy, "--json")
    assert (again.stdout, "--renew" in again.stderr) == (renewed, False)  # it is sealed again
