"""Optional methods are checked where they are written, and options have to be read."""

import copy
import random

import pytest
from broken import failed, variant
from pydantic import Field, field_validator
from quiz import Quiz, Right
from spread import Spread, TowardsGradients

from ftengine.api import Callback, TextAugmenter
from ftengine.errors import RecipeError
from ftengine.testing import check_results, fixture
from ftengine.testing.asking import AskingChecks
from ftengine.testing.checks import results_of
from ftengine.testing.strategies import StrategyChecks

pytestmark = pytest.mark.slow

BERT = fixture("sequence-classification")


class Amnesiac(Spread):
    """Remembers what its checkpoints do not hold."""

    def regularizer(self, steps):
        own = TowardsGradients(self.config)
        own.state_dict, own.load_state_dict = dict, lambda tensors: None
        return own


class Clinging(Spread):
    """Leaves a hook behind."""

    def regularizer(self, steps):
        own = TowardsGradients(self.config)
        own.attach = lambda loaded, task: loaded.module.register_forward_hook(lambda *args: None)
        return own


class Long(Spread):
    """Is meant for long runs, and says so."""

    def regularizer(self, steps):
        raise RecipeError("1,000 steps at least.")


@pytest.mark.parametrize(
    ("cls", "outcome", "text"),
    [
        (Spread, "passed", ""),
        (Long, "skipped", "1,000 steps at least."),
        (Amnesiac, "failed", "a_resumed_run_is_the_uninterrupted_one"),
        (Clinging, "failed", "detach leaves 1 hooks on the model"),
        (variant(Spread, regularizer=lambda *_: "ema"), "failed", "it must return a Regularizer"),
    ],
)
def test_the_regularizer_that_a_strategy_brings_is_checked(cls, outcome, text):
    check = StrategyChecks(cls, BERT.load, BERT.batch).what_it_brings_regularizes
    result = results_of([("brings", check)], None)[0]
    assert (result.outcome, text in result.reason) == (outcome, True), result


def test_a_sound_strategy_that_brings_one_passes():
    assert failed(Spread) == {}


class Trains(Quiz):
    """Leaves the model in training mode, with another head."""

    def ask_models(self, loaded):
        answers = super().ask_models(loaded)
        loaded.module.train()
        loaded.module.classifier.bias.add_(1)
        return answers


class Lopsided(Right):
    """Counts every answer as one, whatever its weight."""

    def score(self, rows, weights):
        return {"quiz": float(rows["right"].mean())}


@pytest.mark.parametrize(
    ("cls", "check"),
    [
        (variant(Quiz, ask_models=lambda *_: {}), "every_benchmark_is_answered"),
        (
            variant(Quiz, benchmarks=lambda self, task: {"texts": "accuracy"} if Quiz.benchmarks(self, task) else {}),
            "every_benchmark_is_answered",
        ),
        (
            variant(Quiz, ask_models=lambda *_: {"texts": [{"right": random.random()} for _ in range(8)]}),
            "the_same_examples_are_asked_again",
        ),
        (Trains, "asking_leaves_the_model_as_it_is"),
        (
            variant(Quiz, benchmarks=lambda self, task: {"texts": Lopsided()} if Quiz.benchmarks(self, task) else {}),
            "its_benchmarks_are_sound_evaluators",
        ),
    ],
)
def test_an_evaluator_that_asks_is_checked_on_a_model(cls, check):
    results = {one.check: one for one in results_of(AskingChecks(cls, BERT.task, BERT.load), None)}
    assert results[check].outcome == "failed", results


def test_a_sound_one_passes_and_says_what_it_does_not_ask():
    results = {one.check: one for one in check_results(Quiz)}
    assert [one for one in results.values() if one.outcome == "failed"] == []
    assert "task causal-lm" in results["LlamaForCausalLM"].reason


class Deaf(TextAugmenter):
    """Has an option that it never reads, and one that a validator alone reads."""

    name = "deaf"

    class Config(TextAugmenter.Config):
        rate: float = Field(0.5, description="how many words change")
        depth: int = Field(3, description="how deep")

        @field_validator("depth")
        @classmethod
        def positive(cls, depth):
            return abs(depth)

    def change(self, text, rng):
        return text.upper()


class Copies(Deaf):
    """Copies and compares options in place of reading them."""

    def __init__(self, config):
        super().__init__(copy.deepcopy(config))
        assert self.config == config


class Rare(Callback):
    """Reads an option at an event that the checks do not show."""

    name = "rare"

    class Config(Callback.Config):
        rate: int = Field(3, description="steps between lines")

    def on_save(self, event):
        pass


@pytest.mark.parametrize(
    ("cls", "outcome"),
    [
        (Deaf, "failed"),
        (Copies, "failed"),
        (
            variant(Deaf, change=lambda self, text, rng: text.upper() if self.config.model_dump()["rate"] else text),
            "passed",
        ),
        (variant(Deaf, modality="sound"), "skipped"),
        (Rare, "skipped"),
    ],
)
def test_an_option_that_is_never_read_is_named(cls, outcome):
    result = {one.check: one for one in check_results(cls)}["every_option_is_read"]
    assert (result.outcome, "'rate'" in result.reason) == (outcome, outcome == "failed" or cls is Rare), result
    assert "__getattribute__" not in vars(Deaf.Config)
