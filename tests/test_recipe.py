"""Recipes: defaults, overrides, and errors that name key, value and what is allowed."""

import pytest
import yaml
from expected import raises

from ftengine import Recipe
from ftengine.errors import RecipeError, UnknownName
from ftengine.plugins.option_errors import ELSEWHERE
from ftengine.plugins.registry import Registry

SMALL = {"model": {"source": "m"}, "task": "causal-lm", "data": {"train": "a.jsonl"}, "strategy": "lora"}


def test_a_name_and_a_mapping_mean_the_same_component():
    assert Recipe.make(SMALL).strategy == Recipe.make(SMALL | {"strategy": {"name": "lora"}}).strategy


def test_overrides_reach_nested_keys_and_keep_the_original():
    recipe = Recipe.make(SMALL, ["train.max_steps=40", "train.learning_rate=2e-4", "strategy.rank=4", "seed=7"])
    assert recipe.train.max_steps == 40
    assert recipe.train.learning_rate == 2e-4
    assert recipe.strategy == {"name": "lora", "rank": 4}
    assert SMALL["strategy"] == "lora"


def test_resolved_recipe_reads_back_as_itself():
    recipe = Recipe.make(SMALL)
    assert Recipe.make(recipe.resolved()) == recipe


def test_data_and_model_beside_the_recipe_are_found_from_elsewhere(tmp_path, monkeypatch):
    folder = tmp_path / "recipes"
    (folder / "model").mkdir(parents=True)
    for name in ("a.jsonl", "b.jsonl", "here.jsonl"):
        (folder / name).touch()
    (tmp_path / "here.jsonl").touch()
    content = SMALL | {
        "model": {"source": "model"},
        "data": {"train": "a.jsonl", "validation": "here.jsonl", "test": "nowhere.jsonl"},
        "evaluation": {"forgetting": "b.jsonl"},
    }
    (folder / "r.yaml").write_text(yaml.safe_dump(content))
    monkeypatch.chdir(tmp_path)
    recipe = Recipe.read("recipes/r.yaml")
    assert recipe.beside == {
        "model.source": "recipes/model",
        "data.train": "recipes/a.jsonl",
        "evaluation.forgetting": "recipes/b.jsonl",
    }
    assert (recipe.data.train, recipe.data.validation) == ("recipes/a.jsonl", "here.jsonl")
    assert recipe.data.test == "nowhere.jsonl"
    assert recipe.evaluation.forgetting.data == "recipes/b.jsonl"
    monkeypatch.chdir(folder)
    assert Recipe.read("r.yaml").beside == {}


@pytest.mark.parametrize(
    ("key", "said"),
    [
        ("strategy.r", "'rank'"),
        ("strategy.lora_r", "'rank'"),
        ("strategy.lora_alpha", "'alpha'"),
        ("strategy.target_modules", "'targets'"),
        ("strategy.lr", "'train.learning_rate'"),
        ("lr", "'train.learning_rate'"),
        ("train.lr", "'learning_rate'"),
        ("train.num_train_epochs", "'epochs'"),
        ("train.per_device_train_batch_size", "'batch_size'"),
        ("train.gradient_accumulation_steps", "'accumulate'"),
        ("train.save_steps", "'checkpoint_every'"),
        ("train.eval_steps", "'validate_every'"),
        ("train.logging_steps", "metrics.jsonl"),
        ("train.report_to", "'callbacks'"),
        ("model.load_in_4bit", "model.source"),
        ("train.bf16", "train.precision"),
        ("data.max_seq_length", "'task.max_length'"),
        ("task.num_labels", "learnt from the data"),
        ("output_dir", "'output'"),
        ("lora_r", "'strategy.rank'"),
    ],
)
def test_keys_of_other_tools_are_answered_with_ours(key, said):
    def build():
        recipe = Recipe.make(SMALL, [f"{key}=1"])
        for kind in ("task", "strategy"):
            Registry().build(kind, getattr(recipe, kind), kind)

    with raises(RecipeError, said):
        build()


@pytest.mark.parametrize(
    ("kind", "name", "said"),
    [
        ("task", "sequence-classification", "'text-classification'"),
        ("task", "txt-classification", "'text-classification'"),
        ("evaluator", "accuracy", "'accuracy'"),
        ("evaluator", "f1", "'macro_f1'"),
        ("evaluator", "BLEU", "'bleu'"),
        ("evaluator", "calibraton", "'calibration'"),
    ],
)
def test_names_that_people_know_from_elsewhere_are_answered_with_ours(kind, name, said):
    with raises(UnknownName, said):
        Registry().get(kind, name)


def test_every_key_of_another_tool_leads_to_a_key_that_there_is():
    for place in ELSEWHERE.values():
        section, _, name = place.partition(".")
        annotation = Recipe.model_fields[section].annotation
        if hasattr(annotation, "model_fields"):
            assert name.partition(".")[0] in annotation.model_fields


@pytest.mark.parametrize(
    ("content", "overrides", "message"),
    [
        (SMALL | {"strategi": "x"}, [], "'strategy'"),
        (SMALL | {"train": {"epoch": 3}}, [], "'epochs'"),
        (SMALL | {"train": {"batch_size": 0}}, [], "train.batch_size"),
        (SMALL | {"train": {"schedule": {"floor": 0.1}}}, [], "train.schedule"),
        (SMALL | {"data": {"train": "a", "validation": 1.5}}, [], "data.validation"),
        (SMALL | {"data": {"train": "a", "validation": True}}, [], "data.validation"),
        (SMALL | {"data": {"train": "a", "validation": ""}}, [], "data.validation"),
        (SMALL | {"data": {"train": "a", "test": 256 * "x"}}, [], "data.test"),
        (SMALL | {"data": {"train": "a", "validation": 0.5, "test": 0.5}}, [], "take 1 of"),
        (SMALL | {"strategy": {"rank": 8}}, [], "strategy"),
        ({k: v for k, v in SMALL.items() if k != "model"}, [], "'model'"),
        (SMALL, ["train.max_steps"], "key=value"),
        (SMALL, ["train.early_stopping={}", "data.validation=null"], "early_stopping"),
        (SMALL, ["train.epochs=.inf"], "train.epochs"),
        (SMALL, ["seed=4294967296"], "seed"),
        (SMALL | {"seed": 1}, ["seed.x=1"], "'seed'"),
        (SMALL, ["train.max_steps=[1"], "YAML"),
        (SMALL, ["data.split.kind=group"], "'by'"),
        (SMALL, ["train.early_stopping.patiense=3"], "'patience'"),
        (SMALL, ["data.split=group"], "by: group needs column"),
    ],
)
def test_wrong_recipes_are_explained(content, overrides, message):
    with raises(RecipeError, message) as caught:
        Recipe.make(content, overrides)
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code == 2


def test_what_a_missing_key_may_hold_is_listed():
    with raises(RecipeError, "'task'", "for task: causal-lm", "for strategy: adapter") as caught:
        Recipe.make({key: value for key, value in SMALL.items() if key not in ("task", "strategy")})
    for entry in Registry(only=["task", "strategy"]).entries("task"):
        assert entry.name in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("model: [1", "recipe.yaml:"),
        ("- a\n- b\n", "a mapping"),
        ("", "a mapping"),
        ("model: !!python/object/apply:os.system ['echo hi']\n", "YAML"),
    ],
)
def test_wrong_files_are_explained(tmp_path, text, message):
    path = tmp_path / "recipe.yaml"
    path.write_text(text)
    with raises(RecipeError, message):
        Recipe.read(path)


@pytest.mark.parametrize("name", ["a.jsonl", "a.CSV", "a.parquet"])
def test_data_in_the_place_of_a_recipe_is_reported(tmp_path, name):
    (tmp_path / name).write_bytes(b'{"text": "a"}\n{"text": "b\xff"}\n')
    with raises(RecipeError, "ftengine init --data"):
        Recipe.read(tmp_path / name)


def test_a_misspelt_recipe_is_answered_with_the_nearest(tmp_path):
    for name in ("support.yaml", "other.yaml", "suport.jsonl"):
        (tmp_path / name).touch()
    with raises(RecipeError, "support.yaml", "ftengine init"):
        Recipe.read(tmp_path / "suport.yaml")
    with raises(RecipeError, "ftengine init"):
        Recipe.read(tmp_path / "absent.yaml")
    with raises(RecipeError, "no recipe file"):
        Recipe.read(tmp_path / "no" / "folder.yaml")


@pytest.mark.parametrize(
    ("override", "given"),
    [
        ("train.epochs=x", "'x'"),
        ("train.epochs=0", "0"),
        ("train.learning_rate=1e39", "'1e39'"),
        ("train.batch_size=1.5", "1.5"),
        ("train.batch_tokens=many", "'many'"),
        ("train.memory_limit=lots", "'lots'"),
        ("data.on_error=stop", "'stop'"),
        ("train.keep_best=maybe", "'maybe'"),
        ("data.validation=[1]", "[1]"),
        ("train.early_stopping=3", "train.early_stopping: {patience: 3}"),
        ("train.early_stopping=true", "train.early_stopping: {patience: 2}"),
        ("model=bert", "model: {source: bert}"),
        ("model=3", "3"),
        ("data.group=query: ", "data.group: 'query: '"),
        ("data.test=20%", "data.test: 0.2 (got '20%')"),
        ("data.validation='0,1'", "data.validation: 0.1 (got '0,1')"),
        ("data.test='300 %'", "(got '300 %')"),
        ("data.train=null", "null"),
    ],
)
def test_wrong_values_are_reported_with_their_key(override, given):
    content = {"model": {"source": "m"}, "task": "t", "data": {"train": "d"}, "strategy": "s"}
    with raises(RecipeError, f"recipe: key '{override.partition('=')[0]}': ", given):
        Recipe.make(content, [override])
