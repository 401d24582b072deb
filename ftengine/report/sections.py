"""What each section of the page shows, taken out of a run's files. A section that has nothing is left out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import yaml

from ftengine.api import LineChart
from ftengine.report.charts import learning_rate, losses, trade_off
from ftengine.report.draw import merge_charts
from ftengine.report.files import RunFiles
from ftengine.report.findings.slices import figure_of, gap_to_others, is_behind
from ftengine.report.words import metric_name, no_interval

MOST_LABELS = 20
"""Labels of the largest confusion matrix that a page shows."""

KNOWN_DETAILS = frozenset({"labels", "confusion", "bins", "after"})
"""Keys of evaluators' details that have a section of their own."""


@dataclass(frozen=True)
class Section:
    """One section of the page.

    Args:
        id: for links to it.
        title: its heading.
        template: which macro of `sections.html.jinja` shows it.
        content: what that reads.
        kinds: kinds of findings that it explains.
    """

    id: str
    title: str
    template: str
    content: dict[str, Any] = field(default_factory=dict)
    kinds: tuple[str, ...] = ()


def heading(files: RunFiles) -> list[tuple[str, str]]:
    """Return what the run is, in a few facts."""
    recipe = files.recipe
    training, strategy = files.training, recipe.get("strategy") or {}
    trained, total = training.get("trainable_parameters"), training.get("total_parameters")
    facts = [
        ("model", str((recipe.get("model") or {}).get("source", ""))),
        ("task", str((recipe.get("task") or {}).get("name", ""))),
        ("strategy", str(strategy.get("name", ""))),
        ("data", str((recipe.get("data") or {}).get("train", ""))),
    ]
    if trained and total:
        facts.append(("trained", f"{trained:,} of {total:,} parameters"))
    return facts


def sections(files: RunFiles) -> list[Section]:
    """Return the page's sections in their order."""
    evaluation = files.evaluation
    found = [
        _figures(files),
        _training(files),
        _classes(evaluation),
        Section("calibration", "Calibration", "calibration", {"charts": _line_charts(evaluation)}, ("calibration",)),
        Section("slices", "Slices", "slices", {"columns": _slices(files)}, ("slices",)),
        *_probes(evaluation),
        Section("examples", "Examples", "examples", _examples(files), ()),
        Section("data", "Data", "data", _audit(files), ("data", "labels")),
        Section("details", "Further details", "details", {"details": _details(evaluation)}),
        Section(
            "recipe", "Recipe", "recipe", {"text": yaml.safe_dump(files.recipe, sort_keys=False, allow_unicode=True)}
        ),
        Section("environment", "Environment", "environment", {"facts": _environment(files)}),
    ]
    return [section for section in found if any(value not in (None, [], {}, "") for value in section.content.values())]


def _figures(files: RunFiles) -> Section:
    evaluation = files.evaluation
    rows = [
        {
            "metric": metric,
            "base": evaluation.get("base", {}).get(metric),
            "tuned": tuned,
            "difference": evaluation.get("difference", {}).get(metric),
            "higher": files.higher_is_better(metric),
            "training": ((evaluation.get("training") or {}).get("tuned") or {}).get(metric),
            "no_interval": no_interval(metric, evaluation["tuned"]),
        }
        for metric, tuned in evaluation.get("tuned", {}).items()
    ]
    content = {
        "rows": rows,
        "split": evaluation.get("split") if rows else None,
        "paired": evaluation.get("paired"),
        "seen": any(row["training"] for row in rows),
    }
    return Section("figures", "Base and tuned", "figures", content, ("quality", "worse", "baseline"))


def _training(files: RunFiles) -> Section:
    training = files.training
    regularizers = []
    for one in training.get("regularizers") or []:
        tables = {key: value for key, value in one.items() if _is_table(value)}
        facts = [(key.replace("_", " "), told(value)) for key, value in flat(one, skip={*tables, "needs_validation"})]
        charts = [chart for value in tables.values() if (chart := trade_off(value)) is not None]
        if len(facts) > 1 or charts:
            regularizers.append({"name": one.get("name", ""), "facts": facts, "charts": charts})
    content = {
        "charts": _curves(files),
        "facts": training if files.steps else None,
        "kept": files.kept_step,
        "regularizers": regularizers,
    }
    content = content if files.steps else {}
    return Section("training", "Training", "training", content, ("over-fitting", "learning"))


def _curves(files: RunFiles) -> list[LineChart]:
    steps, validations = files.steps, files.validations
    if not steps:
        return []
    return [
        losses(
            [(line["step"], line["loss"]) for line in steps],
            [(line["step"], line["validation_loss"]) for line in validations],
            [(line["step"], line["training_loss"]) for line in validations if line.get("training_loss") is not None],
            files.kept_step,
        ),
        learning_rate([(line["step"], line["learning_rate"]) for line in steps]),
    ]


def _line_charts(evaluation: Mapping[str, Any]) -> list[LineChart]:
    """Return the charts of the evaluators, base and tuned model in one."""
    displays = evaluation.get("displays") or {}
    sides = ([LineChart(**one) for one in displays.get(side, []) if "lines" in one] for side in ("base", "tuned"))
    return merge_charts(*sides)


def _is_table(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(item, Mapping) for item in value)


def _classes(evaluation: Mapping[str, Any]) -> Section:
    details = evaluation.get("details", {})
    for name, tuned in details.get("tuned", {}).items():
        labels = tuned.get("labels") if isinstance(tuned, Mapping) else None
        if not labels or not isinstance(labels[0], Mapping) or "support" not in labels[0]:
            continue
        before = {row["label"]: row for row in (details.get("base", {}).get(name) or {}).get("labels", [])}
        matrix = tuned.get("confusion") if len(labels) <= MOST_LABELS else None
        content = {
            "labels": [(row, before.get(row["label"])) for row in labels],
            "curves": any(row.get("roc_auc") is not None for row in labels),
            "answers": not matrix and all("predicted" in row for row in labels),
            "confusion": [_shaded(row) for row in matrix] if matrix else None,
            "names": [row["label"] for row in labels],
        }
        return Section("classes", "Classes", "classes", content, ("classes",))
    return Section("classes", "Classes", "classes")


def _shaded(row: Sequence[int]) -> list[tuple[int, int]]:
    """Return each count of a row of the confusion matrix with its shade, 0 to 8, by its share of the row."""
    total = sum(row) or 1
    return [(count, 0 if not count else max(1, round(8 * count / total))) for count in row]


def _slices(files: RunFiles) -> list[dict[str, Any]]:
    columns = []
    for name, column in (files.evaluation.get("slices") or {}).items():
        metric = column["metric"]
        if metric is None:  # nothing says what worse would be
            continue
        rows = [
            {
                "value": str(one["value"]),
                "examples": one["examples"],
                "small": bool(one.get("small")),
                "worst": one["value"] == column.get("worst") and is_behind(files, column, one),
                "gap": gap_to_others(column, one),
                # Older versions told the gap of the worst slice alone.
                "comparable": bool(one.get("small")) or "gap" not in one or one["gap"] is not None,
                **{side: figure_of(one.get(side), metric) for side in ("base", "tuned", "difference")},
            }
            for one in column["slices"]
        ]
        columns.append(
            {
                "name": name,
                "metric": metric_name(metric),
                "rows": rows,
                "left_out": column.get("left_out") or 0,
            }
        )
    return columns


PROBES = {
    "robustness": ("Robustness", "The same examples with disturbed input."),
    "forgetting": ("Forgetting", "What the base could do before: measured on other text, before and after tuning."),
    "memorisation": ("Memorisation", "Training answers given back word for word, against those of held-out examples."),
    "refusal": ("Refusals", "Requests that the model should refuse, and requests that it should answer."),
}


def _probes(evaluation: Mapping[str, Any]) -> list[Section]:
    found = []
    probes = evaluation.get("probes") or []
    for kind in dict.fromkeys([*PROBES, *(probe["kind"] for probe in probes)]):
        title, intro = PROBES.get(kind, (kind.capitalize(), ""))
        rows = [_probe_row(probe, metric) for probe in probes if probe["kind"] == kind for metric in probe["tuned"]]
        found.append(Section(kind, title, "probes", {"rows": rows, "intro": intro if rows else ""}, (kind,)))
    return found


def _probe_row(probe: Mapping[str, Any], metric: str) -> dict[str, Any]:
    held = ((probe.get("details") or {}).get("held_out") or {}).get("tuned") or {}
    return {
        "name": str(probe.get("name") or ""),
        "data": str(probe.get("data") or ""),
        "examples": probe.get("examples"),
        "metric": metric,
        "base": (probe.get("base") or {}).get(metric),
        "tuned": probe["tuned"][metric],
        "difference": (probe.get("difference") or {}).get(metric),
        "against": (probe.get("against") or {}).get(metric),
        "held_out": held.get(metric),
    }


def _examples(files: RunFiles) -> dict[str, Any]:
    names = {"improved": "What improved most", "worse": "What got worse"}
    return {key: _items(files.examples.get(key) or []) for key in names} if files.examples else {}


def _items(items: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return examples with what both answers share (the truth) told once."""
    result = []
    for item in items:
        base, tuned = item.get("base") or {}, item.get("tuned") or {}
        shared = [key for key in base if key in tuned and base[key] == tuned[key]]
        shown = [(str(text), bool(target)) for text, target in item.get("shown") or []]
        wanted = {text.strip() for text, target in shown if target}
        facts = [(key, told(base[key])) for key in shared]
        result.append(
            {
                **item,
                "shown": shown,
                "shared": [(key, value) for key, value in facts if value.strip() not in wanted],
                "sides": [
                    (side, [(key, told(value)) for key, value in answer.items() if key not in shared])
                    for side, answer in (("base", base), ("tuned", tuned))
                ],
            }
        )
    return result


def told(value: Any) -> str:
    """Return a JSON value of an answer as text: numbers short, mappings as "name 0.93, name 0.04"."""
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {told(inner)}" for key, inner in value.items())
    if isinstance(value, float):
        return f"{value:.3g}"
    if isinstance(value, list):
        return ", ".join(told(inner) for inner in value)
    return "–" if value is None else str(value)


def _audit(files: RunFiles) -> dict[str, Any]:
    audit = files.audit
    splits = audit.get("splits") or {}
    return {
        "splits": [(name, split, (audit.get("encoded") or {}).get(name) or {}) for name, split in splits.items()],
        "near": any("near_duplicates" in split for split in splits.values()),
        "warnings": audit.get("warnings") or [],
        "leaks": audit.get("leaks") or [],
        "labels": _label_rows(audit.get("labels") or {}),
        "lengths": audit.get("lengths") or {},
        "found": [
            (what, split, kind.replace("_", " "), content.get("count"), content.get("places") or [])
            for what in ("oddities", "personal")
            for split, kinds in (audit.get(what) or {}).items()
            for kind, content in (kinds or {}).items()
        ],
    }


def _label_rows(labels: Mapping[str, Any]) -> dict[str, Any]:
    """Return the balance of labels, a row a label with its count in each split."""
    counts = {split: dict(content.get("counts") or {}) for split, content in labels.items() if content.get("counts")}
    names = list(dict.fromkeys(name for split in counts.values() for name in split))
    rows = [(name, [split.get(name, 0) for split in counts.values()]) for name in names[: 2 * MOST_LABELS]]
    return {"splits": list(counts), "rows": rows, "left_out": len(names) - len(rows)} if rows else {}


def _details(evaluation: Mapping[str, Any]) -> list[tuple[str, str, list[tuple[str, str]]]]:
    """Return what evaluators told beside their metrics, as facts by evaluator and model."""
    result = []
    for side in ("base", "tuned"):
        for name, details in (evaluation.get("details") or {}).get(side, {}).items():
            if isinstance(details, Mapping):
                facts = [(key, told(value)) for key, value in flat(details, skip=KNOWN_DETAILS) if not _is_table(value)]
                if facts:
                    result.append((name, side, facts[:40]))
    return result


def _environment(files: RunFiles) -> list[tuple[str, str]]:
    skip = {"build"}
    facts = [(key, told(value)) for key, value in flat(files.environment, skip=skip)]
    line = (files.environment.get("build") or {}).get("line")
    return facts + ([("build", str(line))] if line else [])


def flat(content: Mapping[str, Any], skip: Any = (), prefix: str = "") -> list[tuple[str, Any]]:
    """Return the leaves of a nested mapping by dotted key."""
    leaves: list[tuple[str, Any]] = []
    for key, value in content.items():
        if not prefix and key in skip:
            continue
        if isinstance(value, Mapping) and value:
            leaves += flat(value, (), f"{prefix}{key}.")
        elif _is_table(value):
            for i, item in enumerate(value):
                leaves += flat(item, (), f"{prefix}{key}.{i}.")
        else:
            leaves.append((f"{prefix}{key}", value))
    return leaves


def differing_keys(recipes: Sequence[Mapping[str, Any]]) -> list[tuple[str, list[str]]]:
    """Return the dotted keys in which recipes differ, with each recipe's value; the output folder is left out."""
    leaves = [dict(flat(recipe)) for recipe in recipes]
    keys = list(dict.fromkeys(key for one in leaves for key in one if key != "output"))
    rows = [(key, [told(one[key]) if key in one else "–" for one in leaves]) for key in keys]
    return [(key, values) for key, values in rows if len(set(values)) > 1]
