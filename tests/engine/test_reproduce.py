"""`reproduce` trains a run from its record; what was planted in the record is what it names."""

import json
import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from click.testing import CliRunner
from safetensors.torch import load_file, save_file

from ftengine import fine_tune, load_run
from ftengine.cli import main
from ftengine.engine.reproduce import compare
from ftengine.run.directory import RunDirectory
from ftengine.run.seal import seal


@pytest.fixture
def record(talking_run, tmp_path):
    """A copy of a run, to plant something in."""
    return Path(shutil.copytree(talking_run, tmp_path / "run"))


def plant(record, name, **values):
    """Set keys of the recipe or of environment.json, dots as __, and seal the run anew: it was always so."""
    file = record / name
    read, write = (yaml.safe_load, yaml.safe_dump) if file.suffix == ".yaml" else (json.loads, json.dumps)
    content = read(file.read_text())
    for key, value in values.items():
        *path, last = key.split("__")
        place = content
        for part in path:
            place = place[part]
        place[last] = value
    file.write_text(write(content))
    seal(RunDirectory(record))


def reproduced(record, *options):
    result = CliRunner().invoke(main, ["reproduce", str(record), *options, "--json"])
    assert result.stdout, result.output
    return result.exit_code, json.loads(result.stdout)


def test_the_same_comes_of_the_same_record_in_every_bit(record, tmp_path):
    plant(record, "environment.json", versions__torch="1.13.1")
    status, found = reproduced(record, "--output", str(tmp_path / "new"))
    assert (status, found["outcome"], found["step"]) == (0, "equal", None)
    assert [one["kind"] for one in found["changes"]] == ["versions"]
    assert "torch was 1.13.1" in found["changes"][0]["text"]
    adapters = [load_file(folder / "adapter" / "adapter_model.safetensors") for folder in (record, tmp_path / "new")]
    assert all(tensor.equal(adapters[1][name]) for name, tensor in adapters[0].items())
    again = CliRunner().invoke(main, ["reproduce", str(record), "--output", str(tmp_path / "new")])
    assert again.exit_code == 2
    assert "--output" in again.stderr


@pytest.mark.slow
def test_another_course_of_training_is_another_model(record):
    plant(record, "recipe.yaml", train__learning_rate=1e-9, evaluation__resamples=1000)
    status, found = reproduced(record)
    assert (status, found["outcome"], found["same_weights"]) == (4, "different", False), found
    assert found["output"] == f"{record}-again"
    assert (found["first"], found["changes"]) == ("", [])  # what the record says of its surroundings is as it was
    assert found["step"] == 2  # the first that begins with other weights
    assert found["difference"]["low"] > 0


def test_other_weights_whose_answers_differ_by_chance_are_within_intervals(record, tmp_path):
    plant(record, "recipe.yaml", evaluation__resamples=1000)
    again = Path(shutil.copytree(record, tmp_path / "again"))
    weights = load_file(again / "adapter" / "adapter_model.safetensors")
    noisy = {name: tensor * 1.0001 for name, tensor in weights.items()}
    save_file(noisy, again / "adapter" / "adapter_model.safetensors", {"format": "pt"})
    file = again / "predictions" / "validation-tuned.parquet"
    table = pq.read_table(file)
    place, kind = table.schema.get_field_index("loss"), table.schema.field("loss")
    losses = [x * (1 + (-1) ** i * 1e-3) for i, x in enumerate(table.column("loss").to_pylist())]
    pq.write_table(table.set_column(place, kind, pa.array(losses, kind.type)), file)
    outcome, metric, difference = compare(load_run(record), load_run(again))
    assert (outcome, metric) == ("within", "loss")
    assert difference.low <= 0 <= difference.high
    plant(record, "evaluation.json", difference__loss__value=difference.high / 2)  # as small a gain as this is noise
    assert compare(load_run(record), load_run(again))[0] == "undecided"


def test_other_data_are_named_before_anything_is_trained(record, chat_file, tmp_path):
    lines = chat_file.read_text().splitlines(keepends=True)
    (tmp_path / "other.jsonl").write_text("".join([lines[0].replace("Restart", "Return"), *lines[1:]]))
    plant(record, "recipe.yaml", data__train=str(tmp_path / "other.jsonl"))
    status, found = reproduced(record)
    assert (status, found["outcome"], found["first"], found["output"]) == (4, "different", "data", None)
    assert not Path(f"{record}-again").exists()


@pytest.mark.slow
def test_a_scoring_function_that_has_changed_is_named(build_chat_recipe, tmp_path):
    """Also where the change is in what its file imports from beside it."""
    (tmp_path / "score.py").write_text(
        "from least import LEAST\n\n\ndef long(answer):\n    return len(answer) >= LEAST\n"
    )
    (tmp_path / "least.py").write_text("LEAST = 0\n")
    judge = {"name": "verifier", "function": f"{tmp_path / 'score.py'}:long", "max_new_tokens": 4}
    run = fine_tune(build_chat_recipe(evaluate=[judge], train__max_steps=1, output=str(tmp_path / "run")))
    (tmp_path / "least.py").write_text("LEAST = 500\n")
    status, found = reproduced(run.path, "--trust-code")
    assert [one["kind"] for one in found["changes"]] == ["code"]
    assert found["changes"][0]["text"].startswith("least.py was ")
    assert (status, found["first"], found["step"]) == (4, "code", None)
    assert (found["outcome"], found["metric"], found["same_weights"]) == ("different", "pass_at_1", True)
    again = CliRunner().invoke(main, ["reproduce", str(run.path), "--trust-code", "--output", str(tmp_path / "new")])
    assert "the same weights in every bit" in " ".join(again.stdout.split())
