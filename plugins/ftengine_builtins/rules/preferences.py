"""Rules about preferences: what became of the chosen answers, and whether something simple tells pairs apart."""

from collections.abc import Iterator

from ftengine import RunRecords
from ftengine.api import Finding, Rule
from ftengine.text import against, counted, ends, known
from ftengine.text import with_interval as told
from ftengine_builtins.rules.quality import sides

FEWEST, NEAR_ALL = 20, 0.99
"""Pairs, and the share of them, from which on all being preferred is worth a word."""


class ChosenAnswers(Rule):
    """Says whether the chosen answers became less likely: losses of pairs pull answers apart, and may lower both."""

    name = "chosen-answers"
    order = 11
    about = "the likelihood of chosen answers"

    def judge(self, run: RunRecords) -> Iterator[Finding]:
        from ftengine_builtins.tasks.preference_losses import LOSSES

        change, tuned, base = (
            getattr(run.evaluation, side).get("chosen_logp") for side in ("difference", "tuned", "base")
        )
        interval = ends(change) if change is not None and known(change) else None
        if interval is None or interval[1] >= 0:
            return
        nll = run.recipe.task.get("nll")
        if nll is None:
            nll = {one.name: one.model_fields["nll"].default for one in LOSSES}.get(run.recipe.task.get("loss"))
        advice = "lower train.learning_rate" if nll else "add their own loss (task.nll), or lower train.learning_rate"
        text = (
            f"The chosen answers became less likely themselves: log-probability {against(tuned, base)}, a difference "
        )
        text += f"of {told(change, sign=True)}. The loss pulls answers apart and may lower both: {advice}."
        brief = f"the chosen answers became less likely: log-probability {against(tuned, base)}"
        figures = {"metric": "chosen_logp", **sides(run.evaluation, "chosen_logp")}
        yield Finding(kind="worse", level="note", text=text, brief=brief, figures=figures)


class SeparablePairs(Rule):
    """Says where nearly all held-out pairs are preferred rightly: they may differ in style alone."""

    name = "separable-pairs"
    order = 11
    about = "pairs that are told apart by style"

    def judge(self, run: RunRecords) -> Iterator[Finding]:
        accuracy = run.evaluation.tuned.get("preference_accuracy")
        if accuracy is None or not known(accuracy) or accuracy.n < FEWEST or accuracy.value < NEAR_ALL:
            return
        pairs = counted(accuracy.n, "held-out pair")
        text = (
            f"Look at some pairs: the chosen answer is preferred in {accuracy.value:.1%} of {pairs}. Pairs that are so "
        )
        text += "easily told apart often differ in style (a length, an opening, a format), and learning that says "
        text += "little about quality."
        yield Finding(kind="data", level="note", text=text, figures={"preference_accuracy": accuracy})
