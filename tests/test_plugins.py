"""Discovery is guarded and closed: a broken plugin is named and stops the run, nothing is skipped in silence."""

import sys
import types
from importlib import metadata

import pytest
from expected import raises

from ftengine import hookimpl, registry_of
from ftengine.api import Config, Evaluator, Strategy, Task, TextAugmenter
from ftengine.errors import PluginError, RecipeError, UnknownName
from ftengine.plugins.discovery import make_plugin_manager
from ftengine.plugins.registry import KINDS, Registry


class Nothing(Strategy):
    """Train nothing.

    More text that a list does not show.
    """

    name = "nothing"

    class Config(Config):
        depth: int = 3

    def prepare(self, loaded):
        loaded.module.requires_grad_(False)


def plugin(**hooks):
    module = types.ModuleType("some_plugin")
    for name, result in hooks.items():

        def hook(result=result):
            if isinstance(result, Exception):
                raise result
            return result

        hook.__name__ = name
        setattr(module, name, hookimpl(hook))
    return module


def registry(**plugins):
    return Registry(make_plugin_manager(plugins, discover=False))


def installed(monkeypatch, tmp_path, body, name="ftengine-thing", module="ftengine_thing"):
    """Install a distribution that consists of one module and one entry point."""
    (tmp_path / f"{module}.py").write_text(body)
    info = tmp_path / f"{module}-1.2.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.2\n")
    (info / "entry_points.txt").write_text(f"[ftengine]\nthing = {module}\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "modules", {k: v for k, v in sys.modules.items() if k != module})


def test_built_in_plugins_come_through_the_same_entry_point_group():
    names = {ep.value for ep in metadata.entry_points(group="ftengine")}
    assert "ftengine_builtins" in names
    assert {e.origin.distribution for e in Registry().entries("strategy")} == {"ftengine"}


def test_every_component_has_a_summary_and_options_with_known_types():
    for kind in KINDS:
        for entry in Registry().entries(kind):
            assert entry.summary, entry
            assert entry.cls.Config.model_config["extra"] == "forbid", entry


def test_a_component_is_found_by_kind_and_name_and_built_with_its_options():
    built = registry(p=plugin(ftengine_strategies=[Nothing])).build(
        "strategy", {"name": "nothing", "depth": 5}, "strategy"
    )
    assert isinstance(built, Nothing)
    assert built.config.depth == 5


def test_unknown_names_are_answered_with_what_is_installed_and_the_nearest():
    with raises(UnknownName, "nothng", "nothing"):
        registry(p=plugin(ftengine_strategies=[Nothing])).build("strategy", "nothng", "strategy")


@pytest.mark.parametrize(
    ("kind", "name", "message"),
    [
        ("regularizer", "mixup", "'mixup' is an augmenter"),
        ("augmenter", "ema", "'ema' is a regularizer"),
    ],
)
def test_a_component_of_another_kind_is_sent_to_its_place(kind, name, message):
    with raises(UnknownName, message):
        Registry().build(kind, name, "some.key")


def test_missing_and_unknown_options_name_whose_they_are():
    with raises(RecipeError, "augment.0.file", "synonyms"):
        Registry().build("augmenter", {"name": "synonyms"}, "augment.0")
    with raises(RecipeError, "strategy.rnk", "'lora'", "'rank'"):
        Registry().build("strategy", {"name": "lora", "rnk": 3}, "strategy")


def test_unknown_options_are_answered_with_the_nearest():
    with raises(RecipeError, "strategy.dept", "depth"):
        registry(p=plugin(ftengine_strategies=[Nothing])).build("strategy", {"name": "nothing", "dept": 1}, "strategy")


def test_two_components_of_one_name_are_an_error_that_names_both():
    with raises(PluginError, "'nothing'", "first", "second"):
        registry(first=plugin(ftengine_strategies=[Nothing]), second=plugin(ftengine_strategies=[Nothing]))


def test_two_components_of_one_name_in_one_package_are_distinguished_by_class_and_line(monkeypatch, tmp_path):
    body = "from ftengine import api, hookimpl\n"
    for cls in ("One", "Other"):
        body += f"class {cls}(api.Audit):\n    'Look.'\n    name = 'look'\n    def examine(self, data): return ()\n"
    installed(monkeypatch, tmp_path, body + "@hookimpl\ndef ftengine_audits(): return [One, Other]\n")
    with raises(PluginError, "One (ftengine_thing.py:2)", "Other (ftengine_thing.py:6)", "another `name`"):
        registry_of()


@pytest.mark.parametrize("raising", ["{}['x']", "raise SystemExit(0)"])
def test_a_hook_that_raises_is_reported_with_file_and_line(monkeypatch, tmp_path, raising):
    body = f"from ftengine import hookimpl\n@hookimpl\ndef ftengine_audits():\n    {raising}\n"
    installed(monkeypatch, tmp_path, body)
    with raises(PluginError, "ftengine_audits of ftengine-thing 1.2", "ftengine_thing.py:4)"):
        registry_of()


def made(**members):
    return type("Made", (Strategy,), {"name": "made", "prepare": lambda self, loaded: None, **members})


class Bare:
    depth = 3


class Named(Config):
    name: str = "thing"


class Misdefaulted(Config):
    depth: int = "three"
    required: str


class Unresolved(Config):
    depth: "Nowhere" = 3  # noqa: F821


@pytest.mark.parametrize(
    ("offer", "message"),
    [
        ([Evaluator], "class Evaluator"),
        ([Nothing()], "type Nothing"),
        ([type("Unnamed", (Strategy,), {})], "class Unnamed"),
        (RuntimeError("no licence"), "RuntimeError: no licence"),
        (None, "returned None"),
        (Nothing, "class Nothing"),
        (Nothing(), "type Nothing"),
        ([made(name="auto")], "'auto'"),
        ([made(prepare=Strategy.prepare)], "'prepare'"),
        ([made(prepare=lambda self: None)], "prepare(self, loaded)"),
        ([made(Config=Bare)], "ftengine.api.Config"),
        ([made(Config=Named)], "'name'"),
        ([made(Config=Misdefaulted)], "'depth'"),
        ([made(Config=Unresolved)], "PydanticUserError"),
    ],
)
def test_wrong_offers_are_refused_with_what_to_do(offer, message):
    with raises(PluginError, message, "FTENGINE_BLOCK_PLUGINS=p"):
        registry(p=plugin(ftengine_strategies=offer))


def test_a_class_that_lacks_what_its_kind_declares_is_refused():
    members = {name: lambda self: None for name in ("view", "with_inputs", "encode", "collate", "loss", "predict")}
    headless = type("Headless", (Task,), {"name": "headless", "modality": "text", **members})
    with raises(PluginError, "headless", "'head'"):
        registry(p=plugin(ftengine_tasks=[headless]))


def test_a_plugin_without_any_hook_is_refused():
    with raises(PluginError, "'p'", "no hook"):
        registry(p=types.ModuleType("hookless"))


def test_plugins_given_by_hand_stand_beside_what_is_installed():
    found = registry_of({"p": plugin(ftengine_strategies=[Nothing])})
    assert isinstance(found.build("strategy", "nothing", "strategy"), Nothing)
    assert found.get("strategy", "lora").origin.distribution == "ftengine"


def test_a_hook_that_does_not_exist_is_refused():
    with raises(PluginError, "ftengine_strategy"):
        registry(p=plugin(ftengine_strategy=[Nothing]))


def test_an_installed_distribution_is_found(monkeypatch, tmp_path):
    installed(
        monkeypatch,
        tmp_path,
        "from ftengine import hookimpl\nfrom ftengine.api import Strategy\n"
        "class Thing(Strategy):\n    'Do a thing.'\n    name = 'thing'\n    def prepare(self, loaded): pass\n"
        "@hookimpl\ndef ftengine_strategies():\n    return [Thing]\n",
    )
    origin = Registry().get("strategy", "thing").origin
    assert (origin.distribution, origin.version, origin.status) == ("ftengine-thing", "1.2", "loaded")


@pytest.mark.parametrize("body", ["import absent_module\n", "raise SystemExit(3)\n", "def broken(:\n"])
def test_a_broken_plugin_is_named_with_version_and_cause(monkeypatch, tmp_path, body):
    installed(monkeypatch, tmp_path, body)
    plugins = make_plugin_manager()
    with raises(PluginError, "ftengine-thing 1.2", "FTENGINE_BLOCK_PLUGINS=ftengine-thing"):
        plugins.raise_if_broken()


def test_a_blocked_plugin_is_not_even_imported(monkeypatch, tmp_path):
    installed(monkeypatch, tmp_path, "raise RuntimeError('imported')\n")
    monkeypatch.setenv("FTENGINE_BLOCK_PLUGINS", "ftengine_thing")
    plugins = make_plugin_manager()
    plugins.raise_if_broken()
    assert plugins.origins["ftengine-thing:thing"].status == "blocked"


def test_an_augmenter_that_changes_nothing_is_refused_by_the_method_that_its_base_asks_for():
    unchanging = type("Unchanging", (TextAugmenter,), {"name": "unchanging"})
    with raises(PluginError, "unchanging", "change"):
        registry(p=plugin(ftengine_augmenters=[unchanging]))


def test_a_component_that_forgets_its_base_class_is_reported():
    class Forgetful(Strategy):
        """Forget."""

        name = "forgetful"

        def __init__(self, config=None):
            pass

        def prepare(self, loaded):
            pass

    plugin = types.SimpleNamespace(ftengine_strategies=hookimpl(lambda: [Forgetful], specname="ftengine_strategies"))
    with raises(PluginError, "'forgetful'", "super().__init__(config)"):
        registry_of({"forgetful": plugin}).build("strategy", "forgetful", "strategy")
