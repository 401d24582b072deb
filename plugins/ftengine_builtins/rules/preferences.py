"""Rules about preferences: the chosen answers' likelihood, and simple features that separate pairs."""

from collections.abc import Iterator
from statistics import NormalDist

from ftengine import RunRecords
from ftengine.api import Finding, Rule
from ftengine.text import against, capitalized, counted, ends, has_value, number, percent, with_interval
from ftengine_builtins.rules.baseline import OF_NO_USE, passes
from ftengine_builtins.rules.fitting import learns_by_heart
from ftengine_builtins.rules.quality import sides
from ftengine_builtins.rules.threshold import ROOM, ranks_training_examples

FEWEST, NEAR_ALL = 20, 0.99
"""Pairs, and the share of them, from which on all being preferred is worth a word."""
EVEN, TOLD_APART = 0.5, 0.7
"""Share of the pairs that guessing prefers rightly; and that which the interval of a model that tells nothing of them
stays below: of fewer than about 60 pairs nothing is known."""
SOON, GONE = 20, 0.1
"""Steps within which, and the share of the first step's loss to which it falls, where pairs are told apart at once."""


class SwappedPairs(Rule):
    """Finds pairs whose chosen and rejected answers are exchanged, and preferences that the texts do not explain.

    Exchanged: the model significantly prefers the rejected answers of held-out pairs, and the chosen ones of training
    pairs. Unexplained: after a pass over all training pairs it prefers neither side of held-out pairs, significantly or
    as far as their number shows.
    """

    name = "swapped-pairs"
    order = 0

    def judge(self, run: RunRecords) -> Iterator[Finding]:
        accuracy = run.evaluation.tuned.get("preference_accuracy")
        training = run.evaluation.training.tuned.get("preference_accuracy") if run.evaluation.training else None
        if accuracy is None or (held := ends(accuracy)) is None or passes(run) < 1:
            return
        split, pairs = run.evaluation.split, counted(accuracy.n, "held-out pair")
        share, figures = percent(accuracy.value), {"preference_accuracy": accuracy, "training": training}
        alarm, explains = True, (*OF_NO_USE, "quality", "over-fitting")
        if held[1] < EVEN and training is not None and (ends(training) or (0, 0))[0] > EVEN:
            brief = f"check which answers are the chosen ones in the {split} split: of its pairs the chosen answer is "
            brief += f"preferred in {share}, of training pairs in {percent(training.value)}"
            text = f"{capitalized(brief)}. Chosen and rejected are exchanged in one of the splits."
            kind, explains, figures = "labels", (*explains, "labels"), {"swapped": split, **figures}
        elif held[0] <= EVEN <= held[1] < TOLD_APART:
            by_heart = ranks_training_examples(run, "preference_accuracy") or learns_by_heart(run)
            alarm = held[1] < EVEN + ROOM or (by_heart and accuracy.value < EVEN + ROOM)
            brief = "check which answers are the chosen ones, or train on more pairs: the chosen answer is preferred "
            brief += f"in {share} of {pairs}, "
            brief += (
                "which is guessing" if held[1] < EVEN + ROOM else "as by guessing, though more often in training pairs"
            )
            if not alarm:
                aim = max(accuracy.value, EVEN + ROOM)
                needed = counted(pairs_to_show(accuracy.n, held, aim), "pair")
                brief = "hold out more pairs, or check which answers are the chosen ones: the chosen answer is "
                brief += f"preferred in {share} of {pairs}, not shown to be better than guessing (about {needed} would "
                brief += f"show {percent(aim)})"
            on_training = "" if training is None else f"; of training pairs in {percent(training.value)}"
            text, kind, figures = f"{capitalized(brief)}{on_training}.", "learning", {"uninformative": split, **figures}
        else:
            return
        yield Finding(
            kind=kind, level="alarm" if alarm else "note", text=text, brief=brief, explains=explains, figures=figures
        )


def pairs_to_show(n: int, held: tuple[float, float], share: float) -> int:
    """Return the number of pairs of which four in five samples show that a share is above guessing.

    The true share is taken from the interval of n pairs; rounded to two digits.
    """
    times = 1 + NormalDist().inv_cdf(0.8) / NormalDist().inv_cdf(0.975)
    return int(float(f"{n * (times * (held[1] - held[0]) / 2 / (share - EVEN)) ** 2:.1e}"))


class ChosenAnswers(Rule):
    """Says whether the chosen answers became less likely: losses of pairs widen a margin, and may lower both sides."""

    name = "chosen-answers"
    order = 11

    def judge(self, run: RunRecords) -> Iterator[Finding]:
        from ftengine_builtins.tasks.preference_losses import LOSSES

        of = sides(run.evaluation, "chosen_logp")
        change, tuned, base = of["difference"], of["tuned"], of["base"]
        interval = ends(change) if change is not None and has_value(change) else None
        if interval is None or interval[1] >= 0:
            return
        nll = run.recipe.task.get("nll")
        if nll is None:
            nll = {loss.name: loss.model_fields["nll"].default for loss in LOSSES}.get(run.recipe.task.get("loss"))
        advice = "lower train.learning_rate" if nll else "add their own loss (task.nll), or lower train.learning_rate"
        text = (
            f"The chosen answers became less likely themselves: log-probability {against(tuned, base)}, a difference "
        )
        text += f"of {with_interval(change, sign=True)}. The loss widens the difference and may lower both: {advice}."
        brief = f"the chosen answers became less likely: log-probability {against(tuned, base)}"
        figures = {"metric": "chosen_logp", **of}
        yield Finding(kind="worse", level="note", text=text, brief=brief, figures=figures)


class SeparablePairs(Rule):
    """Notes that nearly all held-out pairs are ranked rightly: their answers may differ in style alone."""

    name = "separable-pairs"
    order = 11

    def judge(self, run: RunRecords) -> Iterator[Finding]:
        accuracy = run.evaluation.tuned.get("preference_accuracy")
        if accuracy is None or not has_value(accuracy) or accuracy.n < FEWEST or accuracy.value < NEAR_ALL:
            return
        pairs, soon = counted(accuracy.n, "held-out pair"), _steps_to_tell_apart(run)
        text = f"Look at some pairs: the chosen answer is preferred in {number(100 * accuracy.value, 1)} % of {pairs}"
        text += (
            f", and training pairs were told apart after {counted(soon, 'step')}. Pairs that are so "
            if soon
            else (". Pairs that are so ")
        )
        text += "easily told apart often differ in style (a length, an opening, a format), and learning style says "
        text += "little about quality."
        figures = {"preference_accuracy": accuracy, **({"steps": soon} if soon else {})}
        yield Finding(kind="data", level="note", text=text, figures=figures)


def _steps_to_tell_apart(run: RunRecords) -> int | None:
    """Return the step after which the loss stayed near 0; None if it never did.

    The accuracy of single steps is not recorded; a loss of pairs near 0 means that nearly all are ranked rightly.
    """
    losses = [step.loss for step in run.steps]
    last = next((k for k in reversed(range(len(losses))) if losses[k] > GONE * losses[0]), len(losses)) + 1
    return last if losses and last < min(SOON, len(losses)) else None


class LongerAnswers(Rule):
    """Says whether the model's own answers became longer or shorter, by evaluator `answer-length`."""

    name = "longer-answers"
    order = 11

    def judge(self, run: RunRecords) -> Iterator[Finding]:
        of = sides(run.evaluation, "answer_words")
        change, tuned, base = of["difference"], of["tuned"], of["base"]
        interval = ends(change) if change is not None and has_value(change) else None
        if interval is None or interval[0] <= 0 <= interval[1] or not base.value:
            return
        name, share = ("longer" if change.value > 0 else "shorter"), abs(change.value) / base.value
        brief = f"its answers are {percent(share)} {name} than before: {against(tuned, base)} words"
        text = f"Its answers are {percent(share)} {name} than before: {against(tuned, base)} words, a difference of "
        text += f"{with_interval(change, sign=True)}. Quality figures may have risen with the length alone."
        figures = {"metric": "answer_words", **of}
        yield Finding(kind="data", level="note", text=text, brief=brief, figures=figures)
