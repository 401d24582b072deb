"""A recipe to start from, its comments made from the recipe's own descriptions so that they cannot drift."""

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
"""Rows of the data that are read."""
ENOUGH_STEPS, MOST_EPOCHS = 1000, 20
"""Fewer steps than this leave a model unfinished, so few rows are passed over more often, up to this: twelve classes of
1,080 rows were told apart in 58 % after 3 epochs, 365 steps, and in 71 % after 8. The best weights are kept."""
LEAST_STEPS = 100
"""Fewer steps than this are not given for larger ones."""
KINDS_OF_LISTS = {key: kind for kind, key in RECIPE_KEYS.items() if kind not in ("loader", "task", "strategy")}
"""Recipe keys that hold a list of components, and the kind of those."""
Given = Mapping[tuple[str, str], Any]


@dataclass(frozen=True)
class Seen:
    """What a look into data found.

    Args:
        columns: of the data; empty where it was not looked into.
        task: the one that it is for; None where none is.
        recognised: how that one reads it.
        hint: what may be wrong with the data where no task is for it.
        rows: how many there are; None where that was not looked up.
        note: how the file is read, going on from its name.
        skipped: how many rows cannot be read, and why the first cannot; "" where all can.
    """

    columns: Sequence[str] = ()
    task: Entry | None = None
    recognised: api.Recognised = field(default_factory=lambda: api.Recognised(0))
    hint: str = ""
    rows: int | None = None
    note: str = ""
    skipped: str = ""


def look(source: str, tasks: Iterable[Entry], registry: Registry, refused: Mapping[str, str]) -> Seen:
    """Ask tasks whether the data is of their kind.

    Args:
        source: a file or a folder; of a data set of the hub, or what else a reader fetches, nothing is found.
        tasks: those to ask; of equally certain ones the first is taken.
        refused: why the model is not for a task, by the task's name.

    Raises:
        InputError: the data is of a kind that the model cannot learn.
        DataError: there is no such file, or it is in another encoding than UTF-8.
    """
    if not is_there(source, registry):
        return Seen()
    data = first_rows(source, LOOKED_AT, registry)
    known, asked, doubt = [], list(tasks), ""
    for entry in asked:
        cls = entry.cls
        recognised = cls.recognise(data.columns, data.rows)
        if recognised is not None and (recognised.certainty or len(asked) == 1):
            known.append((entry, recognised))
        elif recognised is not None and recognised.note:
            doubt = f" {recognised.note}"
    broken = data.skipped
    if any(OTHER_ENCODING in reason for reason in broken.first):
        read_rows(source, registry=registry)  # raises as plan does, before counts are made of the other rows
    skipped = f"{counted(broken.count, 'row')} cannot be read: {broken.first[0]}" if broken.count else ""
    packed = next(
        (name for name, value in (data.rows[0] if data.rows else {}).items() if _is_json_text(name, value)), None
    )
    json_text = "" if packed is None else f"Column {packed} holds JSON as text: save the rows as .jsonl"
    if not known:
        hint = data.hint or (json_text and f" {json_text}.") or (doubt and f"{doubt} Name the task with --task.")
        return Seen(data.columns, hint=hint, rows=data.count, note=data.note, skipped=skipped)
    suiting = [pair for pair in known if pair[0].name not in refused]
    if not suiting:
        kind, _ = max(known, key=lambda pair: pair[1].certainty)
        raise InputError(
            f"{source} has columns {column_names(data.columns)}: {kind.name}. But {refused[kind.name]} If they are for "
            f"another task, name it with --task and rename them with data.columns.{doubt}"
        )
    task, recognised = max(suiting, key=lambda pair: pair[1].certainty)
    if doubt and recognised.certainty == 1:
        recognised = replace(recognised, note=f"{recognised.note}{doubt}".strip())
    if json_text:
        note = f"{recognised.note} {json_text} if it should be read as lists or objects.".strip()
        recognised = replace(recognised, note=note)
    return Seen(data.columns, task, recognised, rows=data.count, note=data.note, skipped=skipped)


def _is_json_text(name: str, value: object) -> bool:
    """Say whether a column that is read as lists or objects holds them as text, which tools may be."""
    return name != "tools" and isinstance(value, str) and value.lstrip().startswith(("[{", '{"'))


def refusals(source: str, tasks: Iterable[Entry], registry: Registry) -> dict[str, str]:
    """Return why a model is not for a task, by the task's name; no weights are read and no model is built.

    Of a loader that does not write `check_head` nothing is known.

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


def rows_of(seen: Mapping[str, Seen]) -> int | None:
    """Return how many rows there are in all sources; None where that is not known of one."""
    counts = [one.rows for one in seen.values()]
    return None if not counts or None in counts else sum(count or 0 for count in counts)


def proposed_epochs(rows: int | None, most: float | None = None) -> float:
    """Return passes over so many rows that come to enough steps, at most `most`; the default where not known."""
    section = TrainSection()  # type: ignore[call-arg]
    if not rows:
        return section.epochs
    trained = rows * (1 - DataSection.model_fields["validation"].default)
    return min(max(section.epochs, ceil(ENOUGH_STEPS * section.batch_size / trained)), most or MOST_EPOCHS)


def proposed_accumulation(wanted: int | None, rows: int | None, most_epochs: float | None = None) -> int:
    """Return micro-batches a step that come to as many examples as a task wants, or to enough steps of so many rows."""
    size = TrainSection.model_fields["batch_size"].default
    most = max(1, (wanted or size) // size)
    if not rows:
        return most
    seen = rows * (1 - DataSection.model_fields["validation"].default) * proposed_epochs(rows, most_epochs)
    return max(1, min(most, int(seen / (size * LEAST_STEPS))))


def starter(
    components: Sequence[Described],
    task: str | None,
    model: str | None,
    strategy: str | None,
    seen: Mapping[str, Seen],
    *,
    all_keys: bool = False,
) -> str:
    """Return a recipe: what is required, what the data asks for, and what differs from a default.

    Args:
        all_keys: every key, with its default and what it means.
        components: all that a recipe may name.
        task, strategy: names of components; by default the ones that their plugins propose to beginners.
        model: the recipe's `model.source`; by default one that suits the task (its trait `example_model`).
        seen: in each source of the recipe's `data.train`; by default that is a name which suits the task (its trait
            `example_data`).
    """
    ways = [one.recognised for one in seen.values()]
    notes = {("data", "columns"): " ".join(dict.fromkeys(one.note for one in ways if one.note))}
    chosen = {
        kind: starting_first(one for one in components if one.kind == kind and name in (None, one.name))[0]
        for kind, name in {"task": task, "strategy": strategy}.items()
    }
    asked, tuning = chosen["task"], chosen["strategy"]
    given: dict[tuple[str, str], Any] = {
        ("model", "source"): model or asked.traits["example_model"] or MODEL,
        ("data", "train"): asked.traits["example_data"] or DATA,
        **_data(seen),
    }
    usual, share = tuning.traits["learning_rate"], asked.traits["learning_rate_share"]
    if usual is not None or share != 1:
        given["train", "learning_rate"] = usual_learning_rate(usual, share)
    takes = {option.name for option in tuning.options}
    given |= {("strategy", key): value for key, value in asked.traits["strategy_defaults"] if key in takes}
    given |= _steps(asked, seen)
    if steps := given.get(("train", "accumulate")):
        notes["train", "accumulate"] = _why_accumulated(asked.name, steps)
    given |= {("task", option): value for one in ways for option, value in one.options.items()}
    return (_every_key if all_keys else _short)(components, chosen, given, notes)


def _every_key(
    components: Sequence[Described], chosen: Mapping[str, Described], given: Given, notes: Mapping[tuple[str, str], str]
) -> str:
    """Return every key, with its default and what there is to know about it."""
    lines = [
        "# A recipe of ftengine: `ftengine plan` shows what it would do, `ftengine train` does it.",
        "# What is not required may be left out; then it has the value written here, or the default that is named.",
    ]
    before = None
    for option in options(Recipe):
        section = _section(option.name)
        block = section is not None or option.name in chosen
        if block or before:
            lines.append("")
        before = block
        if option.name in chosen:
            lines += _component(components, option, chosen[option.name], given)
        elif section is not None:
            lines.append(_commented(f"{option.name}:", _summary(section)))
            lines += _keys(option.name, section, given, notes)
        else:
            lines.append(_line(option, Recipe))
            lines += _rest(components, KINDS_OF_LISTS.get(option.name), "may hold", modality=chosen["task"].modality)
    return "\n".join(lines) + "\n"


def _short(
    _: Sequence[Described], chosen: Mapping[str, Described], given: Given, notes: Mapping[tuple[str, str], str]
) -> str:
    """Return the keys that are given, the components by name, and where the others are listed."""
    named = {(kind, "name"): one.name for kind, one in chosen.items()}
    values = {**named, **{key: value for key, value in given.items() if value is not None}}
    steps = ("epochs", "batch_size", "learning_rate")
    values = {("train", name): TrainSection.model_fields[name].default for name in steps} | values
    lines = [
        "# A recipe of ftengine: `ftengine plan` shows what it would do, `ftengine train` does it.",
        "# Every other key, with its default and what it means: `ftengine init --all-keys`, or docs/recipe.md.",
    ]
    for section in ("model", "task", "data", "strategy", "train"):
        lines.append(f"{section}:")
        for key, value in ((place[1], value) for place, value in values.items() if place[0] == section):
            several = (section, key) == ("data", "train") and isinstance(value, list)
            lines += ["  train:", *_sources(value)] if several else [f"  {key}: {yaml_value(value)}"]
            if note := notes.get((section, key)):
                lines.append(f"  # {_flat(note)}")
        if section in chosen:
            required = [option for option in chosen[section].options if option.required]
            lines += [f"  # {_line(option, None)}" for option in required if (section, option.name) not in values]
        if section == "data" and (note := notes.get(("data", "columns"))) and ("data", "columns") not in values:
            lines.append(f"  # {_flat(note)}")
    return "\n".join([*lines, f"output: {yaml_value(Recipe.model_fields['output'].default)}"]) + "\n"


def _data(seen: Mapping[str, Seen]) -> dict[tuple[str, str], Any]:
    """Return what the recipe says of the data; of several sources that are read otherwise, each with its columns."""
    ways = [one.recognised for one in seen.values()]
    alike = all(one.columns == ways[0].columns for one in ways)
    told: dict[tuple[str, str], Any] = {("data", "train"): next(iter(seen))} if seen else {}
    if len(seen) > 1:
        own = {source: {} if alike else dict(one.recognised.columns) for source, one in seen.items()}
        told["data", "train"] = [{"source": source, "columns": columns} for source, columns in own.items()]
    if ways and alike and ways[0].columns:
        told["data", "columns"] = dict(ways[0].columns)
    if split := next((one.split for one in ways if one.split), None):
        told["data", "split"] = dict(split)
    return told


def _steps(task: Described, seen: Mapping[str, Seen]) -> dict[tuple[str, str], Any]:
    """Return what the recipe says of passes over the data and of a step's examples, where it is not the default."""
    rows, fields, told = rows_of(seen), TrainSection.model_fields, dict[tuple[str, str], Any]()
    most_epochs = task.traits["most_epochs"]
    known = any(one.task for one in seen.values())
    if known and (epochs := proposed_epochs(rows, most_epochs)) != fields["epochs"].default:
        told["train", "epochs"] = epochs
    if (steps := proposed_accumulation(task.traits["batch_size"], rows, most_epochs)) != fields["accumulate"].default:
        told["train", "accumulate"] = steps
    return told


def _why_accumulated(task: str, steps: int) -> str:
    size = TrainSection.model_fields["batch_size"].default
    return (
        f"Task {task} compares the examples of a step with each other: here {size} × {steps} = {size * steps}, at the "
        f"memory of {size}. A larger batch_size in place of accumulate takes fewer passes of the model, and the memory "
        "that `ftengine plan` estimates."
    )


def _keys(name: str, section: type[BaseModel], given: Given, notes: Mapping[tuple[str, str], str]) -> Iterator[str]:
    """Yield a line a key of a section, below it the note on it."""
    for key in options(section):
        value = given.get((name, key.name))
        if (name, key.name) == ("data", "train") and isinstance(value, list):
            yield _commented("  train:", _known(key, section))
            yield from _sources(value)
            continue
        yield _line(key, section, value, 2)
        if note := notes.get((name, key.name)):
            yield f"  # {_flat(note)}"


def _sources(sources: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """Yield lines of several sources, their weights commented out."""
    for one in sources:
        yield f"    - source: {yaml_value(one['source'])}"
        if one["columns"]:
            yield f"      columns: {yaml_value(one['columns'])}"
        weight = f"{TrainSource.model_fields['weight'].description}; given to all or to none"
        yield _commented("      # weight: 1", weight if one is sources[0] else "")


def starting_first(components: Iterable[Described]) -> list[Described]:
    """Return components with those in front that their plugins call a good start."""
    return sorted(components, key=lambda one: not one.traits["is_default"])


def _component(
    components: Sequence[Described], key: Option, chosen: Described, given: Mapping[tuple[str, str], Any]
) -> Iterator[str]:
    yield _commented(f"{key.name}:", "required")
    yield _commented(f"  name: {yaml_value(chosen.name)}", chosen.summary)
    yield from (f"  {line}" for line in _rest(components, chosen.kind, "or", but=chosen.name))
    for option in chosen.options:
        line = _line(option, None, given.get((key.name, option.name)), indent=2)
        yield f"  # {line.strip()}" if option.required else line


def _rest(
    components: Sequence[Described], kind: str | None, word: str, but: str = "", modality: str | None = None
) -> Iterator[str]:
    """Name what else is installed of a kind, without augmenters of another modality than the data's."""
    for one in (one for one in components if one.kind == kind):
        suits = one.kind != "augmenter" or one.modality in (None, modality)
        if one.name != but and suits:
            yield f"# {word} {one.name}: {_flat(one.summary)}"


def _line(option: Option, section: type[BaseModel] | None, value: Any = None, indent: int = 0) -> str:
    """Write a key with its default (or another value) and what there is to know about it."""
    usual = yaml_value(_shortened(option.default))
    shown = usual if value is None else yaml_value(_shortened(value))
    known = _known(option, section)
    if shown != usual and not option.required:
        known = "; ".join(part for part in (known, f"default: {usual}") if part)
    return _commented(f"{' ' * indent}{option.name}: {shown}", known)


def _known(option: Option, section: type[BaseModel] | None) -> str:
    """Return what there is to know about a key."""
    inner = _optional_section(section, option.name) if section else None
    known = [
        "required" if option.required else "",
        option.description or (_summary(inner) if inner else ""),
        f"for example {yaml_value(inner().model_dump(mode='json'))}" if inner and not _requires(inner) else "",
        option.choices,
        # Any text may be given where a string is; its description says what it means.
        "" if "string" in option.type else ", ".join(option.constraints),
    ]
    return "; ".join(part.rstrip(".") for part in known if part)


def _commented(text: str, comment: str) -> str:
    return f"{text:<{COMMENT_COLUMN}}  # {_flat(comment)}" if comment else text


def _flat(text: str) -> str:
    return " ".join(text.split())


def _shortened(value: Any) -> Any:
    """Return a component without options as its name."""
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
