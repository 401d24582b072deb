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
    """The content of a Modelfile.

    Args:
        model: the file of FROM.
        template: the prompt template, in Go's template language.
        system: the system message of a conversation that has none; "" for none.
        parameters: parameters by name; `stop` is a sorted list.
    """

    model: str
    template: str
    system: str
    parameters: Mapping[str, Any]

    @classmethod
    def read(cls, text: str) -> Modelfile:
        """Read a Modelfile's text."""
        instructions: dict[str, str] = {}
        parameters: dict[str, Any] = {}
        for name, long, short in INSTRUCTION.findall(text):
            if name.upper() != "PARAMETER":
                instructions[name.upper()] = long or short
                continue
            key, _, value = short.strip().partition(" ")
            value = value.strip().removeprefix('"').removesuffix('"')
            if key == "stop":
                parameters["stop"] = sorted([*parameters.get("stop", []), value])
            else:
                parameters[key] = float(value) if NUMBER.fullmatch(value) else value
        return cls(
            instructions.get("FROM", ""), instructions.get("TEMPLATE", ""), instructions.get("SYSTEM", ""), parameters
        )

    def render(self, messages: Sequence[Mapping[str, str]]) -> str:
        """Return the template's text of a conversation, up to the assistant's answer.

        Raises:
            ExportDiffers: the template does more than write roles and contents in a loop.
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
                raise ExportDiffers(f"the Modelfile's template has an unknown action {action!r}. Nothing was written.")
            part.append(text)
        turns = (
            "".join({"{{.Role}}": turn["role"], "{{.Content}}": turn["content"]}.get(piece, piece) for piece in loop)
            for turn in messages
        )
        return "".join([*before, *turns, *after])

    def _pieces(self) -> Iterator[tuple[str, str]]:
        """Yield each action with the text after it, without blanks that trim markers remove."""
        actions = list(ACTION.finditer(self.template))
        ends = [*(action.start() for action in actions), len(self.template)]
        trims = [*(action[1] for action in actions), ""]
        yield "", _trimmed(self.template[: ends[0]], "", trims[0])
        for action, end, trim in zip(actions, ends[1:], trims[1:], strict=True):
            yield action[2], _trimmed(self.template[action.end() : end], action[3], trim)


def _trimmed(text: str, before: str, behind: str) -> str:
    text = text.lstrip() if before else text
    return text.rstrip() if behind else text
