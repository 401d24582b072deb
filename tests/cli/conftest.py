"""One tiny run made by the command line, which the other commands then read."""

import json
import sys
from pathlib import Path

import pytest
import yaml
from cli_samples import HOSTILE
from click.testing import CliRunner

from ftengine.cli import main


@pytest.fixture(scope="session")
def ftengine():
    """Call the command line in this process: `ftengine("plan", recipe)` returns click's result."""

    def call(*args, code=0):
        result = CliRunner().invoke(main, [str(arg) for arg in args], prog_name="ftengine")
        assert result.exit_code == code, f"exit {result.exit_code}: {result.stderr}{result.stdout}"
        return result

    return call


@pytest.fixture
def distribution(tmp_path, monkeypatch):
    """Install a distribution of one module for the length of a test."""

    def install(body, entry_points, name="ftengine-thing", module="ftengine_thing", requires="ftengine"):
        (tmp_path / f"{module}.py").write_text(body)
        info = tmp_path / f"{module}-1.2.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(
            f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.2\nRequires-Dist: {requires}\n"
        )
        (info / "entry_points.txt").write_text(entry_points)
        monkeypatch.syspath_prepend(tmp_path)
        monkeypatch.delitem(sys.modules, module, raising=False)
        monkeypatch.setattr(main, "_external", None)

    yield install
    main._external = None


@pytest.fixture(scope="session")
def chat_rows(tmp_path_factory) -> Path:
    """40 small conversations with hostile text in each."""
    rows = [
        {
            "messages": [
                {"role": "user", "content": f"What is {i} and {i + 1}? {HOSTILE}" + " please" * (i % 5)},
                {"role": "assistant", "content": f"It is {2 * i + 1}. {HOSTILE}"},
            ]
        }
        for i in range(40)
    ]
    file = tmp_path_factory.mktemp("chat") / "chat.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


@pytest.fixture(scope="session")
def recipe(llama_folder, chat_rows, tmp_path_factory) -> Path:
    """A recipe for the tiny Llama whose output lies beside it."""
    folder = tmp_path_factory.mktemp("recipe")
    content = {
        "model": {"source": str(llama_folder)},
        "task": "causal-lm",
        "data": {"train": str(chat_rows), "validation": 0.2},
        "strategy": {"name": "lora", "rank": 4},
        "train": {"epochs": 1, "batch_size": 8, "learning_rate": 0.01, "precision": "float32"},
        "evaluation": {"resamples": 100, "generate": {"max_new_tokens": 4}},
        "output": str(folder / "run"),
    }
    file = folder / "recipe.yaml"
    file.write_text(yaml.safe_dump(content))
    return file


@pytest.fixture(scope="session")
def trained(ftengine, recipe):
    """What `ftengine train` printed; its run is `run`."""
    return ftengine("train", recipe)


@pytest.fixture(scope="session")
def run(trained, recipe) -> Path:
    """The folder of a finished run."""
    return recipe.parent / "run"
