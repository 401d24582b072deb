"""What is compared with what, and what is refused before anything trains."""

import json
import math
from dataclasses import replace

import pytest
from expected import raises
from rows import write_rows
from runs import Heard

from ftengine import Recipe, fine_tune
from ftengine.engine import compare
from ftengine.engine.compare import check, compare_strategies, contend
from ftengine.engine.comparison_statement import statement
from ftengine.errors import InputError, NoMatch, RecipeError, RunError, UnknownName
from ftengine.run.comparison import PairDifference

ALARM = "ftengine.engine.compare._alarm"
"""What a verdict says of a run that is not to be ranked: tests that train a step or two overlook it."""


def checked(recipe, strategies, metric=None):
    heard = Heard()
    check(contend(recipe, strategies), metric, heard)
    return heard.said


def test_train_settings_may_differ_and_nothing_else_of_the_recipe(chat_recipe):
    given = {"name": "lora", "rank": 2, "train.learning_rate": 0.5}
    recipe = chat_recipe(train__learning_rate=0.02)
    own, second, usual, default = contend(recipe, ["lora", given, "full", "prompt"])
    rates = [one.recipe.train.learning_rate for one in (own, second, usual, default)]
    assert rates == [0.02, 0.5, 2e-5, 1e-2]  # the recipe's is for the recipe's strategy
    assert own.rate_from == "the recipe's"
    assert "--strategies" in second.rate_from
    assert "for full, as the recipe's is for lora" in usual.rate_from
    pairs = Recipe.make({**chat_recipe().resolved(), "task": "preference"})
    assert contend(pairs, ["full", "lora"])[0].recipe.train.learning_rate == 4e-7  # a share of it, as `init` proposes
    same = contend(chat_recipe(), ["full", "prompt"], same_rate=True)
    assert [one.recipe.train.learning_rate for one in same] == [0.01, 0.01]
    second = contend(chat_recipe(), ["full", {"name": "lora", "train.learning_rate": 0.5}])[1]
    assert second.recipe.strategy == {"name": "lora", "rank": 4, "dropout": 0.1}
    with raises(InputError, "'data.test'"):
        contend(chat_recipe(), ["full", {"name": "lora", "data.test": 0.5}])
    with raises(RecipeError, "'train.learning_rat'", "'learning_rate'"):
        contend(chat_recipe(), ["full", {"name": "lora", "train.learning_rat": 0.5}])


@pytest.mark.parametrize(
    ("strategies", "error", "message"),
    [
        (["lora"], InputError, "('lora')"),
        (["lora", "full", "lora"], InputError, "'lora'"),
        (["lora", {"rank": 2}], InputError, "a name"),
        (["lora", 3], InputError, "a name"),
        (["lora", {"name": "full", "train.seeds": 2}], InputError, "is 1 for 'lora' and 2 for 'full train.seeds=2'"),
        (["lora", "ful"], UnknownName, "'full'"),
        (["full", {"name": "lora", "rnk": 2}], RecipeError, "'strategy.rnk'"),
        (["full", {"name": "lora", "targets": ["c_attn"]}], NoMatch, "'c_attn'"),
        (["lora", {"name": "full", "freeze": ["layers.7"]}], NoMatch, "'layers.7'"),
    ],
)
def test_what_does_not_fit_is_found_before_anything_is_written_or_trains(
    chat_recipe, tmp_path, no_process, strategies, error, message
):
    with raises(error, message):
        compare_strategies(chat_recipe(), strategies)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("settings", "strategies", "message"),
    [
        (
            {"regularize": ["l2-sp"]},
            ["full", {"name": "full", "train.weight_decay": 0.1}],
            "full train.weight_decay=0.1: ",
        ),
        (
            {"train__precision": "bfloat16", "model__dtype": "bfloat16"},
            ["full", {"name": "lora", "train.precision": "float32"}],
            "lora train.precision=float32: ",
        ),
    ],
)
def test_every_recipe_is_checked_before_data_is_read(chat_recipe, tmp_path, no_process, settings, strategies, message):
    with raises(RecipeError, message):
        compare_strategies(chat_recipe(data__train="absent.jsonl", **settings), strategies)
    assert not (tmp_path / "run").exists()


def test_a_metric_that_is_not_measured_is_refused(chat_recipe):
    with raises(InputError, "'los'", "'loss'"):
        checked(chat_recipe(), ["full", "lora"], metric="los")


def test_without_held_out_data_there_is_nothing_to_compare(chat_recipe):
    with raises(InputError, "data.validation"):
        checked(chat_recipe(data__validation=None), ["full", "lora"])


@pytest.fixture
def compared_here(monkeypatch):
    """Compare strategies whose runs are made in this process."""

    def train(contenders, prepared, listener):
        for contender in contenders:
            if not contender.run.finished:
                fine_tune(contender.recipe)
        return [False] * len(contenders)

    monkeypatch.setattr("ftengine.engine.compare.train_unfinished", train)
    return compare_strategies


@pytest.mark.slow
def test_a_clear_winner_among_three_is_supported(compared_here, label_recipe, tmp_path, monkeypatch):
    """The least share of 100 resamples, times 3 pairs, is above 0.05: p is not a share, or nothing could ever be.

    As two of the three did not learn, nothing is ranked above them unless their verdicts are overlooked.
    """
    file = tmp_path / "many.jsonl"
    words = {"yes": "good fine great nice", "no": "bad poor awful sad"}
    rows = [{"text": f"{words[label].split()[i % 4]} {i}", "label": label} for i in range(60) for label in words]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    recipe = label_recipe(data={"train": str(file), "test": 0.5, "leaks": "drop"}, train__epochs=12)
    specs = ["full", *({"name": "full", "train.max_steps": 1, "train.learning_rate": n * 1e-9} for n in (1, 2))]
    result = compared_here(recipe, specs)
    assert [row.alarm is None for row in result.strategies] == [True, False, False]
    assert result.differences == ()
    first, *named, last, _ = result.statement.splitlines()
    assert all(row.label in line and row.alarm in line for row, line in zip(result.strategies[1:], named, strict=True))
    assert (first[:10], last[:14]) == ("Not ranked", "Only one strat")
    monkeypatch.setattr(ALARM, lambda contender: None)
    for metric in ("accuracy", "nll"):
        result = compared_here(recipe, specs, metric=metric)
        best = max(result.strategies, key=lambda row: row.figures["accuracy"].value)
        assert best.label == "full"
        assert (result.against, len(result.differences)) == ("best", 2)
        assert all(row.supported and row.p_adjusted < 1e-3 for row in result.differences), metric
        assert "The best, full, against each other strategy:" in result.statement
        assert "adjusted for all 3 pairs" in result.statement
    every = compared_here(recipe, specs, all_pairs=True)
    assert (every.against, len(every.differences)) == ("all", 3)
    assert sum(row.supported for row in every.differences) == 2
    assert (every.statement.count(" is better than "), every.statement.count("not beyond chance")) == (2, 1)
    assert "--all-pairs" not in every.statement


@pytest.mark.slow
def test_a_strategy_whose_figure_is_undefined_is_not_the_best(compared_here, label_recipe, monkeypatch):
    monkeypatch.setattr(ALARM, lambda contender: None)
    measured, order = compare._measured, []

    def undefined(contenders, *rest):
        results = measured(contenders, *rest)
        pairs = sorted(zip(contenders, results, strict=True), key=lambda pair: pair[1][0].figures["nll"].value)
        order.extend(contender.label for contender, _ in pairs)
        figures = pairs[0][1][0].figures
        figures["nll"] = replace(figures["nll"], value=math.nan)
        return results

    monkeypatch.setattr(compare, "_measured", undefined)
    specs = [{"name": "full", "train.max_steps": n} for n in (1, 2, 3)]
    result = compared_here(label_recipe(), specs, metric="nll")
    assert f"The best, {order[1]}, against each other" in result.statement


@pytest.mark.slow
def test_strategies_on_rows_in_groups_are_compared_by_group(
    compared_here, label_recipe, label_file, tmp_path, monkeypatch
):
    monkeypatch.setattr(ALARM, lambda contender: None)
    rows = [json.loads(line) | {"patient": i // 3} for i, line in enumerate(label_file.read_text().splitlines())]
    data = {"train": write_rows(tmp_path / "patients.jsonl", rows), "test": 0.5, "group": "patient"}
    specs = ["full", {"name": "full", "train.learning_rate": 1e-9}]
    result = compared_here(label_recipe(data=data, train__max_steps=1), specs)
    assert (result.examples, result.rows) == (10, 30)
    assert (result.strategies[0].quality.n, result.strategies[0].quality.rows) == (10, 30)
    assert "10 groups (30 rows)" in result.statement
    assert "approximate" in result.statement


def test_an_output_that_is_a_run_or_somebody_elses_is_left_alone(chat_recipe, tmp_path):
    fine_tune(chat_recipe(train__max_steps=1))
    with raises(RunError, "is a run itself"):
        contend(chat_recipe(), ["full", "lora"])
    (tmp_path / "other" / "full").mkdir(parents=True)
    (tmp_path / "other" / "full" / "thesis.txt").write_text("do not lose me")
    with raises(RunError, "full: ", "other files"):
        checked(chat_recipe(output=str(tmp_path / "other")), ["full", "lora"])


@pytest.mark.slow
def test_a_run_of_another_recipe_or_of_other_data_is_not_gone_on_with(chat_recipe, chat_file, tmp_path):
    data = tmp_path / "rows.jsonl"
    rows = chat_file.read_text().splitlines()
    data.write_text("\n".join(rows))
    recipe = chat_recipe(train__max_steps=1, data__train=str(data))
    fine_tune(contend(recipe, ["full", "lora"])[0].recipe)
    assert checked(recipe, ["full", "lora"]) == []
    other = chat_recipe(train__max_steps=2, data__train=str(data))
    with raises(RunError, "full: ", "train.max_steps"):
        checked(other, ["full", "lora"])
    data.write_text("\n".join(rows[1:]))
    with raises(RunError, "full: ", "data files"):
        checked(recipe, ["full", "lora"])


def difference(first, second, value, low, high, p, better, supported):
    return PairDifference(value, low, high, p, better, None, "t", p, first, second, supported=supported)


def test_the_statement_names_who_wins_by_how_much():
    found = [
        difference("full", "lora", -0.05, -0.08, -0.02, 0.003, False, True),
        difference("full", "tiny", 0.01, -0.02, 0.03, 0.8, None, False),
        difference("lora", "tiny", 0.06, 0.03, 0.09, 0.001, True, True),
    ]
    head, *lines, how = statement("accuracy", "test", 1200, found, strategies=3).splitlines()
    assert "accuracy, 1,200 distinct test examples" in head
    assert lines == [
        "  lora is better than full by 0.050 (0.020 to 0.080), adjusted p = 0.003",
        "  full minus tiny: +0.010 (−0.020 to +0.030), not beyond chance, adjusted p = 0.8",
        "  lora is better than tiny by 0.060 (0.030 to 0.090), adjusted p = 0.001",
    ]
    assert "adjusted for all 3 pairs (Holm)" in how


def test_the_statement_says_when_nothing_is_supported():
    text = statement("loss", "test", 9, [difference("a", "b", 0.1, -0.1, 0.3, 0.3, None, False)])
    assert text.startswith(
        "On loss, 9 distinct test examples:\n  a minus b: +0.10 (−0.10 to +0.30), not beyond chance, p = 0.3"
    )
    assert "Holm" not in text
    one = difference("a", "b", 0.1, -0.1, 0.3, 0.3, None, False)
    unequal, equal = (statement("loss", "test", 21, [one], rows=200, worth=worth) for worth in (3.8, 21.0))
    assert ("approximate" in unequal, "approximate" in equal) == (True, False)
    few = statement("loss", "test", 3, [difference("a", "b", 0.1, None, None, None, None, False)])
    assert "  a and b: too few examples to tell" in few


def test_strategies_that_would_see_different_parts_of_long_examples_are_refused(chat_recipe, tmp_path):
    """A prompt takes room in the model's input, so that its examples would be cut shorter than those of others."""
    rows = [{"prompt": "why", "completion": "because " * (200 if i == 5 else 3) + str(i)} for i in range(20)]
    file = tmp_path / "long.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with raises(InputError, "task.max_length="):
        checked(chat_recipe(data__train=str(file)), ["full", "prompt"])
    assert not (tmp_path / "run").exists()
    checked(chat_recipe(data__train=str(file), task={"name": "causal-lm", "max_length": 64}), ["full", "prompt"])


def test_a_model_that_cannot_checkpoint_is_refused_before_anything_trains(chat_recipe):
    with raises(RecipeError, "prefix: ", "train.gradient_checkpointing"):
        checked(chat_recipe(train__gradient_checkpointing=True), ["full", "prefix"])


def test_a_metric_that_these_labels_do_not_give_is_refused_before_training(label_recipe):
    with raises(InputError, "subset_accuracy", "macro_f1") as error:
        checked(label_recipe(), ["full", "lora"], "subset_accuracy")
    assert "micro_f1" not in str(error.value)
    checked(label_recipe(), ["full", "lora"], "macro_f1")
