"""Rules about answers: the tuned model against constant answers and chance, and classes that it never answers."""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping

from ftengine import RunRecords
from ftengine.api import Estimate, Finding, Rule
from ftengine.evaluation import CHANCE
from ftengine.text import FEW, capitalized, counted, listed, percent, plain, quoted, short, with_interval
from ftengine_builtins.audits.counting import share_within
from ftengine_builtins.rules.threshold import (
    Threshold,
    both_figures,
    confusions,
    knows_no_labels,
    led_by_figures,
    no_better_than_a_constant,
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

RARELY_GIVEN = 0.25
"""A class is hardly ever answered if its answers are below this share of its examples, at the interval's far end: none
of 12, 1 of 19, 3 of 32. The share doubles if training had few examples of the class (FEW_TRAINED): 5 of 33."""

FEW_TRAINED = 0.25
"""A class has few training examples up to this part of an even share."""

AS_ANOTHER, ENOUGH = 0.6, 10
"""Share of a class's examples that are answered as one other class, at the interval's near end, for two names of one
(11 of 11, 17 of 20), and training examples that it has at least."""

SCARCER = 3.0
"""How many times a class's share of training its share of the measured rows is, at the intervals' near ends."""
MISSED = 0.05
"""Alarm from this share of held-out examples in hardly ever answered classes on, at the interval's near end."""

OF_NO_USE = ("classes", "calibration", "worse")
"""Kinds of findings that add little for a useless model."""

CUT = " … "
"""Mark of a shortened prompt or of redacted data."""

MOST_CLASSES = 5
"""Most classes named in a sentence."""


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


class UnansweredClasses(Rule):
    """Names the classes that the tuned model never or hardly ever answers, though held-out examples have them."""

    name = "unanswered-classes"
    order = 5

    def judge(self, run: RunRecords) -> Iterator[Finding]:
        threshold = threshold_of(run)
        classes = threshold.baseline.classes if threshold else ()
        never = {name: true for name, true, answered in classes if true and not answered}
        rare_answers = rarely_answered(run)
        if threshold is None or not never | rare_answers:
            return
        total, unit = threshold.baseline.total, threshold.baseline.unit
        rarely = {name: true for name, true in rare_answers.items() if name not in never}
        parts = [
            f"{adverb} answers {_first_few(counts)} (the truth of {sum(counts.values()):,})"
            for adverb, counts in (("never", never), ("hardly ever", rarely))
            if counts
        ]
        alarm, useless = share_within(sum(rare_answers.values()), total)[0] >= MISSED, no_better_than_a_constant(run)
        missed = {**never, **rare_answers}
        rare = are_rare(missed, trained_on(run) or {name: true for name, true, _ in classes})
        weights = f"Set {_balancing(run)} to balanced, add" if rare and _balancing(run) else "Add"
        if run.trained.calibration.get("thresholds"):
            weights = f"Predict with --calibrated, by each label's own threshold, {weights[:1].lower()}{weights[1:]}"
        text = f"{weights} examples of these classes or train longer: of {total:,} held-out {unit}s it "
        text += f"{' and '.join(parts)}."
        if scarce := _scarcer_in_training(run, missed, total):
            text = f"{capitalized(scarce)}. {text}"
        if doubles := _answered_as_another(run, missed):
            pairs = listed([f"{quoted(label)} and {quoted(answer)}" for label, answer in doubles.items()])
            text = f"Check whether {pairs} are one class under two names: one is answered as the other. {text}"
        figures = {
            "doubles": doubles,
            "never": list(never),
            "seldom": list(rare_answers),
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
    """Return classes whose examples are nearly all answered as one other class, with that class.

    Classes with fewer than ENOUGH training examples are left out.
    """
    doubles, trained = {}, trained_on(run)
    for names, counts in confusions(run):
        for label in set(missed) & set(names):
            row = counts[names.index(label)]
            answer = int(row.argmax())
            near = len(names) > 2 and share_within(int(row[answer]), int(row.sum()))[0] >= AS_ANOTHER
            others = counts[[i for i in range(len(names)) if i not in (answer, names.index(label))], answer].sum()
            learnt = trained.get(label, 0) >= ENOUGH
            if near and learnt and names[answer] != label and others <= row[answer] / 2:
                doubles[label] = names[answer]
    return doubles


def _scarcer_in_training(run: RunRecords, missed: Mapping[str, int], total: int) -> str:
    """Return that a missed class is far rarer in training than in the measured split; "" if none is."""
    trained = trained_on(run)
    rows = sum(trained.values())
    for name, true in missed.items() if rows else ():
        count = trained.get(name, 0)
        if SCARCER * share_within(count, rows)[1] < share_within(true, total)[0]:
            shares = f"{percent(count / rows)} of the training rows and {percent(true / total)} of the "
            shares += f"{run.evaluation.split} rows"
            return f"draw training rows at random from the same data: {quoted(name)} is the label of {shares}"
    return ""


def _explained(rare: bool, alarm: bool) -> tuple[str, ...]:
    """Return the kinds of findings that missed classes explain."""
    return ("quality", "learning") if rare else ("quality",) if alarm else ()


def trained_on(run: RunRecords) -> dict[str, int]:
    """Return the number of training examples of each class; {} if the task did not count them."""
    labels = run.trained.labels
    return dict(zip(labels.names, labels.counts, strict=True)) if labels and labels.counts else {}


def are_rare(names: Iterable[str], counts: Mapping[str, int], most: float = 0.5) -> bool:
    """Return whether each of `names` has at most the part `most` of an even share of the examples."""
    return bool(counts) and all(counts.get(name, 0) * len(counts) <= sum(counts.values()) * most for name in names)


def _balancing(run: RunRecords) -> str:
    """Return the recipe's keys that weight rare classes; "" if one is set already, or the task has none."""
    unset = run.recipe.task.get("class_weights", "none to set") is None and run.recipe.train.sampling == "shuffle"
    return "train.sampling or task.class_weights" if unset else ""


def rarely_answered(run: RunRecords) -> dict[str, int]:
    """Return hardly ever answered classes (RARELY_GIVEN), with their numbers of examples."""
    threshold, trained = threshold_of(run), trained_on(run)
    classes = threshold.baseline.classes if threshold else ()
    return {
        name: true
        for name, true, answered in classes
        if true
        and share_within(min(answered, true), true)[1]
        < RARELY_GIVEN * (2 if trained and are_rare([name], trained, FEW_TRAINED) else 1)
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
        text += f"({listed(shown)}): it is unknown how well {it} recognised."
        figures = {"untested": absent, "classes": len(classes)}
        yield Finding(kind="classes", level="note", text=text, figures=figures)
