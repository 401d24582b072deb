"""Rules about the answers: the tuned model against what is reached without looking, and classes it never gives."""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping

from ftengine import RunRecords
from ftengine.api import Estimate, Finding, Rule
from ftengine.evaluation import CHANCE
from ftengine.text import FEW, capitalized, counted, listed, plain, quoted, short, with_interval
from ftengine_builtins.audits.counting import share_within
from ftengine_builtins.rules.threshold import (
    Threshold,
    both_figures,
    confusions,
    knows_no_labels,
    led_by_figures,
    no_better_than_a_constant,
    quoted_answer,
    ranks_what_it_has_seen,
    threshold_of,
    uninformative,
    wrong_way_round,
)

MOSTLY, SELDOM = 0.95, 0.5
"""Share of the examples to which one answer is given, at the interval's near end, that counts as constant, where it is
the truth of at most half."""

NEARLY, BLANK = 0.6, 0.3
"""Shares, at the interval's near end, from which few answers that are shown, a dozen by default, are nearly all one
text (11 of 12), and from which blank ones make a model useless (7 of 12)."""

SELDOM_GIVEN = 0.25
"""Share of a class's examples that are given it as their answer, at the interval's far end, below which it is hardly
ever answered: none of 12, 1 of 19, 3 of 32. Whatever is right among them is less. Twice that where training had few
examples of it (FEW_TRAINED): 5 of 33."""

FEW_TRAINED = 0.25
"""Of an even share of the training examples, up to which a class has few of them."""

AS_ANOTHER, ENOUGH = 0.6, 10
"""Share of a class's examples that are answered as one other class, at the interval's near end, for two names of one
(11 of 11, 17 of 20), and training examples that it has at least."""

MISSED = 0.05
"""Share of the held-out examples, interval's near end, whose classes are hardly ever answered, for an alarm."""

OF_NO_USE = ("classes", "calibration", "worse")
"""Kinds of findings that say little more of a model that is of no use."""

CUT = " … "
"""Where a prompt that is shown is shortened, or personal data is left out."""

MOST_CLASSES = 5
"""Classes that a sentence names."""


class ConstantAnswer(Rule):
    """Finds a model that always answers the same, or that is no better than doing so, or than chance."""

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
            text = f"The {split} split has one answer only ({only}): figures say nothing of others."
            if baseline.way:
                text = f"{baseline.way.capitalize()} is always right in the {split} split: figures do not tell what "
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
    """Find why a model may be of no use: its prompts are all the same, or its scores do not tell the labels.

    Of the latter nothing is known before a pass over all examples.
    """
    run = threshold.run
    if _one_prompt(run):
        yield from _same_prompts(run)
    elif passes(run) >= 1 and knows_no_labels(run):
        brief, text = (_no_labels(threshold, shown) for shown in (plain, with_interval))
        end = "" if text.endswith("?") else "."
        below = list(wrong_way_round(run))
        figures = {"wrong_way_round": below} if below else {"uninformative": list(uninformative(run))}
        # Where scores may know much, what they learnt by heart is a cause of its own.
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
    """Say that scores do not tell the labels, be it of new examples alone; `shown` words a figure."""
    run, rankings = threshold.run, wrong_way_round(threshold.run) or threshold.rankings

    def ranked(figures: Mapping[str, Estimate]) -> str:
        return listed([f"{run.evaluation.metrics[name].label} {shown(figures[name])}" for name in rankings])

    lead, told = "check that each label belongs to its text", ranked(rankings)
    if not uninformative(run):
        return f"{lead}: the scores rank held-out examples the wrong way round ({told}); are the labels swapped?"
    if run.evaluation.training is None or not all(ranks_what_it_has_seen(run, name) for name in rankings):
        return f"{lead}: the scores carry no information about the labels ({told})"
    seen = ranked(run.evaluation.training.tuned)
    if any(threshold.may_be_far(name) for name in rankings):
        lead = f"train on more examples, and {lead}: the scores are not shown to know the labels of held-out examples"
        return f"{lead} ({told}), though they know those of training examples ({seen})"
    lead += f", or train on more examples: the scores know the labels of training examples ({seen})"
    return f"{lead}, not of held-out ones ({told})"


def _one_prompt(run: RunRecords) -> bool:
    """Say whether all examples that are shown have one prompt, so that nothing tells their answers apart."""
    answers = run.examples.answers if run.examples is not None else ()
    if len(answers) < FEW or len({one.prompt for one in answers}) > 1 or len({one.wanted for one in answers}) < 2:
        return False
    return CUT not in answers[0].prompt  # they may differ in what is not shown


def _same_prompts(run: RunRecords) -> Iterator[Finding]:
    assert run.examples is not None
    answers = run.examples.answers
    text = f"Check the prompts: all {len(answers):,} examples shown have the same one, with different references: "
    text += f"{quoted(answers[0].prompt)}."
    explains = (*OF_NO_USE, "quality", "learning", "data", "over-fitting", "labels")
    figures = {"prompts": 1, "asked": len(answers)}
    yield Finding(kind="data", level="alarm", text=text, brief=f"c{text[1:-1]}", explains=explains, figures=figures)


def passes(run: RunRecords) -> float:
    """Return how many times training went over its examples."""
    return sum(step.examples for step in run.steps) / max(1, run.audit.encoded["train"]["examples"])


def _written_alike(run: RunRecords) -> Iterator[Finding]:
    """Look at the few answers that are shown, where nothing else is known of what the model writes."""
    answers = run.examples.answers if run.examples is not None else ()
    n, said = len(answers), Counter(one.tuned.strip() for one in answers)
    wanted = Counter(one.wanted for one in answers if one.wanted is not None)
    share = max(wanted.values(), default=0) / max(1, n)
    if _one_prompt(run):
        yield from _same_prompts(run)
        return
    if len({one.prompt for one in answers}) < FEW or share**n > CHANCE:
        return
    blank = sum(not one.tuned.strip() and one.wanted != "" for one in answers)
    text, count = said.most_common(1)[0]
    if share_within(blank, n)[0] >= BLANK:
        text, count, brief = "", blank, f"{blank:,} of {n:,} answers are blank"
    elif count == n:
        brief = f"it always answers {quoted_answer(text)}, to all {counted(n, 'held-out prompt')} asked"
    elif share_within(count, n)[0] >= NEARLY and share <= SELDOM:
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
    """Say whether nearly all answers are one, and it is not chance that their truths are."""
    baseline, n = threshold.baseline, threshold.tuned.n
    if not baseline.total or baseline.share**n > CHANCE:
        return False
    true = {name: wanted / baseline.total for name, wanted, _ in baseline.classes}.get(baseline.given, baseline.share)
    least, _ = share_within(baseline.count, baseline.total)
    few = MOSTLY if baseline.given.strip() else BLANK
    return baseline.count == baseline.total or (least >= few and true <= SELDOM)


def _constant(threshold: Threshold) -> str:
    judgement = f"not usable, {_given(threshold)} of the {threshold.run.evaluation.split} split"
    return f"{led_by_figures(threshold.run, threshold.metric, judgement)}.{of_answers(threshold.run)}"


def _given(threshold: Threshold) -> str:
    """Return which answer is given to how many examples, in brief."""
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
    # A text may be good and unlike its reference.
    if not (higher or threshold.is_hint or threshold.leaves_room or (metric.primary and threshold.tuned.value)):
        judgement = f"not usable, {judgement}"
    return f"{led_by_figures(threshold.run, threshold.metric, judgement)}.{of_answers(threshold.run)}"


def unmeasured_answers(run: RunRecords) -> bool:
    """Say whether the tuned model writes texts that the metric which decides does not measure."""
    writes = run.examples is not None and run.examples.writes
    return writes and not run.evaluation.metrics[run.headline_metric or ""].primary


def of_answers(run: RunRecords) -> str:
    """Say how many answers are exact where their figure decides, and where there is none that they are to be read."""
    if not run.evaluation.metrics[run.headline_metric or ""].primary:
        shown = run.examples is not None and run.examples.answers
        told = "No metric scored its generated text"
        return f" {told}: read its answers." if shown else f" {told}." if unmeasured_answers(run) else ""
    counts = exact_answers(run)
    text = " {exact:,} of {answers:,} answers are exact ({base_exact:,} of its base's)."
    return text.format(**counts) if counts else ""


def exact_answers(run: RunRecords) -> dict[str, int]:
    """Return how many answers are exact, of the tuned model and of its base; {} where no figure of them decides."""
    paired, metric = run.evaluation.paired, run.evaluation.metrics[run.headline_metric or ""]
    if paired is None or not metric.primary or paired.evaluator != metric.evaluator:
        return {}
    exact, before = paired.both + paired.only_tuned, paired.both + paired.only_base
    return {"exact": exact, "base_exact": before, "answers": exact + paired.only_base + paired.neither}


def _ranked(threshold: Threshold) -> str:
    """Say where scores tell examples apart although answers do not."""
    told = [f"{threshold.pair(name)} by guessing" for name in threshold.beaten(pooled=False)]
    return f" Its scores say more than its answers: {' and '.join(told)}." if told else ""


class UnansweredClasses(Rule):
    """Names the classes that the tuned model never or hardly ever answers, though held-out examples have them."""

    name = "unanswered-classes"
    order = 5

    def judge(self, run: RunRecords) -> Iterator[Finding]:
        threshold = threshold_of(run)
        classes = threshold.baseline.classes if threshold else ()
        never = {name: true for name, true, given in classes if true and not given}
        seldom = seldom_answered(run)
        if threshold is None or not never | seldom:
            return
        total, unit = threshold.baseline.total, threshold.baseline.unit
        rarely = {name: true for name, true in seldom.items() if name not in never}
        parts = [
            f"{adverb} answers {_first_few(counts)} (the truth of {sum(counts.values()):,})"
            for adverb, counts in (("never", never), ("hardly ever", rarely))
            if counts
        ]
        alarm, useless = share_within(sum(seldom.values()), total)[0] >= MISSED, no_better_than_a_constant(run)
        missed = {**never, **seldom}
        rare = are_rare(missed, trained_on(run) or {name: true for name, true, _ in classes})
        weights = f"Set {_balancing(run)} to balanced, add" if rare and _balancing(run) else "Add"
        if run.trained.calibration.get("thresholds"):
            weights = f"Predict with --calibrated, by each label's own threshold, {weights[:1].lower()}{weights[1:]}"
        text = f"{weights} examples of these classes or train longer: of {total:,} held-out {unit}s it "
        text += f"{' and '.join(parts)}."
        if doubles := _answered_as_another(run, missed):
            pairs = listed([f"{quoted(label)} and {quoted(answer)}" for label, answer in doubles.items()])
            text = f"Check whether {pairs} are one class under two names: the one is answered as the other. {text}"
        figures = {
            "doubles": doubles,
            "never": list(never),
            "seldom": list(seldom),
            "examples": sum(missed.values()),
            "total": total,
        }
        yield Finding(
            kind="classes",
            level="alarm" if alarm or (rare and useless) else "note",
            text=text,
            brief=text[:1].lower() + text[1:-1],
            explains=_explained(rare and useless and not knows_no_labels(run), alarm and not useless),
            figures=figures,
        )


def _answered_as_another(run: RunRecords, missed: Iterable[str]) -> dict[str, str]:
    """Return classes of which nearly all examples are answered as one other class, while hardly any of a third is.

    Classes that training has few examples of are left out.
    """
    found, trained = {}, trained_on(run)
    for names, counts in confusions(run):
        for label in set(missed) & set(names):
            row = counts[names.index(label)]
            answer = int(row.argmax())
            near = len(names) > 2 and share_within(int(row[answer]), int(row.sum()))[0] >= AS_ANOTHER
            others = counts[[i for i in range(len(names)) if i not in (answer, names.index(label))], answer].sum()
            learnt = trained.get(label, 0) >= ENOUGH
            if near and learnt and names[answer] != label and others <= row[answer] / 2:
                found[label] = names[answer]
    return found


def _explained(rare: bool, alarm: bool) -> tuple[str, ...]:
    """Return what missed classes explain: that a model is of no use where they are rare, and its scores know them."""
    return ("quality", "learning") if rare else ("quality",) if alarm else ()


def trained_on(run: RunRecords) -> dict[str, int]:
    """Return how many training examples each class has; {} where the task did not count them."""
    labels = run.trained.labels
    return dict(zip(labels.names, labels.counts, strict=True)) if labels and labels.counts else {}


def are_rare(names: Iterable[str], counts: Mapping[str, int], most: float = 0.5) -> bool:
    """Say whether each of some classes has at most half, or such a part, of an even share of the examples."""
    return bool(counts) and all(counts.get(name, 0) * len(counts) <= sum(counts.values()) * most for name in names)


def _balancing(run: RunRecords) -> str:
    """Return the recipe's keys that make rare classes count more; "" where one is set, or the task has none."""
    unset = run.recipe.task.get("class_weights", "none to set") is None and run.recipe.train.sampling == "shuffle"
    return "train.sampling or task.class_weights" if unset else ""


def seldom_answered(run: RunRecords) -> dict[str, int]:
    """Return the classes that are given surely to few of their examples (SELDOM_GIVEN), with how many these are."""
    threshold, trained = threshold_of(run), trained_on(run)
    classes = threshold.baseline.classes if threshold else ()
    return {
        name: true
        for name, true, given in classes
        if true
        and share_within(min(given, true), true)[1]
        < SELDOM_GIVEN * (2 if trained and are_rare([name], trained, FEW_TRAINED) else 1)
    }


def _first_few(names: Iterable[str]) -> str:
    every = [quoted(name) for name in names]
    more = [counted(len(every) - MOST_CLASSES, "other class", "other classes")] if len(every) > MOST_CLASSES else []
    return listed([*every[:MOST_CLASSES], *more], "or")


class UntestedClasses(Rule):
    """Names the classes of which the held-out split has no example."""

    name = "untested-classes"
    order = 5

    def judge(self, run: RunRecords) -> Iterator[Finding]:
        threshold = threshold_of(run)
        classes = threshold.baseline.classes if threshold else ()
        trained = trained_on(run)  # a tag such as I-LOC stands beside B-LOC where no row has it
        absent = [name for name, true, _ in classes if not true and (not trained or trained.get(name))]
        if not absent:
            return
        shown = [short(name) for name in absent[:MOST_CLASSES]]
        if len(absent) > MOST_CLASSES:
            shown.append(f"{len(absent) - MOST_CLASSES:,} more")
        has, it = ("has", "it is") if len(absent) == 1 else ("have", "they are")
        text = f"{len(absent):,} of {counted(len(classes), 'class', 'classes')} {has} no held-out example "
        text += f"({listed(shown)}): nothing is known of how well {it} recognised."
        figures = {"untested": absent, "classes": len(classes)}
        yield Finding(kind="classes", level="note", text=text, figures=figures)
