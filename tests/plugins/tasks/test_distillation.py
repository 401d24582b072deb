"""Task distillation: its divergence in chunks, teachers and their vocabularies, and rows."""

import copy
import math

import pytest
import torch
from chat_templates import SMOLLM2, TOKENS
from expected import raises

from ftengine.api import DrawRequest, LoadedModel
from ftengine.errors import DataError, RecipeError
from ftengine.model import token_loss
from ftengine.testing import check_results
from ftengine.testing.models import tiny_gpt2, tiny_llama
from ftengine_builtins.strategies import Full, LoRA
from ftengine_builtins.tasks import Distillation
from ftengine_builtins.tasks.distillation import TaughtAnswer
from ftengine_builtins.tasks.divergences import generalised_jsd
from ftengine_builtins.tasks.teachers import Teacher, require_shared_tokens

SYSTEM = "You shout."
NO_SYSTEM = SMOLLM2.replace(
    "{% for", "{% if messages[0]['role'] == 'system' %}{{ raise_exception('none') }}{% endif %}{% for", 1
)


def task(**options):
    return Distillation(Distillation.Config(**{"teacher_system_prompt": SYSTEM, "max_new_tokens": 4, **options}))


def model(**config):
    module, tokenizer = tiny_llama(**config)
    tokenizer.add_tokens(list(TOKENS), special_tokens=True)
    module.resize_token_embeddings(len(tokenizer))
    tokenizer.chat_template = SMOLLM2
    return LoadedModel(module.eval(), tokenizer, "", "causal-lm", max_length=512)


@pytest.fixture(scope="module")
def loaded():
    return model()


def answers():
    lengths = (1, 3, 4, 2)
    return [TaughtAnswer([5, 6], "", [7 + i] * n, "", True, taught=[8] * (3 + i)) for i, n in enumerate(lengths)]


@pytest.mark.parametrize("beta", [0.0, 0.3, 1.0])
def test_the_divergence_in_chunks_is_that_of_whole_distributions(monkeypatch, beta):
    """In float64, over answers whose teacher has a longer prompt and a larger head."""
    monkeypatch.setattr(token_loss, "CHUNK", 3)
    student, other = model(), model(seed=1)
    other.module.resize_token_embeddings(len(student.processor) + 5)
    student.module.double()
    other.module.double()
    made = task(teacher="elsewhere", beta=beta, temperature=0.7)
    made._source.teacher = Teacher(other.module)
    batch = made.collate(made.learn_from([answers()]).examples, student.processor)
    total, weight, figures, tokens = made.learn(student.module, batch)
    gradients = torch.autograd.grad(total, [*student.module.parameters()])

    own = student.module(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    with torch.no_grad():
        theirs = other.module(input_ids=batch["taught_ids"], attention_mask=batch["taught_mask"]).logits
    p = (theirs[:, :-1][batch["taught_labels"][:, 1:] != -100][:, : own.shape[-1]] / 0.7).softmax(-1)
    q = (own[:, :-1][batch["labels"][:, 1:] != -100] / 0.7).softmax(-1)
    m = beta * p + (1 - beta) * q
    parts = (p * (p / m).log()).sum(), (q * (q / m).log()).sum()
    expected = {0: (p * (p / q).log()).sum(), 1: (q * (q / p).log()).sum()}.get(
        beta, beta * parts[0] + (1 - beta) * parts[1]
    )
    assert (weight, tokens) == (10, 10)
    assert total.item() == pytest.approx(expected.item(), rel=1e-10)
    for gradient, whole in zip(gradients, torch.autograd.grad(expected, [*student.module.parameters()]), strict=True):
        torch.testing.assert_close(gradient, whole, rtol=1e-8, atol=1e-12)
    assert figures[0].item() == pytest.approx((q * (q / p).log()).sum().item())
    assert figures[1].item() == pytest.approx(-(q * q.log()).sum().item())


def test_between_the_ends_it_is_jensens_and_shannons():
    p, q = torch.tensor([[0.75, 0.25]]).log(), torch.tensor([[0.25, 0.75]]).log()
    mean = 0.75 * math.log(0.75 / 0.5) + 0.25 * math.log(0.25 / 0.5)
    assert generalised_jsd(p, q, 0.5).item() == pytest.approx(mean)


@pytest.mark.parametrize("strategy", [Full(), LoRA(LoRA.Config(dropout=0.0))], ids=["full", "lora"])
def test_a_base_that_teaches_stays_as_it_is_and_is_copied_only_where_it_trains(strategy):
    student, made = model(), task()
    features = [made.encode({"prompt": "Hi"}, student.processor)]
    batch = made.collate(features, student.processor)
    made.set_model(student, None)
    before = made.learn(student.module, batch)[0].item()
    assert before > 1e-6
    states = made._teacher.labelled(
        student.module,
        {"input_ids": batch["taught_ids"], "attention_mask": batch["taught_mask"]},
        batch["taught_labels"],
    ).states
    strategy.prepare(student)
    made.set_model(student, strategy)
    own = {p.data_ptr() for p in student.module.parameters()}
    shared = [p.data_ptr() in own for p in made._teacher.module.parameters()]
    assert all(shared) is (strategy.name == "lora")
    assert any(shared) is (strategy.name == "lora")
    with torch.no_grad():
        for parameter in student.module.parameters():
            parameter += 0.1 * parameter.requires_grad
    again = made._teacher.labelled(
        student.module,
        {"input_ids": batch["taught_ids"], "attention_mask": batch["taught_mask"]},
        batch["taught_labels"],
    ).states
    assert torch.equal(states, again)
    assert made.learn(student.module, batch)[0].item() != pytest.approx(before, rel=1e-3)


def test_a_teacher_reads_its_prompt_in_place_of_the_rows_own(loaded):
    row = {"messages": [{"role": "system", "content": "Whisper."}, {"role": "user", "content": "Hi"}]}
    inputs = task().encode(row, loaded.processor).inputs
    asked, taught = (loaded.processor.decode(inputs[key]) for key in ("input_ids", "taught"))
    assert "Whisper." in asked
    assert SYSTEM not in asked
    assert SYSTEM in taught
    assert "Whisper." not in taught
    assert taught.endswith("assistant\n")


def test_an_answer_of_the_row_is_what_causal_lm_trains_on_and_what_predict_measures(loaded):
    made = task(lmbda=0.0)
    made.set_model(loaded, None)
    rows = [{"prompt": "Hi", "completion": "one two"}, {"prompt": "Go", "completion": "no"}]
    request = DrawRequest(loaded, rows, 0, 0, 4, None)
    drawn = made.draw(request)
    assert [one.is_own for [one] in drawn] == [True, True]
    labels = made._answered.encode(rows[1], loaded.processor).inputs["labels"]
    assert drawn[1][0].ids == [label for label in labels if label != -100]
    assert len(drawn[0][0].ids) == 4  # cut at max_new_tokens
    batch = made.collate([made.encode(row, loaded.processor) for row in rows], loaded.processor)
    whole = made._answered.collate([made._answered.encode(row, loaded.processor) for row in rows], loaded.processor)
    assert made.predict(loaded.module, batch) == made._answered.predict(loaded.module, whole)
    none = made.collate([task().encode({"prompt": "Hi"}, loaded.processor)], loaded.processor)
    assert made.predict(loaded.module, none)[0]["tokens"] == 0


def test_the_share_of_drawn_answers_is_lmbdas_and_a_function_of_the_step(loaded):
    made = task(lmbda=0.25)
    requests = [DrawRequest(loaded, (), 0, step, 4, None) for step in range(50)]
    draws = [[made._draws(request, [5, i]) for i in range(8)] for request in requests]
    assert draws == [[made._draws(request, [5, i]) for i in range(8)] for request in requests]
    assert sum(map(sum, draws)) / 400 == pytest.approx(0.25, abs=0.07)
    assert len({tuple(step) for step in draws}) > 20
    with raises(DataError, "task.lmbda", "completion"):
        made.encode({"prompt": "Hi"}, loaded.processor)


def test_vocabularies_must_agree_and_a_padded_head_may_be_larger(loaded):
    own = (loaded.processor, len(loaded.processor), "student")
    require_shared_tokens(own, (loaded.processor, len(loaded.processor) + 64, "teacher"))
    other = tiny_gpt2()[1]
    with raises(RecipeError, "task.teacher", "teacher", "vocabulary"):
        require_shared_tokens(own, (other, len(other), "teacher"))
    more = copy.deepcopy(loaded.processor)
    more.add_tokens(["<|more|>"])
    require_shared_tokens((loaded.processor, len(more), "student"), (more, len(more), "teacher"))
    for pair in (
        (own, (more, len(more), "teacher")),
        ((more, len(more), "student"), (loaded.processor, own[1], "teacher")),
    ):
        with raises(RecipeError, "lacks 1 of"):
            require_shared_tokens(*pair)


def test_a_prompt_that_has_no_place_is_refused(loaded):
    bare, strict = copy.deepcopy(loaded.processor), copy.deepcopy(loaded.processor)
    bare.chat_template, strict.chat_template = None, NO_SYSTEM
    for processor, options, kind in (
        (bare, {}, RecipeError),
        (loaded.processor, {"chat_template": "never"}, RecipeError),
        (strict, {}, DataError),
    ):
        with raises(kind, "task.teacher_system_prompt"):
            task(**options).set_model(LoadedModel(loaded.module, processor, "", "causal-lm"), None)


@pytest.mark.slow
def test_it_passes_the_checks_of_tasks():
    results = check_results(Distillation, options={"teacher_system_prompt": SYSTEM, "max_new_tokens": 4})
    assert {result.check: result.reason for result in results if result.outcome == "failed"} == {}
    assert sum(result.outcome == "passed" for result in results) > 8
