"""How many steps a run has, and how many warm it up."""

import pytest

from ftengine.run.recipe import TrainSection
from ftengine.training.steps import plan_steps, warmup_steps
from ftengine.training.validation import Validator


def test_warmup_is_a_share_below_one_and_a_number_of_steps_above():
    assert warmup_steps(0.03, 100) == 3
    assert warmup_steps(10, 100) == 10
    assert warmup_steps(1000, 100) == 100
    assert warmup_steps(0, 100) == 0


@pytest.mark.parametrize(("epochs", "steps"), [(1.1, 11), (1.11, 12), (0.7, 7), (3, 30), (1e-12, 1)])
def test_a_decimal_does_not_add_a_step(epochs, steps):
    """1.1 · 10 is 11.000000000000002, 0.07 · 100 is 7.000000000000001."""
    assert plan_steps(80, TrainSection(epochs=epochs)).total == steps
    assert warmup_steps(0.07, 100) == 7


@pytest.mark.parametrize(("rows", "epochs", "between"), [(80, 3, 1), (80, 20, 1), (5, 60, 3), (5, 61, 4)])
def test_a_run_validates_twenty_times_at_most(rows, epochs, between):
    """Forty rows in 60 epochs were validated and saved 60 times, which took most of the run."""
    assert plan_steps(rows, TrainSection(epochs=epochs)).epochs_between == between


def test_rewards_of_several_seeds_are_of_the_same_validation_rows():
    from types import SimpleNamespace

    class Split:
        def __len__(self):
            return 10_000

        def sample(self, count, seed=0):
            return -float(seed)

    def measured(seed):
        validator = Validator.__new__(Validator)
        validator.setup, validator._steps = SimpleNamespace(seed=seed), SimpleNamespace(batch=1)
        validator._drawing = SimpleNamespace(mean=lambda split, step: split)
        return validator._losses(Split())

    assert measured(1) == measured(2)
