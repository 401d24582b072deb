"""Losses and criteria: sound ones pass, odd ones too; one that makes labels less likely, or learns nothing, fails."""

from __future__ import annotations

import pytest
import torch
from broken import failed, variant
from torch.nn import functional as F

from ftengine.api import LoadRequest, Regularizer
from ftengine.errors import PluginError
from ftengine.model import Criterion
from ftengine.testing import check_task
from ftengine.training.criterion_faults import criterion_fault
from ftengine_builtins.loaders.transformers import TransformersLoader
from ftengine_builtins.tasks import Preference, PreferenceLoss
from ftengine_builtins.tasks.causal_lm import CausalLM
from ftengine_builtins.tasks.embedding import Embedding
from ftengine_builtins.tasks.image_classification import ImageClassification
from ftengine_builtins.tasks.preference_losses import LOSSES, ORPO
from ftengine_builtins.tasks.preference_losses import require_falling as of_pairs
from ftengine_builtins.tasks.reward import Reward
from ftengine_builtins.tasks.text_classification import TextClassification
from ftengine_builtins.tasks.token_classification import TokenClassification
from ftengine_builtins.tasks.unpaired_losses import KTO, UNPAIRED_LOSSES
from ftengine_builtins.tasks.unpaired_losses import require_falling as of_answers

pytestmark = pytest.mark.slow

LIKELIER = "training_makes_labels_likelier"
FALLS, ALONE = "its_criterion_falls_where_labels_get_likelier", "its_criterion_goes_by_each_row_alone"


def negated(task):
    """Return a task with the sign of its loss swapped."""

    class Negated(task):
        """Learn the opposite."""

        name = "negated"

        def loss(self, model, batch, criterion):
            loss, weight = super().loss(model, batch, criterion)
            return -loss, weight

    return Negated


class Opposite(Criterion):
    """The plain losses of the negated logits."""

    def single(self, targets, *logits):
        return super().single(targets, *(-one for one in logits))

    def multi(self, targets, *logits):
        return super().multi(targets, *(-one for one in logits))

    def regression(self, targets, *outputs):
        return super().regression(-targets, *outputs)


class NegatedLogits(TextClassification):
    """Hand the negated logits to the criterion, and predict with the logits."""

    name = "negated-logits"

    def loss(self, model, batch, criterion):
        return super().loss(model, batch, Opposite())


class NegatedTwice(negated(CausalLM)):
    """Have the wrong sign in the loss of predictions as well, so that their perplexity falls."""

    name = "negated-twice"

    def predict(self, model, batch):
        return [{**one, "loss": -one["loss"]} for one in super().predict(model, batch)]


class Flat(TextClassification):
    """Detach the loss, and add what has a gradient of 0."""

    name = "flat"

    def loss(self, model, batch, criterion):
        loss, weight = super().loss(model, batch, criterion)
        return loss.detach() + 0 * sum(p.sum() for p in model.parameters()), weight


class Rounded(TextClassification):
    """Round the logits before they are compared."""

    name = "rounded"

    def loss(self, model, batch, criterion):
        class Of(Criterion):
            def single(self, targets, *logits):
                return criterion.single(targets, *(one.round() for one in logits))

            def multi(self, targets, *logits):
                return criterion.multi(targets, *(one.round() for one in logits))

            def regression(self, targets, *logits):
                return criterion.regression(targets, *(one.round() for one in logits))

        return super().loss(model, batch, Of())


@pytest.mark.parametrize(
    "cls",
    [
        *map(negated, (TextClassification, ImageClassification, TokenClassification, CausalLM, Preference, Reward)),
        *(NegatedTwice, NegatedLogits, Flat, Rounded),
    ],
)
def test_a_task_that_makes_labels_less_likely_fails(cls):
    assert LIKELIER in failed(cls)


class Penalised(TextClassification):
    """Add the squares of all logits, which are large, and take the entropy of what is said off."""

    name = "penalised"

    def loss(self, model, batch, criterion):
        loss, weight = super().loss(model, batch, criterion)
        logits = self.raw(model, batch)
        log_p = logits.log_softmax(-1)
        return loss + 0.1 * logits.square().sum() + 0.5 * (log_p.exp() * log_p).sum(), weight

    def raw(self, model, batch):
        return model(**{name: x for name, x in batch.items() if name != "labels"}).logits


class Sampled(Penalised):
    """Compare each label with one other that is drawn, and scale each example's loss at random."""

    name = "sampled"

    def loss(self, model, batch, criterion):
        if batch["labels"].ndim > 1:
            return super().loss(model, batch, criterion)
        logits = self.raw(model, batch)
        other = (batch["labels"] + torch.randint_like(batch["labels"], 1, logits.shape[1])) % logits.shape[1]
        both = torch.stack([batch["labels"], other], 1)
        losses = -logits.gather(1, both).log_softmax(-1)[:, 0]
        return (losses * torch.rand_like(losses)).sum(), len(losses)


class Satisfied(Penalised):
    """A hinge: nothing is learnt of what is right by a margin of 1."""

    name = "satisfied"

    def loss(self, model, batch, criterion):
        if batch["labels"].ndim > 1:
            return super().loss(model, batch, criterion)
        return F.multi_margin_loss(self.raw(model, batch), batch["labels"], reduction="sum"), len(batch["labels"])


@pytest.mark.parametrize("cls", [Penalised, Sampled, Satisfied])
def test_a_loss_of_an_unusual_kind_makes_labels_likelier(cls):
    assert LIKELIER not in failed(cls)


class Truncated(Criterion):
    """Leave out what looks mislabelled: losses above a threshold are nothing."""

    def single(self, targets, *logits):
        losses = super().single(targets, *logits)
        return torch.where(losses > 2.0, 0.0 * losses, losses)


def test_a_criterion_may_leave_out_what_looks_mislabelled():
    assert criterion_fault(Truncated(), None, 7, torch.device("cpu")) == ""


PAIRS = [
    {"anchor": f"What of {one}?", "positive": f"Of {one} this is known: {text}."}
    for one, text in (("the film", "wonderful acting"), ("the match", "a late goal"), ("shares", "profits rose"))
]


class NegatedEmbedding(Embedding):
    """Push together what does not belong together."""

    def joint_loss(self, represented):
        loss, weight = super().joint_loss(represented)
        return -loss, weight


def test_a_loss_that_compares_examples_is_judged_by_the_metrics_of_its_evaluators(bert_folder):
    def load(labels=None):
        return TransformersLoader().load(LoadRequest(str(bert_folder), "feature-extraction", dtype="float32"))

    check_task(Embedding, load().processor, PAIRS, load)
    with pytest.raises(AssertionError, match=f"{LIKELIER}: .* take the metric"):
        check_task(NegatedEmbedding, load().processor, PAIRS, load)


class Hinge(PreferenceLoss):
    name = "hinge"

    def loss(self, margin):
        return (1 - margin).relu()


@pytest.mark.parametrize("cls", [*LOSSES, Hinge], ids=lambda cls: cls.name)
@pytest.mark.parametrize("beta", [0.01, 0.1, 5.0])
def test_losses_of_preferences_fall_as_the_margin_grows(cls, beta):
    of_pairs(cls(beta=beta))


@pytest.mark.parametrize(
    "cls",
    [
        variant(PreferenceLoss, name="odd", loss=lambda self, margin: PreferenceLoss.loss(self, -margin)),
        variant(PreferenceLoss, name="odd", margin=lambda self, pairs: -PreferenceLoss.margin(self, pairs)),
        variant(ORPO, loss=lambda self, margin: ORPO.loss(self, -margin)),  # its other term hides the sign
        variant(Hinge, loss=lambda self, margin: (1 + margin).relu()),
        variant(PreferenceLoss, name="odd", margin=lambda self, pairs: PreferenceLoss.margin(self, pairs).detach()),
    ],
)
def test_a_loss_of_preferences_that_rises_is_refused_before_it_trains(cls):
    class Task(Preference):
        """Prefer by another loss."""

        name = "another"
        losses = (cls,)

    with pytest.raises(PluginError):
        Task().sound_loss  # noqa: B018
    assert LIKELIER in failed(Task)


class Resents(KTO):
    """Has the sign of desirable answers swapped."""

    def reward(self, logp, reference):
        return -super().reward(logp, reference)


def test_losses_of_single_answers_fall_as_desirable_ones_get_likelier():
    for cls in UNPAIRED_LOSSES:
        of_answers(cls())
        of_answers(cls(undesirable_weight=0.0))
    with pytest.raises(PluginError):
        of_answers(Resents())


def trains_on(of):
    """Return a regularizer that trains on a criterion; `of` makes it of the plain one."""

    class Chosen(Regularizer):
        """Train on another criterion."""

        name = "chosen"

        def criterion(self, plain):
            return of(plain)

    return Chosen


class Focal(Criterion):
    """(1 - p)² times cross entropy."""

    def single(self, targets, *logits):
        loss = super().single(targets, *logits)
        return (1 - torch.exp(-loss)).square() * loss


class Entropic(Criterion):
    """Cross entropy less 0.3 times the entropy of what is said, which is below 0 at times."""

    def single(self, targets, *logits):
        log_p = logits[0].log_softmax(-1)
        return super().single(targets, *logits) + 0.3 * (log_p.exp() * log_p).sum(-1)


class Bounded(Criterion):
    """(1 - p^0.7) / 0.7, and nothing of what looks mislabelled."""

    def single(self, targets, *logits):
        p = torch.exp(-super().single(targets, *logits))
        return torch.where(p < 0.05, (1 - 0.05**0.7) / 0.7 + 0 * p, (1 - p**0.7) / 0.7)


class Noisy(Criterion):
    """Takes a tenth of the targets for another one, drawn anew each time."""

    def single(self, targets, *logits):
        if targets.ndim == 1:
            other = torch.randint_like(targets, logits[0].shape[1])
            targets = torch.where(torch.rand(targets.shape) < 0.1, other, targets)
        return super().single(targets, *logits)


class VerySmooth(Criterion):
    """Spreads 60 % of each target."""

    def single(self, targets, *logits):
        return 0.4 * super().single(targets, *logits) - 0.6 * logits[0].log_softmax(-1).mean(-1)


class OfMixed(Criterion):
    """Is wrong where examples are mixed alone."""

    def single(self, targets, *logits):
        loss = super().single(targets, *logits)
        return loss if targets.ndim == 1 else -loss


class Together(Criterion):
    """Weights each row by its share of the loss of all that come with it."""

    def single(self, targets, *logits):
        loss = super().single(targets, *logits)
        return loss * F.softmax(loss.detach(), 0) * len(loss)


@pytest.mark.parametrize("kind", [Focal, Entropic, Bounded, Noisy, VerySmooth], ids=lambda kind: kind.__name__)
def test_an_odd_criterion_passes(kind):
    assert failed(trains_on(lambda plain: kind())) == {}


@pytest.mark.parametrize(
    ("kind", "check"),
    [
        (variant(Criterion, single=lambda self, targets, *logits: -Criterion.single(self, targets, *logits)), FALLS),
        (Opposite, FALLS),
        (
            variant(Criterion, single=lambda self, targets, *logits: Criterion.single(self, targets, *logits).detach()),
            FALLS,
        ),
        (OfMixed, FALLS),
        (Together, ALONE),
    ],
)
def test_a_broken_criterion_fails_the_check_that_is_meant(kind, check):
    assert check in failed(trains_on(lambda plain: kind()))
