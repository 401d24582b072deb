"""`schema` says what a recipe may hold, as recipes themselves do."""

import json

import pytest
import yaml
from cli_samples import ENTRY, strategy
from docs_commands import DOCS, ROOT, blocks
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator
from pydantic import ValidationError

from ftengine.errors import RecipeError
from ftengine.plugins.registry import RECIPE_KEYS, Registry
from ftengine.run.recipe_schema import recipe_schema

REGISTRY = Registry()
SCHEMA = recipe_schema(REGISTRY)
VALIDATOR = Draft202012Validator(SCHEMA)
SMALLEST = {"model": {"source": "m"}, "task": "causal-lm", "data": {"train": "t.jsonl"}, "strategy": "lora"}
ENTRIES = [entry for kind in RECIPE_KEYS for entry in REGISTRY.entries(kind)]


def with_key(place, value):
    """Return the smallest recipe with a key set."""
    recipe = json.loads(json.dumps(SMALLEST))
    *sections, key = place.split(".")
    section = recipe
    for name in sections:
        section = section.setdefault(name, {})
    section[key] = value
    return recipe


def accepted(recipe):
    return VALIDATOR.is_valid(recipe)


def test_it_is_a_schema_of_the_draft_that_it_names(ftengine):
    printed = json.loads(ftengine("schema").stdout)
    assert printed == SCHEMA
    assert printed["$schema"] == Draft202012Validator.META_SCHEMA["$id"]
    Draft202012Validator.check_schema(printed)


EXAMPLES = [file for ending in ("yaml", "yml") for file in (ROOT / "examples").rglob(f"*.{ending}")]
# What trains speech and pictures are distributions: tests/distributions/test_distributions.py reads their recipes.
EXAMPLES = [file for file in EXAMPLES if file.parent.name not in ("dictation", "eyes")]


@pytest.mark.parametrize("file", EXAMPLES, ids=lambda file: str(file.relative_to(ROOT)))
def test_recipes_among_the_examples_are_accepted(file):
    VALIDATOR.validate(yaml.safe_load(file.read_text()))


def test_recipes_in_the_documents_are_accepted():
    found = [one for page in DOCS for block in blocks(page, "yaml") for one in yaml.safe_load_all(block.text)]
    recipes = [one for one in found if isinstance(one, dict) and SMALLEST.keys() <= one.keys()]
    assert recipes
    for recipe in recipes:
        VALIDATOR.validate(recipe)


@pytest.mark.parametrize("task", [entry.name for entry in REGISTRY.entries("task")])
def test_what_init_writes_is_accepted(ftengine, tmp_path, task):
    ftengine("init", tmp_path / "recipe.yaml", "--task", task)
    VALIDATOR.validate(yaml.safe_load((tmp_path / "recipe.yaml").read_text()))


@pytest.mark.parametrize(
    ("place", "value"),
    [
        ("strategy", "lroa"),
        ("strategy", {"name": "lora", "ranks": 8}),
        ("strategy", {"rank": 8}),
        ("strategy", {"name": "lora", "rank": 0}),
        ("strategy", ["lora"]),
        ("strategy", {"name": "lora", "targets": []}),
        ("augment", ["case", "no-such"]),
        ("evaluation.robustness", "no-such"),
        ("callbacks", ["no-such"]),
        ("train.lr", 1e-3),
        ("model.loader", "no-such"),
        ("model.loader", {"name": "auto", "no-such": 1}),
        ("data.validation", 1),
        ("data.validation", "10%"),
        ("data.split", "groups"),
    ],
)
def test_what_is_wrong_is_not_accepted(place, value):
    assert not accepted(with_key(place, value))


@pytest.mark.parametrize("key", ["model", "task", "data", "strategy", "model.source", "data.train"])
def test_what_a_recipe_requires_is_required(key):
    recipe = json.loads(json.dumps(SMALLEST))
    *sections, last = key.split(".")
    del (recipe[sections[0]] if sections else recipe)[last]
    assert not accepted(recipe)


# Values that options may hold, and some that hardly any may.
SCALARS = st.sampled_from([None, True, False, -1, 0, 1, 2, 8, 0.5, 1.5, -0.1, "", "auto", "all-linear", "x.jsonl", "7"])
VALUES = st.one_of(
    SCALARS, st.lists(SCALARS, max_size=2), st.dictionaries(st.sampled_from(["a", "limit"]), SCALARS, max_size=1)
)


def draw_of(config):
    """Draw options of a component: some of its own with values that suit or do not, now and then an unknown one."""
    choices = {}
    for name, part in config.model_json_schema().get("properties", {}).items():
        own = part.get("enum", [part["default"]] if "default" in part else [])
        choices[name] = st.one_of(VALUES, st.sampled_from(own)) if own else VALUES
    return st.fixed_dictionaries({}, optional={**choices, "unknown": st.just(1)})


def faults(validate, value):
    """Return the types of the errors that are found."""
    try:
        validate(value)
    except ValidationError as error:
        return {one["type"] for one in error.errors()}
    except RecipeError:  # of an option's own validator
        return {"value_error"}
    return set()


OWN_VALIDATORS = {"value_error", "assertion_error"}
"""Errors of an option's own validator, which a schema cannot know."""


@pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: f"{entry.kind} {entry.name}")
def test_schema_and_options_agree(entry):
    """What the schema accepts is accepted; what is accepted without converting anything, the schema accepts."""
    config, place = entry.cls.Config, f"{entry.kind}.{entry.name}"
    validator = Draft202012Validator({"$ref": f"#/$defs/{place}", "$defs": SCHEMA["$defs"]})

    @settings(max_examples=20, deadline=None, database=None, derandomize=True, suppress_health_check=list(HealthCheck))
    @given(draw_of(config))
    def agree(options):
        by_schema = validator.is_valid({"name": entry.name, **options})
        if by_schema:
            assert faults(config.model_validate, options) <= OWN_VALIDATORS, options
        elif not faults(lambda text: config.model_validate_json(text, strict=True), json.dumps(options)):
            validator.validate({"name": entry.name, **options})

    agree()


def test_a_plugins_component_is_in_it(ftengine, distribution):
    distribution(strategy(), ENTRY)
    found = json.loads(ftengine("schema").stdout)
    validator = Draft202012Validator(found)
    assert validator.is_valid({**SMALLEST, "strategy": {"name": "thing", "source": "x", "mode": "slow"}})
    # An option that must be given leaves no bare name.
    assert not validator.is_valid({**SMALLEST, "strategy": "thing"})
    assert not validator.is_valid({**SMALLEST, "strategy": {"name": "thing"}})
    depth = found["$defs"]["strategy.thing"]["properties"]["depth"]
    assert depth == {"default": 3, "description": "how deep", "maximum": 9, "minimum": 1, "type": "integer"}


def test_it_is_written_to_a_file_again_and_again_but_over_nothing_else(ftengine, tmp_path):
    file = tmp_path / "recipe.schema.json"
    for _ in "ab":
        told = ftengine("schema", "--output", file).stdout
        assert "# yaml-language-server: $schema=recipe.schema.json" in told
        assert json.loads(file.read_text()) == SCHEMA
    other = tmp_path / "recipe.yaml"
    other.write_text("mine")
    assert "is not a schema of recipes" in ftengine("schema", "--output", other, code=2).stderr
    assert other.read_text() == "mine"


def test_init_names_the_schema_that_lies_beside_the_recipe(ftengine, tmp_path):
    ftengine("init", tmp_path / "before.yaml")
    ftengine("schema", "--output", tmp_path / "recipe.schema.json")
    ftengine("init", tmp_path / "after.yaml")
    assert "yaml-language-server" not in (tmp_path / "before.yaml").read_text()
    after = (tmp_path / "after.yaml").read_text()
    assert after.splitlines()[0] == "# yaml-language-server: $schema=recipe.schema.json"
    assert after.partition("\n")[2] == (tmp_path / "before.yaml").read_text()
