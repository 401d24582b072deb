"""LlamaFactory's dataset_info.json as a source: it names files, layouts, columns and tags."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pydantic import Field

from ftengine.api import BrokenRow, Config, Reader, Row, place_of
from ftengine.errors import DataError, did_you_mean, json_of_file, shown
from ftengine.text import listed
from ftengine_builtins import layouts
from ftengine_builtins.preference_layouts import SIDES, preference
from ftengine_builtins.readers.layouts import rows_of

INFO = "dataset_info.json"
KEYS = (
    *("hf_hub_url", "ms_hub_url", "script_url", "cloud_file_name", "file_name", "formatting", "ranking"),
    *("subset", "split", "folder", "num_samples", "columns", "tags"),
)
COLUMNS = (
    *("prompt", "query", "response", "history", "messages", "system", "tools"),
    *("images", "videos", "audios", "chosen", "rejected", "kto_tag"),
)
TAGS = {
    "role_tag": "from",
    "content_tag": "value",
    "user_tag": "human",
    "assistant_tag": "gpt",
    "observation_tag": "observation",
    "function_tag": "function_call",
    "system_tag": "system",
}
ALPACA = {"prompt": "instruction", "query": "input", "response": "output"}
MEDIA = ("images", "videos", "audios")


class LlamaFactoryReader(Reader):
    """LlamaFactory's dataset_info.json: a data set that it lists, with its columns and tags."""

    name = "llamafactory"

    class Config(Config):
        dataset: str | None = Field(None, min_length=1, description="which data set; null: the one that is listed")

    def accepts(self, source: str) -> bool:
        return os.path.basename(source) == INFO and os.path.isfile(source)

    def read(self, source: str) -> Iterator[Row | BrokenRow]:
        name, info = self._info(source)
        columns, tags = info.get("columns") or {}, {**TAGS, **(info.get("tags") or {})}
        file = self._file(source, name, info)
        for number, row in enumerate(rows_of(file)):
            if number == info.get("num_samples"):
                return
            place = place_of(f" ({info['file_name']})", row.place)
            if isinstance(row, BrokenRow):
                yield BrokenRow(place, row.reason, row.repair)
                continue
            try:
                yield Row(place, _converted(row.values, info, columns, tags))
            except DataError as error:
                yield BrokenRow(place, str(error).rstrip("."))

    def files(self, source: str) -> list[str]:
        return [self._file(source, *self._info(source))]

    def _info(self, source: str) -> tuple[str, Mapping[str, Any]]:
        """Return the data set's name and entry (BrokenRow: the entry is malformed)."""
        try:
            sets = json_of_file(Path(source))
        except (OSError, ValueError) as error:
            raise BrokenRow("", f"cannot be read as a list of data sets: {error}") from None
        if not isinstance(sets, dict) or not all(isinstance(info, dict) for info in sets.values()) or not sets:
            raise BrokenRow("", "is not a list of data sets; it must be an object {name: {file_name, …}, …}")
        name = self.config.dataset or next(iter(sets))
        if name not in sets or (self.config.dataset is None and len(sets) > 1):
            names = listed([repr(data_set) for data_set in list(sets)[:5]])
            several = f"lists {len(sets)} data sets, {'such as ' * (len(sets) > 5)}{names}."
            missing = f"has no data set {name!r}.{did_you_mean(name, sets)} It {several}"
            problem = several if name in sets else missing
            example = f"{{name: llamafactory, dataset: {next(iter(sets))}}}"
            raise BrokenRow("", f"{problem} Choose one with data.reader, such as {example}")
        info = sets[name]
        for key, allowed in (("", KEYS), ("columns", COLUMNS), ("tags", tuple(TAGS))):
            for entry in info.get(key) or {} if key else info:
                if entry not in allowed:
                    within = f"{name}.{key}".rstrip(".")
                    raise BrokenRow(
                        "", f"has the key {entry!r} in {within}, which is unknown.{did_you_mean(entry, allowed)}"
                    )
        if info.get("formatting", "alpaca") not in ("alpaca", "sharegpt"):
            stated = f"has formatting {shown(info['formatting'])} for {name}"
            raise BrokenRow("", f"{stated}; alpaca and sharegpt are supported")
        columns = info.get("columns") or {}
        if info.get("ranking") and not ("chosen" in columns and "rejected" in columns):
            raise BrokenRow("", f"sets ranking for {name}, but its columns lack chosen and rejected; add them")
        return name, info

    def _file(self, source: str, name: str, info: Mapping[str, Any]) -> str:
        if not isinstance(info.get("file_name"), str):
            raise BrokenRow("", f"has no file_name for {name}; name data sets of a hub in data.train")
        file = os.path.join(os.path.dirname(source), info["file_name"])
        if not os.path.isfile(file):
            raise BrokenRow("", f"names {info['file_name']!r} for {name}, but no such file is beside it")
        return file


def _converted(row: Any, info: Mapping[str, Any], columns: Mapping[str, str], tags: Mapping[str, str]) -> Any:
    """Return a row with `messages`; `system` and `tools` are read only from columns that the entry names."""
    layouts.require_text(row, [columns[key] for key in MEDIA if columns.get(key)])
    if tag := columns.get("kto_tag"):
        rest = {key: value for key, value in row.items() if key != tag}
        others = {key: column for key, column in columns.items() if key != "kto_tag"}
        return {**_converted(rest, info, others, tags), "label": row.get(tag)}
    row = {key: value for key, value in row.items() if key in columns.values() or key not in ("system", "tools")}
    if info.get("ranking"):
        return _ranked(row, info, columns, tags)
    system, tools = columns.get("system", ""), columns.get("tools", "")
    if info.get("formatting", "alpaca") == "alpaca":
        named = {name: (columns or ALPACA).get(name, "") for name in ALPACA}
        question = named["prompt"] or named["query"]
        if question not in row:
            wrong = f"has no column {question!r}, which is the question in formatting alpaca. Its columns: "
            raise DataError(f"{wrong}{', '.join(row)}. Is its formatting sharegpt?")
        return layouts.pairs(row, **named, system=system, history=columns.get("history", ""), tools=tools)
    roles = {
        tags["user_tag"]: "user",
        tags["assistant_tag"]: "assistant",
        tags["observation_tag"]: "tool",
        tags["function_tag"]: layouts.CALL,
        tags["system_tag"]: "system",
    }
    column = columns.get("messages", "conversations")
    return layouts.conversations(
        row, column=column, role=tags["role_tag"], content=tags["content_tag"], roles=roles, system=system, tools=tools
    )


def _ranked(row: Any, info: Mapping[str, Any], columns: Mapping[str, str], tags: Mapping[str, str]) -> Any:
    """Return a row with `prompt`, `chosen` and `rejected`."""
    others = {key: name for key, name in columns.items() if key not in (*SIDES, "response")}
    if info.get("formatting", "alpaca") == "alpaca":
        others = (
            others if {"prompt", "query"} & others.keys() else {**others, "prompt": "instruction", "query": "input"}
        )

    def listed(messages: Any) -> list[Any]:
        info_of_chat = {**info, "ranking": False, "formatting": "sharegpt"}
        return _converted({"messages": list(messages)}, info_of_chat, {"messages": "messages"}, tags)["messages"]

    rest = {name: value for name, value in row.items() if name not in [columns[side] for side in SIDES]}
    converted = _converted(rest, {**info, "ranking": False}, others, tags)
    return preference({**converted, **{side: row.get(columns[side]) for side in SIDES}}, listed)
