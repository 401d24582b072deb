"""`plugins list` and `plugins show` tell what is installed, also beside something broken."""

import json
import re

import pytest
from cli_samples import ENTRY, strategy
from expected import golden

from ftengine import __version__
from ftengine.plugins.registry import KINDS, Registry


def test_golden_list_names_every_component_with_its_origin(ftengine):
    listed = json.loads(ftengine("plugins", "list", "--json").stdout)
    registry = Registry()
    expected = {(kind, entry.name) for kind in KINDS for entry in registry.entries(kind)}
    assert {(c["kind"], c["name"]) for c in listed["components"]} == expected
    assert listed["problems"] == []
    assert listed["plugins"][0]["version"]
    golden("plugins_list", ftengine("plugins", "list").stdout.partition("\ndistribution")[0])


@pytest.mark.parametrize(
    ("body", "cause"),
    [
        ("raise ValueError('torn')", "ValueError: torn"),
        (strategy(body="raise ValueError('hook')"), "ValueError: hook"),
        (strategy(body="return None"), "ftengine_strategies of ftengine-thing 1.2 returned None"),
        (
            strategy().replace("def prepare", "def prepair"),
            "'thing' as a strategy, but it does not implement 'prepare'",
        ),
        (strategy("lora"), " of ftengine 0"),  # a name that is taken
    ],
)
def test_a_broken_plugin_is_listed_with_its_cause_beside_the_sound_ones(ftengine, distribution, body, cause):
    distribution(body, ENTRY)
    result = ftengine("plugins", "list", "--json", code=1)
    listed = json.loads(result.stdout)
    (problem,) = listed["problems"]
    assert cause in problem
    assert "ftengine-thing" in problem
    assert {"lora", "full"} <= {c["name"] for c in listed["components"]}
    assert cause in ftengine("plugins", "list", code=1).stdout


COMMAND = "import click\n@click.command()\ndef say(): pass\n"


@pytest.mark.parametrize(
    ("requires", "sound"),
    [
        ("FTEngine>=9", False),
        (f"ftengine>={__version__}", True),
    ],
)
def test_a_distribution_that_requires_another_ftengine_is_named_with_both_versions(
    ftengine, distribution, requires, sound
):
    distribution(
        f"{strategy()}\n{COMMAND}", f"{ENTRY}[ftengine.commands]\nsay = ftengine_thing:say\n", requires=requires
    )
    found = [
        *json.loads(ftengine("plugins", "list", "--json", code=0 if sound else 1).stdout)["problems"],
        *json.loads(ftengine("doctor", "--json", code=0 if sound else 1).stdout)["problems"],
        ftengine("say", code=0 if sound else 1).stderr,
    ]
    named = ("ftengine-thing 1.2", re.sub(r".*?([<>=]+[\d.]+).*", r"\1", requires), f"ftengine {__version__}")
    assert [text for text in filter(None, found) if not all(part in text for part in named)] == []
    assert len(found) == (1 if sound else 4)


def test_commands_whose_name_is_taken_are_problems_that_name_both(ftengine, distribution):
    distribution(COMMAND, "[ftengine.commands]\ntrain = ftengine_thing:say\nsay = ftengine_thing:say\n")
    distribution(COMMAND, "[ftengine.commands]\nsay = other_thing:say\n", "other-thing", "other_thing")
    listed = json.loads(ftengine("plugins", "list", "--json", code=1).stdout)["problems"]
    assert json.loads(ftengine("doctor", "--json", code=1).stdout)["problems"] == listed
    owners = ("ftengine-thing 1.2 and by other-thing 1.2", "ftengine itself and by ftengine-thing 1.2")
    assert [both in one for one, both in zip(listed, owners, strict=True)] == [True, True]
    checks = ("--check", "what_it_offers_is_sound", "--check", "it_is_a_click_command")
    checked = json.loads(ftengine("plugins", "check", "other-thing", *checks, "--json", code=1).stdout)["results"]
    assert [one["outcome"] for one in checked] == ["failed", "passed"]


def test_a_blocked_plugin_is_listed_as_blocked(ftengine, distribution, monkeypatch):
    monkeypatch.setenv("FTENGINE_BLOCK_PLUGINS", "ftengine-thing")
    distribution("raise ValueError('torn')", ENTRY)
    result = ftengine("plugins", "list")
    assert "blocked" in result.stdout
    assert "ftengine-thing 1.2" in result.stdout


def test_show_describes_a_component_and_its_options(ftengine, distribution):
    distribution(strategy(), ENTRY)
    shown = json.loads(ftengine("plugins", "show", "thing", "--json").stdout)
    assert shown["docstring"].startswith("Do a thing.\n\nIn a certain way.")
    assert (shown["distribution"], shown["version"], shown["kind"]) == ("ftengine-thing", "1.2", "strategy")
    depth, mode, source = shown["options"]
    assert (depth["type"], depth["default"], depth["description"]) == ("integer", 3, "how deep")
    assert depth["constraints"] == ["≥ 1", "≤ 9"]
    assert mode["choices"] == "fast | slow"
    assert source["required"] is True
    text = ftengine("plugins", "show", "thing").stdout
    for expected in ("In a certain way.", "Somebody 2020", "how deep", "≥ 1", "fast | slow", "required", "1.2"):
        assert expected in text


@pytest.mark.parametrize("kind", ["loader", "task", "strategy", "evaluator"])
def test_show_works_for_everything_in_the_box(ftengine, kind):
    for entry in Registry().entries(kind):
        text = ftengine("plugins", "show", entry.name, "--kind", kind).stdout
        assert [option for option in entry.cls.Config.model_fields if option not in text] == []


def test_show_of_a_name_that_two_kinds_have_asks_for_the_kind(ftengine, distribution):
    distribution(strategy("causal-lm"), ENTRY)
    assert "--kind" in ftengine("plugins", "show", "causal-lm", code=2).stderr
    assert "Do a thing." in ftengine("plugins", "show", "causal-lm", "--kind", "strategy").stdout


def test_a_docstring_cannot_steer_the_terminal(ftengine, distribution):
    distribution(strategy().replace("In a certain way.", "[red]\\x1b[31mway"), ENTRY)
    text = ftengine("plugins", "show", "thing").stdout
    assert "\x1b" not in text
    assert "[red]\\x1b[31mway" in text


@pytest.mark.parametrize(
    ("noted", "source"),
    [
        ({"url": "file:///home/me/my%20plugin", "dir_info": {"editable": True}}, "/home/me/my plugin (editable)"),
        ({"url": "file:///srv/thing-1.2.whl", "archive_info": {}}, "/srv/thing-1.2.whl"),
        ({"url": "https://x.org/t.git", "vcs_info": {"vcs": "git", "commit_id": "ab12"}}, "https://x.org/t.git@ab12"),
        ({}, ""),
    ],
)
def test_where_a_distribution_was_installed_from_is_reported(ftengine, distribution, tmp_path, noted, source):
    distribution(strategy(), ENTRY)
    (tmp_path / "ftengine_thing-1.2.dist-info" / "direct_url.json").write_text(json.dumps(noted))
    assert json.loads(ftengine("plugins", "show", "thing", "--json").stdout)["source"] == source
    for command in (("plugins", "show", "thing"), ("plugins", "list", "--kind", "strategy")):
        assert source in ftengine(*command).stdout
