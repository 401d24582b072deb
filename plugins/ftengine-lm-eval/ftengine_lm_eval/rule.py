"""The rule about benchmarks."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal

from ftengine.api import Difference, Finding, Rule
from ftengine.evaluation import holm, is_beyond_chance, near_end
from ftengine.text import against, counted, listed, probability, sample_size, with_interval
from ftengine_lm_eval.evaluator import LmEval

if TYPE_CHECKING:
    from ftengine import RunRecords

DROP = 0.05
"""Change for the worse relative to the base, at the interval's near end, from which it is an alarm: with thousands of
examples a change of a thousandth is beyond chance, and harmless."""

Key = tuple[str, str]
"""A task of the harness and a metric, called as the harness does: "acc,none" (metric, filter)."""


class Benchmarks(Rule):
    """Reports whether the tuned model is better or worse at tasks of lm-evaluation-harness."""

    name = "benchmarks"
    order = 110

    def judge(self, run: RunRecords) -> Iterator[Finding]:
        tasks = {
            probe.data: probe
            for probe in run.evaluation.probes
            if (probe.kind, probe.name) == ("benchmark", LmEval.name)
        }
        changes = {(task, name): change for task, probe in tasks.items() for name, change in probe.difference.items()}
        # p-values are adjusted for all tasks and metrics together.
        tested = {k: replace(changes[k], p_adjusted=p) for k, p in holm({k: c.p for k, c in changes.items()}).items()}
        differing = {key for key, change in tested.items() if is_beyond_chance(change)}
        for key in sorted(differing):
            yield self._finding(key, tasks[key[0]], tested[key])
        for keys, shows in (
            (tested.keys() - differing, "lm-evaluation-harness shows no difference beyond chance"),
            (changes.keys() - tested.keys(), "Figures of lm-evaluation-harness without a test of their difference"),
        ):
            if rest := [key for key in changes if key in keys]:
                shown = [f"{_called(key)} {_sides(key, tasks)}" for key in rest[:6]]
                shown += [f"{counted(len(rest) - 6, 'further figure')} beside them"] if len(rest) > 6 else []
                text = f"{shows}; tuned against base: {listed(shown)}."
                figures = {_called(key): tested.get(key, changes[key]) for key in rest}
                yield Finding(kind="benchmarks", level="note", text=text, figures=figures)

    def _finding(self, key: Key, task: Any, change: Difference) -> Finding:
        base, tuned = task.base[key[1]], task.tuned[key[1]]
        serious, better = near_end(change) >= DROP * abs(base.value), change.better
        level: Literal["alarm", "note", "good"] = "good" if better else "note"
        if better is False and serious:
            level = "alarm"
        word = "better than" if better else "worse than" if better is False else "different from"
        text = (
            f"The tuned model is {word} its base at {_called(key)} of lm-evaluation-harness: {against(tuned, base)}, a "
            f"difference of {with_interval(change, sign=True)}, adjusted {probability(change.p_adjusted)}, on "
            f"{sample_size(tuned.n, tuned.rows)}."
        )
        return Finding(kind="benchmarks", level=level, text=text, figures={_called(key): change})


def _sides(key: Key, tasks: dict[str, Any]) -> str:
    return against(tasks[key[0]].tuned[key[1]], tasks[key[0]].base[key[1]])


def _called(key: Key) -> str:
    """Return "TASK METRIC"; a filter is named where it is not the usual one."""
    metric, _, chosen = key[1].partition(",")
    return f"{key[0]} {metric}" + ("" if chosen == "none" else f" ({chosen})")
