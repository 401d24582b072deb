"""docs/plugins/lifecycle.md has the order in which commands call components, and what holds then, as recorded."""

import re

import docs_lifecycle
import pytest
from docs_commands import ROOT, code, tables

from ftengine import api

LIFECYCLE = ROOT / "docs" / "plugins" / "lifecycle.md"


@pytest.fixture(scope="module")
def calls(tmp_path_factory):
    """What each command calls first, and what held then."""
    return {
        command: list(docs_lifecycle.first_calls(made).items())
        for command, made in docs_lifecycle.recorded(tmp_path_factory.mktemp("lifecycle")).items()
    }


def documented(heading, index=0):
    found = [one for one in tables(LIFECYCLE) if one.heading == heading]
    return [(code(row[0])[0], row[1]) for row in found[index].rows]


BEFORE = documented("Before the weights are read")
ORDER = {
    "plan": BEFORE + documented("`ftengine plan`"),
    "train": BEFORE + documented("`ftengine train`"),
    "evaluate": documented("`ftengine evaluate`"),
    "evaluate --evaluators": documented("`ftengine evaluate`", 1),
    "predict": documented("`ftengine predict`"),
    "merge": documented("`ftengine merge`"),
}


@pytest.mark.slow
@pytest.mark.parametrize("command", ORDER)
def test_what_is_documented_is_called_in_that_order_and_under_those_conditions(calls, command):
    names = {name for name, _ in ORDER[command]}
    assert [(name, holds) for name, holds in calls[command] if name in names] == ORDER[command]


@pytest.mark.slow
def test_a_resumed_run_takes_back_what_was_kept_before_it_starts(calls):
    order = [name for name, _ in calls["train --resume"]]
    taken_back = order.index("regularizer 2.load_state_dict")
    assert order[taken_back + 1 : taken_back + 3] == ["regularizer 2.state_dict", "callback.on_train_begin"]


@pytest.mark.slow
def test_compare_checks_each_strategy_and_loads_no_weights_itself(calls):
    made = {re.sub(r" \d+", "", name) for name, _ in calls["compare"]}
    assert made >= {name for name, _ in BEFORE}
    assert not made & {"loader.load", "task.predict", "task.loss"}
    assert [name for name, _ in calls["compare"] if "reader" in name] == ["reader.read"]


def test_the_version_of_the_contract_is_documented():
    assert f'`"{api.VERSION}"`' in LIFECYCLE.read_text(encoding="utf-8")
