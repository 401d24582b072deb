"""Fast paths: a sound one passes, a broken one fails the check that is meant."""

from contextlib import contextmanager
from functools import partial

import pytest
import torch
from broken import variant
from torch import nn
from torch.nn import functional as F
from transformers.activations import NewGELUActivation

from ftengine.api import FastPath, FastPathTraits, InferencePath
from ftengine.errors import RecipeError
from ftengine.testing import check_fast_path, fixtures

pytestmark = pytest.mark.slow


class Gelu(FastPath):
    """GPT-2's activation by one operation of PyTorch."""

    name = "gelu"

    @contextmanager
    def activate(self, loaded, context):
        found = [part for part in loaded.module.modules() if type(part) is NewGELUActivation]
        for part in found:
            part.forward = self.compute
        try:
            yield {"activations": len(found)} if found else None
        finally:
            for part in found:
                del part.forward

    def compute(self, x):
        return F.gelu(x, approximate="tanh")


class AnotherGelu(Gelu):
    """Without the tanh form: other by 5e-4 at most."""

    def compute(self, x):
        return F.gelu(x)


class NoSlope(Gelu):
    def compute(self, x):
        return super().compute(x.detach()) + 0.999 * (super().compute(x) - super().compute(x).detach())


class LosesDropout(Gelu):
    """Right without dropout alone."""

    @contextmanager
    def activate(self, loaded, context):
        dropouts = [part for part in loaded.module.modules() if type(part).__name__ == "Dropout"]
        for part in dropouts:
            part.forward = lambda x: x
        try:
            yield {"dropouts": len(dropouts)}
        finally:
            for part in dropouts:
                del part.forward


class OwnMasks(Gelu):
    """Dropout whose masks are drawn otherwise."""

    traits = FastPathTraits(draws_randomness=True)

    @contextmanager
    def activate(self, loaded, context):
        dropouts = [part for part in loaded.module.modules() if type(part) is nn.Dropout]
        for part in dropouts:
            part.forward = partial(self.drop, part)
        try:
            yield {"dropouts": len(dropouts)} if dropouts else None
        finally:
            for part in dropouts:
                del part.forward

    def drop(self, part, x):
        return self.dropped(x, part.p) if part.training and part.p else x

    def dropped(self, x, p):
        return x * (torch.rand_like(x) > p) / (1 - p)


class NoDropout(OwnMasks):
    """Drops nothing."""

    def dropped(self, x, p):
        return x


class NoAttentionDropout(Gelu):
    """Attention without its dropout."""

    traits = FastPathTraits(draws_randomness=True)

    @contextmanager
    def activate(self, loaded, context):
        parts = [part.attn_dropout for part in loaded.module.modules() if hasattr(part, "attn_dropout")]
        rates = [part.p for part in parts]
        for part in parts:
            part.p = 0.0
        try:
            yield {"attentions": len(parts)} if parts else None
        finally:
            for part, rate in zip(parts, rates, strict=True):
                part.p = rate


class OfTraining(Gelu):
    """Right while it trains alone."""

    @contextmanager
    def activate(self, loaded, context):
        self.module = loaded.module
        with super().activate(loaded, context) as found:
            yield found

    def compute(self, x):
        return super().compute(x) * (1 if self.module.training else 1.01)


class Stays(Gelu):
    """Is not left where a run fails."""

    @contextmanager
    def activate(self, loaded, context):
        with super().activate(loaded, context) as found:
            loaded.module.seen = True
            yield found
            del loaded.module.seen


class NeverUndone(Gelu):
    @contextmanager
    def activate(self, loaded, context):
        found = [part for part in loaded.module.modules() if type(part) is NewGELUActivation]
        for part in found:
            part.forward = self.compute
        yield {"activations": len(found)} if found else None


class NoCounts(Gelu):
    @contextmanager
    def activate(self, loaded, context):
        with super().activate(loaded, context):
            yield {"activations": "all"}


class Elsewhere(AnotherGelu):
    def check_device(self, device):
        raise RecipeError("it needs a GPU")


class Inference(InferencePath):
    """All tokens computed while it predicts, as the model itself does."""

    name = "inference"

    @contextmanager
    def activate(self, loaded, context):
        yield None

    def suits(self, model):
        return True

    def predicted_tokens(self, model, batch):
        return batch["input_ids"].numel()


class OtherPredictions(Inference):
    @contextmanager
    def around_prediction(self, model, batch):
        handle = model.lm_head.register_forward_hook(lambda module, args, output: 1.01 * output)
        yield
        handle.remove()


class HookLeft(Inference):
    @contextmanager
    def around_prediction(self, model, batch):
        model.lm_head.register_forward_hook(lambda module, args, output: None)
        yield


class NoTokens(Inference):
    def predicted_tokens(self, model, batch):
        return -1


def check(cls):
    one = next(one for one in fixtures() if one.name == "GPT2LMHeadModel")
    check_fast_path(cls, one.task, one.load_trainable, one.batch)


@pytest.mark.parametrize("cls", [Gelu, OwnMasks, Elsewhere, Inference])
def test_a_sound_one_passes_and_one_of_another_device_is_not_looked_at(cls):
    check(cls)


@pytest.mark.parametrize(
    ("cls", "expected"),
    [
        (AnotherGelu, "it_computes_what_the_model_does"),
        (NoSlope, "it_computes_what_the_model_does"),
        (
            variant(Gelu, compute=lambda self, x: Gelu.compute(self, x) * (1 if x.itemsize == 4 else 1.5)),
            "in_bfloat16_too",
        ),
        (LosesDropout, "it_computes_what_the_model_does"),
        (NoDropout, "dropout_keeps_its_rate_and_mean"),
        (variant(OwnMasks, dropped=lambda self, x, p: x * (torch.rand_like(x) > p)), "dropout_keeps_its_rate_and_mean"),
        (
            variant(OwnMasks, dropped=lambda self, x, p: OwnMasks.dropped(self, x, p / 2)),
            "dropout_keeps_its_rate_and_mean",
        ),
        (
            variant(OwnMasks, dropped=lambda self, x, p: OwnMasks.dropped(self, x, p) / (1 - p)),
            "dropout_keeps_its_rate_and_mean",
        ),
        (
            variant(OwnMasks, dropped=lambda self, x, p: x + (OwnMasks.dropped(self, x, p) - x).detach()),
            "dropout_keeps_its_rate_and_mean",
        ),
        (NoAttentionDropout, "dropout_keeps_its_rate_and_mean"),
        (OfTraining, "in_evaluation_mode_too"),
        (
            variant(Gelu, compute=lambda self, x: Gelu.compute(self, x) if x.shape[1] < 100 else F.gelu(x)),
            "rows_of_many_tokens_too",
        ),
        (
            variant(
                Gelu, compute=lambda self, x: torch.cat([Gelu.compute(self, x[:, :128]), x[:, 128:].relu()], dim=1)
            ),
            "rows_of_many_tokens_too",
        ),
        (Stays, "a_failed_run_leaves_it_too"),
        (NeverUndone, "leaving_it_restores_the_model"),
        (NeverUndone, "undo everything"),  # what a run says of it, before it trains
        (OtherPredictions, "predictions_stay_the_same"),
        (HookLeft, "predictions_stay_the_same"),
        (NoTokens, "a number of tokens, or None"),
        (NoCounts, "it_computes_what_the_model_does"),
    ],
)
def test_a_broken_one_fails_the_check_that_is_meant(cls, expected):
    with pytest.raises(AssertionError, match=expected):
        check(cls)
