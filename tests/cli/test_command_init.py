"""`init` writes a recipe that is valid, complete and says what each key means."""

import pytest
import yaml
from cli_samples import ENTRY, strategy

from ftengine import Recipe
from ftengine.plugins.registry import Registry


def keys(content, prefix=""):
    for key, value in content.items():
        yield prefix + key
        if isinstance(value, dict):
            yield from keys(value, f"{prefix}{key}.")


def test_the_recipe_is_valid_and_holds_every_key_with_its_default(ftengine, tmp_path):
    file = tmp_path / "recipe.yaml"
    model, data = f"some/{'long-' * 20}model", "a file: with #.jsonl"
    ftengine("init", file, "--model", model, "--data", data)
    recipe = Recipe.read(file)
    assert (recipe.model.source, recipe.data.train) == (model, data)
    smallest = {"model": {"source": model}, "data": {"train": data}}
    defaults = Recipe.make({**smallest, "task": recipe.task, "strategy": recipe.strategy})
    assert recipe == defaults
    written = yaml.safe_load(file.read_text())
    assert list(written) == list(Recipe.model_fields)
    assert list(written["train"]) == list(type(recipe.train).model_fields)


def test_every_description_is_in_the_comments(ftengine, tmp_path):
    file = tmp_path / "recipe.yaml"
    ftengine("init", file)
    text = file.read_text()
    sections = [Recipe, *(type(getattr(Recipe.read(file), name)) for name in ("model", "data", "train", "evaluation"))]
    described = [field.description for section in sections for field in section.model_fields.values()]
    assert [line for line in described if line and line not in text] == []


@pytest.mark.parametrize("kind", ["task", "strategy"])
def test_a_chosen_component_comes_with_its_options(ftengine, tmp_path, kind):
    for entry in Registry().entries(kind):
        file = tmp_path / f"{entry.name}.yaml"
        ftengine("init", file, f"--{kind}", entry.name)
        written = getattr(Recipe.read(file), kind)
        assert written["name"] == entry.name
        assert entry.cls.Config(**{k: v for k, v in written.items() if k != "name"}) == entry.cls.Config()
        assert [option for option in entry.cls.Config.model_fields if option not in written] == []


def test_an_existing_file_stays_unless_forced(ftengine, tmp_path):
    file = tmp_path / "recipe.yaml"
    file.write_text("mine")
    assert "--force" in ftengine("init", file, code=2).stderr
    assert file.read_text() == "mine"
    ftengine("init", file, "--force")
    Recipe.read(file)


def test_the_default_name_is_recipe_yaml(ftengine, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert "ftengine plan recipe.yaml" in ftengine("init").stdout
    Recipe.read("recipe.yaml")


@pytest.mark.parametrize(
    ("args", "expected"),
    [
        (["--strategy", "lroa"], "Did you mean 'lora'?"),
        (["--task", "causal"], "no task named 'causal'"),
    ],
)
def test_an_unknown_component_writes_nothing(ftengine, tmp_path, args, expected):
    file = tmp_path / "recipe.yaml"
    assert expected in ftengine("init", file, *args, code=2).stderr
    assert not file.exists()


def test_a_folder_that_does_not_exist_is_an_input_error(ftengine, tmp_path):
    assert "cannot write" in ftengine("init", tmp_path / "no" / "recipe.yaml", code=2).stderr


def test_a_required_option_is_left_for_the_user_to_fill_in(ftengine, distribution, tmp_path):
    distribution(strategy(), ENTRY)
    ftengine("init", tmp_path / "recipe.yaml", "--strategy", "thing")
    assert "# source: " in (tmp_path / "recipe.yaml").read_text()
    assert Recipe.read(tmp_path / "recipe.yaml").strategy == {"name": "thing", "depth": 3, "mode": "fast"}


def test_a_plugin_may_propose_its_component_to_beginners(ftengine, distribution, tmp_path):
    distribution(strategy().replace('name = "thing"', 'name = "a-thing"\n    starter = True'), ENTRY)
    ftengine("init", tmp_path / "recipe.yaml")
    assert Recipe.read(tmp_path / "recipe.yaml").strategy["name"] == "a-thing"  # the first of those proposed


def test_model_and_data_suit_the_task(ftengine, tmp_path):
    for task, model, data in (
        ("text-classification", "distilbert", "train.jsonl"),
        ("image-classification", "vit", "images"),
        ("seq2seq-lm", "t5", "train.jsonl"),
        ("causal-lm", "SmolLM2", "train.jsonl"),
    ):
        ftengine("init", tmp_path / f"{task}.yaml", "--task", task)
        recipe = Recipe.read(tmp_path / f"{task}.yaml")
        assert model in recipe.model.source
        assert recipe.data.train == data
