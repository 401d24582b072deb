"""Which code what is kept depends on: ftengine's own by its files, libraries by their versions, and no other."""

import importlib

import pytest
from torch import nn
from transformers import LlamaModel

from ftengine.api import Task
from ftengine.run import own_code
from ftengine.run.own_code import code_of
from ftengine_builtins.tasks.causal_lm import CausalLM


def test_own_code_is_known_by_files_and_libraries_by_versions():
    known = code_of([CausalLM, LlamaModel, nn.Linear])
    assert {"ftengine/api/task.py", "ftengine_builtins/tasks/causal_lm.py"} <= set(known["files"])
    assert {"torch", "transformers", "python"} <= set(known["versions"])
    assert {"pyarrow", "scikit-learn", "sacrebleu"} <= set(known["required"])


@pytest.mark.parametrize("what", ["versions", "required_versions"])
def test_another_version_is_other_code(monkeypatch, what):
    before = code_of([Task])
    monkeypatch.setattr(own_code, what, lambda *_: {"torch": "0.1"})
    assert code_of([Task]) != before


def test_a_changed_file_of_ftengine_is_other_code(monkeypatch):
    before = code_of([Task])
    monkeypatch.setattr(own_code, "file_hash", lambda file: "another")
    assert code_of([Task])["files"].keys() == before["files"].keys()
    assert code_of([Task]) != before


def test_other_code_is_not_known(tmp_path, monkeypatch):
    """Not even where it lies in a package: what that imports and reads is not known."""
    (tmp_path / "another_package").mkdir()
    (tmp_path / "another_package" / "__init__.py").write_text(
        "from ftengine_builtins.tasks.causal_lm import CausalLM\nclass Another(CausalLM): pass\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    assert code_of([importlib.import_module("another_package").Another]) is None

    class Local(CausalLM):
        pass

    assert code_of([Local]) is None
    assert code_of([type("Made", (nn.Linear,), {})]) is None
