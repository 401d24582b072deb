"""Rules about classes that the model never or hardly ever answers, or of which nothing is held out."""

from collections.abc import Iterable, Iterator, Mapping

from ftengine import RunRecords
from ftengine.api import Finding, Rule
from ftengine.text import capitalized, counted, listed, percent, quoted, short
from ftengine_builtins.audits.counting import share_within
from ftengine_builtins.rules.threshold import confusions, knows_no_labels, no_better_than_a_constant, threshold_of

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

MOST_CLASSES = 5
"""Most classes named in a sentence."""


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
        text += f"{' and '.join(parts)}"
        learnt, rows = (trained_on(run), sum(trained_on(run).values()))
        few = f", which {'has' if len(missed) == 1 else 'have'} {sum(learnt.get(name, 0) for name in missed):,} of "
        text += f"{few}{rows:,} training examples." if rare and learnt else "."
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
