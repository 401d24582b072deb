"""The user's own code builds the model, when the recipe says so by name."""

from __future__ import annotations

import importlib
import sys

import pytest
import torch
from expected import raises

from ftengine.api import Labels, LoadRequest
from ftengine.errors import DataError, SourceError
from ftengine_builtins.loaders.callable import CallableLoader

LABELS = Labels("single", ("no", "yes"))

CODE = """
from torch import nn
from ftengine.api import (Labels, LoadedModel)
from ftengine.errors import DataError

calls = []
number = 7

def alone():
    calls.append("alone")
    return nn.Linear(4, 2)

def pair():
    calls.append("pair")
    return nn.Linear(4, 2), "processor"

def asked(request):
    calls.append(request)
    outputs = len(request.labels.names) if request.labels else 1
    return nn.Linear(4, outputs), "processor"

def optional(size=4, *, request=None):
    return nn.Linear(size, 2)

def preferred(request=None):
    return nn.Linear(4, 2), request.source

class Built(nn.Module):
    def __init__(self, size=4):
        super().__init__()
        self.layer = nn.Linear(size, 2)

def complete(request):
    return LoadedModel(nn.Linear(4, 2), "processor", "elsewhere", "sequence-classification",
                       new_modules=("score",), max_length=9)

def other_head():
    return LoadedModel(nn.Linear(4, 2), None, "", "causal-lm")

def other_labels():
    return LoadedModel(nn.Linear(4, 2), None, "", "sequence-classification", labels=Labels("single", ("yes", "no")))

def nothing():
    return None

def wrong_pair():
    return "processor", nn.Linear(4, 2)

def greedy(a, b):
    return nn.Linear(a, b)

def failing():
    raise ZeroDivisionError("divided by\\nzero")

def complaining():
    raise DataError("my own words")
"""


@pytest.fixture
def code(tmp_path, monkeypatch):
    """The module `my_models` in the working directory, which is not on the search path."""
    (tmp_path / "my_models.py").write_text(CODE)
    (tmp_path / "broken_models.py").write_text("import there_is_no_such_module")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [place for place in sys.path if place not in ("", str(tmp_path))])
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    importlib.invalidate_caches()
    before = list(sys.path)
    yield
    assert sys.path == before
    for name in ("my_models", "broken_models"):
        sys.modules.pop(name, None)


def load(name: str, loader: CallableLoader | None = None, source: str | None = None):
    request = LoadRequest(source or f"my_models:{name}", "sequence-classification", LABELS)
    return (loader or CallableLoader()).load(request)


def calls() -> list:
    return sys.modules["my_models"].calls


def test_accepts_nothing_by_itself(code) -> None:
    assert not CallableLoader().accepts("my_models:alone")
    assert "my_models" not in sys.modules


def test_module_alone_has_no_processor(code) -> None:
    loaded = load("alone")
    assert isinstance(loaded.module, torch.nn.Linear)
    assert loaded.processor is None
    assert (loaded.source, loaded.head, loaded.labels) == ("my_models:alone", "sequence-classification", LABELS)


def test_processor_and_model_come_from_one_call(code) -> None:
    loader = CallableLoader()
    assert loader.load_processor("my_models:pair") == "processor"
    assert load("pair", loader).processor == "processor"
    assert calls() == ["pair"]


def test_request_is_passed_to_a_function_that_takes_it(code) -> None:
    loader = CallableLoader()
    assert loader.load_processor("my_models:asked") == "processor"
    assert load("asked", loader).module.out_features == 2
    first, second = calls()
    assert (first.head, first.labels) == ("", None)
    assert (second.head, second.labels) == ("sequence-classification", LABELS)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("my_models", "takes module:function"),
        ("my_models:", "takes module:function"),
        ("my models:f", "takes module:function"),
        ("my_modles:alone", "'my_modles'"),
        ("broken_models:f", "there_is_no_such_module"),
        ("my_models:aloen", "'alone'"),
        ("my_models:number", "type int"),
        ("my_models:nothing", "NoneType"),
        ("my_models:wrong_pair", "(str, Linear)"),
        ("my_models:greedy", "a, b"),
        ("my_models:failing", "ZeroDivisionError"),
        ("my_models:other_head", "'sequence-classification'"),
        ("my_models:other_labels", "Labels("),
    ],
)
def test_wrong_sources_are_refused(code, source, message) -> None:
    with raises(SourceError, message) as caught:
        load("", source=source)
    assert "\n" not in str(caught.value)


def test_errors_meant_for_the_user_pass_through(code) -> None:
    with raises(DataError, "my own words"):
        load("complaining")
