"""Every strategy with every task, on every architecture in turn: what a whole run promises, in float32 or in bfloat16.

Cells are in matrix_cells.py. A cell is run once, when a test first asks for it, and tests look at what it left.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache
from itertools import product
from statistics import mean

import pytest
import torch
from expected import raises
from matrix_cells import ARCHITECTURES, STRATEGIES, Cell, make_cell, recipe
from runs import interrupt

from ftengine import fine_tune
from ftengine.engine.saved_part import NEW_MODULES
from ftengine.errors import RecipeError
from ftengine.run.directory import RunDirectory

REFUSED = {
    ("prompt", "vit"): "token embeddings",
    ("prompt", "resnet"): "token embeddings",
    ("prefix", "vit"): "token embeddings",
    ("prefix", "resnet"): "token embeddings",
    ("prefix", "t5"): "strategy.name=prompt",
    ("prefix", "t5-classes"): "strategy.name=prompt",
}
"""An image has no token embeddings for virtual tokens to join; an encoder beside a decoder no cache for a prefix."""
TASKS = {
    kind.task: [name for name, one in ARCHITECTURES.items() if one.task == kind.task] for kind in ARCHITECTURES.values()
}


def each_with_each_task() -> list[tuple[str, str]]:
    """Return every strategy with every task, the architectures of a task in turn; what they are refused is left out."""
    turns = [(a, names[i % len(names)]) for i, a in enumerate(STRATEGIES) for names in TASKS.values()]
    return [cell for cell in turns if cell not in REFUSED]


def diagonal(number: int) -> list[tuple[str, str]]:
    """Return cells in which each architecture occurs once, and each strategy as often as any other."""
    numbered = product(enumerate(STRATEGIES), enumerate(ARCHITECTURES))
    return [(a, b) for (i, a), (j, b) in numbered if (i + j) % len(STRATEGIES) == number]


HALVED = diagonal(0)
"""Runs in bfloat16."""
SEEN = {(strategy, ARCHITECTURES[name].task) for strategy, name in HALVED}
WHOLE = [(a, b) for a, b in each_with_each_task() if (a, ARCHITECTURES[b].task) not in SEEN]
RUNS = [(*cell, "float32") for cell in WHOLE] + [(*cell, "bfloat16") for cell in HALVED]
INTERRUPTED = [
    ("full", "t5", "float32"),
    ("lora", "resnet", "bfloat16"),
    ("adapter", "bert-tokens", "float32"),
    ("prompt", "llama", "float32"),
    ("prefix", "llama-classes", "bfloat16"),
]
"""Runs that are interrupted as well."""
MERGING = [run for run in RUNS if run[0] in ("full", "lora")]
GENERATING = [run for run in RUNS if ARCHITECTURES[run[1]].task.endswith("-lm")]

QUICK = set(INTERRUPTED)
"""Runs of `make test`: every strategy and every task once."""


def each_of(runs: list[tuple[str, str, str]]) -> pytest.MarkDecorator:
    """Return the cells to parametrize a test by, those that are not quick as slow ones."""
    cells = [pytest.param(*run, marks=[pytest.mark.slow] * (run not in QUICK)) for run in runs]
    return pytest.mark.parametrize(("strategy", "architecture", "precision"), cells)


each_run = each_of(RUNS)


@pytest.fixture(scope="module")
def cell(tmp_path_factory) -> Callable[[str, str, str], Cell]:
    folder = tmp_path_factory.mktemp("matrix")
    return cache(lambda strategy, architecture, precision: make_cell(strategy, architecture, precision, folder))


@each_run
def test_the_loss_falls(cell, strategy, architecture, precision):
    run = cell(strategy, architecture, precision).run
    steps = [line["loss"] for line in run.metrics if "loss" in line]
    per_epoch = len(steps) // 4
    assert all(map(math.isfinite, steps))
    assert mean(steps[-per_epoch:]) < 0.97 * mean(steps[:per_epoch])  # the same examples in every epoch


@each_run
def test_what_requires_a_gradient_moves_and_all_else_of_the_base_stands_still(cell, strategy, architecture, precision):
    of = cell(strategy, architecture, precision)
    still = [name for name, (now, before) in of.seen.started.items() if torch.equal(now, before)]
    assert of.seen.started
    assert not still
    frozen = {name: pair for name, pair in of.seen.base.items() if not pair[0].requires_grad}
    in_use = {id(tensor) for tensor in [*of.module.parameters(), *of.module.buffers()]}
    assert [name for name, (now, _) in frozen.items() if id(now) not in in_use] == []
    assert [name for name, (now, before) in frozen.items() if not torch.equal(now, before)] == []
    assert any(isinstance(now, torch.nn.Parameter) for now, _ in frozen.values()) == (strategy != "full")


@each_run
def test_frozen_weights_are_kept_in_the_runs_precision_and_what_trains_in_float32(
    cell, strategy, architecture, precision
):
    module = cell(strategy, architecture, precision).module
    trains = {parameter.dtype for parameter in module.parameters() if parameter.requires_grad}
    frozen = {p.dtype for p in module.parameters() if not p.requires_grad and p.ndim > 1}
    assert trains == {torch.float32}
    assert frozen == (set() if strategy == "full" else {getattr(torch, precision)})


def test_every_strategy_meets_every_task_and_every_architecture_both_precisions_and_an_interruption():
    met = {(strategy, ARCHITECTURES[name].task) for strategy, name, _ in RUNS}
    unfit = {(strategy, ARCHITECTURES[name].task) for strategy, name in REFUSED}
    assert set(product(STRATEGIES, TASKS)) - met <= unfit
    assert {name for _, name, _ in RUNS} == set(ARCHITECTURES)
    for runs in (WHOLE, HALVED, INTERRUPTED):
        assert {run[0] for run in runs} == set(STRATEGIES)
        assert {ARCHITECTURES[run[1]].task for run in runs} == set(TASKS)
    assert set(INTERRUPTED) <= set(RUNS)


@each_run
def test_new_modules_that_the_strategys_own_files_hold_are_not_written_twice(cell, strategy, architecture, precision):
    assert not (cell(strategy, architecture, precision).run.trained / NEW_MODULES).exists()


@each_run
def test_a_run_opened_again_is_the_one_that_was_trained(cell, strategy, architecture, precision):
    of = cell(strategy, architecture, precision)
    assert list(of.run.predict(of.asked, options=of.options)) == of.seen.infer(of.asked, of.options)
    assert of.run.evaluate() == of.run.evaluation


@each_of(GENERATING)
def test_an_answer_is_generated_alike_alone_and_beside_a_longer_one(cell, strategy, architecture, precision):
    of = cell(strategy, architecture, precision)
    together = list(of.run.predict(of.asked, options=of.options))
    assert together == [next(of.run.predict([row], options=of.options)) for row in of.asked]
    assert together != list(of.run.predict(of.asked, options=of.options, base=True))


@pytest.mark.slow
@each_of(INTERRUPTED)
def test_an_interrupted_run_resumes_to_the_same_bytes(cell, strategy, architecture, precision):
    of = cell(strategy, architecture, precision)
    again = of.recipe("interrupted")
    interrupt(again, after=5)  # the sixth step stands between two checkpoints
    resumed = fine_tune(again, resume=True)
    files = sorted(file.name for file in of.run.trained.glob("*.safetensors"))
    assert files
    for name in files:
        assert (resumed.trained / name).read_bytes() == (of.run.trained / name).read_bytes()
    assert resumed.evaluation == of.run.evaluation


@each_run
def test_a_tuned_model_differs_from_its_base_and_begins_as_it_where_promised(cell, strategy, architecture, precision):
    seen = cell(strategy, architecture, precision).seen
    begins_as_base = torch.equal(seen.first_outputs, seen.base_outputs)
    assert begins_as_base == (strategy not in ("prompt", "prefix"))  # which are part of the input from the start
    assert not torch.equal(seen.outputs(seen.loaded), seen.base_outputs)


@each_of(MERGING)
def test_a_merged_model_answers_as_the_tuned_one(cell, strategy, architecture, precision, tmp_path):
    report = cell(strategy, architecture, precision).run.merge(tmp_path / "merged")
    assert 0 <= report.difference <= report.tolerance < report.effect


@pytest.mark.parametrize(("strategy", "architecture"), REFUSED)
def test_what_a_model_has_no_place_for_is_refused_before_anything_is_written(strategy, architecture, tmp_path):
    refused = recipe(strategy, architecture, "float32", tmp_path, "whole")
    with raises(RecipeError, REFUSED[strategy, architecture]):
        fine_tune(refused)
    assert not RunDirectory(refused.output).path.exists()
