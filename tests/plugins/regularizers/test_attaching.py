"""What regularizers do to a model while attached, what they refuse, and that detaching leaves nothing behind."""

import pytest
from expected import raises
from torch import nn

from ftengine.api import LoadedModel, Regularizer
from ftengine.errors import RecipeError
from ftengine.training.regularizing import Attached
from ftengine_builtins.regularizers.criteria import LabelSmoothing, RDrop
from ftengine_builtins.regularizers.dropout import Dropout
from ftengine_builtins.regularizers.l2_sp import L2SP
from ftengine_builtins.regularizers.mixout import Mixout
from ftengine_builtins.regularizers.neftune import Neftune
from ftengine_builtins.regularizers.randomness import NOISY, is_random


def hooks(module):
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in module.modules())


class Refusing(Regularizer):
    """Hooks itself in, then refuses the model."""

    name = "refusing"

    def attach(self, loaded, task):
        self.handle = loaded.module.register_forward_hook(lambda *_: None)
        raise RecipeError("not this model")

    def detach(self, loaded):
        self.handle.remove()


def test_an_attachment_that_fails_undoes_those_before_it(make):
    case = make("text")
    before = hooks(case.module)
    with raises(RecipeError, "not this model"):
        Attached([Mixout(), LabelSmoothing(), Refusing()], case.loaded, case.task)
    assert hooks(case.module) == before


def test_dropout_is_set_everywhere_and_put_back(make):
    for kind, attention in (("classes", None), ("text", "attention_dropout"), ("pairs", "dropout")):
        case = make(kind)
        layers = [m for m in case.module.modules() if isinstance(m, nn.Dropout)]
        held = [m for m in case.module.modules() if isinstance(getattr(m, attention or "", None), float)]
        before = [m.p for m in layers], [getattr(m, attention) for m in held]
        assert held or attention is None
        regularizer = Dropout(Dropout.Config(p=0.35))
        regularizer.attach(case.loaded, case.task)
        assert {m.p for m in layers} | {getattr(m, attention) for m in held} == {0.35}
        regularizer.detach(case.loaded)
        assert ([m.p for m in layers], [getattr(m, attention) for m in held]) == before


def test_r_drop_wants_randomness_and_finds_it_wherever_it_is(make, lora):
    still = make("text", lora(dropout=0.0))
    with raises(RecipeError, "none"):
        Attached([RDrop()], still.loaded, still.task)
    assert is_random(make("text", lora(dropout=0.1)).loaded)
    for other in (Dropout(), Neftune()):
        Attached([other, RDrop()], still.loaded, still.task).detach()
        Attached([RDrop(), other], still.loaded, still.task).detach()
    full = make("text")
    Attached([Mixout(), RDrop()], full.loaded, full.task).detach()


def test_dropout_that_leaves_r_drop_two_equal_passes_is_refused(make, lora):
    case, off = make("classes"), Dropout(Dropout.Config(p=0))
    before = [m.p for m in case.module.modules() if isinstance(m, nn.Dropout)]
    with raises(RecipeError, "none"):
        Attached([RDrop(), off], case.loaded, case.task)
    assert [m.p for m in case.module.modules() if isinstance(m, nn.Dropout)] == before
    Attached([Neftune(), RDrop(), off], case.loaded, case.task).detach()  # noise is left
    adapted = make("classes", lora(dropout=0.1))
    Attached([RDrop(), off], adapted.loaded, adapted.task).detach()  # LoRA's own is left


@pytest.mark.parametrize("cls", [L2SP, Mixout])
def test_what_holds_pretrained_weights_is_refused_where_none_trains(make, lora, cls):
    case = make("text", lora())
    with raises(RecipeError, "trains only new weights"):
        cls().attach(case.loaded, case.task)


@pytest.mark.parametrize("cls", [LabelSmoothing, RDrop])
def test_numbers_have_no_distribution(make, cls):
    case = make("classes", kind="regression")
    with raises(RecipeError, "regression"):
        cls().attach(case.loaded, case.task)


def test_what_is_not_there_is_refused():
    loaded = LoadedModel(nn.Sequential(nn.Linear(2, 2)), None, "here", "none", pretrained=frozenset({"0.weight"}))
    for cls, words in ((Dropout, "finds no dropout"), (Neftune, "has none")):
        with raises(RecipeError, words):
            cls().attach(loaded, None)


def test_mixout_spares_the_output_head_and_what_is_new(make):
    case = make("text")
    Mixout().attach(case.loaded, case.task)
    assert case.module.lm_head not in NOISY
    case = make("classes")
    Mixout().attach(case.loaded, case.task)
    assert case.module.classifier not in NOISY
    assert case.module.bert.encoder.layer[0].intermediate.dense in NOISY
