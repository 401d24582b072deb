"""Features kept on disk: the same as those that are made anew, and made anew where anything may be another."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
from expected import raises

from ftengine.api import Labels, SilentListener
from ftengine.data.encoding import encode_split
from ftengine.data.features import features_key
from ftengine.data.read import read_rows
from ftengine.errors import DataError
from ftengine.identity import cache
from ftengine.model.token_loss import TokenLoss
from ftengine.testing.models import byte_level_tokenizer
from ftengine_builtins.tasks.causal_lm import CausalLM, CausalLMConfig
from ftengine_builtins.tasks.text_classification import TextClassification

TALK = [{"role": "user", "content": "hello"}, {"role": "assistant", "content": "yes"}]
ROWS = [{"messages": TALK}, {"messages": [{**TALK[0], "content": "again?"}, TALK[1]]}]
SILENT = {"messages": TALK[:1]}


@pytest.fixture(scope="module")
def processor():
    return byte_level_tokenizer(pad_token="<|endoftext|>")


@pytest.fixture
def rows(write, tmp_path, monkeypatch):
    monkeypatch.setenv("FTENGINE_CACHE", str(tmp_path / "own"))
    return lambda rows: read_rows(write("rows.jsonl", "".join(json.dumps(row) + "\n" for row in rows)))


@pytest.fixture
def times(monkeypatch):
    """Count the rows that are encoded."""
    counted, encode = [], CausalLM.encode
    monkeypatch.setattr(CausalLM, "encode", lambda *a, **k: counted.append(1) or encode(*a, **k))
    return counted


def encoded(rows, processor, *, task=None, on_error="skip"):
    return encode_split("train", rows, task or CausalLM(), processor, 64, on_error=on_error, listener=SilentListener())


def test_a_row_is_encoded_once_for_all_batches_and_runs(rows, processor, times):
    first = encoded(rows([*ROWS, SILENT]), processor)
    batches = [first.batch(np.arange(2), epoch) for epoch in (None, 0, 1)]
    again = encoded(rows([*ROWS, SILENT]), processor)
    assert len(times) == 3
    assert again.summary() == first.summary()
    assert list(again.skipped.values()) == list(first.skipped.values()) != []
    anew = first.task.collate([CausalLM().encode(row, processor, max_length=64) for row in ROWS], processor)
    for batch in [*batches, again.batch(np.arange(2))]:
        assert all(batch[key].equal(anew[key]) for key in anew)
    with raises(DataError, "rows.jsonl:3", "on_error=skip"):
        encoded(rows([*ROWS, SILENT]), processor, on_error="fail")


@pytest.mark.parametrize("spoilt", [b"", b"not what was written"])
def test_damaged_features_are_made_anew(rows, processor, times, spoilt):
    first = encoded(rows(ROWS), processor)
    key = features_key(first.content, first.task, processor, 64)
    (cache.cache_folder() / key / "rows.arrow").write_bytes(spoilt)
    assert encoded(rows(ROWS), processor).summary() == first.summary()
    assert len(times) == 4


def test_features_that_json_does_not_give_back_are_made_anew(rows, processor, monkeypatch):
    encode = CausalLM.encode

    def some_are_tuples(self, example, *a, **k):
        features = encode(self, example, *a, **k)
        if example != ROWS[0]:
            features.inputs["labels"] = tuple(features.inputs["labels"])
        return features

    monkeypatch.setattr(CausalLM, "encode", some_are_tuples)
    split = encoded(rows(ROWS), processor)
    assert len(split) == 2
    assert [type(split.features(i).inputs["labels"]) for i in range(2)] == [list, tuple]
    assert not list(cache.cache_folder().glob("*.tmp"))


def test_what_may_encode_otherwise_has_another_key(processor, tmp_path):
    def key(content="a", task=None, processor=processor, max_length=64):
        return features_key(content, task or CausalLM(), processor, max_length)

    other = byte_level_tokenizer(pad_token="<|endoftext|>")
    other.chat_template = other.chat_template + " "
    added = byte_level_tokenizer(pad_token="<|endoftext|>")
    added.add_tokens(["hello"])
    labelled = [TextClassification(), TextClassification(), TextClassification()]
    for task, names in zip(labelled, ("ab", "ba", "ab"), strict=True):
        task.labels = Labels("single", tuple(names))
    other_keys = [
        *(key(task=task) for task in labelled),
        key("b"),
        key(task=CausalLM(CausalLMConfig(train_on="all"))),
        key(max_length=32),
        key(processor=other),
        key(processor=added),
    ]
    assert key() == key(processor=byte_level_tokenizer(pad_token="<|endoftext|>"))
    assert len({key(), *other_keys}) == 8


def test_features_of_code_that_may_change_unseen_are_not_kept(processor):
    class Own(CausalLM):
        pass

    assert features_key("a", Own(), processor, 64) is None
    assert features_key("a", CausalLM(), object(), 64) is None

    def key(value):
        task = CausalLM()
        task.own = value
        return features_key("a", task, processor, 64)

    for value in (np.ones(2), SimpleNamespace(a=1), {("a", "b"): 1}, lambda text: text):
        assert key(value) is None
    assert None not in (one := [key(TokenLoss(ahead)) for ahead in (0, 1, 1)])
    assert one[0] != one[1] == one[2]
