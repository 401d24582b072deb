"""Losses of preferences against their papers' formulas, written out in NumPy, and the task's against a plain model."""

import numpy as np
import pytest
import torch
from expected import raises

from ftengine.errors import RecipeError
from ftengine_builtins.tasks import Pairs, Preference
from ftengine_builtins.tasks.preference_losses import LOSSES

N = 7
DRAW = np.random.default_rng(0)
TOKENS = DRAW.integers(1, 30, (2, N))
C, R = -DRAW.gamma(2.0, 1.5, (2, N)) * TOKENS
C_REF, R_REF = C + DRAW.normal(size=N) * 3, R + DRAW.normal(size=N) * 3
NC, NR = TOKENS


def log_sigmoid(x):
    return -np.log(1 + np.exp(-x))


def odds(mean):
    return np.exp(mean) / (1 - np.exp(mean))


DELTA = (C - C_REF) - (R - R_REF)
MEAN_DELTA = (C - C_REF) / NC - (R - R_REF) / NR
FORMULAS = {
    "dpo": lambda b, e: -log_sigmoid(b * DELTA),
    "robust": lambda b, e: (-(1 - e) * log_sigmoid(b * DELTA) + e * log_sigmoid(-b * DELTA)) / (1 - 2 * e),
    "cdpo": lambda b, e: -(1 - e) * log_sigmoid(b * DELTA) - e * log_sigmoid(-b * DELTA),
    "ipo": lambda b, e: (MEAN_DELTA - 1 / (2 * b)) ** 2,
    "sigmoid-norm": lambda b, e: -log_sigmoid(b * MEAN_DELTA),
    "simpo": lambda b, e: -log_sigmoid(b * (C / NC - R / NR) - 0.5),
    "orpo": lambda b, e: -C / NC - b * log_sigmoid(np.log(odds(C / NC) / odds(R / NR))),
    "cpo": lambda b, e: -log_sigmoid(b * (C - R)) - C / NC,
}
BETAS = {"simpo": 2.0, "sigmoid-norm": 5.0}


def pairs():
    return Pairs(*(torch.tensor(x, dtype=torch.float64) for x in (C, R, NC, NR, C_REF, R_REF)))


def test_every_loss_has_a_formula_here():
    assert FORMULAS.keys() == {loss.name for loss in LOSSES}


@pytest.mark.parametrize("loss", LOSSES, ids=lambda loss: loss.name)
def test_a_loss_is_its_formula_with_its_defaults_and_with_other_options(loss):
    formula = FORMULAS[loss.name]
    np.testing.assert_allclose(loss()(pairs()).numpy(), formula(BETAS.get(loss.name, 0.1), 0.1), rtol=1e-10, atol=1e-14)
    np.testing.assert_allclose(loss(beta=0.7)(pairs()).numpy(), formula(0.7, 0.1), rtol=1e-10, atol=1e-14)
    if "label_smoothing" in loss.model_fields:
        found = loss(label_smoothing=0.3)(pairs()).numpy()
        np.testing.assert_allclose(found, formula(0.1, 0.3), rtol=1e-10, atol=1e-14)
    more = loss(nll=loss().nll + 0.5)(pairs()).numpy()
    np.testing.assert_allclose(more, loss()(pairs()).numpy() - 0.5 * C / NC, rtol=1e-10, atol=1e-14)


def test_answers_that_are_certain_have_finite_odds():
    one = torch.ones(1)
    certain = Pairs(0 * one, -3 * one, one, one)
    orpo = next(loss for loss in LOSSES if loss.name == "orpo")
    assert torch.isfinite(orpo()(certain)).all()


@pytest.mark.parametrize("loss", LOSSES, ids=lambda loss: loss.name)
def test_the_task_sums_the_losses_of_pairs_and_their_gradient(loss, llama_folder):
    """Log-probabilities of the answers' tokens alone, by the whole logits of each side for itself."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from ftengine.model import Criterion

    tokenizer, model = AutoTokenizer.from_pretrained(llama_folder), AutoModelForCausalLM.from_pretrained(llama_folder)
    tokenizer.chat_template = None
    asked, answers = "What is it?", [("a red fox", "no"), ("the fox sleeps here", "a fox, a fox, a fox")]
    rows = [{"prompt": asked, "chosen": f" {c}", "rejected": f" {r}"} for c, r in answers]
    task = Preference(Preference.Config(loss=loss.name))
    batch = task.collate([task.encode(row, tokenizer) for row in rows], tokenizer)
    reference = torch.tensor([[-20.0, -31.0], [-11.0, -40.0]])
    if loss.reference:
        batch["reference"] = {"chosen_logp": reference[0], "rejected_logp": reference[1]}
    found, weight = task.loss(model, batch, Criterion())

    def log_probability(text):
        ids = tokenizer(asked + text, return_tensors="pt")["input_ids"]
        end = torch.tensor([[tokenizer.eos_token_id]])
        ids = ids if ids[0, -1] == tokenizer.eos_token_id else torch.cat([ids, end], dim=1)
        start = len(tokenizer(asked, add_special_tokens=False)["input_ids"]) + (ids[0, 0] == tokenizer.bos_token_id)
        logits = model(input_ids=ids).logits[0, :-1].log_softmax(-1)
        picked = logits.gather(-1, ids[0, 1:, None])[int(start) - 1 :, 0]
        return picked.sum(), len(picked)

    sides = [[log_probability(row[side]) for row in rows] for side in ("chosen", "rejected")]
    sums = [torch.stack([value for value, _ in side]) for side in sides]
    counts = [torch.tensor([count for _, count in side]) for side in sides]
    wanted = loss()(Pairs(*sums, *counts, *reference)).sum()
    assert (found.item(), weight) == (pytest.approx(wanted.item(), rel=1e-5), 2)
    parameters = [model.model.embed_tokens.weight, model.model.layers[0].mlp.up_proj.weight]
    for a, b in zip(torch.autograd.grad(found, parameters), torch.autograd.grad(wanted, parameters), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-5 * float(b.abs().max()))


def test_options_that_a_loss_does_not_read_are_refused():
    for options, fact in (
        ({"loss": "dpo", "target_margin": 0.5}, "simpo"),
        ({"loss": "simpo", "label_smoothing": 0.1}, "cdpo"),
        ({"loss": "dp"}, "dpo"),
    ):
        with raises(RecipeError, fact):
            Preference(Preference.Config(**options))
