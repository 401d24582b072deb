"""The rule on functions that score answers: how many answers got no score."""

from collections.abc import Iterator

from ftengine import RunRecords
from ftengine.api import Finding, Rule
from ftengine.text import number, one_line, percent

SOME, ALL = 0.05, 0.98
"""Shares of answers without a score that are reported, and that are an alarm: they count as answers that fail. Where
some have a score, a function that runs them may well raise because they are wrong."""
SHOWN = 80
"""Characters of an error."""


class UnscoredAnswers(Rule):
    """Reports functions that raised, or took too long, for many of the answers that they were to score."""

    name = "unscored-answers"
    order = 0

    def judge(self, run: RunRecords) -> Iterator[Finding]:
        for evaluator, facts in run.evaluation.details.tuned.items():
            answers, errors, late = (facts.get(name, 0) for name in ("answers", "errors", "timeouts"))
            if not (answers and errors + late >= SOME * answers):
                continue
            alarm = errors + late >= ALL * answers
            if late >= errors:
                brief = f"make the function of {evaluator} faster, or raise its timeout: for {late:,} of {answers:,} "
                brief += f"answers it took longer than {number(facts['timeout_seconds'])} s, and these count as failed"
            else:
                brief = f"{'correct' if alarm else 'check'} the function of {evaluator}: it raised for {errors:,} of "
                brief += f"{answers:,} answers, which count as failed ({one_line(str(facts.get('error', '')))[:SHOWN]})"
            base = run.evaluation.details.base.get(evaluator, {})
            figures = {"evaluator": evaluator, "answers": answers, "errors": errors, "timeouts": late}
            then = "" if alarm else " A function that runs the answers may raise, or wait, because they are wrong"
            if then and base.get("answers"):
                figures["base"] = (base.get("errors", 0) + base.get("timeouts", 0)) / base["answers"]
                then += f"; of the base's, {percent(figures['base'])} have no score"
            yield Finding(
                kind="quality",
                level="alarm" if alarm else "note",
                text=f"{brief[0].upper()}{brief[1:]}.{then}{'.' if then else ''}",
                brief=brief,
                explains=("quality", "labels", "learning", "over-fitting", "rows") if alarm else (),
                figures=figures,
            )
