"""What benchmarks say of a run."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Literal

from ftengine.api import Difference, Finding, Rule
from ftengine.evaluation import holm
from ftengine.text import against, counted, ends, interval, listed, plain, probability
from ftengine_lm_eval.evaluator import LmEval
from ftengine_lm_eval.figures import LEVEL, Benchmark, BenchmarkMetric
from ftengine_lm_eval.figures import Benchmarks as Found

if TYPE_CHECKING:
    from ftengine import RunRecords

DROP = 0.05
"""Change for the worse relative to the base, at the interval's near end, from which it is an alarm: with thousands of
examples a change of a thousandth is beyond chance, and harmless."""


class Benchmarks(Rule):
    """Says whether the tuned model is better or worse at tasks of lm-evaluation-harness."""

    name = "benchmarks"
    about = "benchmarks"
    order = 110

    def judge(self, run: RunRecords) -> Iterator[Finding]:
        tasks = _asked(run)
        if (found := Found.read(run.path)) is not None:  # by the command
            tasks |= found.tasks
        # p-values are adjusted for all tasks and metrics together (Holm 1979).
        metrics = {(task, name): m for task, one in tasks.items() for name, m in one.metrics.items()}
        tested = {key: m.difference.p for key, m in metrics.items() if m.difference.p is not None}
        p_values = holm(tested)
        differing = {key for key, p in p_values.items() if p <= LEVEL and _excludes_0(metrics[key].difference)}
        for key in sorted(differing):
            yield self._finding(key, metrics[key], tasks[key[0]].examples, p_values[key])
        for keys, shows in (
            (tested.keys() - differing, "lm-evaluation-harness shows no difference beyond chance"),
            (
                metrics.keys() - tested.keys(),
                "Figures of lm-evaluation-harness without a test of their difference",
            ),
        ):
            if rest := [key for key in metrics if key in keys]:
                shown = [f"{_called(key)} {against(metrics[key].tuned, metrics[key].base)}" for key in rest[:6]]
                shown += [f"{counted(len(rest) - 6, 'further figure')} beside them"] if len(rest) > 6 else []
                text = f"{shows}; tuned against base: {listed(shown)}."
                figures = {_called(key): metrics[key].difference for key in rest}
                yield Finding(kind="benchmarks", level="note", text=text, figures=figures)

    def _finding(self, key: tuple[str, str], metric: BenchmarkMetric, n: int, p: float) -> Finding:
        change = metric.difference
        low, high = ends(change) or (change.value, change.value)
        least = min(abs(low), abs(high))
        serious = least >= DROP * abs(metric.base.value)
        better = change.better
        level: Literal["alarm", "note", "good"] = "good" if better else "note"
        if better is False and serious:
            level = "alarm"
        word = "better than" if better else "worse than" if better is False else "different from"
        text = (
            f"The tuned model is {word} its base at {_called(key)} of lm-evaluation-harness: "
            f"{against(metric.tuned, metric.base)}, a difference of {plain(change, sign=True)} "
            f"(95 % interval {interval(change, sign=True)}, {probability(p)}, {counted(n, 'example')})."
        )
        return Finding(kind="benchmarks", level=level, text=text, figures={_called(key): change})


def _asked(run: RunRecords) -> dict[str, Benchmark]:
    """Return what the evaluator measured in the run."""
    higher = {name: metric.higher_is_better for name, metric in run.evaluation.metrics.items()}
    found = {}
    for probe in run.evaluation.probes:
        if (probe.kind, probe.name) == ("benchmark", LmEval.name):
            metrics = {
                name: BenchmarkMetric(
                    higher_is_better=higher[name], base=probe.base[name], tuned=tuned, difference=probe.difference[name]
                )
                for name, tuned in probe.tuned.items()
                if name in probe.difference
            }
            found[probe.data] = Benchmark(examples=probe.examples, num_fewshot=None, metrics=metrics)
    return found


def _excludes_0(change: Difference) -> bool:
    low, high = ends(change) or (0.0, 0.0)
    return not low <= 0 <= high


def _called(key: tuple[str, str]) -> str:
    """Return "TASK METRIC"; a filter is named where it is not the usual one."""
    metric, _, chosen = key[1].partition(",")
    return f"{key[0]} {metric}" + ("" if chosen == "none" else f" ({chosen})")
