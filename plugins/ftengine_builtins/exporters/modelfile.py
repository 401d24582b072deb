"""Ollama's Modelfile, as Ollama reads it: its template, system message and parameters.

Format: https://github.com/ollama/ollama/blob/main/docs/modelfile.md
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ftengine.errors import ExportDiffers

INSTRUCTION = re.compile(r'^[ \t]*([A-Za-z]+)[ \t]+(?:"""(.*?)"""|([^\n]*))', re.DOTALL | re.MULTILINE)
ACTION = re.compile(r"\{\{(-?)\s*(.*?)\s*(-?)\}\}", re.DOTALL)
NUMBER = re.compile(r"-?\d+(\.\d+)?")


@dataclass(frozen=True)
class Modelfile:
    """What a Modelfile says.

    Args:
        model: the file that FROM names.
        template: in Go's template language.
        system: the message in front of a conversation that begins with none; "" for none.
        parameters: by name; of `stop`, a sorted list.
    """

    model: str
    template: str
    system: str
    parameters: Mapping[str, Any]

    @classmethod
    def read(cls, text: str) -> Modelfile:
        """Read a Modelfile's text."""
        said: dict[str, str] = {}
        parameters: dict[str, Any] = {}
        for name, long, short in INSTRUCTION.findall(text):
            if name.upper() != "PARAMETER":
                said[name.upper()] = long or short
                continue
            key, _, value = short.strip().partition(" ")
            value = value.strip().removeprefix('"').removesuffix('"')
            if key == "stop":
                parameters["stop"] = sorted([*parameters.get("stop", []), value])
            else:
                parameters[key] = float(value) if NUMBER.fullmatch(value) else value
        return cls(said.get("FROM", ""), said.get("TEMPLATE", ""), said.get("SYSTEM", ""), parameters)

    def render(self, messages: Sequence[Mapping[str, str]]) -> str:
        """Return what the template writes of a conversation, up to the assistant's answer.

        Raises:
            ExportDiffers: the template does something else than to write roles and contents in a loop.
        """
        if self.system and messages[0]["role"] != "system":
            messages = [{"role": "system", "content": self.system}, *messages]
        before, loop, after = list[str](), list[str](), list[str]()
        part = before
        for action, text in self._pieces():
            if action == "range .Messages" and part is before:
                part = loop
            elif action == "end" and part is loop:
                part = after
            elif action in (".Role", ".Content") and part is loop:
                part.append(f"{{{{{action}}}}}")
            elif action:
                raise ExportDiffers(f"the Modelfile's template has an unknown {action!r}. Nothing was written.")
            part.append(text)
        turns = (
            "".join({"{{.Role}}": turn["role"], "{{.Content}}": turn["content"]}.get(one, one) for one in loop)
            for turn in messages
        )
        return "".join([*before, *turns, *after])

    def _pieces(self) -> Iterator[tuple[str, str]]:
        """Yield each action with the text behind it, without the blanks that its marks and the next one's trim."""
        found = list(ACTION.finditer(self.template))
        ends = [*(one.start() for one in found), len(self.template)]
        trims = [*(one[1] for one in found), ""]
        yield "", _trimmed(self.template[: ends[0]], "", trims[0])
        for one, end, trim in zip(found, ends[1:], trims[1:], strict=True):
            yield one[2], _trimmed(self.template[one.end() : end], one[3], trim)


def _trimmed(text: str, before: str, behind: str) -> str:
    text = text.lstrip() if before else text
    return text.rstrip() if behind else text
