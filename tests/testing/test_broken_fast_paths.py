"""Fast paths: a sound one passes, a broken one fails the check that is meant."""

from contextlib import contextmanager

import pytest
from torch.nn import functional as F
from transformers.activations import NewGELUActivation

from ftengine.api import FastPath
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


class WrongInHalf(Gelu):
    def compute(self, x):
        return super().compute(x) * (1 if x.itemsize == 4 else 1.5)


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


def check(cls):
    one = next(one for one in fixtures() if one.name == "GPT2LMHeadModel")
    check_fast_path(cls, one.task, one.load_trainable, one.batch)


@pytest.mark.parametrize("cls", [Gelu, Elsewhere])
def test_a_sound_one_passes_and_one_of_another_device_is_not_looked_at(cls):
    check(cls)


@pytest.mark.parametrize(
    ("cls", "expected"),
    [
        (AnotherGelu, "it_computes_what_the_model_does"),
        (NoSlope, "it_computes_what_the_model_does"),
        (WrongInHalf, "in_bfloat16_too"),
        (LosesDropout, "it_computes_what_the_model_does"),
        (Stays, "a_failed_run_leaves_it_too"),
        (NeverUndone, "leaving_it_restores_the_model"),
        (NeverUndone, "undo everything"),  # what a run says of it, before it trains
        (NoCounts, "it_computes_what_the_model_does"),
    ],
)
def test_a_broken_one_fails_the_check_that_is_meant(cls, expected):
    with pytest.raises(AssertionError, match=expected):
        check(cls)
