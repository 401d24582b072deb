"""`plugins check` runs the conformance checks of a distribution's components and says what came of them."""

import json
from types import SimpleNamespace

import pytest
from cli_samples import ENTRY, strategy

RESULTS = [
    SimpleNamespace(check="something_trains", outcome="passed", reason=""),
    SimpleNamespace(check="merging_keeps_the_outputs", outcome="skipped", reason="it does not merge"),
    SimpleNamespace(check="loading_options_are_its_own", outcome="failed", reason="they lack [bold]'depth'"),
]


@pytest.fixture
def results(monkeypatch):
    """Set what the checks come to, and tell of which classes they were asked."""
    asked = []

    def setting(found):
        def check_results(cls, **options):
            asked.append(cls.__name__)
            return found

        monkeypatch.setattr("ftengine.testing.check_results", check_results, raising=False)
        return asked

    return setting


@pytest.mark.parametrize("package", ["ftengine-thing", "FTEngine_Thing", "ftengine_thing", "folder"])
def test_a_distribution_is_found_by_name_module_or_folder(
    ftengine, distribution, results, tmp_path, monkeypatch, package
):
    distribution(strategy(), ENTRY)
    asked = results(RESULTS[:2])
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "pyproject.toml").write_text("[project]\nname = 'ftengine.thing'\n")
    monkeypatch.chdir(tmp_path)
    told = ftengine("plugins", "check", package).stdout
    assert asked == ["Thing"]
    assert "ftengine-thing 1.2: 2 passed, 1 skipped" in told
    assert "it does not merge" in told


def test_options_strategy_and_model_are_those_that_are_given(ftengine, distribution, monkeypatch, llama_folder):
    given = {}
    monkeypatch.setattr("ftengine.testing.check_results", lambda cls, **options: given.update(options) or RESULTS[:1])
    distribution(strategy(), ENTRY)
    words = ["--set", "thing.source=a.tsv", "--set", "thing.depth=4", "--strategy", "lora"]
    ftengine("plugins", "check", "ftengine-thing", *words, "--model", llama_folder, "--task", "causal-lm")
    assert (given["options"], given["strategy"]) == ({"source": "a.tsv", "depth": 4}, "lora")
    assert [(one.name, one.head) for one in given["models"]] == [("LlamaForCausalLM", "causal-lm")]
    assert given["models"][0].batch["input_ids"].ndim == 2


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--set", "think.depth=4"], "Did you mean 'thing'?"),
        (["--set", "depth=4"], "NAME.OPTION=VALUE"),
        (["--set", "thing.depth=[4"], "thing.depth=[4"),
        (["--component", "think"], "Did you mean 'thing'?"),
        (["--check", "merging_keeps_outputs"], "Did you mean 'merging_keeps_the_outputs'?"),
        (
            ["--set", "thing.source=x", "--component", "thing", "--check", "it_is_a_click_command"],
            "--component and --check",
        ),
        (["--model", "x"], "--task"),
        (["--model", "x", "--task", "causal-lm"], "'x'"),
    ],
)
def test_what_is_given_wrongly_is_refused(ftengine, distribution, words, told):
    distribution(strategy(), ENTRY)
    assert told in ftengine("plugins", "check", "ftengine-thing", *words, code=2).stderr


def test_a_failed_check_is_reported_with_its_reason_and_exits_with_1(ftengine, distribution, results):
    distribution(strategy(), ENTRY)
    results(RESULTS)
    told = ftengine("plugins", "check", "ftengine-thing", code=1).stdout
    row = next(line for line in told.splitlines() if "loading_options" in line)
    assert row.split()[:4] == ["strategy", "thing", "loading_options_are_its_own", "failed"]
    assert "they lack [bold]'depth'" in row
    assert "2 passed, 1 failed, 1 skipped" in told
    found = json.loads(ftengine("plugins", "check", "ftengine-thing", "--json", code=1).stdout)
    assert (found["distribution"], found["version"]) == ("ftengine-thing", "1.2")
    assert found["counts"] == {"passed": 2, "failed": 1, "skipped": 1}
    assert found["results"][-1] == {
        "component": "strategy thing",
        "check": "loading_options_are_its_own",
        "outcome": "failed",
        "reason": "they lack [bold]'depth'",
    }


def test_a_component_that_cannot_be_checked_is_a_failed_check(ftengine, distribution, monkeypatch):
    def check_results(cls, **given):
        raise KeyError("torn")

    distribution(strategy(), ENTRY)
    monkeypatch.setattr("ftengine.testing.check_results", check_results, raising=False)
    *_, result = json.loads(ftengine("plugins", "check", "ftengine-thing", "--json", code=1).stdout)["results"]
    assert (result["outcome"], result["reason"]) == ("failed", "KeyError: 'torn'")


@pytest.mark.parametrize("body", ["raise ValueError('torn')", strategy("lora")], ids=["torn", "taken"])
def test_what_does_not_load_or_has_a_taken_name_is_a_failed_check(ftengine, distribution, results, body):
    distribution(body, ENTRY)
    results(RESULTS[:1])
    found = json.loads(ftengine("plugins", "check", "ftengine-thing", "--json", code=1).stdout)
    assert found["results"][0]["check"] == "what_it_offers_is_sound"
    assert "ftengine-thing 1.2" in found["results"][0]["reason"]


@pytest.mark.parametrize(
    ("body", "code", "outcome"),
    [("import click\n@click.command()\ndef thing(): pass\n", 0, "passed"), ("thing = None\n", 1, "failed")],
)
def test_commands_are_checked_too(ftengine, distribution, body, code, outcome):
    distribution(body, "[ftengine.commands]\nthing = ftengine_thing:thing\n")
    found = json.loads(ftengine("plugins", "check", "ftengine-thing", "--json", code=code).stdout)
    assert [(one["component"], one["outcome"]) for one in found["results"]] == [
        ("command thing", outcome),
    ]


def test_only_the_components_and_checks_that_are_named_are_made(ftengine, distribution, monkeypatch):
    others = "".join(f"class {name}(Thing):\n    'Do.'\n    name = {name.lower()!r}\n" for name in ("Other", "Third"))
    body = strategy(body="return [Thing, Other, Third]").replace("@hookimpl", f"{others}@hookimpl")
    distribution(
        f"{body}import click\n@click.command()\ndef say(): pass\n",
        f"{ENTRY}[ftengine.commands]\nsay = ftengine_thing:say\n",
    )

    def made(*words, code=0):
        found = json.loads(ftengine("plugins", "check", "ftengine-thing", *words, "--json", code=code).stdout)[
            "results"
        ]
        return {(one["component"], one["check"]) for one in found}

    names = ("it_is_complete", "its_options_are_given")
    options = [word for name in ("thing", "other", "third") for word in ("--set", f"{name}.source=x")]
    checks = [word for name in names for word in ("--check", name)]
    assert made("--component", "other", "--component", "say") == {
        ("strategy other", "its_options_are_given"),
        ("command say", "it_is_a_click_command"),
    }
    every = {(f"strategy {name}", "it_is_complete") for name in ("thing", "other", "third")}
    assert made(*options, "--check", "it_is_complete", *checks) == every
    only = made(*options, "--component", "thing", "--check", "something_trains", *checks)
    assert only == {("strategy thing", name) for name in ("it_is_complete", "something_trains")}


@pytest.mark.parametrize(
    ("package", "told"),
    [
        ("ftengine-thin", "no distribution or module 'ftengine-thin' is installed. There are ftengine, ftengine-thing"),
        ("click", "click offers nothing to ftengine"),
        ("folder", "First pip install -e folder"),
        ("torn", "cannot read 'torn/pyproject.toml'"),
        ("nameless", "names no distribution"),
    ],
)
def test_what_is_no_plugin_is_reported_and_exits_with_2(ftengine, distribution, tmp_path, monkeypatch, package, told):
    distribution(strategy(), ENTRY)
    for folder, text in {"folder": "[project]\nname = 'x-y'", "torn": "[project", "nameless": "[tool.x]"}.items():
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "pyproject.toml").write_text(text)
    monkeypatch.chdir(tmp_path)
    assert told in ftengine("plugins", "check", package, code=2).stderr
