"""Rows with pictures, in the layouts that people have, as one form: messages whose parts are text or a picture."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ftengine.api import Example, Recognised, beside
from ftengine.chat import read_conversation
from ftengine.errors import DataError, shown

MARK = re.compile(r"\n?<image>\n?")
"""Where LLaVA, LlamaFactory and ms-swift put a picture into a text."""
COLUMNS = ("images", "image")
MESSAGES = ("messages", "conversations", "prompt", "completion", "chosen", "rejected")
"""Columns that may hold messages with pictures in their parts."""
ROLES = {"human": "user", "gpt": "assistant", "user": "user", "assistant": "assistant", "system": "system"}


@dataclass(frozen=True)
class Turn:
    """One message: its role, and parts that are texts (str) or None where the next picture stands."""

    role: str
    parts: tuple[str | None, ...]

    @property
    def text(self) -> str:
        """The text without pictures."""
        return "\n".join(part for part in self.parts if part is not None)

    @property
    def pictures(self) -> int:
        """Number of pictures in the message."""
        return sum(part is None for part in self.parts)


@dataclass(frozen=True)
class Dialogue:
    """A conversation with pictures.

    Args:
        turns: the messages.
        pictures: in the order in which they stand in the messages: values that `open_picture` takes.
    """

    turns: tuple[Turn, ...]
    pictures: tuple[Any, ...]

    def messages(self, turns: int | None = None) -> list[dict[str, Any]]:
        """Return the first messages (None: all) as a processor's chat template reads them."""
        return [
            {
                "role": turn.role,
                "content": [
                    {"type": "image"} if part is None else {"type": "text", "text": part} for part in turn.parts
                ],
            }
            for turn in self.turns[:turns]
        ]

    def sent(self, urls: Iterable[str]) -> list[dict[str, Any]]:
        """Return the messages as OpenAI's API takes them, with these URLs of the pictures."""
        left = iter(urls)
        return [
            {
                "role": turn.role,
                "content": [
                    {"type": "image_url", "image_url": {"url": next(left)}}
                    if part is None
                    else {"type": "text", "text": part}
                    for part in turn.parts
                ]
                if turn.pictures
                else turn.text,
            }
            for turn in self.turns
        ]

    def pictures_of(self, turns: int) -> tuple[Any, ...]:
        """Return the pictures of the first messages."""
        return self.pictures[: sum(turn.pictures for turn in self.turns[:turns])]


def read_dialogue(row: Example) -> Dialogue:
    """Read a row: `messages`, `conversations` (LLaVA, ShareGPT), or `prompt` with `completion`.

    Pictures stand in parts, or in the column `images` or `image` with `<image>` marks or parts {"type": "image"}.

    Pictures that no mark places stand before the first text of the user, as in TRL.

    Raises:
        DataError: a message is malformed, or marks and pictures differ in number.
    """
    turns, inline = list[Turn](), list[Any]()
    for number, message in enumerate(_messages(row), 1):
        role, content = message
        parts = list[str | None]()
        for part in [{"type": "text", "text": content}] if isinstance(content, str) else content:
            if part["type"] == "text":
                parts += _split(str(part["text"]))
            else:
                parts.append(None)
                if (value := _value_of(part, number)) is not None:
                    inline.append(value)
        turns.append(Turn(role, tuple(parts)))
    column, placed = pictures_column(row), sum(turn.pictures for turn in turns)
    if inline and column:
        raise DataError("the row has pictures in its messages and in a column as well; give them in one of the two.")
    pictures = inline or column
    if not placed and pictures:
        first = next((i for i, turn in enumerate(turns) if turn.role == "user"), None)
        if first is None:
            raise DataError("the row has pictures and no message of the user that they belong to.")
        turns[first] = Turn("user", (*[None] * len(pictures), *turns[first].parts))
    elif placed != len(pictures):
        raise DataError(
            f"the messages have {placed} places of pictures (<image> marks, parts of type image), and the row has "
            f"{len(pictures)} pictures. Give each place one."
        )
    return Dialogue(tuple(turns), tuple(pictures))


def pictures_column(row: Example) -> list[Any]:
    """Return the pictures of the column `images` or `image`; [] where there are none."""
    for column in COLUMNS:
        value = row.get(column)
        if value is not None and value != []:
            return list(value) if isinstance(value, Sequence) and not isinstance(value, (str, bytes)) else [value]
    return []


def with_paths(row: Example, folder: str, *, inside: bool) -> Example:
    """Return a row of a data file in `folder`, the paths of its pictures relative to the working directory.

    Args:
        inside: whether a path that leads out of the folder becomes what `open_picture` refuses.
    """
    moved = {column: beside(row[column], folder, inside=inside) for column in COLUMNS if column in row}
    for column in MESSAGES:
        if isinstance(messages := row.get(column), list):
            moved[column] = [_with_paths(message, folder, inside) for message in messages]
    return {**row, **moved}


def _with_paths(message: Any, folder: str, inside: bool) -> Any:
    """Return a message whose parts name pictures relative to the working directory."""
    if not isinstance(message, Mapping):
        return message
    held = {key: message[key] for key in ("content", "value") if isinstance(message.get(key), list)}
    return {**message, **{key: _parts_with_paths(parts, folder, inside) for key, parts in held.items()}}


def _parts_with_paths(values: list[Any], folder: str, inside: bool) -> list[Any]:
    """Return parts of a message, and parts in them (results of tools), that name pictures in the same way."""
    parts = []
    for part in values:
        if isinstance(part, Mapping) and part.get("type") in ("image", "image_url"):
            url = part.get("image_url")
            named = {key: beside(part[key], folder, inside=inside) for key in ("image", "path", "url") if key in part}
            if url is not None:
                url = url if isinstance(url, Mapping) else {"url": url}
                named["image_url"] = {**url, "url": beside(url.get("url"), folder, inside=inside)}
            part = {**part, **named}
        parts.append(_with_paths(part, folder, inside))
    return parts


def recognise_pictures(columns: Sequence[str], rows: Sequence[Example]) -> Recognised | None:
    """See rows with pictures and conversations, or a question and an answer about a picture."""
    if not any(column in columns for column in COLUMNS) and not _has_parts(rows):
        return None
    if "messages" in columns or "conversations" in columns or {"prompt", "completion"} <= set(columns):
        return Recognised(3)
    if {"question", "answer"} <= set(columns):
        return Recognised(3, {"prompt": "question", "completion": "answer"})
    return None


def _has_parts(rows: Sequence[Example]) -> bool:
    """Return whether messages of a row have parts that are pictures; LLaVA's and ShareGPT's are in `value`."""
    return any(
        isinstance(part, Mapping) and part.get("type") in ("image", "image_url")
        for row in rows
        for column in ("messages", "conversations", "prompt")
        if isinstance(messages := row.get(column), list)
        for message in messages
        if isinstance(message, Mapping)
        for key in ("content", "value")
        if isinstance(parts := message.get(key), list)
        for part in parts
    )


def _messages(row: Example) -> list[tuple[str, Any]]:
    """Return (role, content) of each message; content is text or parts."""
    if row.get("messages") is None and row.get("conversations") is not None:
        values = row["conversations"]
        if (
            not isinstance(values, Sequence)
            or isinstance(values, str)
            or not all(isinstance(v, Mapping) for v in values)
        ):
            raise DataError(f"`conversations` is {shown(values)}; it must be a list of {{from, value}}.")
        row = {
            "messages": [
                {"role": ROLES.get(str(v.get("from")), v.get("from")), "content": v.get("value")} if "from" in v else v
                for v in values
            ]
        }
    conversation = read_conversation(row)
    if conversation.tools or any(message.calls or message.thought for message in conversation.messages):
        raise DataError("the conversation has tools or thoughts, which task image-text-to-text does not write.")
    return [(message.role, message.content) for message in conversation.messages]


def _split(text: str) -> list[str | None]:
    """Split a text at its marks of pictures."""
    pieces = MARK.split(text)
    parts: list[str | None] = []
    for i, piece in enumerate(pieces):
        parts += ([None] if i else []) + ([piece] if piece else [])
    return parts or [""]


def _value_of(part: Mapping[str, Any], number: int) -> Any:
    """Return the picture of a part; None where it stands in the row's column (DataError: another kind of part)."""
    kind = part["type"]
    if kind not in ("image", "image_url"):
        raise DataError(f"message {number} has a part of type {kind!r}; task image-text-to-text reads text and images.")
    if kind == "image_url":
        value = part.get("image_url")
        value = value.get("url") if isinstance(value, Mapping) else value
        if value is None:
            raise DataError(f"message {number}: a part image_url has no url.")
        return value
    if isinstance(part.get("base64"), str):
        return f"data:image/png;base64,{part['base64']}"
    return next((part[key] for key in ("image", "path", "url", "bytes") if part.get(key) is not None), None)
