"""The page's table of what opens what is true: each folder opens there, with ftengine's outputs."""

from __future__ import annotations

import os

import pytest
import torch
from opens_in import MODELS, NOWHERE, STRATEGIES, prepared, registry, save, told, write
from peer_models import fresh, outputs
from peer_programs import PROGRAMS, assert_same, claimed

from ftengine.errors import NoMatch, RecipeError
from ftengine.model.saving import load_part

if os.environ.get("FTENGINE_WRITE_TABLE"):
    write()

OFTEN = {
    *(("`prefix`", "gpt2"), ("`prefix`", "bert"), ("`prompt`", "t5"), ("`lora`", "bert"), ("`adapter`", "resnet")),
    *(("`full`", "bert"), ("`lora`, merged", "timm"), ("`lora`, merged", "gpt2"), ("`bitfit`", "bart")),
}
"""One of each kind, for `make test`."""
CELLS = [
    pytest.param(column, name, marks=() if (column, name) in OFTEN else pytest.mark.slow)
    for column in STRATEGIES
    for name in MODELS
]


@pytest.fixture(scope="module")
def found():
    return registry()


@pytest.mark.parametrize(("column", "name"), CELLS)
def test_a_folder_opens_where_the_page_says(column, name, found, tmp_path):
    program = told()[column, name]
    if program == NOWHERE:
        with pytest.raises((NoMatch, RecipeError)):
            save(column, name, tmp_path, found)
        return
    ours = save(column, name, tmp_path, found)
    assert claimed(tmp_path) == program
    if program in PROGRAMS:
        opened = PROGRAMS[program](name, tmp_path)
        assert_same(ours, outputs(name, opened), outputs(name, fresh(name)))
    else:
        strategy, model = prepared(STRATEGIES[column], name, found)
        load_part(strategy, model, tmp_path)
        assert torch.equal(outputs(name, model.module), ours)


def test_the_page_has_every_model_and_strategy():
    assert told().keys() == {(column, name) for column in STRATEGIES for name in MODELS}
