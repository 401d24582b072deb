"""Task grpo: prompts in every layout, tokens that are trained on, what drawn answers become, and its door."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from chat_templates import SMOLLM2, TOKENS
from click.testing import CliRunner
from expected import raises

from ftengine import Recipe, plan
from ftengine.api import DrawRequest, LoadedModel, Task
from ftengine.cli import main
from ftengine.errors import DataError, PluginError
from ftengine.generation import Answer
from ftengine.plugins.class_validation import fault
from ftengine.testing.models import tiny_llama
from ftengine_builtins.rewards import Scored
from ftengine_builtins.tasks import GRPO, CausalLM, DrawnTokens, PolicyLoss
from ftengine_builtins.tasks.drawn_answers import DrawnAnswer, Tempered, draw_groups
from ftengine_builtins.tasks.prompt_rows import own_answer

USER, ASSISTANT = {"role": "user", "content": "2 + 2?"}, {"role": "assistant", "content": "4"}
LAYOUTS = {
    "a text": {"prompt": "2 + 2?"},
    "a text with its answer": {"prompt": "2 + 2?", "completion": "4"},
    "messages as prompt": {"prompt": [USER], "completion": [ASSISTANT]},
    "a conversation": {"messages": [USER]},
    "a conversation with its answer": {"messages": [USER, ASSISTANT]},
    "alpaca": {"instruction": "2 + 2?", "output": "4"},
    "sharegpt": {"conversations": [{"from": "human", "value": "2 + 2?"}, {"from": "gpt", "value": "4"}]},
}


UNANSWERED = ("a text", "a conversation")


def task(**options):
    return GRPO(GRPO.Config(**{"rewards": [{"name": "regex", "pattern": "x"}], "max_new_tokens": 4, **options}))


@pytest.fixture(scope="module")
def loaded():
    module, tokenizer = tiny_llama()
    tokenizer.add_tokens(list(TOKENS), special_tokens=True)
    module.resize_token_embeddings(len(tokenizer))
    tokenizer.chat_template = SMOLLM2
    return LoadedModel(module.eval(), tokenizer, "", "causal-lm", max_length=512)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_prompt_is_what_causal_lm_asks(loaded, layout):
    row = LAYOUTS[layout]
    asked = task().encode(row, loaded.processor).inputs
    expected = CausalLM().prompt({"messages": [USER]}, loaded).ids
    assert asked["input_ids"][:-4] == list(expected)
    assert [label == -100 for label in asked["labels"]] == [True] * len(expected) + [False] * 4
    view = task().view(row)
    assert (list(view.inputs), view.target) == (["2 + 2?"], None if layout in UNANSWERED else "4")


def test_an_earlier_answer_is_part_of_the_prompt(loaded):
    row = {"messages": [USER, ASSISTANT, {"role": "user", "content": "Twice?"}]}
    text = loaded.processor.decode(task().encode(row, loaded.processor).inputs["input_ids"][:-4])
    assert text.index("4") < text.index("Twice?")
    assert text.endswith("assistant\n")
    assert task().view(row).target is None


def test_a_turn_that_begins_the_answer_is_part_of_the_prompt(loaded):
    row = {"prompt": [USER, {"role": "assistant", "content": "It is"}]}
    assert task().view(row).target is None
    assert own_answer(row) == {}


def test_an_impossible_token_has_an_entropy(loaded):
    criterion = Tempered(1.0)
    criterion.single(torch.tensor([0]), torch.tensor([[0.0, 0.0, -math.inf]]))
    assert criterion.entropies[0].tolist() == pytest.approx([math.log(2)])


def test_a_prompt_without_room_for_its_answer_is_refused(loaded):
    with raises(DataError, "20", "task.max_new_tokens"):
        task().encode({"prompt": "one two three four five six"}, loaded.processor, max_length=20)


def test_answers_near_the_longest_get_less(loaded):
    """One of 2 of at most 4 tokens keeps its reward of 1; 3 cost half of it, 4 all."""
    made = task(overlong_buffer=2, rewards=[{"name": "regex", "pattern": ".*"}], num_generations=3)
    answers = [DrawnAnswer([5], "", [7] * tokens, "x", tokens < 4) for tokens in (2, 3, 4)]
    (group,) = made.score([{"prompt": "a"}], [answers])
    assert [(one.total, one.scored.rewards) for one in group] == [(1, (1, 0)), (0.5, (1, -0.5)), (0, (1, -1))]
    draws = made.learn_from([group])
    assert draws.records[1]["rewards"] == {"regex": 1, "overlong": -0.5}
    assert draws.figures["reward/overlong"] == pytest.approx(-0.5)


def test_prompts_whose_answers_are_alike_are_answered_again_with_others(loaded):
    made, rows = task(temperature=1.5, redraws=1, num_generations=4), [{"prompt": "red"}, {"prompt": "a green fox"}]
    asked = [DrawRequest(loaded, rows, 0, 3, 4, lambda: pytest.fail("no reference"), attempt) for attempt in (0, 1)]
    first, again = ([[one.ids for one in group] for group in made.draw(request)] for request in asked)
    assert not {tuple(ids) for ids in first[1]} & {tuple(ids) for ids in again[1]}
    assert first[1] + again[1] == [one.ids for one in task(temperature=1.5, num_generations=8).draw(asked[0])[1]]
    groups = [group(1.0, 1.0), group(1.0, 0.0), group(None, None), group(0.3, 0.1 + 0.2), group(None, 1.0)]
    assert made.draw_again(groups, 0) == [0, 3, 4]
    assert list(made.draw_again(groups, 1)) == []
    again = [[replace(one, attempt=1) for one in groups[1]], groups[1]]
    assert made.learn_from(again).figures["redrawn"] == 1


def answer(ids, ended, advantage=1.0, **known):
    return DrawnAnswer([5, 6], "", ids, "", ended, **known).features(advantage, 1.0)


def test_the_token_that_ends_an_answer_is_trained_on_and_padding_is_not(loaded):
    features = [answer([7, 8, 2], True), answer([9], False, -2.0)]
    batch = task().collate(features, loaded.processor)
    assert batch["labels"].tolist() == [[-100, -100, 7, 8, 2], [-100, -100, 9, -100, -100]]
    assert batch["advantages"].tolist() == [1.0, -2.0]


def test_truncated_answers_can_be_left_out_of_the_loss_and_stay_in_the_mean(loaded):
    group = [
        DrawnAnswer([5], "", [7, 2], "", True, scored=Scored((1.0,), 1.0)),
        DrawnAnswer([5], "", [7, 8, 9, 3], "", False, scored=Scored((0.0,), 0.0)),
    ]
    for masked in (False, True):
        made = task(mask_truncated=masked)
        draws = made.learn_from([group])
        assert [record["advantage"] for record in draws.records] == pytest.approx([2**-0.5, -(2**-0.5)], abs=1e-3)
        _, weight, _, tokens = made.learn(loaded.module, made.collate(draws.examples, loaded.processor))
        assert (weight + draws.idle_weight, tokens) == (2, 2 if masked else 6)


def test_answers_that_teach_nothing_are_not_computed_and_count_in_the_weight(loaded):
    """Those of a prompt without spread, and those without a reward; all are if the loss has a reference."""
    answers = [DrawnAnswer([5], "", [7, 2], "", True, *[[-1.0, -1.0]] * 3) for _ in range(3)]
    rewards = [[1.0, 1.0, 1.0], [0.0, 1.0, None]]
    groups = [
        [replace(one, scored=Scored((reward,), reward)) for one, reward in zip(answers, own, strict=True)]
        for own in rewards
    ]
    for beta, computed in ((0.0, 2), (0.1, 6)):
        for loss, weight in (("grpo", 6), ("dapo", 12), ("dr-grpo", 24)):
            draws = task(loss=loss, beta=beta, num_generations=3).learn_from(groups)
            assert len(draws.examples) == computed
            assert draws.idle_weight + sum(example.weight for example in draws.examples) == weight
    idle = task(num_generations=3).learn_from(groups[:1])
    assert (len(idle.examples), idle.idle_weight, idle.idle != "") == (0, 3, True)


def group(*rewards, ended=True):
    answers = [DrawnAnswer([5], "", [7, 2], "", ended, *[[-1.0, -1.0]] * 3) for _ in rewards]
    errors = ["it broke" if reward is None else "" for reward in rewards]
    scored = [Scored((reward,), reward, error) for reward, error in zip(rewards, errors, strict=True)]
    return [replace(one, scored=own) for one, own in zip(answers, scored, strict=True)]


@pytest.mark.parametrize(
    ("options", "groups", "words", "zero_spread"),
    [
        ({}, [group(1.0, 1.0)], "the reward 1", 1),
        ({}, [group(0.3, 0.1 + 0.2)], "the reward 0.3", 1),
        ({}, [group(1.0, 1.0), group(2.0, 2.0)], "same reward", 1),
        ({}, [group(1.0, None), group(None, None)], "3 of 4", None),
        ({"mask_truncated": True}, [group(1.0, 0.0, ended=False)], "mask_truncated", 0),
        ({"mask_truncated": True, "beta": 0.1}, [group(1.0, 0.0, ended=False)], "mask_truncated", 0),
        ({"beta": 0.1}, [group(None, None)], "it broke", None),
    ],
    ids=str,
)
def test_why_nothing_can_be_learnt(options, groups, words, zero_spread):
    draws = task(num_generations=2, **options).learn_from(groups)
    assert not draws.examples
    assert words in draws.idle
    assert draws.figures["zero_spread"] == pytest.approx(math.nan if zero_spread is None else zero_spread, nan_ok=True)
    assert bool(draws.unscored) is (words == "it broke")


def test_draws_depend_on_seed_step_prompt_and_number_alone(loaded):
    """Not on torch's generator, the other prompts, or their order; answers to one prompt differ."""
    made, rows = task(temperature=1.5), [{"prompt": "red"}, {"prompt": "a green fox"}]

    def drawn(rows, seed=0, step=3):
        torch.manual_seed(np.random.randint(1000))
        groups = made.draw(DrawRequest(loaded, rows, seed, step, 4, lambda: pytest.fail("the reference was asked")))
        return [[one.ids for one in group] for group in groups]

    first, second = drawn(rows)
    assert drawn(rows[::-1]) == [second, first]
    assert drawn(rows[1:]) == [second]
    assert len({tuple(ids) for ids in first}) > 1
    assert first not in (drawn(rows, step=4)[0], drawn(rows, seed=1)[0], second)


def test_answers_end_with_the_token_that_ended_them(loaded, monkeypatch):
    made = [Answer([7, 8], 2, [-1.0, -2.0, -3.0]), Answer([7, 8, 9, 3])]
    monkeypatch.setattr("ftengine_builtins.tasks.drawn_answers.draw_answers", lambda *_, **__: made)
    assert draw_groups(loaded, [[5]], 2, None, [2]) == [made]
    (group,) = task(num_generations=2).draw(DrawRequest(loaded, [{"prompt": "a"}], 0, 0, 4, lambda: None))
    assert [(one.ids, one.ended) for one in group] == [([7, 8, 2], True), ([7, 8, 9, 3], False)]


def test_a_model_without_a_token_that_ends_answers_is_named(loaded, monkeypatch):
    made = task()
    monkeypatch.setattr("ftengine_builtins.tasks.grpo.stop_tokens", lambda loaded: ())
    assert any("ends an answer" in text for text in made.advice([{"prompt": "a"}], loaded))


class Halved(PolicyLoss):
    name = "halved"

    def token_losses(self, tokens: DrawnTokens):
        return super().token_losses(tokens) / 2


class Backwards(PolicyLoss):
    name = "backwards"

    def token_losses(self, tokens: DrawnTokens):
        return -super().token_losses(tokens)


class Own(GRPO):
    name = "own"
    losses = (Halved, Backwards, *GRPO.losses)


def test_a_plugin_adds_a_loss(loaded):
    features = [answer([7, 8, 2], True, 2.0)]
    totals = []
    for made in (Own(Own.Config()), Own(Own.Config(loss="grpo"))):
        totals.append(made.learn(loaded.module, made.collate(features, loaded.processor))[0].item())
    assert totals == [pytest.approx(-1), pytest.approx(-2)]
    wrong = Own(Own.Config(loss="backwards"))
    with raises(PluginError, "backwards"):
        wrong.learn(loaded.module, wrong.collate(features, loaded.processor))


def test_a_task_with_a_member_of_on_policy_tasks_must_derive_from_their_base():
    """A draw() of a task that is no OnPolicyTask would never be called."""

    class Draws(CausalLM):
        name = "draws"

        def draw(self, request):
            return []

    assert "OnPolicyTask" in fault(Draws, Task)


def test_init_writes_a_recipe_that_plans(llama_folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "rows.jsonl").write_text('{"question": "2 + 2?", "answer": "4"}\n' * 18)
    line = ["init", "r.yaml", "--task", "grpo", "--model", str(llama_folder), "--data", "rows.jsonl"]
    assert CliRunner().invoke(main, line).exit_code == 0
    recipe = Recipe.read("r.yaml", ["data.validation=null", "task.max_new_tokens=2"])
    assert recipe.task["rewards"] == [{"name": "exact-match"}]
    assert plan(recipe, measure=False).steps["answers_a_row"] == 8
