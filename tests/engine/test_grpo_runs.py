"""Runs that learn from rewards of their own answers."""

import copy
import json
import shutil
from dataclasses import replace
from functools import partial

import pytest
from expected import raises
from processes import together, train
from runs import Heard, curve, interrupt

from ftengine import Recipe, fine_tune, load_run, plan
from ftengine.api import BeforeStep, DrawRequest, TrainingContext
from ftengine.engine import drawing_plan, fast_paths
from ftengine.errors import DataError, RecipeError, TrainingError
from ftengine.generation import GenerationOptions
from ftengine.run.directory import DRAWS, RunDirectory
from ftengine.training import drawing, optimizer_step
from ftengine_builtins.tasks import PolicyLoss, answers_prompts, drawn_answers

SCORE = """
import os
import time


def lower(answer: str) -> float:
    return sum(c.islower() and c.isascii() for c in answer) / max(1, len(answer))


def shouts(answer: str, shout: bool) -> bool:
    return answer.isupper() is shout


def constant(answer: str) -> int:
    return 1


def raises(answer: str) -> int:
    raise ValueError("no such luck")


def text(answer: str) -> str:
    return "good"


def again(answer: str, turns: list) -> str:
    return "And now?"


def turns(answer: str, turns: list) -> float:
    return len(turns) + lower(answer)


def even(answer: str) -> bool:
    return len(answer) % 2 == 0


calls = 0


def late(answer: str) -> float:
    global calls
    calls += 1
    if 8 < calls <= 16:
        raise ValueError("for a step")
    return lower(answer)


def some(answer: str) -> float:
    print("x" * 100_000)
    if len(answer) % 4 == 0:
        return float("nan")
    if len(answer) % 4 == 1:
        os._exit(1)
    if len(answer) % 4 == 2:
        time.sleep(60)
    return 1.0
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("rewards")
    (folder / "score.py").write_text(SCORE)
    words = ("red", "green", "fox", "house", "no", "yes", "the", "dog")
    rows = [{"prompt": f"Say {words[i % 8]} {i}", "completion": "fox", "shout": i % 2 == 0} for i in range(32)]
    (folder / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return folder


@pytest.fixture(scope="module")
def build(folder, llama_folder):
    def build(output, *functions, task=None, held="test", **train):
        rewards = [{"function": f"{folder / 'score.py'}:{name}"} for name in functions or ("lower",)]
        return Recipe.make(
            {
                "model": {"source": str(llama_folder)},
                "task": {"name": "grpo", "rewards": rewards, "max_new_tokens": 3, **(task or {})},
                "data": {"train": str(folder / "rows.jsonl"), "validation": None, held: 0.2},
                "strategy": "full",
                "train": {
                    "max_steps": 2,
                    "batch_size": 4,
                    "precision": "float32",
                    "learning_rate": 0.003,
                    **train,
                },
                "evaluation": {"training_sample": None, "resamples": 100, "answers": None, "reuse_base": False},
                "output": str(output),
            }
        )

    return build


def draws(run):
    return RunDirectory(run.path).steps_in(DRAWS)


@pytest.fixture(scope="module")
def learnt(build, tmp_path_factory):
    output = tmp_path_factory.mktemp("learnt") / "run"
    return fine_tune(build(output, max_steps=16, epochs=4, warmup=0.0, learning_rate=0.03))


def test_the_reward_rises(learnt):
    rewards = [line["reward"] for line in learnt.metrics]
    assert len(rewards) == 16
    assert sum(rewards[:3]) / 3 < 0.6 < 0.8 < sum(rewards[-3:]) / 3
    base, tuned = (learnt.evaluation[side]["mean_reward"]["value"] for side in ("base", "tuned"))
    assert tuned > base


def test_draws_and_figures_are_of_the_answers(learnt):
    lines = draws(learnt)
    for step in learnt.metrics:
        own = [line for line in lines if line["step"] == step["step"]]
        assert step["reward"] == pytest.approx(sum(line["reward"] for line in own) / len(own))
        assert step["cut_off"] == sum(not line["ended"] for line in own) / len(own)
        assert step["answer_tokens"] == pytest.approx(sum(line["tokens"] for line in own) / len(own))
        teaching = [line for line in own if line["advantage"]]
        assert step["trained_tokens"] == sum(line["tokens"] for line in teaching)
        assert (8 * step["prompts"], step["examples"]) == (len(own), len(teaching))
        assert (step["answers"], step["failed"]) == (len(own), 0)
        assert (step["sampler_gap"] or 0) < 1e-4  # what draws is what trains; an idle step trains nothing
    for group in (lines[i : i + 8] for i in range(0, len(lines), 8)):
        assert len({line["prompt"] for line in group}) == 1
        assert len({line["answer"] for line in group}) > 1
        assert sum(line["advantage"] for line in group) == pytest.approx(0, abs=1e-6)
        assert all(line["rewards"] == {"lower": line["reward"]} for line in group)


@pytest.mark.parametrize(
    ("function", "task"),
    [
        ("lower", {}),
        pytest.param("lower", {"updates_per_draw": 2, "beta": 0.1, "loss": "dapo"}, marks=pytest.mark.slow),
        pytest.param("even", {"redraws": 2, "num_generations": 2}, marks=pytest.mark.slow),
        pytest.param(
            "turns", {"reply": "again", "max_turns": 3, "max_new_tokens": 8, "scorers": 1}, marks=pytest.mark.slow
        ),
    ],
    ids=["once", "twice", "drawn again", "several turns"],
)
def test_a_killed_run_goes_on_as_though_it_had_not_been(build, tmp_path, folder, function, task):
    several = "reply" in task
    task = {**task, **({"reply": f"{folder / 'score.py'}:{task['reply']}"} if several else {})}
    whole = fine_tune(build(tmp_path / "whole", function, task=task, max_steps=4))
    recipe = build(tmp_path / "killed", function, task=task, max_steps=4, checkpoint_every=2)
    interrupt(recipe, after=3)
    shutil.copytree(tmp_path / "killed", tmp_path / "kept")
    resumed = fine_tune(recipe, resume=True)
    assert curve(resumed.path) == curve(whole.path)
    assert draws(resumed) == draws(whole)
    assert len({line["entropy"] for line in whole.metrics}) == 4
    assert all(line.get("redrawn", 1) > 0 for line in whole.metrics)
    assert several is any(len(line.get("turns", ())) > 1 for line in draws(whole))


@pytest.mark.slow
def test_a_resumed_run_counts_the_steps_without_a_score_before_it(build, tmp_path):
    recipe = build(tmp_path / "run", "raises", max_steps=8, checkpoint_every=2)
    interrupt(recipe, after=3)
    with raises(TrainingError, "5 steps in a row (up to step 5)"):
        fine_tune(recipe, resume=True)


@pytest.mark.slow
def test_two_processes_equal_one(build, tmp_path):
    one = fine_tune(build(tmp_path / "one", task={"beta": 0.1}, batch_size=4))
    two = build(tmp_path / "two", task={"beta": 0.1}, batch_size=2)
    (tmp_path / "two.yaml").write_text(json.dumps(two.resolved()))
    together(tmp_path, train, str(tmp_path / "two.yaml"))
    run = load_run(tmp_path / "two")
    assert [line["answer"] for line in draws(run)] == [line["answer"] for line in draws(one)]
    for key in ("loss", "reward", "entropy", "kl", "grad_norm"):
        curves = [[line[key] for line in r.metrics] for r in (run, one)]
        assert curves[0] == pytest.approx(curves[1], rel=1e-3, abs=1e-6)


@pytest.mark.slow
def test_the_reference_is_the_model_before_training(build, tmp_path):
    """Nothing diverges from it at the first step, and something later, also where every weight trains."""
    run = fine_tune(build(tmp_path / "run", task={"beta": 0.5}, max_steps=2, learning_rate=0.01))
    first, second = [line["kl"] for line in run.metrics]
    assert first == pytest.approx(0, abs=1e-9)
    assert second > 1e-6


@pytest.mark.slow
def test_a_run_is_validated_by_the_reward_of_likeliest_answers(build, tmp_path):
    """Early stopping and the best weights go by it, and evaluation measures the same of these."""
    train = {"max_steps": 8, "validate_every": 1, "learning_rate": 1e-9, "early_stopping": {"patience": 2}}
    stopped = fine_tune(build(tmp_path / "stopped", held="validation", **train))
    result = stopped.directory.read_json("training.json")
    assert (result["steps"], result["stopped_early"], result["best_step"]) == (3, True, 1)
    train |= {"learning_rate": 0.03, "early_stopping": None, "warmup": 0.0}
    run = fine_tune(build(tmp_path / "run", held="validation", **train))
    rewards = [line["validation_reward"] for line in run.directory.metrics() if "validation_reward" in line]
    assert len(rewards) == 8
    result = run.directory.read_json("training.json")
    assert (-result["best_loss"], result["best_step"]) == (max(rewards), 1 + rewards.index(max(rewards)))
    assert run.evaluation["tuned"]["mean_reward"]["value"] == pytest.approx(max(rewards))
    with raises(TrainingError, "validation rows"):
        fine_tune(build(tmp_path / "fails", "raises", held="validation", validate_every=1))


@pytest.mark.slow
def test_answers_at_which_a_function_fails_have_no_reward_and_are_counted(build, tmp_path):
    """It returns nan, ends its process, or hangs, and prints much more than it returns."""
    run = fine_tune(build(tmp_path / "run", "some", task={"timeout": 0.2}, max_steps=1))
    (step,) = run.metrics
    errors = [line for line in draws(run) if line["reward"] is None]
    assert 0 < step["failed"] == len(errors) < 32
    assert all(line["error"] and line["advantage"] == 0 for line in errors)
    assert step["reward"] == 1


@pytest.mark.parametrize(("function", "fact"), [("raises", "no such luck"), ("text", "'good'")])
def test_a_reward_that_always_fails_ends_the_run(build, tmp_path, function, fact):
    with raises(TrainingError, function, fact, "32", "2 steps in a row"):
        fine_tune(build(tmp_path / "run", function))


@pytest.mark.slow
def test_a_step_at_which_a_reward_always_fails_makes_no_update_and_the_run_goes_on(build, tmp_path, monkeypatch):
    """Neither momentum nor the divergence from the model before training moves its weights."""
    updates = list[int]()
    monkeypatch.setattr(optimizer_step, "BeforeStep", lambda *args: updates.append(args[1]) or BeforeStep(*args))
    run = fine_tune(build(tmp_path / "run", "late", task={"beta": 0.1, "scorers": 1}, max_steps=3, batch_size=1))
    assert [line["failed"] for line in run.metrics] == [0, 8, 0]
    assert [line["examples"] for line in run.metrics] == [8, 0, 8]
    assert [line["zero_spread"] is None for line in run.metrics] == [False, True, False]
    assert updates == [1, 3]


@pytest.mark.slow
def test_an_update_whose_answers_were_all_clipped_by_the_one_before_is_legal(build, tmp_path, monkeypatch):
    def token_losses(self, tokens):
        first = tokens.log_ratio.abs().max() < 1e-5
        return -tokens.log_ratio.exp() * tokens.advantage if first else 0 * tokens.now + 1

    monkeypatch.setattr(PolicyLoss, "token_losses", token_losses)
    run = fine_tune(build(tmp_path / "run", task={"updates_per_draw": 2}, max_steps=1, warmup=0.0))
    assert (run.metrics[0]["grad_norm"], run.metrics[0]["loss"]) == (0, pytest.approx(1))


def test_a_constant_reward_is_reported(build, tmp_path, monkeypatch):
    """And no fast path is told that rows are read again: answers to them differ each time."""
    heard, facts, strategy = Heard(), list[dict](), {"name": "lora", "dropout": 0.0}
    monkeypatch.setattr(fast_paths, "TrainingContext", lambda **own: facts.append(own) or TrainingContext(**own))
    made = build(tmp_path / "run", "constant", max_steps=8, epochs=2).resolved()
    run = fine_tune(Recipe.make(made | {"strategy": strategy}), listener=heard)
    assert [own["repeats"] for own in facts] == [False]
    assert {line["zero_spread"] for line in run.metrics} == {1.0}
    assert [own["reward"] for own in heard.figures] == [1.0] * 8  # and no loss, which is about 0 at any reward
    assert any("5 steps in a row" in message and "reward 1" in message for message in heard.said)


class Stale:
    """Requests whose model has the weights of an earlier step: of the first one, or of the one before."""

    def __init__(self, behind):
        self._behind, self._kept = behind, None

    def __call__(self, loaded, *args):
        now = copy.deepcopy(loaded.module)
        stale = self._kept or now
        self._kept = now if self._behind else stale
        return DrawRequest(replace(loaded, module=stale), *args)


def same_number(loaded, prompts, each, options, stop, attempt=0):
    return [group * each for group in drawn_answers.draw_groups(loaded, prompts, 1, options, stop, attempt)]


PLANTED = {
    "nothing": (None, None),
    "an adapter that is lost": ((drawing, "DrawRequest", Stale(False)), "later_gap"),
    "one update behind": ((drawing, "DrawRequest", Stale(True)), "later_gap"),
    "top-p": ((answers_prompts, "GenerationOptions", partial(GenerationOptions, top_p=0.8)), "sampler_excess"),
    "seeds that repeat": ((answers_prompts, "draw_groups", same_number), "repeated"),
}


@pytest.mark.slow
@pytest.mark.parametrize("fault", PLANTED)
def test_a_fault_of_what_draws_is_named_by_the_run(build, tmp_path, monkeypatch, fault):
    """In the first place: one figure each that a sound run does not have."""
    plant, figure = PLANTED[fault]
    if plant is not None:
        monkeypatch.setattr(*plant)
    run = fine_tune(build(tmp_path / "run", max_steps=4, epochs=1, warmup=0.0))
    found = [finding for finding in run.verdict.findings if finding.source == "drawn-rewards"]
    alarms = [next(iter(finding.figures)) for finding in found if finding.level == "alarm"]
    assert alarms == ([] if figure is None else [figure])


@pytest.mark.slow
def test_a_function_gets_the_columns_that_it_names(build, tmp_path):
    run = fine_tune(build(tmp_path / "run", "shouts", "lower", max_steps=1))
    assert {*draws(run)[0]["rewards"]} == {"shouts", "lower"}
    assert run.metrics[0]["reward"] == pytest.approx(run.metrics[0]["reward/shouts"] + run.metrics[0]["reward/lower"])


def test_a_plan_draws_for_a_step_and_tries_the_rewards(build, tmp_path, monkeypatch):
    sizes = list[int]()
    monkeypatch.setattr(drawing_plan, "DrawRequest", lambda *args: sizes.append(args[4]) or DrawRequest(*args))
    planned = plan(build(tmp_path / "run", "constant", task={"beta": 0.1}))
    assert sizes == [8]  # of answers that a model is given at once, as in training
    assert planned.steps["answers_a_row"] == 8
    assert (planned.drawing["prompts"], planned.drawing["reward"], planned.drawing["zero_spread"]) == (4, 1, 1)
    assert planned.estimate["drawing_bytes"] >= 4 * planned.model["trainable_parameters"]  # a copy of them
    warned = " ".join(planned.warnings)
    for fault in ("an empty answer", "the prompt as an answer", "over and over", "same reward"):
        assert fault in warned
    assert "fails" not in warned
    assert "no such luck" in " ".join(plan(build(tmp_path / "run", "raises"), measure=False).warnings)


def test_what_cannot_be_is_refused_before_a_model_loads(build, tmp_path, no_weights):
    cases = [
        ({"rewards": []}, DataError, "task.rewards"),
        ({"max_new_tokens": 600}, DataError, "max_new_tokens", "512"),
        ({"rewards": [{"name": "exact-match", "column": "gone"}]}, DataError, "gone"),
        ({"rewards": [{"function": str(tmp_path / "gone.py") + ":right"}]}, RecipeError, "gone.py"),
        ({"loss": "gpro"}, RecipeError, "gpro", "grpo"),
        ({"epsilon": 0.1}, RecipeError, "updates_per_draw"),
        ({"epsilon": 1.0, "updates_per_draw": 2}, RecipeError, "epsilon"),
        ({"loss": "cispo", "epsilon": 0.2, "updates_per_draw": 2}, RecipeError, "epsilon", "cispo does not use it"),
        ({"overlong_buffer": 9}, RecipeError, "overlong_buffer", "9", "3"),
        ({"loss": "cispo", "epsilon_high": 0.2, "updates_per_draw": 2}, RecipeError, "epsilon_high", "0.2", "cispo"),
        ({"rewards": [{"weight": 2}]}, RecipeError, "exact-match"),
    ]
    smoothed = build(tmp_path / "run").resolved() | {"regularize": [{"name": "label-smoothing", "epsilon": 0.1}]}
    with raises(RecipeError, "'label-smoothing'", "criterion", "'grpo'"):
        plan(Recipe.make(smoothed), measure=False)
    for task, kind, *facts in cases:
        with raises(kind, *facts):
            plan(build(tmp_path / "run", task=task), measure=False)
