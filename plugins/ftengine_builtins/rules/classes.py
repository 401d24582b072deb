"""Rules about single classes."""

from collections.abc import Iterator

from ftengine import RunRecords
from ftengine.api import Finding, Rule
from ftengine.api.figures import counted, listed, quoted, short
from ftengine_builtins.rules.baseline import bar_of

NEVER_ALARM, LEAST_CLASS = 0.05, 5
"""Share of the held-out examples whose class is never answered, for an alarm; counted are classes of at least so many
examples, as a class of one or two is missed by a sound model as well."""

MOST_CLASSES = 5
"""Classes that a sentence names."""


class UnansweredClasses(Rule):
    """Names the classes that the tuned model never gives as its answer, though held-out examples have them."""

    name = "unanswered-classes"
    order = 2
    about = "classes that it never answers"

    def judge(self, run: RunRecords) -> Iterator[Finding]:
        bar = bar_of(run)
        never = {name: true for name, true, given in bar.baseline.classes if true and not given} if bar else {}
        if bar is None or not never:
            return
        baseline, missed = bar.baseline, sum(never.values())
        shown = [quoted(name) for name in never][:MOST_CLASSES]
        if len(never) > MOST_CLASSES:
            shown.append(counted(len(never) - MOST_CLASSES, "other class", "other classes"))
        large = sum(true for true in never.values() if true >= LEAST_CLASS)
        yield Finding(
            kind="classes",
            level="alarm" if large >= NEVER_ALARM * baseline.total else "note",
            text=f"Never answers {listed(shown, 'or')}, the truth of {missed:,} of {baseline.total:,} held-out "
            f"{baseline.unit}s.",
            figures={"never": list(never), "examples": missed, "total": baseline.total},
        )


class UntestedClasses(Rule):
    """Names the classes of which the held-out split has no example."""

    name = "untested-classes"
    order = 2

    def judge(self, run: RunRecords) -> Iterator[Finding]:
        bar = bar_of(run)
        classes = bar.baseline.classes if bar else ()
        absent = [name for name, true, _ in classes if not true]
        if not absent:
            return
        shown = [short(name) for name in absent[:MOST_CLASSES]]
        if len(absent) > MOST_CLASSES:
            shown.append(f"{len(absent) - MOST_CLASSES:,} more")
        has, it = ("has", "it is") if len(absent) == 1 else ("have", "they are")
        yield Finding(
            kind="classes",
            level="note",
            text=f"{len(absent):,} of {counted(len(classes), 'class', 'classes')} {has} no held-out example "
            f"({listed(shown)}): nothing is known of how well {it} recognised.",
            figures={"untested": absent, "classes": len(classes)},
        )
