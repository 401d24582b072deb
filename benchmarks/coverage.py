"""How often intervals hold the truth and tests raise a false alarm, by simulation.

    python benchmarks/coverage.py [--runs 1000] [--worlds NAME …] [--out FILE]

Each world draws tables of predictions of models that are equally good: several models of one population, whose answers
are binary and whose losses are of texts of unequal length. Of each table the engine's own code makes figures,
differences, slices, a comparison of three strategies, a cross-validation and the rules' findings, from the columns
`group` and `duplicate` as a run's tables have them. The evaluators are those of one label, calibration and
perplexity, and in the worlds of `OTHERS` also of several labels, numbers, tagged words, generated answers, refusals and
memorised text, with the rules about disturbed input, forgetting, refusals and memorisation. Counted are false alarms, a
difference or gap that is called beyond chance, and intervals that hold the truth. The truth is that of 300,000
independent examples of the population.

Worlds differ in how rows hang together: each normal variable behind a row (is its label rare, does a model err, is its
text long and hard) has a part in common with the rows of its group, the intraclass correlation (ICC). The tables are
printed as Markdown, and written with all counts to FILE.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from functools import cache
from itertools import repeat, starmap
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
from coverage_worlds import OTHERS, WORLDS, Draw, World

from ftengine.api import Evaluator, Labels, overrides
from ftengine.engine.compare import pair_differences
from ftengine.evaluation.differences import gaps_between
from ftengine.evaluation.figures import declarations, measure
from ftengine.evaluation.results import Measured, bind, compared
from ftengine.evaluation.slices import slice_reports
from ftengine.evaluation.table import Predictions
from ftengine.evaluation.weights import Weights
from ftengine.run.evaluation_result import Details, EvaluationResult, OnTraining, Probe
from ftengine_builtins.evaluators.calibration import Calibration
from ftengine_builtins.evaluators.classification import Classification
from ftengine_builtins.evaluators.entities import Entities
from ftengine_builtins.evaluators.generation import Generation
from ftengine_builtins.evaluators.language import Perplexity
from ftengine_builtins.evaluators.memorisation import Memorisation
from ftengine_builtins.evaluators.refusal import Refusal
from ftengine_builtins.evaluators.regression import Regression
from ftengine_builtins.rules import probes
from ftengine_builtins.rules.fitting import GeneralisationGap
from ftengine_builtins.rules.quality import BetterThanBase, WorseMetrics
from ftengine_builtins.rules.slices import SliceGaps
from ftengine_builtins.rules.threshold import no_better_than_a_constant

LEVEL = 0.05
MOST = 0.06
"""Share of sets with a false alarm that may be, of 20 groups or more."""
RESULTS = Path(__file__).parent / "results" / "coverage.json"
FOLDS, SMALL = 5, 20
"""Folds, and examples below which a slice is not judged."""


def evaluators() -> list[Evaluator]:
    """Return what measures the tables, knowing their labels."""
    built = [Classification(), Calibration(), Perplexity()]
    bind(built[:2], "a-task", Labels("single", ("no", "yes")))
    return built


def other_evaluators() -> list[Evaluator]:
    """Return what measures `Draw.other_tables`, knowing their labels; the last is of memorised text."""
    labelled = Classification(), Regression(), Entities()
    tags = Labels("single", ("O", "B-A", "I-A", "B-B", "I-B"))
    labels = Labels("multi", tuple("abc")), Labels("regression", ("y",)), tags
    for evaluator, known in zip(labelled, labels, strict=True):
        bind([evaluator], "a-task", known)
    return [*labelled, Generation(), Refusal(), Memorisation()]


def measured(table: Predictions, weights: Weights, chosen: list[Evaluator]) -> Measured:
    """Return what a model came to, as a run measures it, without details and displays."""
    found = Measured(table)
    for evaluator in chosen:
        rows = table.rows(evaluator)
        figures = measure(evaluator, rows, weights)
        found.figures |= {name: one for name, one in figures.items() if one.metric.interval and name != "brier"}
        found.masks[evaluator.name] = np.ones(len(table), dtype=bool)
        if overrides(evaluator, "score_examples"):
            found.scores[evaluator.name] = evaluator.score_examples(rows)
    return found


@cache
def truth(population: World) -> dict[str, float]:
    """Return every figure of 300,000 independent examples, and what a fixed answer's accuracy is short of."""
    (table,) = Draw(replace(population, groups=300_000), 2**31).tables(1)
    ones = np.ones(len(table))
    found = {name: value for one in evaluators() for name, value in one.score(table.rows(one), ones).items()}
    label, said = table.columns["label"], table.columns["predicted"]
    return found | {"recall": float((said[label == 1] == 1).mean()), "gain": found["accuracy"] - max(label.mean(), 0.5)}


@cache
def other_truth(population: World) -> dict[str, float]:
    """Return every figure of the other evaluators, by `titled` name, of 300,000 independent examples."""
    (table,) = Draw(replace(population, groups=300_000), 2**31).other_tables(1)
    ones = np.ones(len(table))
    return {titled(one, n): v for one in other_evaluators() for n, v in one.score(table.rows(one), ones).items()}


def titled(evaluator: Evaluator, metric: str) -> str:
    """Return what a metric of the other evaluators is called here; several labels have names that one label has too."""
    return f"{metric}, several labels" if evaluator.name == "classification" else metric


Outcome = tuple[str, bool | None]
"""What was looked at, and whether it held or alarmed; None where nothing is said, as of too few."""


def outcomes(
    world: World,
    seed: int,
    resamples: int,
    *,
    quick: bool = False,
    detectable: Mapping[str, list[float]] | None = None,
) -> Iterator[Outcome]:
    """Yield of one set which intervals hold ("holds …") and which tests alarm ("alarm …").

    Args:
        quick: only figures and differences.
        detectable: gets what is called the smallest detectable difference, by metric.
    """
    true, chosen = truth(world.population), evaluators()
    tables = Draw(world, seed).tables(2 if quick else 4)
    weights = tables[0].weights(seed, resamples)
    models = [measured(table, weights, chosen if i < 2 else [chosen[0], chosen[2]]) for i, table in enumerate(tables)]
    base, tuned = models[:2]
    both = compared(base, tuned)
    found = both["difference"]
    for name, values in (detectable or {}).items():
        values += [found[name].detectable] if found[name].detectable is not None else []
    for name, figure in tuned.figures.items():
        change = found[name]
        yield f"holds {name}", held(*figure.interval, true[name])
        yield f"holds {name}, difference", held(change.low, change.high, 0.0)
        yield f"alarm difference: {name}", beyond(change.low, change.high, change.p)
    if quick:
        return
    tuned.add(chosen[0], weights, answering=False)
    both["details"], facts = Details(tuned=tuned.details), tuned.details["classification"]
    yield "holds recall of a label", held(*(facts["labels"][1]["recall_interval"] or (None, None)), true["recall"])
    gain = facts["baseline"]["gains"]["accuracy"]
    yield "holds accuracy, gain over a fixed answer", held(gain["low"], gain["high"], true["gain"])
    yield from sliced(base, tuned, chosen, weights, both)
    strategies = [SimpleNamespace(label=str(i)) for i in range(3)]
    for metric in ("accuracy", "loss"):
        pairs = pair_differences([(one, [model]) for one, model in zip(strategies, models[1:], strict=True)], metric)
        yield f"alarm compare, 3 strategies: {metric}", any(pair.supported for pair in pairs)
    yield from folded(Draw(world, seed).tables(1 + FOLDS), chosen, resamples, seed)
    (table,) = Draw(world, seed + 10**6).tables(1)
    seen = measured(table, table.weights(seed, resamples), chosen[:1])
    yield from judged(tuned, both, seen, guesses=math.isclose(world.accuracy, max(world.rare, 1 - world.rare)))
    if world in [WORLDS[name] for name in OTHERS]:
        yield from others(world, seed, resamples, tuned, both)


def others(world: World, seed: int, resamples: int, text: Measured, both: Mapping[str, Any]) -> Iterator[Outcome]:
    """Yield the same of the other evaluators, and what rules say of what is measured beside the held-out split.

    `text` and `both` are what the tuned model came to with one label and as a language model, for forgetting.
    """
    true, every = other_truth(world.population), other_evaluators()
    base, tuned = (
        measured(table, table.weights(seed, resamples), every) for table in Draw(world, seed).other_tables(2)
    )
    found = compared(base, tuned)
    for evaluator in every:
        for metric in (name for name in evaluator.metrics if name in tuned.figures and not name.startswith("rouge")):
            figure, change, name = tuned.figures[metric], found["difference"][metric], titled(evaluator, metric)
            yield f"holds {name}", held(*figure.interval, true[name])
            yield f"holds {name}, difference", held(change.low, change.high, 0.0)
            yield f"alarm difference: {name}", beyond(change.low, change.high, change.p)
    (table,) = Draw(world, seed + 10**6).other_tables(1)
    trained = measured(table, table.weights(seed, resamples), every[-1:])
    gaps = gaps_between({name: tuned.figures[name] for name in trained.figures}, trained.figures)
    for name, gap in gaps.items():
        yield f"holds {name}, training against held-out", held(gap.low, gap.high, 0.0)
        yield f"alarm training against held-out: {name}", beyond(gap.low, gap.high, gap.p)
    seen = {"name": "a-name", "data": "a-file", "examples": len(table)}
    changes = {kind: {n: found["difference"][n] for n in names} for kind, names in PROBED.items()}
    sides = {side: found[side] for side in ("base", "tuned")}
    same = compared(trained, trained)
    of_text = {name: both[name] for name in ("base", "tuned", "difference")}
    run = record(
        text,
        both,
        probes=(
            Probe(kind="forgetting", **seen, **of_text),
            Probe(kind="robustness", **seen, **sides, difference={}, against=changes["robustness"]),
            Probe(kind="refusal", **seen, **sides, difference=changes["refusal"]),
            Probe(kind="memorisation", **seen, **{name: same[name] for name in of_text}, against=gaps),
        ),
        beside=[tuned.figures],
    )
    for rule in (probes.Forgetting(), probes.Robustness(), probes.Refusal(), probes.Memorisation()):
        yield f"alarm rule {rule.name}", any("p_adjusted" in one.figures for one in rule.judge(run))


PROBED = {"robustness": ("subset_accuracy", "micro_f1", "macro_f1"), "refusal": ("refusal_rate", "over_refusal_rate")}
"""Metrics whose changes are taken for those under disturbed input, and of refusals."""


def held(low: float | None, high: float | None, true: float) -> bool | None:
    return None if low is None or high is None else low <= true <= high


def beyond(low: float | None, high: float | None, p: float | None) -> bool | None:
    return None if low is None or high is None or p is None else not low <= 0 <= high and p <= LEVEL


def any_beyond(judged: Iterable[tuple[float | None, float | None, float | None]]) -> bool | None:
    """Say whether one of several, with p adjusted, is beyond chance; None where none is judged."""
    found = [one for one in starmap(beyond, judged) if one is not None]
    return any(found) if found else None


def sliced(
    base: Measured, tuned: Measured, chosen: list[Evaluator], weights: Weights, both: Mapping[str, Any]
) -> Iterator[Outcome]:
    """Yield what is said of slices within groups (kind) and of whole groups (region), and the rule's findings."""
    for evaluator in (chosen[0], chosen[2]):
        sides, columns = (base.read_by(evaluator), tuned.read_by(evaluator)), dict(tuned.predictions.slices())
        found = slice_reports(columns, evaluator, *sides, weights, SMALL)
        parts = [one for column in found.values() for one in column.slices if not one.small]
        metric = found["kind"].metric or ""
        for name, column in found.items():
            gap = next((one.gap for one in column.slices if one.value == "0"), None)
            yield f"holds {metric}, gap of a slice by {name}", held(gap.low, gap.high, 0.0) if gap else None
        gaps = [one.gap for one in parts if one.gap is not None]
        yield f"alarm slices, gap to others: {metric}", any_beyond((g.low, g.high, g.p_adjusted) for g in gaps)
        changes = [one.difference[metric] for one in parts]
        alarmed = any_beyond((one.low, one.high, one.p_adjusted) for one in changes)
        yield f"alarm slices, difference to base: {metric}", alarmed
        told = [one.figures for one in SliceGaps().judge(record(tuned, both, slices=found)) if "value" in one.figures]
        changed = ["difference" in one for one in told]
        yield f"alarm rule slice-gaps, behind others: {metric}", not all(changed) if parts else None
        yield f"alarm rule slice-gaps, behind its base: {metric}", any(changed) if parts else None


def folded(tables: list[Predictions], chosen: list[Evaluator], resamples: int, seed: int) -> Iterator[Outcome]:
    """Yield what the pooled answers of folds say, groups in one fold each; of a base and of a tuned model a fold."""
    fold, (base, *tuned) = tables[0].groups % FOLDS, tables
    there = [k for k in range(FOLDS) if (fold == k).any()]
    joined = [Predictions.join([by_fold[k].take(fold == k) for k in there]) for by_fold in ([base] * FOLDS, tuned)]
    weights = joined[0].weights(seed, resamples)
    found = compared(*(measured(table, weights, [chosen[0], chosen[2]]) for table in joined))
    for metric in ("accuracy", "loss"):
        change = found["difference"][metric]
        yield f"alarm cross-validation: {metric}", beyond(change.low, change.high, change.p)


def record(tuned: Measured, both: Mapping[str, Any], *, beside: Sequence[Mapping[str, Any]] = (), **parts: Any) -> Any:
    """Return what rules look at, of a run with these figures of both models; `beside` are figures of probes."""
    evaluation = EvaluationResult(split="test", metrics=declarations([*beside, tuned.figures]), **both, **parts)
    return SimpleNamespace(
        evaluation=evaluation,
        headline_metric=evaluation.headline_metric,
        trained=SimpleNamespace(new_modules=()),
        recipe=SimpleNamespace(evaluation=SimpleNamespace(small_slice=SMALL), task={}),
        audit=SimpleNamespace(encoded={"train": {"examples": 1}}),
        steps=(),
        validations=(),
        examples=None,
    )


def judged(tuned: Measured, both: Mapping[str, Any], seen: Measured, *, guesses: bool) -> Iterator[Outcome]:
    """Yield whether rules find a difference where there is none; `guesses`: the models are as good as one answer."""
    figures = {name: figure.estimate for name, figure in seen.figures.items()}
    gaps = gaps_between(tuned.figures, seen.figures)
    training = OnTraining(n=len(seen.predictions), base=figures, tuned=figures, gap=gaps, base_gap=gaps)
    run = record(tuned, both, training=training)
    told = [one.level for one in BetterThanBase().judge(run)]
    yield "alarm rule better-than-base", told != ["note"]
    yield "alarm rule worse-metrics", any(True for _ in WorseMetrics().judge(run))
    yield "alarm rule generalisation-gap", any(True for _ in GeneralisationGap().judge(run))
    yield "alarm rule constant-answer", not no_better_than_a_constant(run) if guesses else None


def power(world: World, seed: int, shift: Mapping[str, float], resamples: int) -> Iterator[Outcome]:
    """Yield whether a true difference of the size that is called detectable is found."""
    chosen = [evaluators()[0], evaluators()[2]]
    tables = Draw(world, seed).tables(2, better=shift)
    weights = tables[0].weights(seed, resamples)
    found = compared(*(measured(table, weights, chosen) for table in tables))
    for metric in shift:
        yield f"found {metric}", found["difference"][metric].better is True


Counts = dict[str, tuple[int, int]]
"""By outcome, how often it was so, of how many sets that said anything."""


def simulate(world: World, runs: int, resamples: int = 1000, quick: bool = False) -> Counts:
    """Count the outcomes of sets drawn with seeds 0, 1, ….

    Of a world with a false alarm above `MOST`, twice as many sets are drawn in all, to tell it from chance.
    """
    found: Counts = {}
    detectable: dict[str, list[float]] = {"accuracy": [], "loss": []}
    for seed in range(runs):
        _count(found, outcomes(world, seed, resamples, quick=quick, detectable=detectable))
    if not quick and any(so > MOST * sets for name, (so, sets) in found.items() if name.startswith("alarm ")):
        for seed in range(runs, 2 * runs):
            _count(found, outcomes(world, seed, resamples))
    least = {name: float(np.median(values)) for name, values in detectable.items() if values}
    if not quick and least.get("accuracy", 1.0) < 1 - world.accuracy:
        for seed in range(runs // 4):
            _count(found, power(world, seed, least, resamples))
    return found


def _count(found: Counts, outcomes: Iterable[Outcome]) -> None:
    for name, held in outcomes:
        if held is not None:
            so, sets = found.get(name, (0, 0))
            found[name] = so + bool(held), sets + 1


def table(found: Mapping[str, Counts], kind: str, runs: int) -> str:
    """Return the shares of one kind of outcome as a Markdown table; a column a world, by number."""
    names = dict.fromkeys(name for counts in found.values() for name in counts if name.startswith(f"{kind} "))
    lines = [f"| {kind} | {' | '.join(map(str, range(1, len(found) + 1)))} |", f"|---|{'---|' * len(found)}"]
    for name in names:
        cells = []
        for counts in found.values():
            so, sets = counts.get(name, (0, 0))
            cells.append(f"{100 * so / sets:.1f}" if sets >= runs / 4 else "–")
        if any(cell != "–" for cell in cells):
            lines.append(f"| {name.removeprefix(f'{kind} ')} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--runs", type=int, default=1000, help="simulated sets of each world")
    parser.add_argument("--resamples", type=int, default=400, help="of the bootstrap; a run has 1,000")
    parser.add_argument("--jobs", type=int, default=1, help="processes, each of which simulates a world at a time")
    parser.add_argument("--worlds", nargs="+", default=[*WORLDS], choices=[*WORLDS])
    parser.add_argument("--out", type=Path, default=RESULTS, help="where all counts are written, as JSON")
    arguments = parser.parse_args()
    found, began = {}, time.monotonic()
    with ProcessPoolExecutor(arguments.jobs) as pool:
        worlds = [WORLDS[name] for name in arguments.worlds]
        counted = pool.map(simulate, worlds, repeat(arguments.runs), repeat(arguments.resamples))
        for name, counts in zip(arguments.worlds, counted, strict=True):
            found[name] = counts
            seconds = round(time.monotonic() - began)
            facts = {"date": time.strftime("%Y-%m-%d"), "runs": arguments.runs, "resamples": arguments.resamples}
            arguments.out.write_text(json.dumps(facts | {"seconds": seconds, "worlds": found}, indent=1) + "\n")
            print(f"{name}: {seconds} s", flush=True)
    error = 100 * math.sqrt(LEVEL * (1 - LEVEL) / arguments.runs)
    print(f"\nIn %, of {arguments.runs:,} sets each; twice as many where one was above {MOST:.0%}.")
    print(f"One standard error of 5 or 95 % of {arguments.runs:,} is {error:.1f} points.")
    print("Worlds: " + "; ".join(f"{i} {name}" for i, name in enumerate(found, 1)) + ".")
    for kind in ("alarm", "holds", "found"):
        print(f"\n{table(found, kind, arguments.runs)}")


if __name__ == "__main__":
    main()
