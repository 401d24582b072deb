"""A proof whose program times out or ends says that it cannot tell, and leaves the files, marked."""

import json
import os
import socket
from contextlib import contextmanager
from types import SimpleNamespace

import pytest
from click.testing import CliRunner
from expected import raises

from ftengine.api import Prompt, Runtime
from ftengine.cli import main
from ftengine.errors import ProgramFailed
from ftengine_builtins.exporters import PeftExporter, llama_cpp


class Hanging(Runtime):
    """A program that never answers."""

    name = "hanging 1.0"

    def encode(self, prompt):
        return prompt.ids

    def log_probabilities(self, ids, answer):
        raise TimeoutError("timed out")


@pytest.fixture
def hanging(monkeypatch):
    @contextmanager
    def open_(self, folder, source):
        yield Hanging()

    monkeypatch.setattr(PeftExporter, "open", open_)


def test_a_proof_that_times_out_leaves_the_files_marked(served_run, tmp_path, hanging):
    out = tmp_path / "out"
    result = CliRunner().invoke(main, ["export", str(served_run), "--to", "peft", str(out), "--rows", "2", "--json"])
    made = json.loads(result.stdout)
    assert (result.exit_code, made["proof"], made["cannot_tell"]) == (5, None, True), result.output
    assert "timed out" in made["unproven"]
    assert json.loads((out / "manifest.json").read_text())["cannot_tell"] is True
    assert (out / "adapter_model.safetensors").is_file()
    card = (out / "README.md").read_text()
    assert "timed out" in card
    assert str(served_run) not in card
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_an_export_without_proof_is_not_pushed(served_run, tmp_path, hanging, monkeypatch):
    monkeypatch.setattr("ftengine.engine.push.require_access", lambda name: None)
    asked = ["export", str(served_run), "--to", "peft", str(tmp_path / "out"), "--rows", "2", "--push", "me/support"]
    result = CliRunner().invoke(main, asked)
    assert (result.exit_code, "not pushed" in result.stderr) == (2, True), result.output


def test_llama_cpp_that_does_not_answer_is_no_difference(monkeypatch):
    monkeypatch.setattr(llama_cpp, "PATIENCE", 0.1)
    monkeypatch.setattr(llama_cpp, "version", lambda name: "1.0")
    with socket.create_server(("127.0.0.1", 0)) as silent:
        server = llama_cpp.LlamaCpp(f"http://127.0.0.1:{silent.getsockname()[1]}")
        with raises(ProgramFailed, "0.1 s", "'completion'"):
            server.answer(Prompt([1], text="Hi"), 4)
    with raises(ProgramFailed, "refused"):
        server.answer(Prompt([1], text="Hi"), 4)


@pytest.mark.parametrize(
    ("ends", "facts"),
    [("os._exit(9)", ["status 9"]), ("raise MemoryError('no room')", ["status 1", "no room"])],
)
def test_a_file_that_ends_llama_cpp_does_not_end_the_export(tmp_path, monkeypatch, ends, facts):
    (tmp_path / "xllamacpp.py").write_text(f"import os\n\n\ndef CommonParams():\n    {ends}\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")]))
    with raises(ProgramFailed, *facts), llama_cpp.served(tmp_path / "model.gguf", SimpleNamespace(max_length=8)):
        pass
