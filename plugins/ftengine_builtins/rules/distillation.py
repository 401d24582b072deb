"""The rule about distillation: whether the teacher had something to teach, and whether the model came nearer to it."""

from collections.abc import Iterator

from ftengine import RunRecords
from ftengine.api import Finding, Rule
from ftengine.text import against, capitalized, number, percent
from ftengine_builtins.rules.drawn_rewards import CUT, LAST, drawn_otherwise, mean_of

KL = "teacher_kl"
SAME = 1e-3
"""Divergence a token, in nats, below which a teacher and its student are taken for equal."""


class Distillation(Rule):
    """Reports a teacher that teaches nothing, and a model that went away from its teacher."""

    name = "distillation"
    order = 2

    def judge(self, run: RunRecords) -> Iterator[Finding]:
        lines = [line for line in run.lines if KL in line]
        if not lines:
            return
        first, last = mean_of(lines[:LAST], KL), mean_of(lines[-LAST:], KL)
        change = run.evaluation.difference.get(KL)
        if first < SAME and last < SAME:
            brief = f"choose another teacher or system prompt: KL from the teacher was {number(first, 2)} nats a token "
            brief += "in the first steps, so there was nothing to learn"
            yield _finding("alarm", brief, {"first": first}, ("quality", "learning"))
        elif change is not None and change.better is False:
            values = against(run.evaluation.tuned[KL], run.evaluation.base[KL])
            brief = f"lower train.learning_rate: the model went away from its teacher (KL {values})"
            yield _finding("alarm", brief, {"first": first, "last": last}, ("quality", "worse", "learning"))
        elif len(lines) >= 2 * LAST and last >= first:
            brief = f"raise train.learning_rate or train longer: KL from the teacher was {number(first, 2)} nats a "
            brief += f"token in the first {LAST} steps and {number(last, 2)} in the last"
            yield _finding("note", brief, {"first": first, "last": last}, ("learning",))
        yield from drawn_otherwise(lines)
        if (cut := mean_of(lines[-LAST:], "cut_off")) >= CUT:
            brief = f"raise task.max_new_tokens: {percent(cut)} of the answers were cut off in the last steps"
            yield _finding("note", brief, {"cut_off": cut}, ())


def _finding(level: str, brief: str, figures: dict[str, float], explains: tuple[str, ...]) -> Finding:
    text = f"{capitalized(brief)}."
    return Finding(kind="learning", level=level, text=text, brief=brief, explains=explains, figures=figures)  # type: ignore[arg-type]
