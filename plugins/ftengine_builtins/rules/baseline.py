"""Rules about answers: the tuned model against constant answers and chance."""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping

from ftengine import RunRecords
from ftengine.api import Estimate, Finding, Rule
from ftengine.evaluation import CHANCE
from ftengine.text import FEW, capitalized, counted, listed, plain, quoted, with_interval
from ftengine_builtins.audits.counting import share_within
from ftengine_builtins.rules.threshold import (
    Threshold,
    both_figures,
    knows_no_labels,
    led_by_figures,
    quoted_answer,
    ranks_training_examples,
    threshold_of,
    uninformative,
    wrong_way_round,
)

MOSTLY, HALF = 0.95, 0.5
"""From the first share of examples on, at the interval's near end, one answer counts as constant, if it is right for at
most the second."""

NEARLY, BLANK = 0.6, 0.3
"""Shares of the shown answers (12 by default), at the interval's near end: from the first on nearly all count as one
text (11 of 12), from the second on blank answers make a model useless (7 of 12)."""

OF_NO_USE = ("classes", "calibration", "worse")
"""Kinds of findings that add little for a useless model."""

CUT = " … "
"""Mark of a shortened prompt or of redacted data."""


class ConstantAnswer(Rule):
    """Finds a model that always gives the same answer, or is no better than a constant answer or than chance."""

    name = "constant-answer"
    order = 0

    def judge(self, run: RunRecords) -> Iterator[Finding]:
        threshold = threshold_of(run)
        if threshold is None:
            yield from _written_alike(run)
            return
        baseline, split = threshold.baseline, run.evaluation.split
        others = {metric: run.evaluation.tuned.get(metric) for metric in baseline.figures if metric != threshold.metric}
        reached = baseline.model_dump(mode="json", exclude={"classes", "gains"})
        figures = {**threshold.figures(), **reached, "others": others, **exact_answers(run)}
        if baseline.share == 1:
            only = quoted_answer(baseline.answer)
            text = f"The {split} split has one answer only ({only}): figures say nothing about others."
            if baseline.way:
                text = f"{baseline.way.capitalize()} is always right in the {split} split: figures do not show what "
                text += "else was learnt."
            yield Finding(kind="baseline", level="note", text=text, figures=figures)
        elif _is_constant(threshold):
            yield from _inputs_tell_nothing(threshold)
            text = _constant(threshold) + _ranked(threshold)
            brief = f"{both_figures(run, threshold.metric)}, {_given(threshold)}"
            yield Finding(kind="quality", level="alarm", text=text, brief=brief, explains=OF_NO_USE, figures=figures)
        elif threshold.missed:
            beaten = threshold.beaten(pooled=True)
            if not beaten and not threshold.is_hint:
                yield from _inputs_tell_nothing(threshold)
            text = _no_better(threshold, beaten) + ("" if beaten else _ranked(threshold))
            is_note = beaten or threshold.is_hint or threshold.may_be_better or threshold.leaves_room
            level, explains = ("note", ()) if is_note else ("alarm", OF_NO_USE)
            unsure = threshold.is_ahead or threshold.may_be_better
            brief = "not shown to be better" if unsure else "no better"
            brief = f"{both_figures(run, threshold.metric)}, {brief} than {threshold.best_answer}"
            yield Finding(kind="quality", level=level, text=text, brief=brief, explains=explains, figures=figures)


def _inputs_tell_nothing(threshold: Threshold) -> Iterator[Finding]:
    """Find why a model may be useless: all prompts are the same, or its scores carry no information about labels.

    The latter is judged only after one pass over all examples.
    """
    run = threshold.run
    if _one_prompt(run):
        yield from _same_prompts(run)
    elif passes(run) >= 1 and knows_no_labels(run):
        brief, text = (_no_labels(threshold, shown) for shown in (plain, with_interval))
        end = "" if text.endswith("?") else "."
        below = list(wrong_way_round(run))
        figures = {"wrong_way_round": below} if below else {"uninformative": list(uninformative(run))}
        # If scores may know much, over-fitting is a separate cause.
        surely = not any(threshold.may_be_far(name) for name in threshold.rankings)
        yield Finding(
            kind="learning",
            level="alarm",
            text=f"{capitalized(text)}{end}",
            brief=brief,
            explains=("quality", "classes", "calibration", "worse", *(["over-fitting"] if surely else [])),
            figures=figures,
        )


def _no_labels(threshold: Threshold, shown: Callable[[Estimate], str]) -> str:
    """Return that scores carry no information about labels; `shown` formats a figure."""
    run, rankings = threshold.run, wrong_way_round(threshold.run) or threshold.rankings

    def ranked(figures: Mapping[str, Estimate]) -> str:
        return listed([f"{run.evaluation.metrics[name].label} {shown(figures[name])}" for name in rankings])

    lead, held_out = "check that each label belongs to its text", ranked(rankings)
    if not uninformative(run):
        return f"{lead}: the scores rank held-out examples the wrong way round ({held_out}); are the labels swapped?"
    if run.evaluation.training is None or not all(ranks_training_examples(run, name) for name in rankings):
        return f"{lead}: the scores carry no information about the labels ({held_out})"
    training = ranked(run.evaluation.training.tuned)
    if any(threshold.may_be_far(name) for name in rankings):
        lead = f"train on more examples, and {lead}: the scores are not shown to know the labels of held-out examples"
        return f"{lead} ({held_out}), though they know those of training examples ({training})"
    lead += f", or train on more examples: the scores know the labels of training examples ({training})"
    return f"{lead}, not of held-out ones ({held_out})"


def _one_prompt(run: RunRecords) -> bool:
    """Return whether all shown examples have the same prompt but different references."""
    answers = run.examples.answers if run.examples is not None else ()
    if (
        len(answers) < FEW
        or len({answer.prompt for answer in answers}) > 1
        or len({answer.wanted for answer in answers}) < 2
    ):
        return False
    return CUT not in answers[0].prompt  # they may differ in the part that is not shown


def _same_prompts(run: RunRecords) -> Iterator[Finding]:
    assert run.examples is not None
    answers = run.examples.answers
    text = f"Check the prompts: all {len(answers):,} examples shown have the same one, with different references: "
    text += f"{quoted(answers[0].prompt)}."
    explains = (*OF_NO_USE, "quality", "learning", "data", "over-fitting", "labels")
    figures = {"prompts": 1, "asked": len(answers)}
    yield Finding(kind="data", level="alarm", text=text, brief=f"c{text[1:-1]}", explains=explains, figures=figures)


def passes(run: RunRecords) -> float:
    """Return the number of passes over the training examples."""
    return sum(step.examples for step in run.steps) / max(1, run.audit.encoded["train"]["examples"])


def _written_alike(run: RunRecords) -> Iterator[Finding]:
    """Judge the shown answers, if no metric measures the text that the model writes."""
    answers = run.examples.answers if run.examples is not None else ()
    n, texts = len(answers), Counter(answer.tuned.strip() for answer in answers)
    references = Counter(answer.wanted for answer in answers if answer.wanted is not None)
    share = max(references.values(), default=0) / max(1, n)
    if _one_prompt(run):
        yield from _same_prompts(run)
        return
    if len({answer.prompt for answer in answers}) < FEW or share**n > CHANCE:
        return
    blank = sum(not answer.tuned.strip() and answer.wanted != "" for answer in answers)
    text, count = texts.most_common(1)[0]
    if share_within(blank, n)[0] >= BLANK:
        text, count, brief = "", blank, f"{blank:,} of {n:,} answers are blank"
    elif count == n:
        brief = f"it always answers {quoted_answer(text)}, to all {counted(n, 'held-out prompt')} asked"
    elif share_within(count, n)[0] >= NEARLY and share <= HALF:
        brief = f"it answers {quoted_answer(text)} to {count:,} of {counted(n, 'held-out prompt')} asked"
    else:
        return
    lead, figures = "Not usable: ", {"given": text, "count": count, "asked": n}
    if (metric := run.headline_metric) is not None:
        lead = led_by_figures(run, metric, "not usable, ")
    yield Finding(
        kind="quality", level="alarm", text=f"{lead}{brief}.", brief=brief, explains=OF_NO_USE, figures=figures
    )


def _is_constant(threshold: Threshold) -> bool:
    """Return whether nearly all answers are the same although the references are not."""
    baseline, n = threshold.baseline, threshold.tuned.n
    if not baseline.total or baseline.share**n > CHANCE:
        return False
    true = {name: count / baseline.total for name, count, _ in baseline.classes}.get(baseline.given, baseline.share)
    least, _ = share_within(baseline.count, baseline.total)
    few = MOSTLY if baseline.given.strip() else BLANK
    return baseline.count == baseline.total or (least >= few and true <= HALF)


def _constant(threshold: Threshold) -> str:
    judgement = f"not usable, {_given(threshold)} of the {threshold.run.evaluation.split} split"
    return f"{led_by_figures(threshold.run, threshold.metric, judgement)}.{of_answers(threshold.run)}"


def _given(threshold: Threshold) -> str:
    """Return the most frequent answer and its number of examples, in words."""
    baseline = threshold.baseline
    of, answer = counted(baseline.total, baseline.unit), quoted_answer(baseline.given)
    if baseline.count < baseline.total:
        return f"it answers {answer} to {baseline.count:,} of {of}"
    return f"it always answers {answer}, to all {of}"


def _no_better(threshold: Threshold, others: list[str]) -> str:
    higher = threshold.is_ahead or threshold.may_be_better
    judgement = f"no better than {threshold.best_answer}"
    if higher:
        judgement = f"not shown to be better than {threshold.best_answer}, a difference of {threshold.size}"
    if others:
        every = [*others, *threshold.beaten(pooled=False)]
        pairs = " and ".join(f"{threshold.pair(name)} by guessing" for name in every)
        judgement += f". But it does more than guess: {pairs}."
        return led_by_figures(threshold.run, threshold.metric, judgement)
    metric = threshold.run.evaluation.metrics[threshold.metric]
    # A good text may differ from its reference.
    if not (higher or threshold.is_hint or threshold.leaves_room or (metric.primary and threshold.tuned.value)):
        judgement = f"not usable, {judgement}"
    return f"{led_by_figures(threshold.run, threshold.metric, judgement)}.{of_answers(threshold.run)}"


def unmeasured_answers(run: RunRecords) -> bool:
    """Return whether the tuned model writes texts that the headline metric does not measure."""
    writes = run.examples is not None and run.examples.writes
    return writes and not run.evaluation.metrics[run.headline_metric or ""].primary


def of_answers(run: RunRecords) -> str:
    """Return a sentence on the number of exact answers, or on texts that no metric scores; "" if neither applies."""
    if not run.evaluation.metrics[run.headline_metric or ""].primary:
        shown = run.examples is not None and run.examples.answers
        sentence = "No metric scored its generated text"
        return f" {sentence}: read its answers." if shown else f" {sentence}." if unmeasured_answers(run) else ""
    counts = exact_answers(run)
    text = " {exact:,} of {answers:,} answers are exact ({base_exact:,} of its base's)."
    return text.format(**counts) if counts else ""


def exact_answers(run: RunRecords) -> dict[str, int]:
    """Return the numbers of exact answers of tuned model and base; {} if the headline metric does not count them."""
    paired, metric = run.evaluation.paired, run.evaluation.metrics[run.headline_metric or ""]
    if paired is None or not metric.primary or paired.evaluator != metric.evaluator:
        return {}
    exact, before = paired.both + paired.only_tuned, paired.both + paired.only_base
    return {"exact": exact, "base_exact": before, "answers": exact + paired.only_base + paired.neither}


def _ranked(threshold: Threshold) -> str:
    """Return which scores are better than guessing although answers are not; "" if none."""
    pairs = [f"{threshold.pair(name)} by guessing" for name in threshold.beaten(pooled=False)]
    return f" Its scores say more than its answers: {' and '.join(pairs)}." if pairs else ""
