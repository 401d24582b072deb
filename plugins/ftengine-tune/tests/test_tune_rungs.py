"""Rungs: which trials are surely behind, what a search may cost, and what trials keep of their validations."""

from types import SimpleNamespace

import numpy as np
import pytest
from expected import raises

from ftengine.api import SilentListener
from ftengine.errors import InputError
from ftengine_tune.budget import Budget
from ftengine_tune.halving import compare, ending, p_behind, rungs_of
from ftengine_tune.result import RungResult, Trial, Tuning, statement
from ftengine_tune.rungs import Rungs
from ftengine_tune.trial import Validations


@pytest.mark.parametrize(
    ("total", "steps"), [(90, (10, 30, 90)), (100, (12, 36, 100)), (4, (1, 3, 4)), (2, (1, 2, 2)), (1, (1, 1, 1))]
)
def test_rungs_are_a_ninth_a_third_and_all_of_the_steps(total, steps):
    assert rungs_of(total) == steps


def test_a_trial_is_dropped_only_if_it_is_surely_behind():
    rng = np.random.default_rng(0)
    best = rng.exponential(size=200)
    near, far = best + rng.normal(0.01, 0.5, 200), best + rng.normal(0.5, 0.5, 200)
    results = compare(np.stack([far, best, near]), np.arange(200), 3)
    assert [result.surely for result in results] == [True, False, False]
    assert results[0].other in (1, 2)
    assert results[0].p < 1e-6
    more = compare(np.stack([far, best, near]), np.arange(200), 300)  # of more trials, each needs more evidence
    assert more[0].p == pytest.approx(results[0].p * 299 / 2)
    assert compare(best[None], np.arange(200), 9)[0].surely is False


def test_rows_that_are_not_independent_count_once():
    rng = np.random.default_rng(1)
    best, behind = np.zeros(8), rng.normal(0.8, 1.0, 8)
    alone = compare(np.stack([behind, best]), np.arange(8), 2)[0]
    copied = compare(np.stack([np.tile(behind, 50), np.tile(best, 50)]), np.tile(np.arange(8), 50), 2)[0]
    assert copied.p == pytest.approx(alone.p)
    assert compare(np.stack([np.tile(behind, 50), np.tile(best, 50)]), np.arange(400), 2)[0].p < alone.p / 10


def test_differences_that_do_not_vary():
    differences = np.array([[0.0] * 10, [0.1] * 10, [-0.1] * 10])
    assert p_behind(differences).tolist() == [1.0, 0.5**10, 1.0]
    assert p_behind(np.ones((2, 1))).tolist() == [1.0, 1.0]


def test_of_equal_trials_the_best_is_dropped_in_at_most_5_percent_of_searches():
    rng, dropped = np.random.default_rng(0), 0
    for _ in range(200):
        shared, own, lost = rng.gamma(1, 1, 60), rng.normal(size=(3, 60)), False
        for _ in range(3):
            own = 0.8 * own + 0.6 * rng.normal(size=own.shape)
            lost |= compare(shared * np.exp(0.5 * own - 0.125), np.arange(60), 3)[0].surely
        dropped += lost
    assert dropped <= 0.05 * 200


def test_validations_are_kept_up_to_a_step(tmp_path):
    kept = Validations.read(tmp_path / "losses" / "001.npz")
    for step, mean in ((10, 3.0), (20, 1.0), (30, 2.0)):
        kept = kept.with_one(step, mean, np.full(4, mean))
    kept.write(tmp_path / "losses" / "001.npz")
    read = Validations.read(tmp_path / "losses" / "001.npz")
    assert [read.kept(until, True)[0] for until in (10, 25, 30)] == [3.0, 1.0, 1.0]
    assert read.kept(30, False)[0] == 2.0
    again = read.with_one(20, 0.5, np.full(4, 0.5))  # a run that went on from an earlier checkpoint
    assert again.steps.tolist() == [10, 20]
    assert again.kept(30, True)[1].tolist() == [0.5] * 4


@pytest.mark.parametrize(
    ("losses", "states", "best", "words"),
    [
        # Losses at the rungs that each trial reached. Time was up at the last rung: two came to their end.
        ([(2.0, 1.0, 0.9), (2.1, 1.1, 0.5), (2.2, 1.2)], "ffo", 2, "lowest validation loss of the 2"),
        # Only one did: trials are compared where two are.
        ([(2.0, 1.0, 1.5), (2.1, 1.1), (2.2,)], "foo", 1, "at rung 2; trained to its end, it comes to 1.5"),
        # A run that stopped early has its end behind it.
        ([(2.0, 1.0, 0.9), (0.8,), (2.2, 1.2)], "ffo", 2, "lowest validation loss of the 2"),
        ([(2.0, 1.0, 0.9), (0.8, 0.7, 0.6), (2.2,)], "fxx", 1, "Of 1 trial that did not fail"),
    ],
)
def test_the_best_is_chosen_where_trials_are_comparable(losses, states, best, words, tmp_path):
    of = {"f": "finished", "o": "open", "x": "failed"}
    trials = [
        Trial(number=n, values={}, steps=(1, 3, 9), state=of[s], rung=len(row), loss=row[-1], run="")
        for n, (row, s) in enumerate(zip(losses, states, strict=True), 1)
    ]
    first = RungResult(compared=[1, 2, 3], dropped=[])
    tuning = Tuning(recipe={}, space=[], sampler="random", planned=3, full_seconds=1, trials=trials, rungs=[first])
    recipe = SimpleNamespace(output=str(tmp_path), train=SimpleNamespace(keep_best=False))
    rungs = Rungs(recipe, [], tuning, {}, np.arange(1), Budget(1.0, None), SilentListener())
    for number, row in enumerate(losses, 1):
        kept = Validations.read(tmp_path / "none")
        for step, loss in zip((1, 3, 9), row, strict=False):
            kept = kept.with_one(step, loss, np.full(1, loss))
        kept.write(tmp_path / "losses" / f"{number:03d}.npz")
    tuning.best = rungs._best_at_its_end().number
    assert tuning.best == best
    assert words in statement(tuning)


def trial(rung, seconds, number=1):
    return Trial(number=number, values={}, steps=(10, 30, 90), rung=rung, seconds=seconds, run="")


def test_a_limit_of_time_leaves_room_for_one_whole_run():
    budget = Budget(full=90.0, limit=200.0)
    assert budget.allows([trial(1, 10.0, n) for n in range(11)], 1)  # 110 s, and a whole run
    assert not budget.allows([trial(1, 10.0, n) for n in range(12)], 1)
    slow = [trial(1, 25.0, n) for n in range(4)]  # 15 s of each are not training
    assert budget.allows(slow[:2], 1)
    assert not budget.allows(slow, 1)
    assert Budget(full=90.0, limit=None).allows(slow * 100, 3)


def test_too_little_time_is_refused():
    with raises(InputError, "--minutes 1 ", "--set train.max_steps=N"):
        Budget(full=90.0, limit=60.0).require(1)
    Budget(full=90.0, limit=120.0).require(2)
    assert "9 trials of up to 90 steps, compared after 10, 30 and 90" in Budget(full=90.0, limit=120.0).line(9, 90)


@pytest.mark.parametrize(
    ("rung", "left", "dropped", "why"),
    [
        (1, 1, 8, "one left"),
        (1, 9, 0, None),  # too early to tell
        (2, 7, 2, "not told apart"),
        (2, 4, 2, None),
        (2, 1, 1, "one left"),
        (3, 4, 0, None),
    ],
)
def test_a_search_ends_with_one_trial_or_indistinguishable_ones(rung, left, dropped, why):
    assert ending(rung, left, dropped) == why
