"""`ftengine plan`: show what a recipe would do."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import takewhile
from typing import TYPE_CHECKING, Any

import click

from ftengine.cli.options import json_option, recipe_argument, set_option
from ftengine.cli.page import facts, page, print_json, table
from ftengine.cli.scaling import network, show_scaling
from ftengine.errors import InputError
from ftengine.run.progress import announce, listening
from ftengine.text import counted, cut, duration, number, one_line, percent, printable, redact_pieces, size

if TYPE_CHECKING:
    from rich.console import Console

    from ftengine.engine.count_parameters import ParameterCount
    from ftengine.engine.fine_tune import Plan

SHOWN_MODULES = 3
TEXT = "tokens"
"""The unit of texts. Only they differ in length and are padded and truncated."""
FEWER = 0.95
"""The share of computed tokens is printed below this one."""
SHOWN_PIECE = 600
"""Characters shown of each piece of the example; `--json` has all."""
SHOWN_ROWS = 8
"""Rows of a table that a page shows; `--json` has all."""
CONTEXT = 30
"""Characters shown before the first change and after the last."""
SHOWN_TEXT = 240
"""Characters shown of a text, beginning with the first change; `--json` has all."""


@click.command()
@recipe_argument
@set_option
@click.option(
    "--measure/--no-measure",
    default=True,
    help="Whether to load the weights and time a few batches, to estimate time and memory (default: yes).",
)
@click.option(
    "--parameters-only",
    is_flag=True,
    help="Only count the parameters that would train; needs no data, and only the config.json of the model.",
)
@click.option(
    "--labels",
    type=click.IntRange(min=1),
    help="With --parameters-only: outputs of a classification head, which otherwise come from the data.  [default: 2]",
)
@click.option(
    "--processes",
    type=click.IntRange(min=1),
    help="Estimate the time of a step on up to this many processes; needs --bandwidth.",
)
@click.option(
    "--bandwidth", help="Bandwidth of the slowest link between two processes, such as 400Gb/s; needs --processes."
)
@json_option
def plan(
    recipe_file: str,
    overrides: tuple[str, ...],
    measure: bool,
    parameters_only: bool,
    labels: int | None,
    processes: int | None,
    bandwidth: str | None,
    as_json: bool,
) -> None:
    """Show what a recipe would do, without training.

    The data is read, checked and counted, and the strategy is tried on the model. Nothing is written.

    \b
    Examples:
      ftengine plan recipe.yaml
      ftengine plan recipe.yaml --parameters-only --set strategy.rank=4
      ftengine plan recipe.yaml --processes 64 --bandwidth 400Gb/s
    """
    from ftengine.run.recipe import Recipe

    if labels is not None and not parameters_only:
        raise InputError(
            "--labels goes with --parameters-only; without that, the labels come from the data. Leave --labels out."
        )
    speed = network(processes, bandwidth, measure=measure and not parameters_only)
    recipe = Recipe.read(recipe_file, overrides)
    announce(f"reading {recipe.model.source} and {recipe.data.train_name}")
    from ftengine.engine.count_parameters import count_parameters  # takes seconds; a mistyped key is reported before
    from ftengine.engine.fine_tune import plan as make_plan

    result: Any
    with listening() as listener:
        if parameters_only:
            result = count_parameters(recipe, labels=labels or 2, listener=listener)
        else:
            result = make_plan(recipe, measure=measure, processes=processes, bandwidth=speed, listener=listener)
    if as_json:
        print_json(result.to_json())
    elif parameters_only:
        show_count(result)
    else:
        show(result, recipe.beside)


def show(plan: Plan, beside: Mapping[str, str]) -> None:
    """Print a plan; `beside` has paths of the recipe, by key, that are read from its folder."""
    out = page()
    out.print(facts(_lines(plan)))
    for key, path in beside.items():
        out.print(f"{key} is not in the working directory; it is read from the recipe's folder: {path}")
    out.print("", _data(plan.data, plan.steps["unit"]))
    show_audit(out, plan.data)
    for i, example in enumerate(plan.examples):
        _example(out, example, first=not i)
    if plan.augmented:
        show_changes(out, plan.augmented)
    if plan.scaling is not None:
        show_scaling(out, plan.scaling)
    if plan.warnings:
        out.print("", facts(_warnings(plan)))


def _warnings(plan: Plan) -> Iterator[tuple[str, str]]:
    """Yield alarms, then warnings about recipe, data and machine; findings of one audit stand together."""
    from ftengine.engine.plan import BUSY

    by_source: dict[tuple[str, str], list[str]] = {}
    for finding in plan.data["findings"]:
        if finding["level"] != "good":
            lead = "ALARM" if finding["level"] == "alarm" else "warning"
            by_source.setdefault((lead, finding["source"]), []).append(finding["text"])
    reported = {text for texts in by_source.values() for text in texts}
    yield from ((lead, " ".join(texts)) for (lead, _), texts in by_source.items() if lead == "ALARM")
    others = [text for text in plan.warnings if text not in reported]
    last = [others.pop()] if others and others[-1].startswith(BUSY) else []  # which is about times alone
    yield from (("warning", text) for text in others)
    yield from ((lead, " ".join(texts)) for (lead, _), texts in by_source.items() if lead == "warning")
    yield from (("warning", text) for text in last)


def show_count(counted: ParameterCount) -> None:
    """Print how many parameters train, and in which modules."""
    model, name = counted.model, counted.strategy["name"]
    trained, total = counted.trainable_parameters, counted.total_parameters
    new = counted.new_modules.items()
    parts = [
        f"{name}: {pattern} matches {counts['modules']:,} modules; of their {counts['parameters']:,} parameters "
        f"{counts['trainable_parameters']:,} train"
        for pattern, counts in counted.patterns.items()
    ]
    lines = [
        ("model", f"{model['source']} ({model['class']}, {counted.base_parameters:,} parameters)"),
        ("trains", f"{trained:,} of {total:,} parameters ({percent(trained / total)})"),
        ("", [f"of these {count:,} in {module}, which is newly initialised" for module, count in new]),
        ("strategy", [*parts, *counted.notes] or name),
        ("labels", f"{len(model['labels'])}" if model["labels"] else None),
    ]
    page().print(facts(lines))


def _lines(plan: Plan) -> list[tuple[str, str | list[str] | None]]:
    model, steps, regularizers = plan.model, plan.steps, plan.recipe["regularize"]
    trained, total = model["trainable_parameters"], model["total_parameters"]
    answers = steps["answers_a_row"]
    what = "examples" if answers is None else f"prompts with {answers:,} answers"
    each = f"of {steps['examples_a_step']:,} {what} each; {steps['per_epoch']:,} per epoch"
    return [
        ("model", f"{model['source']} ({model['class']}, loader {model['loader']})"),
        ("trains", f"{trained:,} of {total:,} parameters ({percent(trained / total)})"),
        ("", f"newly initialised: {', '.join(model['new_modules'])}" if model["new_modules"] else None),
        ("strategy", _strategy(plan)),
        ("task", plan.recipe["task"]["name"]),
        ("labels", cut(", ".join(map(str, model["labels"])), SHOWN_PIECE) if model["labels"] else None),
        ("not read", cut(f"columns that nothing uses: {', '.join(plan.unread)}", SHOWN_PIECE) if plan.unread else None),
        ("steps", f"{steps['total']:,}, {each}"),
        (steps["unit"], _tokens(plan)),
        ("answers", _drawing(plan.drawing)),
        ("precision", f"{plan.precision['compute']}: {plan.precision['reason']}"),
        ("date", f"{plan.date}, which the chat template writes; the run keeps it" if plan.date else None),
        ("regularize", cut("; ".join(map(_component, regularizers)), SHOWN_PIECE) if regularizers else None),
        ("evaluation", _evaluation(plan.evaluation)),
        ("estimate", _estimate(plan.estimate)),
        ("seeds", _seeds(plan.seeds)),
        ("output", plan.recipe["output"]),
    ]


def _component(spec: dict[str, Any]) -> str:
    settings = (
        f"{key} {str(value).lower() if isinstance(value, bool) else value}"
        for key, value in spec.items()
        if key != "name" and value not in (None, [], {})
    )
    return ": ".join(filter(None, [spec["name"], ", ".join(settings)]))


def _evaluation(evaluation: dict[str, Any]) -> list[str]:

    if evaluation["split"] is None:
        lines = ["no held-out data: base and tuned model are not compared"]
    else:
        groups = evaluation["groups"]
        of = f" in {counted(groups['count'], 'group')} of column {groups['column']!r}" if groups else ""
        where = f"{evaluation['split']} ({counted(evaluation['examples'], 'example')}{of})"
        lines = [f"base and tuned on {where}: {', '.join(evaluation['evaluators'])}"]
    if evaluation["training"]:
        lines[0] += f"; also on {evaluation['training']:,} training rows, to see over-fitting"
    if evaluation["slices"]:
        lines.append(f"slices by {', '.join(evaluation['slices'])}")
    for probe in evaluation["probes"]:
        many = "" if probe["examples"] is None else f" ({counted(probe['examples'], 'example')})"
        lines.append(f"{probe['kind']}: {probe['name']} on {probe['data']}{many}")
    return [cut(line, SHOWN_PIECE) for line in lines]


def _tokens(plan: Plan) -> str:
    steps = plan.steps
    parts = [f"{steps['tokens']:,} in all, {number(steps['tokens_a_step'])} per step"]
    if steps["unit"] == TEXT:
        parts.append(f"padding {percent(steps['padding_share'])}")
    share = plan.estimate and plan.estimate["computed_share"]
    if share and share < FEWER:
        parts.append(f"{percent(share)} are computed, as rows share prefixes")
    if steps["label_share"] is not None:
        parts.append(f"{percent(steps['label_share'])} count in the loss")
    return "; ".join(parts)


def _drawing(drawn: dict[str, float] | None) -> str | None:
    if drawn is None:
        return None
    named = {"seconds_draw": "s to draw", "seconds_score": "s to score"}
    figures = [
        f"{key.replace('_', ' ')} {number(value)}" for key, value in drawn.items() if key not in (*named, "prompts")
    ]
    spent = [f"{number(drawn[key])} {what}" for key, what in named.items()]
    return f"of the base to {counted(int(drawn['prompts']), 'prompt')}: {', '.join([*figures, *spent])}"


def _strategy(plan: Plan) -> list[str]:
    name = plan.recipe["strategy"]["name"]
    if not plan.targets:
        return [cut(_component(plan.recipe["strategy"]), SHOWN_PIECE)]
    lines = []
    for pattern, modules in plan.targets.items():
        named = ", ".join(modules[:SHOWN_MODULES]) + (", …" if len(modules) > SHOWN_MODULES else "")
        lines.append(f"{name}: {pattern} matches {len(modules):,} modules ({named})")
    return [*lines, *plan.notes]


def _estimate(estimate: dict[str, Any] | None) -> str:
    if estimate is None:
        return "not measured"
    chosen = f"; {estimate['memory']}" if estimate["memory"] else ""
    drawn = f"drawn answers ({size(estimate['drawing_bytes'])}), " if estimate["drawing_bytes"] else ""
    answers = f" and {estimate['answers']:,} answers (not timed)" if estimate["answers"] else ""
    return (
        f"{duration(estimate['train_seconds'])} of training, {duration(estimate['evaluate_seconds'])} of evaluation"
        f"{answers}; {size(estimate['peak_bytes'])} of memory at the peak: weights ({size(estimate['weight_bytes'])}), "
        f"optimiser ({size(estimate['optimizer_bytes'])}), activations ({size(estimate['activation_bytes'])}), "
        f"{drawn}Python and its libraries ({size(estimate['other_bytes'])}){chosen}"
    )


def _seeds(seeds: dict[str, Any] | None) -> str | None:
    if seeds is None:
        return None
    spent = ""
    if seeds["seconds"] is not None:
        spent = f": {duration(seeds['seconds'])} in all, {duration(seeds['seconds'] / seeds['runs'])} for one"
    times = seeds["base_reads"]
    why = {1: "the base is read once", seeds["runs"]: "the base is read once for each, as its new modules differ"}
    return (
        f"{seeds['runs']} runs one after another, train.seed {seeds['first']} to {seeds['first'] + seeds['runs'] - 1}"
        f"{spent}, with the memory of one; {why.get(times, 'the base is read for each, as it trains itself')}"
    )


def _data(audit: dict[str, Any], unit: str) -> Any:
    of_text = ("longest", "truncated") if unit == TEXT else ()  # images all have the model's size
    columns = ("split", "source", "rows", "distinct", unit, *of_text, "no target", "skipped")
    rows = []
    for name, split in audit["splits"].items():
        encoded = audit["encoded"][name]
        longest = (encoded.get("untruncated") or {}).get("100", encoded["longest"])  # before cutting
        counts = (
            split["rows"],
            split["distinct"],
            encoded["tokens"],
            *((longest, encoded["truncated"]) if unit == TEXT else ()),
            encoded["untrained_rows"],
            split["skipped"]["count"] + encoded["skipped"],
        )
        rows.append((name, split["source"], *(f"{count:,}" for count in counts)))
    return table(columns, rows, left=2)


def _example(out: Console, example: Mapping[str, Any], *, first: bool) -> None:
    from rich.text import Text

    brackets = out.color_system is None or out.no_color
    how, style = ("in ⟦ ⟧", None) if brackets else ("underlined", "green underline")
    kind = f"{example['kind']}, {example['place']}" if example["kind"] else ""
    lead = f"One example{f' ({kind})' if kind else ''} as the model sees it; the training target is {how}:"
    out.print(f"\n{lead if first else f'Another ({kind}):'}")
    text = Text()
    for piece, trained in redact_pieces(example["pieces"]):
        shown = cut(printable(piece), SHOWN_PIECE)
        text.append(f"⟦{shown}⟧" if trained and brackets else shown, style if trained else None)
    text.rstrip()
    out.print(text)


def show_audit(out: Console, audit: dict[str, Any]) -> None:
    """Print the good findings and the tables of an `AuditResult`; warnings are left to the page."""
    good = [(finding["kind"], finding["text"]) for finding in audit["findings"] if finding["level"] == "good"]
    if good:
        out.print("", facts(good))
    for display in audit["displays"]:
        if "rows" in display:
            out.print(f"\n{one_line(display['title'])}:")
            shown = [[_cell(cell) for cell in row] for row in display["rows"][:SHOWN_ROWS]]
            out.print(table(display["columns"], shown))
            if left := len(display["rows"]) - len(shown):
                out.print(f"… and {left:,} more")
            if display["caption"]:
                out.print(one_line(display["caption"]))


def _cell(value: Any) -> str:
    if value is None or isinstance(value, float):
        return number(value)
    return f"{value:,}" if isinstance(value, int) else str(value)


def show_changes(out: Console, augmented: Sequence[Mapping[str, Any]]) -> None:
    """Print `Plan.augmented`: examples before and after augmenting."""
    out.print("\nTraining examples before and after augmenting, in the first epoch:")
    lines: list[tuple[str, str]] = []
    for entry in augmented:
        before, after = _sides(entry)
        lines += [("", entry["place"]), ("before", before), ("after", after)]
    out.print(facts(lines))


def excerpts(before: str, after: str) -> tuple[str, str]:
    """Return two texts on one line each, shortened to their difference and CONTEXT characters around it."""
    before, after = one_line(before), one_line(after)
    start = _shared(before, after)
    end = _shared(before[start:][::-1], after[start:][::-1])
    return _around(before, start, end), _around(after, start, end)


def _shared(a: str, b: str) -> int:
    """Return the length of the common prefix of two texts."""
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(a, b, strict=False)))


def _around(text: str, start: int, end: int) -> str:
    first = max(0, start - CONTEXT)
    last = min(len(text) - max(0, end - CONTEXT), first + SHOWN_TEXT)
    return ("…" if first else "") + text[first:last] + ("…" if last < len(text) else "")


def _sides(entry: Mapping[str, Any]) -> tuple[str, str]:
    before, after = entry["before"], entry["after"]
    if isinstance(before, Mapping):
        return str(before["labels"]), str(after["labels"])
    if "difference" in entry:
        sizes = [", ".join(f"{image['width']} × {image['height']}" for image in images) for images in (before, after)]
        return sizes[0], f"{sizes[1]}, pixels differ by {number(entry['difference'])} of 255 on average"
    return excerpts(_joined(before), _joined(after))


def _joined(texts: Sequence[str]) -> str:
    """Join the texts of an example: words with blanks, turns and pairs with a separator."""
    return (" ⏐ " if any(" " in text for text in texts) else " ").join(texts)
