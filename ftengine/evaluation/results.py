"""evaluation.json: base, tuned and their difference on all that was measured; and the sums behind the figures."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ftengine.api import Difference, EvaluationContext, Evaluator
from ftengine.errors import RunError
from ftengine.evaluation.bootstrap import Accumulator
from ftengine.evaluation.difference import compare, to_json
from ftengine.evaluation.examination import Examination, Outcome
from ftengine.evaluation.gaps import gap_between
from ftengine.evaluation.judgements import UNKNOWN, Judgements, judging, mcnemar, share_right
from ftengine.evaluation.measurement import Measured, Measurement, Probe
from ftengine.evaluation.slices import Judged, adjust_over_columns, slice_report
from ftengine.evaluation.sums import PREDICTIONS, Sums
from ftengine.run.directory import PARTIAL, RunDirectory, writing

SUMS = "evaluation.safetensors"
"""Both models' sums in every resample: two runs on the same examples, or the folds of one, are put together by them."""


def evaluation(measurement: Measurement, base: Measured, tuned: Measured) -> dict[str, Any]:
    """Return what evaluation.json holds, in JSON values; empty figures without a held-out split."""
    report: dict[str, Any] = {
        "split": measurement.split,
        "higher_is_better": {},
        "base": {},
        "tuned": {},
        "difference": {},
        "details": {},
        "paired": None,
        "training": None,
        "slices": {},
        "probes": [],
    }
    held_out, before, after = measurement.held_out, base.held_out, tuned.held_out
    if held_out is not None and before is not None and after is not None:
        report["paired"] = _paired(held_out, before, after)
        report |= _figures(before.sums, after.sums, _exact(report["paired"], before, after))
        report["details"] = {"base": before.sums.details(), "tuned": after.sums.details()}
        report["slices"] = _slices(held_out, before, after, measurement.small_slice)
    if measurement.training is not None and base.training is not None and tuned.training is not None:
        report["training"] = _training(measurement.training, base.training, tuned.training)
    probes = zip(measurement.probes, base.probes, tuned.probes, strict=True)
    report["probes"] = [_probe(probe, one, two, after) for probe, one, two in probes]
    everything = [x for x in (after, tuned.training, *(outcome for outcome, _ in tuned.probes)) if x is not None]
    report["higher_is_better"] = {name: better for x in everything for name, better in _directions(x.sums).items()}
    return report


def _directions(sums: Sums) -> dict[str, bool]:
    figures = sums.figures().items()
    return {name: figure.higher_is_better for name, figure in figures if figure.higher_is_better is not None}


def _results(sums: Sums) -> dict[str, Any]:
    return {name: to_json(metric) for name, metric in sums.results().items()}


def _figures(base: Sums, tuned: Sums, exact: Mapping[str, float] | None = None) -> dict[str, Any]:
    difference = {name: to_json(value) for name, value in compare(base, tuned, exact).items()}
    return {"base": _results(base), "tuned": _results(tuned), "difference": difference}


def _paired(examination: Examination, base: Outcome, tuned: Outcome) -> dict[str, Any] | None:
    name = judging(base.judgements, tuned.judgements)
    if name is None:
        return None
    found = mcnemar(base.judgements[name], tuned.judgements[name], examination.split.groups)
    return None if found is None else {"evaluator": name, **found}


def _exact(paired: Mapping[str, Any] | None, base: Outcome, tuned: Outcome) -> dict[str, float]:
    """Return McNemar's p-value for the metric that is the share of right answers; {} where there is none."""
    if paired is None:
        return {}
    name = paired["evaluator"]
    shares = [share_right(outcome.judgements[name]) for outcome in (base, tuned)]
    values = [outcome.sums.figures() for outcome in (base, tuned)]
    return {
        metric: paired["p"]
        for metric in values[1]
        if all(
            share is not None and math.isclose(figures[metric].value, share, abs_tol=1e-9)
            for figures, share in zip(values, shares, strict=True)
        )
    }


def _slices(examination: Examination, base: Outcome, tuned: Outcome, small: int) -> dict[str, Any]:
    def sides(column: str) -> tuple[tuple[Accumulator, list[Accumulator]], tuple[Accumulator, list[Accumulator]]]:
        return (base.sliced[0], base.slices[column]), (tuned.sliced[0], tuned.slices[column])

    judged = None
    if (name := examination.first.name) in base.judgements and name in tuned.judgements:
        judged = Judged(base.judgements[name], tuned.judgements[name])
    groups = _measured_groups(examination)
    reports = {
        column: slice_report(slicing, *sides(column), small, judged, groups)
        for column, slicing in examination.slices.items()
    }
    adjust_over_columns(reports)
    return reports


def _measured_groups(examination: Examination) -> np.ndarray | None:
    """Return the numbers that duplicates share, -1 for examples that the first evaluator does not see."""
    groups = examination.split.groups
    if groups is None:
        return None
    measured = np.full(len(groups), -1, dtype=np.int64)
    for evaluators, members in examination.passes().values():
        if examination.first in evaluators:
            measured[members] = groups[members]
    return measured


def _training(examination: Examination, base: Outcome, tuned: Outcome) -> dict[str, Any]:
    split = examination.split
    report = {"n": len(split), "base": _results(base.sums), "tuned": _results(tuned.sums), "judged": None}
    name = judging(tuned.judgements, tuned.judgements)
    if name is not None:
        judged = tuned.judgements[name]
        places = [split.rows.where(int(row)) for row in split.index]
        rows = [[*one, place] for one, place in zip(_rows(judged), places, strict=True)]
        report["judged"] = {"evaluator": name, "rows": rows}
    return report


def _rows(judged: Judgements) -> list[tuple[float | None, bool | None]]:
    return [
        (None if np.isnan(score) else float(score), None if right == UNKNOWN else bool(right))
        for score, right in zip(judged.scores, judged.right, strict=True)
    ]


def _probe(
    probe: Probe, base: tuple[Outcome, Outcome | None], tuned: tuple[Outcome, Outcome | None], clean: Outcome | None
) -> dict[str, Any]:
    """Return what evaluation.json says of one probe."""
    (before, base_contrast), (after, tuned_contrast) = base, tuned
    passes = probe.examination.passes()
    examples = len(probe.examination.split) if "predictions" in passes else len(probe.examination.answered)
    report = {
        "kind": probe.kind,
        "name": probe.name,
        "data": probe.data,
        "examples": examples,
        **_figures(before.sums, after.sums),
        "details": {"base": before.sums.details(), "tuned": after.sums.details()},
        "against": {},
    }
    if probe.kind == "robustness" and clean is not None:
        report["against"] = {name: to_json(d) for name, d in compare(clean.sums, after.sums).items()}
    if base_contrast is not None and tuned_contrast is not None:
        report["details"]["held_out"] = {"base": _results(base_contrast.sums), "tuned": _results(tuned_contrast.sums)}
        report["against"] = _against(tuned_contrast.sums, after.sums)
    return report


def _against(first: Sums, second: Sums) -> dict[str, Any]:
    """Return second minus first of different examples; `better` is where the gap is beyond chance and wanted."""
    before, after = first.figures(), second.figures()
    report = {}
    for name in before:
        gap = gap_between(before[name], after[name]) if name in after else None
        if gap is None:
            continue
        found, better = gap.to_json(), after[name].higher_is_better
        low, high, p = found["low"], found["high"], found["p"]
        sure = low is not None and high is not None and p is not None and not low <= 0 <= high and p <= 0.05
        difference = Difference(gap.value, low, high, p, (low > 0) == better if sure and better is not None else None)
        report[name] = {key: value for key, value in to_json(difference).items() if key != "detectable"}
    return report


def save_sums(run: RunDirectory, base: Measured, tuned: Measured) -> None:
    """Write the sums behind both models' figures on the held-out split, atomically; see `read_sums`."""
    import torch

    from ftengine.model import save_tensors

    arrays = {
        f"{side}.{name}.{key}": array
        for side, outcome in (("base", base.held_out), ("tuned", tuned.held_out))
        for name, part in (outcome.sums.parts if outcome is not None else {}).items()
        for key, array in {**part.arrays(), "distinct": np.array([part.independent])}.items()
    }
    target = run.path / SUMS
    partial = target.with_name(SUMS + PARTIAL)
    with writing(target, partial):
        save_tensors({name: torch.from_numpy(np.ascontiguousarray(array)) for name, array in arrays.items()}, partial)
        partial.replace(target)


def read_sums(
    run: RunDirectory, evaluators: Sequence[Evaluator], context: EvaluationContext, *, seed: int, which: str = "tuned"
) -> Sums:
    """Return the sums behind a model's figures on the held-out split.

    Args:
        run: a finished run.
        evaluators: those that measured, as the recipe builds them.
        context: what they know.
        seed: the run's seed.
        which: "tuned" or "base".

    Raises:
        RunError: the file is missing or belongs to other evaluators.
    """
    from ftengine.model import read_tensors

    arrays = {name: tensor.numpy() for name, tensor in read_tensors(run.path / SUMS).items()}
    parts: dict[str, dict[str, np.ndarray]] = {}
    for name, array in arrays.items():
        side, _, rest = name.partition(".")
        part, _, key = rest.partition(".")
        if side == which:
            parts.setdefault(part, {})[key] = array
    known = {evaluator.name: evaluator for evaluator in evaluators}
    try:
        # The file holds its keys in alphabetical order; the pass over all examples comes first, as when it was made.
        order = sorted(parts, key=lambda name: (name != PREDICTIONS, name))
        sums = Sums({name: _read_part(parts[name], known, context, seed) for name in order})
        found = [evaluator.name for part in sums.parts.values() for evaluator in part.evaluators]
        if sorted(found) != sorted(known):
            raise ValueError(f"sums of evaluators {found}, expected {list(known)}.")
    except (KeyError, ValueError) as error:
        raise RunError(f"{str(run.path / SUMS)!r} does not belong to this run: {error}") from None
    return sums


def _read_part(
    arrays: Mapping[str, np.ndarray], known: Mapping[str, Evaluator], context: EvaluationContext, seed: int
) -> Accumulator:
    distinct = int(arrays["distinct"][0])
    sums = {key: array for key, array in arrays.items() if key != "distinct"}
    names = {key.removeprefix("sums.") for key in sums if key != "examples"}
    evaluators = [evaluator for name, evaluator in known.items() if name in names]
    if len(evaluators) != len(names):
        raise ValueError(f"sums of evaluators {sorted(names)}, expected {list(known)}.")
    return Accumulator.from_arrays(sums, evaluators, context, seed=seed, distinct=distinct)
