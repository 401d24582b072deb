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


def told_calls(heading, index=0):
    found = [one for one in tables(LIFECYCLE) if one.heading == heading]
    return [(code(row[0])[0], row[1]) for row in found[index].rows]


BEFORE = "Before the weights are read"


@pytest.mark.parametrize("command", ["plan", "train"])
def test_the_order_of_calls_is_told_from_the_recipe_to_the_end(calls, command):
    first = told_calls(BEFORE)
    made = [(name, holds.partition(" / ")[0] if name == "task.set_model" else holds) for name, holds in calls[command]]
    assert made == first + told_calls(f"`ftengine {command}`")


@pytest.mark.parametrize(
    ("command", "heading", "index"),
    [
        ("evaluate", "`ftengine evaluate`", 0),
        ("evaluate --evaluators", "`ftengine evaluate`", 1),
        ("predict", "`ftengine predict`", 0),
        ("merge", "`ftengine merge`", 0),
    ],
)
def test_the_order_of_calls_on_a_finished_run_is_told(calls, command, heading, index):
    assert calls[command] == told_calls(heading, index)


def test_a_resumed_run_calls_what_a_new_one_does_and_takes_back_what_was_kept(calls):
    resumed, whole = dict(calls["train --resume"]), dict(calls["train"])
    assert resumed.keys() == (whole.keys() | {"regularizer 2.load_state_dict"}) - {"reader.read"}
    order = list(resumed)
    assert order.index("regularizer 2.load_state_dict") + 1 == order.index("callback.on_event(Started)")


def test_compare_checks_each_strategy_and_loads_no_weights_itself(calls):
    made = {re.sub(r" \d+", "", name) for name, _ in calls["compare"]}
    assert made == {name for name, _ in told_calls(BEFORE)}
    assert [name for name, _ in calls["compare"] if "reader" in name] == ["reader.read"]


def test_the_version_of_the_contract_is_told():
    assert f'`"{api.VERSION}"`' in LIFECYCLE.read_text(encoding="utf-8")
