"""`plugins check` runs the conformance checks of a distribution's components and says what came of them."""

import json
import sys
from types import SimpleNamespace

import pytest
from cli_samples import ENTRY, strategy

from ftengine.plugins.distributions import offers
from ftengine.plugins.import_effects import import_and_compare, import_effects

RESULTS = [
    SimpleNamespace(check="something_trains", outcome="passed", reason=""),
    SimpleNamespace(check="merging_keeps_the_outputs", outcome="skipped", reason="it does not merge"),
    SimpleNamespace(check="loading_options_are_its_own", outcome="failed", reason="they lack [bold]'depth'"),
]


@pytest.fixture(autouse=True)
def no_import_elsewhere(monkeypatch, request):
    """Leave out the process in which a distribution is imported anew."""
    if "slow" not in request.keywords:
        monkeypatch.setattr("ftengine.plugins.import_effects.import_effects", lambda offered: [])


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
    assert "ftengine-thing 1.2: 3 passed, 1 skipped" in told
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
    assert "3 passed, 1 failed, 1 skipped" in told
    found = json.loads(ftengine("plugins", "check", "ftengine-thing", "--json", code=1).stdout)
    assert (found["distribution"], found["version"]) == ("ftengine-thing", "1.2")
    assert found["counts"] == {"passed": 3, "failed": 1, "skipped": 1}
    assert found["results"][4] == {
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
        ("plugin thing", "passed"),
        ("command thing", outcome),
    ]


@pytest.mark.slow
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
    only = made(*options, "--component", "thing", "--check", "every_option_is_read", *checks, code=1)
    assert only == {("strategy thing", name) for name in ("it_is_complete", "every_option_is_read")}


@pytest.mark.parametrize(
    ("package", "told"),
    [
        (
            "ftengine-thin",
            "no distribution or module 'ftengine-thin' is installed. Installed: ftengine, ftengine-thing",
        ),
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


EFFECTS = """
import os, random, warnings
import torch
os.chdir("/")
os.environ["SOME_SETTING"] = "1"
warnings.simplefilter("ignore")
torch.set_default_dtype(torch.float64)
torch.nn.functional.gelu = torch.nn.functional.relu
torch.nn.Linear.forward = lambda self, x: x
"""


def test_modules_of_libraries_are_named_whole(distribution, tmp_path, monkeypatch):
    """So that each is imported before, to see what it changes by itself."""
    (tmp_path / "thing_library").mkdir()
    (tmp_path / "thing_library" / "part.py").write_text("")
    distribution(f"import thing_library.part\n{strategy()}", ENTRY)
    found = import_and_compare(["ftengine-thing"], [])["imported"]
    for name in ("thing_library", "thing_library.part"):
        monkeypatch.delitem(sys.modules, name)
        assert name in found


def test_an_import_that_takes_too_long_is_named(ftengine, distribution, monkeypatch):
    monkeypatch.setattr("ftengine.plugins.import_effects.import_effects", import_effects)
    monkeypatch.setattr("ftengine.plugins.import_effects.SECONDS", 0.01)
    distribution(strategy(), ENTRY)
    (found,) = json.loads(ftengine("plugins", "check", "ftengine-thing", "--json", code=1).stdout)["results"]
    assert (found["check"], "0.01 s" in found["reason"]) == ("its_import_changes_nothing_else", True)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("body", "changed"),
    [
        (
            EFFECTS,
            {
                "the working directory",
                "the environment variable SOME_SETTING",
                "the filters of warnings",
                "torch's default dtype",
                "torch.nn.functional.gelu",
                "torch.nn.Linear.forward",
            },
        ),
        ("import os\nos._exit(0)\n", {"the process, which it ends with status 0"}),
        (f"import transformers\n{strategy(body='import torch; torch.manual_seed(3)')}", {"torch's random numbers"}),
        (f"import transformers, ftengine_builtins.tasks\n{strategy()}", set()),
    ],
    ids=["much", "ends", "hook", "sound"],
)
def test_what_an_import_changes_is_named(ftengine, distribution, body, changed):
    distribution(body, ENTRY)
    if "_exit" in body:
        found = json.loads(ftengine("plugins", "check", "ftengine-thing", "--json", code=1).stdout)["results"]
        assert [one["check"] for one in found] == ["its_import_changes_nothing_else"]
    assert set(import_effects([one for one in offers("ftengine") if one.distribution == "ftengine-thing"])) == changed
