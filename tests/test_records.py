"""A run's records: what one writes, it reads; what is damaged or of another version is refused by file and field."""

import json
import shutil

import pytest

from ftengine import Recipe, fine_tune
from ftengine.errors import RunError
from ftengine.run.directory import RunDirectory
from ftengine.run.records import AuditResult, Environment, EvaluationResult, Examples, RunRecords, TrainingResult


@pytest.fixture(scope="module")
def finished(tmp_path_factory, bert_folder):
    folder = tmp_path_factory.mktemp("records")
    rows = [
        {"text": f"{'good' if i % 2 else 'bad'} film {i}", "label": "ab"[i % 2], "genre": "xy"[i % 3 % 2]}
        for i in range(48)
    ]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    recipe = {
        "model": {"source": str(bert_folder)},
        "task": {"name": "text-classification"},
        "strategy": {"name": "lora"},
        "data": {"train": str(folder / "rows.jsonl"), "validation": 0.25, "test": 0.25},
        "train": {"epochs": 2, "batch_size": 8},
        "evaluation": {"slices": ["genre"], "resamples": 100},
        "output": str(folder / "run"),
    }
    return fine_tune(Recipe.make(recipe)).path


def test_a_run_is_read_as_it_was_written(finished):
    records = RunRecords.read(finished)
    figures = json.loads((finished / "evaluation.json").read_text())
    metric = next(iter(figures["tuned"]))
    assert records.headline_metric == metric
    assert records.evaluation.tuned[metric].value == figures["tuned"][metric]["value"]
    assert records.evaluation.slices["genre"].slices[0].examples > 0
    assert records.evaluation.metrics["ece"].kind == "calibration"
    gain = records.evaluation.details.tuned["classification"]["baseline"]["gains"]["accuracy"]
    assert gain["low"] <= gain["value"] <= gain["high"]
    assert len(records.steps) == records.training.steps == 6
    assert [line.step for line in records.validations] == [3, 6]
    assert records.kept_step == records.training.best_step
    assert records.trained.labels.names == ("a", "b")
    assert records.environment.base == records.trained.base


@pytest.mark.parametrize("record", [AuditResult, Environment, TrainingResult, EvaluationResult, Examples])
def test_what_is_read_is_written_again_alike(finished, tmp_path, record):
    record.read(RunDirectory(finished)).write(RunDirectory(tmp_path))
    assert (tmp_path / record.file).read_bytes() == (finished / record.file).read_bytes()


@pytest.mark.parametrize(
    ("file", "change", "told"),
    [
        ("training.json", lambda content: content.pop("steps"), "steps: Field required"),
        ("evaluation.json", lambda content: content.pop("metrics"), "metrics: Field required"),
        ("environment.json", lambda content: content["precision"].update(compute=3), "precision.compute"),
        ("audit.json", lambda content: content.update(warnings=[]), "warnings: Extra inputs"),
    ],
)
def test_another_layout_is_refused_by_file_and_field(finished, tmp_path, file, change, told):
    run = tmp_path / "run"
    shutil.copytree(finished, run)
    content = json.loads((run / file).read_text())
    change(content)
    (run / file).write_text(json.dumps(content))
    with pytest.raises(RunError) as error:
        RunRecords.read(run)
    assert file in str(error.value)
    assert told in str(error.value)
    assert "\n" not in str(error.value)
