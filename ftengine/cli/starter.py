"""The recipe that `ftengine init` writes; its comments are the descriptions of the recipe's keys."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import ceil
from typing import Any, get_args

from pydantic import BaseModel

from ftengine import api
from ftengine.cli.components import Described, Option, options
from ftengine.cli.page import yaml_value
from ftengine.data.files import OTHER_ENCODING
from ftengine.data.read import first_rows, is_there, read_rows
from ftengine.errors import InputError, SourceError, column_names
from ftengine.plugins.registry import AUTO, RECIPE_KEYS, Entry, Registry
from ftengine.run.recipe import DataSection, Recipe, TrainSection, usual_learning_rate
from ftengine.run.recipe_sources import TrainSource
from ftengine.text import counted

MODEL = "FOLDER-OR-HUB-ID"
DATA = "train.jsonl"
COMMENT_COLUMN = 32
LOOKED_AT = 200
"""Rows of the data that `init` reads."""
ENOUGH_STEPS, MOST_EPOCHS = 1000, 20
"""Below ENOUGH_STEPS training stops too early, so a small data set gets more epochs, at most MOST_EPOCHS. With twelve
classes in 1,080 rows, accuracy was 58 % after 3 epochs (365 steps) and 71 % after 8. The best weights are kept."""
LEAST_STEPS = 100
"""`train.accumulate` is not raised where fewer steps than this would be left."""
KINDS_OF_LISTS = {key: kind for kind, key in RECIPE_KEYS.items() if kind not in ("loader", "task", "strategy")}
"""Recipe keys that hold a list of components, and the kind of those."""
Values = Mapping[tuple[str, str], Any]


@dataclass(frozen=True)
class Inspection:
    """What `inspect_data` learned about one source.

    Args:
        columns: names of the columns; empty if the source was not read.
        task: the task that suits the data; None if none does.
        recognised: how that task reads the columns.
        hint: what may be wrong with the data, if no task suits it.
        rows: number of rows; None if they were not counted.
        note: how the file is read; continues a sentence that begins with its name.
        skipped: how many rows cannot be read, and why the first cannot; "" if all can.
    """

    columns: Sequence[str] = ()
    task: Entry | None = None
    recognised: api.Recognised = field(default_factory=lambda: api.Recognised(0))
    hint: str = ""
    rows: int | None = None
    note: str = ""
    skipped: str = ""


def inspect_data(source: str, tasks: Iterable[Entry], registry: Registry, refused: Mapping[str, str]) -> Inspection:
    """Read the first rows of a source and choose the task that suits them.

    Args:
        source: a file or a folder. A data set of the hub, or another source that a reader downloads, is not read.
        tasks: candidates; of equally certain ones the first is chosen.
        refused: reasons why the model cannot do a task, by the task's name.

    Raises:
        InputError: the data suits only tasks that the model cannot do.
        DataError: the file does not exist, or its encoding is not UTF-8.
    """
    if not is_there(source, registry):
        return Inspection()
    data = first_rows(source, LOOKED_AT, registry)
    fitting, candidates, doubt, broken = [], list(tasks), "", data.skipped
    for entry in candidates:
        recognised = entry.cls.recognise(data.columns, data.rows)
        if recognised is not None and (recognised.certainty or len(candidates) == 1):
            fitting.append((entry, recognised))
        elif recognised is not None and recognised.note:
            doubt = f" {recognised.note}"
    if any(OTHER_ENCODING in reason for reason in broken.first):
        read_rows(source, registry=registry)  # raises as plan does, before counts are made of the other rows
    skipped = f"{counted(broken.count, 'row')} cannot be read: {broken.first[0]}" if broken.count else ""
    packed = next(
        (name for name, value in (data.rows[0] if data.rows else {}).items() if _is_json_text(name, value)), None
    )
    json_text = "" if packed is None else f"Column {packed} holds JSON as text: save the rows as .jsonl"
    if not fitting:
        hint = data.hint or (json_text and f" {json_text}.") or (doubt and f"{doubt} Name the task with --task.")
        return Inspection(data.columns, hint=hint, rows=data.count, note=data.note, skipped=skipped)
    suiting = [pair for pair in fitting if pair[0].name not in refused]
    if not suiting:
        if doubt:  # another task may be meant, which the model can do
            raise InputError(f"{source} has columns {column_names(data.columns)}.{doubt} Name the task with --task.")
        kind, _ = max(fitting, key=lambda pair: pair[1].certainty)
        raise InputError(
            f"{source} has columns {column_names(data.columns)}, which suit task {kind.name}. But "
            f"{refused[kind.name]} For another task, name it with --task and rename columns by data.columns."
        )
    task, recognised = max(suiting, key=lambda pair: pair[1].certainty)
    if doubt and recognised.certainty == 1:
        recognised = replace(recognised, note=f"{recognised.note}{doubt}".strip())
    if json_text:
        note = f"{recognised.note} {json_text} if it should be read as lists or objects.".strip()
        recognised = replace(recognised, note=note)
    return Inspection(data.columns, task, recognised, rows=data.count, note=data.note, skipped=skipped)


def _is_json_text(name: str, value: object) -> bool:
    """Return whether a value is JSON as text; column `tools` may be."""
    return name != "tools" and isinstance(value, str) and value.lstrip().startswith(("[{", '{"'))


def refusals(source: str, tasks: Iterable[Entry], registry: Registry) -> dict[str, str]:
    """Return reasons why a model cannot do a task, by the task's name; reads no weights and builds no model.

    A loader without `check_head` refuses no task.

    Raises:
        SourceError: the model is missing, or nothing can be loaded from it.
    """
    loader, refused = registry.loader_of(source, {"name": AUTO}), {}
    loader.check_source(source)
    for entry in tasks:
        if entry.needs_options:
            continue
        try:
            loader.check_head(source, entry.cls().head)
        except SourceError as error:
            refused[entry.name] = str(error)
    return refused


def rows_of(inspections: Mapping[str, Inspection]) -> int | None:
    """Return the number of rows of all sources; None if one was not counted."""
    counts = [inspection.rows for inspection in inspections.values()]
    return None if not counts or None in counts else sum(count or 0 for count in counts)


def proposed_epochs(rows: int | None, most: float | None = None) -> float:
    """Return the epochs that make ENOUGH_STEPS of so many rows, at most `most`; the default if `rows` is None."""
    section = TrainSection()  # type: ignore[call-arg]
    if not rows:
        return section.epochs
    trained = rows * (1 - DataSection.model_fields["validation"].default)
    return min(max(section.epochs, ceil(ENOUGH_STEPS * section.batch_size / trained)), most or MOST_EPOCHS)


def proposed_accumulation(examples_a_step: int | None, rows: int | None, most_epochs: float | None = None) -> int:
    """Return `train.accumulate` for the examples a step that a task asks for, so that LEAST_STEPS remain."""
    size = TrainSection.model_fields["batch_size"].default
    most = max(1, (examples_a_step or size) // size)
    if not rows:
        return most
    trained = rows * (1 - DataSection.model_fields["validation"].default) * proposed_epochs(rows, most_epochs)
    return max(1, min(most, int(trained / (size * LEAST_STEPS))))


def starter(
    components: Sequence[Described],
    task: str | None,
    model: str | None,
    strategy: str | None,
    inspections: Mapping[str, Inspection],
    *,
    all_keys: bool = False,
) -> str:
    """Return a recipe: required keys, those that the data needs, and those that differ from their default.

    Args:
        all_keys: write every key with its default and meaning.
        components: all that a recipe may name.
        task, strategy: names of components; by default those whose trait `is_default` is set.
        model: the recipe's `model.source`; by default the task's trait `example_model`.
        inspections: by source of the recipe's `data.train`; if empty, that is the task's trait `example_data`.
    """
    readings = [inspection.recognised for inspection in inspections.values()]
    notes = {("data", "columns"): " ".join(dict.fromkeys(r.note for r in readings if r.note))}
    chosen = {
        kind: starting_first(c for c in components if c.kind == kind and name in (None, c.name))[0]
        for kind, name in {"task": task, "strategy": strategy}.items()
    }
    task_chosen, strategy_chosen = chosen["task"], chosen["strategy"]
    preset: dict[tuple[str, str], Any] = {
        ("model", "source"): model or task_chosen.traits["example_model"] or MODEL,
        ("data", "train"): task_chosen.traits["example_data"] or DATA,
        **_data(inspections),
    }
    usual, share = strategy_chosen.traits["learning_rate"], task_chosen.traits["learning_rate_share"]
    if usual is not None or share != 1:
        preset["train", "learning_rate"] = usual_learning_rate(usual, share)
    takes = {option.name for option in strategy_chosen.options}
    preset |= {("strategy", key): value for key, value in task_chosen.traits["strategy_defaults"] if key in takes}
    preset |= _steps(task_chosen, inspections)
    if steps := preset.get(("train", "accumulate")):
        notes["train", "accumulate"] = _why_accumulated(task_chosen.name, steps)
    preset |= {("task", option): value for r in readings for option, value in r.options.items()}
    return (_every_key if all_keys else _short)(components, chosen, preset, notes)


def _every_key(
    components: Sequence[Described],
    chosen: Mapping[str, Described],
    preset: Values,
    notes: Mapping[tuple[str, str], str],
) -> str:
    """Return a recipe with every key, its default and its description."""
    lines = [
        "# A recipe of ftengine: `ftengine plan` shows what it would do, `ftengine train` does it.",
        "# A key that is not required may be left out; it then has the value here, or the default named after it.",
    ]
    before = None
    for option in options(Recipe):
        section = _section(option.name)
        block = section is not None or option.name in chosen
        if block or before:
            lines.append("")
        before = block
        if option.name in chosen:
            lines += _component(components, option, chosen[option.name], preset)
        elif section is not None:
            lines.append(_commented(f"{option.name}:", _summary(section)))
            lines += _keys(option.name, section, preset, notes)
        else:
            lines.append(_line(option, Recipe))
            lines += _rest(components, KINDS_OF_LISTS.get(option.name), "may hold", modality=chosen["task"].modality)
    return "\n".join(lines) + "\n"


def _short(
    _: Sequence[Described], chosen: Mapping[str, Described], preset: Values, notes: Mapping[tuple[str, str], str]
) -> str:
    """Return a recipe with the keys in `preset`, the components by name, and where to find all other keys."""
    fields = TrainSection.model_fields
    values = {("train", name): fields[name].default for name in ("epochs", "learning_rate")}
    values |= {key: value for key, value in preset.items() if value is not None}
    lines = ["# Every other key, with its default and what it means: `ftengine init --all-keys`, or docs/recipe.md."]
    for section in ("model", "task", "data", "strategy", "train"):
        written: list[str] = []
        for key, value in ((place[1], value) for place, value in values.items() if place[0] == section):
            several = (section, key) == ("data", "train") and isinstance(value, list)
            written += ["  train:", *_sources(value)] if several else [f"  {key}: {yaml_value(value)}"]
            if note := notes.get((section, key)):
                written.append(f"  # {_flat(note)}")
        if section == "data" and (note := notes.get(("data", "columns"))) and ("data", "columns") not in values:
            written.append(f"  # {_flat(note)}")
        if component := chosen.get(section):
            required = [option for option in component.options if option.required]
            written += [f"  # {_line(option, None)}" for option in required if (section, option.name) not in values]
            name = yaml_value(component.name)
            lines += [f"{section}:", f"  name: {name}", *written] if written else [f"{section}: {name}"]
        else:
            lines += [f"{section}:", *written]
    return "\n".join([*lines, f"output: {yaml_value(Recipe.model_fields['output'].default)}"]) + "\n"


def _data(inspections: Mapping[str, Inspection]) -> dict[tuple[str, str], Any]:
    """Return the recipe's keys about the data; sources with different columns are listed with their own."""
    readings = [inspection.recognised for inspection in inspections.values()]
    alike = all(reading.columns == readings[0].columns for reading in readings)
    keys: dict[tuple[str, str], Any] = {("data", "train"): next(iter(inspections))} if inspections else {}
    if len(inspections) > 1:
        own = {
            source: {} if alike else dict(inspection.recognised.columns) for source, inspection in inspections.items()
        }
        keys["data", "train"] = [{"source": source, "columns": columns} for source, columns in own.items()]
    if readings and alike and readings[0].columns:
        keys["data", "columns"] = dict(readings[0].columns)
    if split := next((reading.split for reading in readings if reading.split), None):
        keys["data", "split"] = dict(split)
    return keys


def _steps(task: Described, inspections: Mapping[str, Inspection]) -> dict[tuple[str, str], Any]:
    """Return train.epochs and train.accumulate where they differ from their defaults."""
    rows, fields, keys = rows_of(inspections), TrainSection.model_fields, dict[tuple[str, str], Any]()
    most_epochs = task.traits["most_epochs"]
    has_task = any(inspection.task for inspection in inspections.values())
    if has_task and (epochs := proposed_epochs(rows, most_epochs)) != fields["epochs"].default:
        keys["train", "epochs"] = epochs
    if (steps := proposed_accumulation(task.traits["batch_size"], rows, most_epochs)) != fields["accumulate"].default:
        keys["train", "accumulate"] = steps
    return keys


def _why_accumulated(task: str, steps: int) -> str:
    size = TrainSection.model_fields["batch_size"].default
    return (
        f"Task {task} compares the examples of a step with each other: here {size} × {steps} = {size * steps}, in the "
        f"memory that {size} need. A larger batch_size with a smaller accumulate is faster and needs more memory; "
        "`ftengine plan` estimates how much."
    )


def _keys(name: str, section: type[BaseModel], preset: Values, notes: Mapping[tuple[str, str], str]) -> Iterator[str]:
    """Yield one line for each key of a section, and its note below it."""
    for key in options(section):
        value = preset.get((name, key.name))
        if (name, key.name) == ("data", "train") and isinstance(value, list):
            yield _commented("  train:", _key_comment(key, section))
            yield from _sources(value)
            continue
        yield _line(key, section, value, 2)
        if note := notes.get((name, key.name)):
            yield f"  # {_flat(note)}"


def _sources(sources: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """Yield the lines of several sources, with their weights commented out."""
    for source in sources:
        yield f"    - source: {yaml_value(source['source'])}"
        if source["columns"]:
            yield f"      columns: {yaml_value(source['columns'])}"
        weight = f"{TrainSource.model_fields['weight'].description}; set it for all sources or for none"
        yield _commented("      # weight: 1", weight if source is sources[0] else "")


def starting_first(components: Iterable[Described]) -> list[Described]:
    """Return components, those with the trait `is_default` first."""
    return sorted(components, key=lambda component: not component.traits["is_default"])


def _component(
    components: Sequence[Described], key: Option, chosen: Described, preset: Mapping[tuple[str, str], Any]
) -> Iterator[str]:
    yield _commented(f"{key.name}:", "required")
    yield _commented(f"  name: {yaml_value(chosen.name)}", chosen.summary)
    yield from (f"  {line}" for line in _rest(components, chosen.kind, "or", but=chosen.name))
    for option in chosen.options:
        line = _line(option, None, preset.get((key.name, option.name)), indent=2)
        yield f"  # {line.strip()}" if option.required else line


def _rest(
    components: Sequence[Described], kind: str | None, word: str, but: str = "", modality: str | None = None
) -> Iterator[str]:
    """Yield a comment for each other component of a kind, without augmenters of another modality."""
    for component in (c for c in components if c.kind == kind):
        suits = component.kind != "augmenter" or component.modality in (None, modality)
        if component.name != but and suits:
            yield f"# {word} {component.name}: {_flat(component.summary)}"


def _line(option: Option, section: type[BaseModel] | None, value: Any = None, indent: int = 0) -> str:
    """Return a key with its default (or another value) and its description as a comment."""
    usual = yaml_value(_shortened(option.default))
    shown = usual if value is None else yaml_value(_shortened(value))
    comment = _key_comment(option, section)
    if shown != usual and not option.required:
        comment = "; ".join(part for part in (comment, f"default: {usual}") if part)
    return _commented(f"{' ' * indent}{option.name}: {shown}", comment)


def _key_comment(option: Option, section: type[BaseModel] | None) -> str:
    """Return the comment of a key: description, example, choices and constraints."""
    inner = _optional_section(section, option.name) if section else None
    parts = [
        "required" if option.required else "",
        option.description or (_summary(inner) if inner else ""),
        f"for example {yaml_value(inner().model_dump(mode='json'))}" if inner and not _requires(inner) else "",
        option.choices,
        # A string may have any text; its description says what it means.
        "" if "string" in option.type else ", ".join(option.constraints),
    ]
    return "; ".join(part.rstrip(".") for part in parts if part)


def _commented(text: str, comment: str) -> str:
    return f"{text:<{COMMENT_COLUMN}}  # {_flat(comment)}" if comment else text


def _flat(text: str) -> str:
    return " ".join(text.split())


def _shortened(value: Any) -> Any:
    """Return the name of a component that has no options set; any other value unchanged."""
    return value["name"] if isinstance(value, dict) and value.keys() == {"name"} else value


def _section(name: str) -> type[BaseModel] | None:
    """Return the section behind a key of the recipe, or None where it holds a plain value."""
    annotation = Recipe.model_fields[name].annotation
    return annotation if isinstance(annotation, type) and issubclass(annotation, BaseModel) else None


def _optional_section(section: type[BaseModel], name: str) -> type[BaseModel] | None:
    """Return the section that a key may hold instead of null."""
    choices = get_args(section.model_fields[name].annotation)
    return next((kind for kind in choices if isinstance(kind, type) and issubclass(kind, BaseModel)), None)


def _requires(section: type[BaseModel]) -> bool:
    return any(field.is_required() for field in section.model_fields.values())


def _summary(section: type[BaseModel]) -> str:
    return (section.__doc__ or "").partition("\n")[0]
