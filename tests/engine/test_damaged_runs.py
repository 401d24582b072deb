"""A run whose trained part or records are not what they were is refused by all that read them, by the file's name."""

import json
import random
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from expected import raises
from runs import Heard

from ftengine import Recipe, fine_tune, load_run
from ftengine.engine.chat import Chat
from ftengine.engine.export import export_run
from ftengine.engine.reproduce import reproduce
from ftengine.engine.subprocess_runs import Child, train_unfinished
from ftengine.engine.variants import variants
from ftengine.errors import RunError
from ftengine.report.write import verdict_of, write_report
from ftengine.run.directory import RunDirectory
from ftengine.run.seal import Seal, is_sealed, require_sealed
from ftengine.training.checkpoint import load_best, save_best
from ftengine_builtins.exporters import PeftExporter

ROW = {"messages": [{"role": "user", "content": "my screen is very slow"}]}
WEIGHTS = "adapter_model.safetensors"


@pytest.fixture
def run(served_run, tmp_path):
    """A copy of a finished run."""
    return Path(shutil.copytree(served_run, tmp_path / "run"))


def flip_bits(file, count=200):
    """Flip some bits of a safetensors file behind its header."""
    content, draw = bytearray(file.read_bytes()), random.Random(0)
    begin = 8 + int.from_bytes(content[:8], "little")
    for _ in range(count):
        content[draw.randrange(begin, len(content))] ^= 1 << draw.randrange(8)
    file.write_bytes(content)


def talk(run):
    with Chat(run, {}) as conversation:
        conversation.answer("hello", "tuned", lambda piece: None)


def start_from(run, build):
    strategy = {"name": "lora", "start_from": str(run.trained)}
    fine_tune(build(strategy=strategy, train__max_steps=1, output=str(run.path.parent / "second")))


def open_model(run):
    with run.model():
        pass


def open_variants(run):
    with variants(run):
        pass


OPEN = {
    "predict": lambda run, build: list(run.predict([ROW])),
    "model": lambda run, build: open_model(run),
    "evaluate": lambda run, build: run.evaluate(),
    "merge": lambda run, build: run.merge(run.path.parent / "out"),
    "chat": lambda run, build: talk(run),
    "export": lambda run, build: export_run(run, PeftExporter(), run.path.parent / "out"),
    "reproduce": lambda run, build: reproduce(run, run.path.parent / "out"),
    "verify": lambda run, build: open_variants(run),
    "start_from": start_from,
}


@pytest.mark.parametrize("opened", OPEN)
def test_a_damaged_trained_part_opens_nowhere(run, build_chat_recipe, opened):
    flip_bits(run / "adapter" / WEIGHTS)
    with raises(RunError, str(run / "adapter"), WEIGHTS, "has changed"):
        OPEN[opened](load_run(run), build_chat_recipe)
    assert {path.name for path in run.parent.iterdir()} <= {"run"}


def test_edited_facts_of_a_trained_part_open_nowhere(run):
    file = run / "adapter" / "ftengine.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"calibration": {"temperature": 2.0}}))
    with raises(RunError, "adapter/ftengine.json has changed"):
        list(load_run(run).predict([ROW]))


@pytest.mark.slow
def test_a_damaged_model_is_no_base(label_recipe, tmp_path):
    run = fine_tune(label_recipe(train__max_steps=1))
    flip_bits(run.trained / "model.safetensors")
    with raises(RunError, "model.safetensors has changed"):
        fine_tune(label_recipe(model__source=str(run.trained), output=str(tmp_path / "second")))


def records(run):
    """Return the names of a run's sealed records."""
    return sorted(Seal.read(RunDirectory(run)).sha256)


READ = {
    "reproduce": lambda run: reproduce(load_run(run), run.parent / "out"),
    "evaluators": lambda run: load_run(run).evaluate(evaluators=["perplexity"]),
    "export": lambda run: export_run(load_run(run), PeftExporter(), run.parent / "out"),
    "report": lambda run: write_report([run]),
    "conclude": lambda run: load_run(run).conclude(),
    "verdict": verdict_of,
    "compare": lambda run: train_unfinished([Child("a", Recipe.read(run / "recipe.yaml"))], [None], Heard()),
}


@pytest.mark.parametrize("name", READ)
def test_an_edited_recipe_is_refused_by_all_that_go_by_it(run, name):
    """Without its seal, as a run of an older version is, it is taken as it is."""
    content = yaml.safe_load((run / "recipe.yaml").read_text())
    (run / "recipe.yaml").write_text(yaml.safe_dump(content | {"seed": 7, "output": str(run)}))
    with raises(RunError, str(run), "recipe.yaml has changed", "seal.json"):
        READ[name](run)
    assert {path.name for path in run.parent.iterdir()} <= {"run"}


def test_every_edited_or_missing_record_is_named(run):
    """But tables of predictions may be removed, which take room."""
    for name in records(run):
        content = (run / name).read_bytes()
        (run / name).write_bytes(content + b"\n")
        with raises(RunError, name, "changed"):
            require_sealed(RunDirectory(run))
        (run / name).unlink()
        if not name.startswith("predictions/"):
            with raises(RunError, name, "missing"):
                require_sealed(RunDirectory(run))
        (run / name).write_bytes(content)
    require_sealed(RunDirectory(run))


def test_what_ftengine_writes_itself_is_sealed_anew_and_no_seal_is_none(run):
    before = Seal.read(RunDirectory(run))
    load_run(run).evaluate(evaluators=["perplexity"])
    load_run(run).conclude()
    write_report([run])
    after, heard = Seal.read(RunDirectory(run)), Heard()
    assert before.sha256.keys() == after.sha256.keys()
    assert before.sha256["recipe.yaml"] == after.sha256["recipe.yaml"]
    load_run(run, listener=heard)
    assert heard.said == []
    (run / "seal.json").unlink()
    (run / "audit.json").write_text((run / "audit.json").read_text() + " ")
    assert load_run(run).conclude() == verdict_of(run)
    assert not is_sealed(RunDirectory(run))


def test_damaged_best_weights_are_not_taken(tmp_path):
    run, module = RunDirectory(tmp_path), torch.nn.Linear(8, 8)
    run.checkpoints.mkdir()
    save_best(run, module)
    load_best(run, module)
    flip_bits(run.checkpoints / "best.safetensors", 1)
    with raises(RunError, "best.safetensors"):
        load_best(run, module)
