"""What the base said in an earlier run: the same bits, and only where all that they depend on is equal."""

import json

import pytest
import torch
from runs import without_drawings  # noqa: F401
from torch import nn

from ftengine import fine_tune, load_run
from ftengine.api import SilentListener
from ftengine.engine.base_predictions import keys_of
from ftengine.engine.evaluation_plan import evaluation_plan
from ftengine.engine.experiment import Experiment
from ftengine.engine.prepared_data import prepare_data
from ftengine.engine.prepared_model import load_base, place_base
from ftengine.identity.cache import cache_folder
from ftengine.ops.library import onednn_from, use_onednn
from ftengine.parallel.device import Device


class Heard(SilentListener):
    def __init__(self):
        self.base, self.said = [], []

    def phase(self, name, total=None):
        self.base += [name] if name.startswith("evaluate base") else []

    def message(self, text):
        self.said += [text] if "earlier run" in text else []


@pytest.fixture
def reusing(chat_recipe, tmp_path, monkeypatch):
    monkeypatch.setenv("FTENGINE_CACHE", str(tmp_path / "own"))
    brief = {"train__max_steps": 1, "evaluation__answers": 2, "evaluation__training_sample": 200}
    brief |= {"evaluation__generate": {"temperature": 1.0}}
    return lambda **changes: chat_recipe(**{"evaluation__reuse_base": True, **brief, **changes})


@pytest.fixture
def trained(reusing, tmp_path):
    """Train, and return who heard of it and the base's tables."""

    def train(name, **changes):
        heard, output = Heard(), tmp_path / name
        fine_tune(reusing(output=str(output), **changes), listener=heard)
        return heard, {file.name: file.read_bytes() for file in (output / "predictions").glob("*-base.parquet")}

    return train


@pytest.mark.slow
def test_another_strategy_takes_what_the_base_answered_and_it_is_the_same_to_the_bit(trained, tmp_path):
    first, tables = trained("first")
    assert len(first.base) == 3
    assert not first.said
    again, same = trained("again", strategy__rank=2, train__learning_rate=0.1, evaluation__resamples=200)
    assert (again.base, len(again.said)) == ([], 1)
    assert "predictions of 16 examples and answers to 2 examples from an earlier run" in again.said[0]
    anew, measured = trained("anew", evaluation__reuse_base=False)
    assert len(anew.base) == 3
    assert same == measured == tables
    assert set(tables) == {"answers-base.parquet", "training-base.parquet", "validation-base.parquet"}
    heard = Heard()  # and so does `evaluate`, whose examples are the same
    load_run(tmp_path / "again", listener=heard).evaluate()
    assert heard.base == []
    # One set changes: the others are as they were, whatever was drawn for that.
    further, part = trained("further", evaluation__training_sample=7)
    assert further.base == ["evaluate base on training sample"]
    assert {**part, "training-base.parquet": b""} == {**tables, "training-base.parquet": b""}


@pytest.mark.slow
@pytest.mark.parametrize("spoilt", ["table", "facts"])
def test_damaged_tables_are_made_anew(trained, spoilt):
    _, tables = trained("first")
    entries = list(cache_folder().glob("base-*"))
    assert len(entries) == 3
    for entry in entries:
        if spoilt == "table":
            (entry / "rows.arrow").write_bytes((entry / "rows.arrow").read_bytes()[:-1] + b"?")
        else:
            (entry / "facts.json").write_text(json.dumps({"hash": 1}))
    heard, same = trained("again")
    assert len(heard.base) == 3
    assert not heard.said
    assert same == tables


def keys(recipe, change=lambda module: None):
    data = prepare_data(Experiment.open(recipe))
    device, loaded = Device.open(recipe), load_base(data.ready)
    place_base(device, data.ready, loaded)
    with torch.no_grad():
        change(loaded.module)
    plan = evaluation_plan(data)
    return keys_of(device, data.ready, loaded, plan)


@pytest.mark.slow
def test_what_the_base_might_say_otherwise_has_another_key(reusing, monkeypatch):
    known = keys(reusing())
    assert set(known) == {("validation", "read"), ("training", "read"), ("answers", "answered")}
    assert keys(reusing(strategy__rank=2, train__epochs=1)) == known

    def change_a_bit(module):
        weight = module.model.norm.weight
        weight[0] = torch.nextafter(weight[0], weight[0] + 1)

    monkeypatch.setenv("OMP_PLACES", "cores")
    elsewhere = keys(reusing())
    monkeypatch.delenv("OMP_PLACES")
    others = [
        elsewhere,
        keys(reusing(), change_a_bit),
        keys(reusing(), lambda module: setattr(module.config, "rope_parameters", {"rope_theta": 1.0})),
        keys(reusing(strategy="full", train__precision="bfloat16")),
        keys(reusing(train__batch_size=4)),
        keys(reusing(evaluation__batch_size=reusing().train.batch_size)),  # without larger batches of shorter ones
        keys(reusing(seed=1)),
        keys(reusing(task={"name": "causal-lm", "train_on": "all"})),
    ]
    with use_onednn() if onednn_from() else use_onednn(1):
        others.append(keys(reusing()))
    for name in known:
        assert len({found[name] for found in [known, *others]}) == 10, name
    options = keys(reusing(evaluation__generate={"temperature": 0.5}))
    assert [name for name in known if options[name] != known[name]] == [("answers", "answered")]


class Own(nn.Linear):
    """A layer whose code is no installed package's."""


def test_a_model_of_code_that_may_change_unseen_is_measured_in_every_run(reusing, llama_folder, tmp_path, monkeypatch):
    assert keys(reusing(), lambda module: module.add_module("own", Own(1, 1))) == {}
    (tmp_path / "models_of_ones_own.py").write_text(
        "from transformers import AutoModelForCausalLM, AutoTokenizer\n"
        f"WHERE = {str(llama_folder)!r}\n"
        "def build(): return AutoModelForCausalLM.from_pretrained(WHERE), AutoTokenizer.from_pretrained(WHERE)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    assert keys(reusing(model={"source": "models_of_ones_own:build", "loader": "callable"})) == {}
    assert keys(reusing(evaluation__reuse_base=False)) == {}
