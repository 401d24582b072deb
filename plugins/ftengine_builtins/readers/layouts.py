"""Readers of chat data in the layouts of other tools, which a recipe names; rows get `messages`."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import suppress
from typing import Any

from pydantic import Field

from ftengine.api import BrokenRow, Config, Example, Reader, ReaderTraits, Row
from ftengine.errors import DataError
from ftengine_builtins import layouts
from ftengine_builtins.preference_layouts import pair_of, preference, sharegpt
from ftengine_builtins.readers.data_folder import kind_of


class LayoutReader(Reader):
    """Reads files of any format in one layout, if `data.reader` names it; tasks recognise layouts by keys."""

    traits = ReaderTraits(by_name=True)

    @abstractmethod
    def convert(self, row: Example) -> Example:
        """Return a row with `messages` (DataError: it is not in this layout)."""

    def answers(self, messages: Sequence[Any]) -> list[Any]:
        """Return an answer's messages, which have this layout's keys, with `role` and `content`."""
        return sharegpt(messages)

    def converted(self, row: Example) -> Example:
        """Return a row with `messages`, or for a preference with `prompt`, `chosen` and `rejected`."""
        converted = self.convert(row)
        return converted if pair_of(converted) is None else preference(converted, self.answers)

    def accepts(self, source: str) -> bool:
        with suppress(Exception):  # not a data file, or not in this layout
            first = self.converted(next(row for row in rows_of(source) if isinstance(row, Row)).values)
            return bool(first.get("messages") or first["prompt"])
        return False

    def read(self, source: str) -> Iterator[Row | BrokenRow]:
        for row in rows_of(source):
            try:
                yield Row(row.place, self.converted(row.values)) if isinstance(row, Row) else row
            except DataError as error:
                yield BrokenRow(row.place, str(error).rstrip("."))


def rows_of(source: str) -> Iterator[Row | BrokenRow]:
    """Yield the rows of a file of any format (BrokenRow: its suffix is unknown)."""
    if (kind := kind_of(source)) is None:
        raise BrokenRow("", "has no known suffix; name it .jsonl, .json, .csv, .parquet, …")
    content = kind().read(source)
    if not hasattr(content, "schema"):
        yield from content
        return
    number = 0
    for batch in content:
        for values in batch.to_pylist():
            number += 1
            yield Row(f" row {number}", _without_nulls(values))


def _without_nulls(value: Any, depth: int = 0) -> Any:
    """Drop keys of nested objects that are None: Arrow gives every object of a column the same keys."""
    if isinstance(value, dict):
        return {k: _without_nulls(item, depth + 1) for k, item in value.items() if item is not None or not depth}
    return [_without_nulls(item, depth + 1) for item in value] if isinstance(value, list) else value


class ShareGPTReader(LayoutReader):
    """ShareGPT's conversations: {from, value} with human, gpt, function_call and observation, `system`, `tools`."""

    name = "sharegpt"

    class Config(Config):
        column: str = Field("conversations", description="column of the messages")
        role: str = Field("from", description="key of the speaker")
        content: str = Field("value", description="key of the text")

    def convert(self, row: Example) -> Example:
        return layouts.conversations(row, **self.config.model_dump())

    def answers(self, messages: Sequence[Any]) -> list[Any]:
        keys = self.config.model_dump(exclude={"column"})
        return layouts.conversations({"messages": messages}, **keys)["messages"]


class AlpacaReader(LayoutReader):
    """Alpaca's questions: `instruction`, `input` and `output`, with `system` and `history`."""

    name = "alpaca"

    class Config(Config):
        prompt: str = Field("instruction", description="column of the question")
        query: str = Field("input", description="column of text that is added to the question on a line of its own")
        response: str = Field("output", description="column of the answer")
        system: str = Field("system", description="column of the system message")
        history: str = Field("history", description="column of earlier turns, [[question, answer], …]")

    def convert(self, row: Example) -> Example:
        return layouts.pairs(row, **self.config.model_dump())


class MsSwiftReader(LayoutReader):
    """ms-swift's rows: `messages` with tool_call, tool_response and `loss`, or `query`, `response` and `history`."""

    name = "ms-swift"

    def convert(self, row: Example) -> Example:
        if row.get("conversation"):
            return layouts.human_assistant(row)
        return layouts.conversations(row) if row.get("messages") else layouts.query_response(row)


class AxolotlReader(LayoutReader):
    """Axolotl's type chat_template: messages under any keys, with `train`."""

    name = "axolotl"

    class Config(Config):
        field_messages: str = Field("messages", description="column of the messages")
        field_system: str = Field("system", description="column of the system message")
        field_tools: str = Field("tools", description="column of the tools")
        message_property_mappings: dict[str, str] = Field(
            {}, description="keys of a message, as {role: from, content: value}"
        )
        roles: dict[str, list[str]] = Field({}, description="other names of roles, as {assistant: [gpt, model]}")

    def convert(self, row: Example) -> Example:
        own = self.config
        if row.get(own.field_messages) is None and pair_of(row) is not None:
            return row
        return self._read(row, own.field_messages, own.field_system, own.field_tools)

    def answers(self, messages: Sequence[Any]) -> list[Any]:
        return self._read({"messages": messages}, "messages")["messages"]

    def _read(self, row: Example, column: str, system: str = "", tools: str = "") -> dict[str, Any]:
        own = self.config
        named = {name: role for role, names in own.roles.items() for name in names}
        keys = {"role": "role", "content": "content", **own.message_property_mappings}
        return layouts.conversations(
            row,
            column=column,
            role=keys["role"],
            content=keys["content"],
            roles={**layouts.ROLES, **named},
            system=system,
            tools=tools,
        )
