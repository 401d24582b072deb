"""Predictions from file to file: what is refused before a model loads, and the table that answers make."""

import codecs
import csv
import gzip
import json
import shutil
from types import SimpleNamespace

import pytest
import torch
import yaml
from click.testing import CliRunner
from expected import raises
from pyarrow import parquet
from transformers import AutoTokenizer

from ftengine import fine_tune, load_model, load_run
from ftengine.api import SilentListener
from ftengine.cli import main
from ftengine.data.encoding import content_of
from ftengine.engine import answering
from ftengine.engine.predict import predict_file
from ftengine.errors import DataError, InputError, RunError, SourceError
from ftengine.plugins.registry import Registry
from ftengine.run.recipe import DataSection
from ftengine_builtins.tasks import CausalLM


def test_answers_of_the_base_do_not_depend_on_what_was_trained(label_recipe):
    run = fine_tune(label_recipe(train__max_steps=1))
    of_tuned, of_base = (run.answering(base=base, options=None) for base in (False, True))
    (run.trained / "adapter_model.safetensors").write_bytes(b"others")
    again = load_run(run.path)
    assert again.answering(base=True, options=None) == of_base
    assert again.answering(base=False, options=None)["trained"] != of_tuned["trained"]
    settings = json.loads(json.dumps(of_base["settings"]))
    assert settings == of_base["settings"]  # so that what was written equals what is asked for
    assert settings["seed"] == run.recipe.seed
    assert settings["labels"]["names"] == list(run.facts.labels.names)


def test_a_token_that_the_model_lacks_is_named(label_recipe, bert_folder, tmp_path):
    """As it is before training; only that answered rows are not read before."""
    folder = shutil.copytree(bert_folder, tmp_path / "base")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_tokens(["newword"])
    tokenizer.save_pretrained(folder)
    run = fine_tune(label_recipe(model__source=str(folder), train__max_steps=1))
    rows = [{"text": "good"}, {"text": "good newword"}]
    with raises(SourceError, "examples 1 to 2", "'newword'", "embeddings"):
        list(run.predict(rows))
    assert len(list(run.predict(rows[:1]))) == 1


@pytest.fixture
def sizes(monkeypatch):
    """How many rows are answered together, where no more than `limit` fit into memory."""
    infer, asked = CausalLM.infer, SimpleNamespace(of=[], limit=100)

    def recorded(self, loaded, rows, options=None):
        asked.of.append(len(rows))
        if len(rows) > asked.limit:
            raise torch.OutOfMemoryError
        return infer(self, loaded, rows, options)

    monkeypatch.setattr(CausalLM, "infer", recorded)
    return asked


def test_rows_are_answered_together_whatever_the_training_batch_is(chat_recipe, sizes, monkeypatch):
    monkeypatch.setattr(answering, "ANSWERED_TOGETHER", 16)
    run = fine_tune(chat_recipe(train__max_steps=1, train__batch_size=2))
    rows = [{"prompt": f"the printer {i} does not start" + " today" * (i % 3)} for i in range(20)]
    asked = {"options": {"max_new_tokens": 5}}
    answers = list(run.predict(rows, **asked))
    assert sizes.of == [16, 4]
    assert list(run.predict(rows, batch_size=2, **asked)) == answers
    sizes.of, sizes.limit = [], 5
    assert list(run.predict(rows, **asked)) == answers  # as many as fit
    assert sizes.of == [16, 8, 4, 4, 4, 4, 4]
    with pytest.raises(torch.OutOfMemoryError):
        list(run.predict(rows, batch_size=8, **asked))


def test_a_base_model_and_a_recipe_answer_before_training(chat_recipe, llama_folder, tmp_path):
    recipe = chat_recipe(train__max_steps=1, model__source=str(llama_folder))
    file, rows = tmp_path / "chat.yaml", tmp_path / "rows.jsonl"
    file.write_text(yaml.safe_dump(recipe.resolved()))
    rows.write_text("".join(json.dumps({"prompt": f"the printer {i} does not start"}) + "\n" for i in range(5)))
    options = ["--option", "max_new_tokens=5", "--input", str(rows)]

    def predicted(model, *more):
        result = CliRunner().invoke(main, ["predict", str(model), *options, *more])
        assert result.exit_code == 0, result.output
        return [json.loads(line)["prediction"] for line in result.stdout.splitlines() if line.startswith("{")]

    answers = predicted(llama_folder)
    assert predicted(file) == answers
    assert not (tmp_path / "run").exists()
    output = tmp_path / "answers.jsonl"
    predicted(llama_folder, "--output", str(output))
    lines = output.read_text().splitlines(keepends=True)
    output.write_text("".join(lines[:2]))
    assert predict_file(load_model(llama_folder), rows, output, resume=True, options={"max_new_tokens": 5}).kept == 2
    assert [json.loads(line)["prediction"] for line in output.read_text().splitlines()] == answers
    run = fine_tune(recipe)
    assert predicted(run.path, "--base") == answers
    assert isinstance(load_model(run.path), type(run))
    with raises(InputError, "calibration"):
        list(load_model(file).predict([{"prompt": "a"}], calibrated=True))


def test_what_answers_nothing_before_training_is_refused(label_recipe, bert_folder, tmp_path):
    (tmp_path / "labels.yaml").write_text(yaml.safe_dump(label_recipe().resolved()))
    with raises(InputError, "text-classification", "ftengine train"):
        load_model(tmp_path / "labels.yaml")
    with raises(InputError, "no/such", "recipe"):
        load_model(tmp_path / "no/such")
    assert load_model(bert_folder).task.traits.answers_vectors
    (tmp_path / "empty").mkdir()
    with raises(InputError, "empty", "recipe"):
        load_model(tmp_path / "empty")


@pytest.fixture
def predict(tmp_path):
    """Answer a file's text by a classifier whose scores are given; return the output."""

    def call(
        name,
        content,
        output="out.csv",
        labels=("a", "b"),
        on_error="fail",
        meanwhile=lambda: None,
        columns=None,
        **asked,
    ):
        source = tmp_path / name
        source.write_bytes(content if isinstance(content, bytes) else content.encode())
        answer = {"label": labels[0], "scores": {label: 1 / len(labels) for label in labels}}
        registry = Registry()
        made = {"ftengine": "0", "run": "run", "trained": "t", "base": {"weights": "w"}, "settings": {"precision": "p"}}
        made |= asked.pop("made", {})
        base_now = asked.pop("base_now", made["base"])
        run = SimpleNamespace(
            recipe=SimpleNamespace(
                data=DataSection(train="unused.jsonl", on_error=on_error, columns=columns or {}),
            ),
            registry=registry,
            task=registry.build("task", "text-classification", "task"),
            listener=SilentListener(),
            base_now=base_now,
            answering=lambda base=False: made | {"model": "base" if base else "tuned"},
            predict=lambda rows, **_: (meanwhile() or answer for _ in rows),
        )
        call.report = predict_file(run, source, tmp_path / output, **asked)
        return tmp_path / output

    return call


@pytest.mark.parametrize("suffix", ["jsonl", "csv"])
def test_two_processes_do_not_write_one_output(predict, suffix):
    def rival():
        with raises(RunError, f"out.{suffix}", "in use"):
            predict("rows.csv", "text\ngoal\n", f"out.{suffix}")

    written = predict("rows.csv", "text\ngoal\n", f"out.{suffix}", meanwhile=rival)
    assert len(written.read_text().splitlines()) == (1 if suffix == "jsonl" else 2)
    assert sorted(file.name for file in written.parent.iterdir()) == [
        f"out.{suffix}",
        f"out.{suffix}.origin.json",
        "rows.csv",
    ]


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".parquet"])
def test_a_column_that_answers_would_overwrite_is_refused(predict, tmp_path, suffix):
    with raises(DataError, "again.csv", "prediction.label"):
        predict("again.csv", "text,prediction.label\ngoal,by hand\n", f"out{suffix}")
    assert [file.name for file in tmp_path.iterdir()] == ["again.csv"]


@pytest.mark.parametrize(("output", "fact"), [("out.npy", ".npy"), ("out.xlsx", ".xlsx"), ("out", "no ending")])
def test_an_output_that_answers_cannot_be_written_in_is_refused_before_a_model_loads(predict, tmp_path, output, fact):
    def loaded():
        pytest.fail("the model was asked")

    with raises(InputError, output, fact, ".jsonl, .ndjson, .csv, .tsv, .parquet"):
        predict("rows.csv", "text\ngoal\n", output, meanwhile=loaded)
    assert [file.name for file in tmp_path.iterdir()] == ["rows.csv"]


@pytest.mark.parametrize(
    ("name", "content", "output", "separator", "marked", "form"),
    [
        ("a.csv", "text,n\ngoal,1\n", "out.csv", ",", False, ""),
        ("a.csv", "text;n\ngoal;1\n", "out.csv", ";", False, "separator ';'"),
        ("a.csv", "\ufefftext;n\ngoal;1\n", "out.csv", ";", True, "separator ';' and a UTF-8 byte order mark"),
        ("a.csv", "text\tn\ngoal\t1\n".encode("utf-16"), "out.csv", "\t", True, "separator '\\t' and"),
        ("a.csv.gz", gzip.compress(b"text;n\ngoal;1\n", mtime=0), "out.csv", ";", False, "separator ';'"),
        ("a.tsv", "\ufefftext\tn\ngoal\t1\n", "out.tsv", "\t", True, "a UTF-8 byte order mark"),
        ("a.tsv", "text\tn\ngoal\t1\n", "out.csv", ",", False, ""),  # another suffix asks for another form
        ("a.jsonl", '\ufeff{"text": "goal", "n": "1"}\n', "out.csv", ",", False, ""),  # no table
    ],
)
def test_a_table_has_the_form_of_the_input(predict, name, content, output, separator, marked, form):
    """A spreadsheet opens the answers as it wrote the questions."""
    written = predict(name, content, output).read_bytes()
    assert written.startswith(codecs.BOM_UTF8) == marked
    assert written.decode("utf-8-sig").splitlines()[0].split(separator)[:3] == ["text", "n", "prediction.label"]
    assert predict.report.form.startswith(form)
    assert bool(predict.report.form) == bool(form)


@pytest.mark.parametrize(
    ("values", "kept"),
    [
        ([1, 2.5, None], [1.0, 2.5, None]),
        ([2**70, 1], [str(2**70), "1"]),
        ([True, 1], ["True", "1"]),
        ([1, "x"], ["1", "x"]),
    ],
)
def test_a_column_of_parquet_has_one_type_that_holds_all_its_values(predict, values, kept):
    rows = "".join(json.dumps({"text": "goal", "value": value}) + "\n" for value in values)
    assert parquet.read_table(predict("rows.jsonl", rows, "out.parquet"))["value"].to_pylist() == kept


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("text,id\ngoal,1\n,2\n", "rows.csv:3: `text`"),
        ("text,id\ngoal,1\na,b,c\n", "rows.csv:3: 3 fields"),
        ("text|id\ngoal|1\n", "'text|id'"),
        ("text|id\ngoal, team|1\ngoal|1\n", "rows.csv:2: "),
    ],
)
def test_a_row_without_answer_is_named_with_what_to_do_about_the_file(predict, content, message):
    with raises(DataError, message) as error:
        predict("rows.csv", content)
    assert "data." not in str(error.value).replace("rows.csv", "")


@pytest.mark.parametrize("output", ["out.csv", "out.jsonl"])
def test_answers_stand_beside_the_columns_as_the_file_names_them(predict, output):
    written = predict("rows.csv", "Id,Body\n7,goal\n", output, columns={"text": "Body", "label": "Category"})
    first, *_ = csv.DictReader(written.open()) if output == "out.csv" else map(json.loads, written.open())
    assert (first["Id"], first["Body"]) == ("7", "goal")
    assert "text" not in first


def test_a_column_that_the_run_renames_is_asked_for_by_the_name_in_the_file(predict):
    with raises(DataError, "rows.csv", "'Body'", "text") as error:
        predict("rows.csv", "body,Id\ngoal,7\n", columns={"text": "Body", "label": "Category"})
    assert "Its columns: body, Id. Did you mean 'body'?" in str(error.value)
    with raises(DataError, "rows.csv:3", "text"):  # the column is there, a value is not
        predict("rows.csv", 'Body,Id\ngoal,7\n"",8\n', columns={"text": "Body"})


def spoilt(text):
    """Return the first line of a file of answers, and the half of another."""
    first, second, *_ = text.splitlines(keepends=True)
    return first + second[: len(second) // 2]


@pytest.mark.parametrize("output", ["out.jsonl", "out.csv"])
def test_what_made_answers_stands_beside_them_and_nothing_else_continues_them(predict, tmp_path, output):
    rows = "text\ngoal\nshare\nfilm\n"
    whole = predict("rows.csv", rows, "whole.jsonl").read_text()
    origin = (tmp_path / "whole.jsonl.origin.json").read_text()
    lined = tmp_path / (output if output == "out.jsonl" else f"{output}.part")
    lined.write_text(spoilt(whole))
    with raises(RunError, f"{output}.origin.json"):
        predict("rows.csv", rows, output, resume=True)
    (tmp_path / f"{output}.origin.json").write_text(origin)
    others = (
        ({"base": True}, "base model"),
        ({"made": {"trained": "other"}}, "trained part"),
        ({"made": {"base": {"weights": "other"}}}, "weights differ"),
        ({"base_now": {"weights": "other"}}, "weights differ"),  # than in training, as allowed
        ({"made": {"settings": {"precision": "other"}}}, "precision was 'p' and is 'other'"),
        ({"made": {"settings": {"precision": "p", "options": {"seed": 1}}}}, "options.seed was not given and is 1"),
    )
    for asked, message in others:
        with raises(RunError, message):
            predict("rows.csv", rows, output, resume=True, **asked)
    with raises(RunError, "its rows differ"):
        predict("rows.csv", rows.replace("film", "ball"), output, resume=True)
    with raises(RunError, "3 rows, now 4"):
        predict("rows.csv", f"{rows}ball\n", output, resume=True)
    assert lined.read_text() == spoilt(whole)
    written = predict("rows.csv", rows, output, resume=True, made={"run": "moved", "ftengine": "1"})
    assert len(written.read_text().splitlines()) == 3 + (output == "out.csv")


def test_a_file_that_rows_name_belongs_to_them(tmp_path):
    (tmp_path / "a.png").write_bytes(b"first")
    rows = [{"image": str(tmp_path / "a.png")}, {"image": {"path": str(tmp_path / "a.png"), "bytes": None}}]
    task = Registry().build("task", "image-classification", "task")
    for row in rows:
        before = content_of([row], task)
        (tmp_path / "a.png").write_bytes(b"other")
        assert content_of([row], task) != before
        (tmp_path / "a.png").write_bytes(b"first")
        assert content_of([row], task) == before
