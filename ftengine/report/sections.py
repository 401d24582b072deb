"""The content of each section of the page, from a run's records. An empty section is left out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import yaml

from ftengine.api import Baseline, Display, LineChart, Table
from ftengine.evaluation import is_beyond_chance
from ftengine.report.charts import by_source, learning_rate, losses, of_steps, trade_off
from ftengine.report.draw import merge_charts
from ftengine.run.evaluation_result import ChangedExample, Slice, SlicedColumn, quality_first
from ftengine.run.record import flat
from ftengine.run.records import RunRecords
from ftengine.text import NOTHING, counted, duration, left_out, number, sample_size, size, speed

MOST_FACTS = 40
"""Facts shown of an evaluator."""
SHOWN_PHASES = 6
"""Phases of a run whose times are shown."""


@dataclass(frozen=True)
class Section:
    """One section of the page, whose content the macro `template` of `sections.html.jinja` shows.

    Findings of these `kinds` link to it.
    """

    id: str
    title: str
    template: str
    content: dict[str, Any] = field(default_factory=dict)
    kinds: tuple[str, ...] = ()


def heading(run: RunRecords) -> list[tuple[str, str]]:
    """Return the main facts about a run."""
    recipe, training = run.recipe, run.training
    rate = speed(training.examples_per_second, training.tokens_per_second)
    return [
        ("model", recipe.model.source),
        ("task", recipe.task["name"]),
        ("strategy", recipe.strategy["name"]),
        ("data", recipe.data.train_name),
        ("trained", f"{training.trainable_parameters:,} of {training.total_parameters:,} parameters"),
        ("training time", ", ".join(filter(None, (duration(training.seconds), rate)))),
        *([("phases", _phases(training.phases))] if training.phases else []),
        ("peak memory", size(training.peak_memory_bytes)),
        *([("kernels", training.kernels)] if training.kernels else []),
    ]


def _phases(seconds: Mapping[str, float]) -> str:
    """Return the longest phases, longest first."""
    longest = sorted(seconds, key=lambda name: -seconds[name])[:SHOWN_PHASES]
    return ", ".join(f"{name} {duration(seconds[name])}" for name in longest)


def sections(run: RunRecords) -> list[Section]:
    """Return the page's sections in their order."""
    measured = {metric.kind for metric in run.evaluation.metrics.values()} - {"quality"}
    recipe = yaml.safe_dump(run.recipe.resolved(), sort_keys=False, allow_unicode=True)
    candidates = [
        Section("figures", "Base and tuned", "figures", _figures(run), ("quality", "worse", "baseline")),
        Section("answers", "What the models write", "examples", _answers(run)),
        Section("training", "Training", "training", _training(run), ("over-fitting", "learning")),
        Section("displays", "In detail", "displays", {"displays": _displays(run)}, ("classes", *measured)),
        Section("slices", "Slices", "slices", {"columns": _slices(run)}, ("slices",)),
        *_probes(run),
        Section("examples", "Examples", "examples", _examples(run)),
        Section("data", "Data", "displays", _data(run), ("data", "labels")),
        Section("details", "Further details", "displays", {"displays": _details(run)}),
        Section("recipe", "Recipe", "recipe", {"text": recipe}),
        Section("environment", "Environment", "environment", {"facts": _environment(run)}),
    ]
    return [
        section for section in candidates if any(value not in (None, [], {}, "") for value in section.content.values())
    ]


def _figures(run: RunRecords) -> dict[str, Any]:
    evaluation = run.evaluation
    on_training = evaluation.training.tuned if evaluation.training is not None else {}
    one_n = len({tuned.n for tuned in evaluation.tuned.values()}) == 1
    first = next(iter(evaluation.tuned.values()), None)
    on = "" if first is None else sample_size(first.n, first.rows) + left_out(evaluation.leaks)
    if first is not None and first.rows is not None:
        on += f"; a group is the rows with one value of {run.recipe.data.group_column}, and their duplicates"
    tuned = quality_first(evaluation.tuned, evaluation.metrics)
    return (
        {"evaluation": evaluation, "tuned": tuned, "on_training": on_training, "one_n": one_n, "on": on}
        if tuned
        else {}
    )


def _training(run: RunRecords) -> dict[str, Any]:
    steps, validations = run.steps, run.validations
    if not steps:
        return {}
    regularizers = []
    for regularizer in run.training.regularizers:
        tables = {key: value for key, value in regularizer.items() if _is_table(value)}
        plain = {key: value for key, value in regularizer.items() if key not in {*tables, "needs_validation"}}
        facts = [(key.replace("_", " "), value_text(value)) for key, value in flat(plain).items()]
        charts = [chart for value in tables.values() if (chart := trade_off(value)) is not None]
        if len(facts) > 1 or charts:
            regularizers.append([_facts(str(regularizer.get("name", "")), facts), *charts])
    curves = [
        losses(
            [(step.step, step.loss) for step in steps],
            [(v.step, v.validation_loss) for v in validations],
            [(v.step, v.training_loss) for v in validations if v.training_loss is not None],
            run.kept_step,
        ),
        *([chart] if (chart := by_source(run.lines)) is not None else []),
        *of_steps(run.lines),
        learning_rate([(step.step, step.learning_rate) for step in steps]),
    ]
    return {"facts": run.training, "kept": run.kept_step, "charts": curves, "regularizers": regularizers}


def _displays(run: RunRecords) -> list[Display]:
    """Return evaluators' tables and charts of base and tuned model; without those of a base with an untrained head."""
    base = () if run.trained.new_modules else run.evaluation.displays.base
    sides = {"tuned": run.evaluation.displays.tuned, "base": base}
    charts = merge_charts(
        *([display for display in sides[side] if isinstance(display, LineChart)] for side in ("base", "tuned"))
    )
    titles = dict.fromkeys(
        display.title for side in sides.values() for display in side if not isinstance(display, LineChart)
    )
    others = [
        display.model_copy(update={"title": f"{display.title}, {side} model"})
        for title in titles
        for side, displays in sides.items()
        for display in displays
        if display.title == title and not isinstance(display, LineChart)
    ]
    return [*others, *charts]


def _slices(run: RunRecords) -> list[dict[str, Any]]:
    columns = []
    for name, column in run.evaluation.slices.items():
        if column.metric is not None:  # else no metric declares which direction is worse
            declared = run.evaluation.metrics[column.metric]
            behind = [part for part in column.slices if _is_behind(part, column, declared.higher_is_better)]
            columns.append({"name": name, "column": column, "label": declared.label, "behind": behind})
    return columns


def _is_behind(part: Slice, column: SlicedColumn, higher_is_better: bool | None) -> bool:
    if part.gap is None or column.is_usual(part):
        return False
    return is_beyond_chance(part.gap) and (part.gap.value < 0) == higher_is_better


INTROS = {
    "leaks": "Held-out rows that the training split also has; all other figures leave them out.",
    "robustness": "The same examples with disturbed input.",
    "ablation": "The same examples without what their answers need: does the model use it?",
    "benchmark": "Questions that are not from the recipe's data, answered by both models.",
    "forgetting": "Abilities of the base, measured on other text before and after tuning.",
}
"""Introductions to kinds of probes."""


def _probes(run: RunRecords) -> list[Section]:
    by_kind, metrics = [], run.evaluation.metrics
    for kind in dict.fromkeys(probe.kind for probe in run.evaluation.probes):
        probes = [probe for probe in run.evaluation.probes if probe.kind == kind]
        rows = [(probe, metric, metrics[metric].label) for probe in probes for metric in probe.tuned]
        content = {"rows": rows, "intro": INTROS.get(kind, "")}
        by_kind.append(Section(kind, kind.capitalize(), "probes", content, (kind,)))
    return by_kind


def _answers(run: RunRecords) -> dict[str, Any]:
    if run.examples is None or not run.examples.answers:
        return {}
    items = [
        {
            "place": answer.place,
            "shown": [(answer.prompt, False), *([] if answer.wanted is None else [(answer.wanted, True)])],
            "shared": [],
            "confidence": None,
            "sides": [
                (side, [("", text if text.strip() else NOTHING)], None, None)
                for side, text in (("base", answer.base), ("tuned", answer.tuned))
            ],
        }
        for answer in run.examples.answers
    ]
    options = ", ".join(f"{key} {value_text(value)}" for key, value in run.examples.answered_with.items())
    intro = f"{len(items)} held-out prompts, drawn with the seed, and the answers of both models."
    intro += f" Generated with {options}; longer answers are cut." if options else ""
    return {"intro": intro, "groups": {"": items}}


def _examples(run: RunRecords) -> dict[str, Any]:
    if run.examples is None:
        return {}
    examples = run.examples
    groups = {"What improved most": examples.improved, "What got worse": examples.worse}
    if examples.mistakes:
        groups["Wrong answers with the highest probability"] = examples.mistakes
    intro = f"Scores are those of evaluator {examples.evaluator}; a higher one is a better answer."
    shown = {title: [_item(example) for example in items] for title, items in groups.items()}
    return {"intro": intro if examples.evaluator else "", "groups": shown}


def _item(example: ChangedExample) -> dict[str, Any]:
    """Return an example in which facts that both answers share, such as the reference, are shown once."""
    base, tuned = example.base, example.tuned
    shared = [key for key in base if key in tuned and base[key] == tuned[key]]
    targets = {text.strip() for text, target in example.shown if target}
    facts = [(key, value_text(base[key])) for key in shared]

    def own(answer: Mapping[str, Any]) -> list[tuple[str, str]]:
        return [(key, value_text(value)) for key, value in answer.items() if key not in shared]

    return {
        "place": example.place,
        "shown": example.shown,
        "confidence": example.confidence,
        "shared": [(key, value) for key, value in facts if value.strip() not in targets],
        "sides": [
            ("base", own(base), example.base_right, example.base_score),
            ("tuned", own(tuned), example.tuned_right, example.tuned_score),
        ],
    }


def value_text(value: Any) -> str:
    """Return a JSON value of an answer as text: numbers short, mappings as "name 0.93, name 0.04"."""
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {value_text(inner)}" for key, inner in value.items()) or "none"
    if isinstance(value, float):
        return number(value)
    if isinstance(value, (list, tuple)):
        return ", ".join(value_text(inner) for inner in value) or "none"
    return "none" if value is None else str(value)


def _data(run: RunRecords) -> dict[str, Any]:
    audit = run.audit
    splits = Table(
        title="Splits",
        columns=("split", "rows", "distinct", "exact copies", "near copies", "malformed", "source"),
        rows=tuple(
            (
                name,
                counts.rows,
                counts.distinct,
                counts.duplicates,
                counts.near_duplicates,
                counts.skipped.count,
                counts.source,
            )
            for name, counts in audit.splits.items()
        ),
    )
    return {"findings": audit.findings, "displays": [splits, *audit.displays]}


def _details(run: RunRecords) -> list[Table]:
    """Return further facts of evaluators, a table for each evaluator and model."""
    tables = []
    for side in ("tuned", "base"):
        for name, details in getattr(run.evaluation.details, side).items():
            leaves = flat({key: value for key, value in details.items() if key != Baseline.FACT})
            plain = {key: value_text(value) for key, value in leaves.items() if not isinstance(value, list)}
            facts = [(key.replace("_", " ").replace(".", ", "), value) for key, value in plain.items()]
            facts += _baseline_facts(run, Baseline.of(details))
            if facts:
                tables.append(_facts(f"{name}, {side}", facts[:MOST_FACTS]))
    return tables


def _baseline_facts(run: RunRecords, baseline: Baseline | None) -> list[tuple[str, str]]:
    """Return the figures of a baseline that ignores the inputs, and the model's most frequent answer."""
    if baseline is None:
        return []
    metrics = run.evaluation.metrics
    reached = [f"{metrics[name].label} {number(value)}" for name, value in baseline.figures.items() if name in metrics]
    facts = [("best constant answer", baseline.answer or NOTHING), ("figures of that answer", ", ".join(reached))]
    if baseline.count:
        to = f"{baseline.count:,} of {counted(baseline.total, baseline.unit)}"
        facts.append(("most frequent answer", f"{baseline.given or NOTHING}, to {to}"))
    return facts


def _facts(title: str, facts: Sequence[tuple[str, str]]) -> Table:
    return Table(title=title, columns=("what", "value"), rows=tuple(facts))


def _environment(run: RunRecords) -> list[tuple[str, str]]:
    content = run.environment.to_json()
    build, plugins = content.pop("build"), [_plugin(origin) for origin in content.pop("plugins")]
    content["base"] = {key: value for key, value in content["base"].items() if isinstance(value, str)}  # no settings
    facts = [(key, value_text(value)) for key, value in flat(content).items()]
    facts += [("plugins", "\n".join(plugins))] if plugins else []
    return [*facts, ("build", str(build["line"]))] if "line" in build else facts


def _plugin(origin: Mapping[str, str]) -> str:
    """Return a plugin on one line, as "ftengine 0.1.0 (builtins)", with its status if it is not loaded."""
    state = "" if origin["status"] == "loaded" else f", {origin['status']}"
    return f"{origin['distribution']} {origin['version']} ({origin['name']}){state}"


def _is_table(value: Any) -> bool:
    return isinstance(value, (list, tuple)) and bool(value) and all(isinstance(item, Mapping) for item in value)


def beside(runs: Sequence[tuple[str, RunRecords]]) -> Table | None:
    """Return a table of the keys, except output, in which the recipes of named runs differ."""
    leaves = [flat(run.recipe.resolved()) for _, run in runs]
    keys = list(dict.fromkeys(key for values in leaves for key in values if key != "output"))
    rows = [(key, *(value_text(values[key]) if key in values else "no such key" for values in leaves)) for key in keys]
    differing = tuple(row for row in rows if len(set(row[1:])) > 1)
    if not differing:
        return None
    return Table(title="Where the recipes differ", columns=("key", *(name for name, _ in runs)), rows=differing)
