"""The rule on seeds: whether what a run shows holds for other seeds of its recipe."""

from collections.abc import Iterator

from ftengine import RunRecords
from ftengine.api import Finding, Rule
from ftengine.evaluation import SeedFigure
from ftengine.text import counted, listed, number
from ftengine_builtins.seeds.study import Seeds


class SeedSpread(Rule):
    """Judges a run of `ftengine seeds` by all seeds: a difference that other seeds do not show is not settled."""

    name = "seed-spread"
    order = 1

    def judge(self, run: RunRecords) -> Iterator[Finding]:
        study = Seeds.read(run.path)
        if study is None or study.metric not in study.difference:
            return
        figure, label = study.difference[study.metric], study.label
        facts = {"metric": study.metric, "seeds": len(study.runs), "kept": study.kept, "difference": figure}
        if study.settled is False:
            text = f"{_begin(study)}: worse than the base beyond chance over seeds and examples"
            yield Finding(kind="quality", level="alarm", text=f"{text}. {_spread(study)}", brief=text, figures=facts)
        elif study.settled:
            text = f"{_begin(study)}: better than the base beyond chance over seeds and examples. {_spread(study)}"
            yield Finding(kind="seeds", level="good", text=text, figures=facts)
        elif figure.low is not None and study.higher_is_better is not None:
            text = f"{_begin(study)}: this is not settled. {_agreement(study)} {_needed(figure)} {_spread(study)}"
            brief = f"{label} over {counted(len(study.runs), 'seed')} is not settled ({_agreement(study, brief=True)})"
            yield Finding(kind="quality", level="note", text=text, brief=brief, figures=facts)


def _begin(study: Seeds) -> str:
    """Return figures of tuned model and base over all seeds, and their difference with its interval."""
    tuned, base = study.tuned[study.metric], study.base[study.metric]
    difference = study.difference[study.metric]
    ends = f"{number(difference.low)} to {number(difference.high)}"
    return (
        f"{study.label} {number(tuned.mean)} on average over {counted(len(study.runs), 'seed')}, base "
        f"{number(base.mean)}; the difference {number(difference.mean)} ({ends})"
    )


def _agreement(study: Seeds, *, brief: bool = False) -> str:
    better, worse = (sum(run.better is side for run in study.runs) for side in (True, False))
    parts = [
        f"{count} of {len(study.runs)} {'are' if count != 1 else 'is'} {what}"
        for count, what in ((better, "better"), (worse, "worse"))
        if count
    ]
    text = f"{listed(parts)} than the base" if parts else f"none of {len(study.runs)} differs from the base"
    return text if brief else f"By the tests of single runs, {text} beyond chance."


def _needed(figure: SeedFigure) -> str:
    if figure.settled_by is None:
        return "More seeds alone would not settle it; more held-out examples might."
    return f"If mean and spread stayed, {figure.settled_by} seeds would settle it."


def _spread(study: Seeds) -> str:
    figure = study.tuned[study.metric]
    if figure.between is None:
        return ""
    return (
        f"Seeds alone make it vary by {number(figure.between)} (standard deviation), these {study.examples:,} examples "
        f"by {number(figure.error)} (standard error)."
    )
