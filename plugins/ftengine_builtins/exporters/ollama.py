"""Ollama: a GGUF file and a Modelfile for `ollama create`."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import takewhile
from pathlib import Path
from typing import Any, ClassVar

from ftengine.api import Conversation, Exported, ExportSource, Message, Prompt, Runtime
from ftengine.errors import DataError, ExportDiffers, NotExportable
from ftengine_builtins.exporters.gguf import FILE, GgufConfig, GgufExporter, sampling
from ftengine_builtins.exporters.settings import require_settings

MODELFILE = "Modelfile"
USAGE = "ollama create NAME -f Modelfile"

CHATML = """{{- range .Messages }}<|im_start|>{{ .Role }}
{{ .Content }}<|im_end|>
{{ end }}<|im_start|>assistant
"""
"""ChatML in Go's template language, which Ollama has in place of Jinja."""

PARAMETERS = {
    "temp": "temperature",
    "top_p": "top_p",
    "top_k": "top_k",
    "min_p": "min_p",
    "penalty_repeat": "repeat_penalty",
    "penalty_last_n": "repeat_last_n",
}
"""Sampling settings: llama.cpp's names, and Ollama's."""

SHORT = "Hi."
PROBES: tuple[tuple[tuple[str, str], ...], ...] = (
    (("user", SHORT),),
    (("user", "  Two  blanks and a\nline, no end "),),
    (("system", "You are brief."), ("user", SHORT)),
    (("user", SHORT), ("assistant", "Hello."), ("user", "Go on.")),
    (("system", "You are brief."), ("user", SHORT), ("assistant", "Hello."), ("user", "Go on.")),
    (("user", "Ünïcödé, 漢字, emoji 🙂"),),
    (("user", "<b>{{ .Content }} {% x %}</b>"),),
    (("user", "1"), ("assistant", "2"), ("user", "3"), ("assistant", "4"), ("user", "5")),
    (("system", " \n"), ("user", SHORT)),
    (("user", SHORT), ("assistant", "<think>\nA thought.\n</think>\n\nHello."), ("user", "Go on.")),
)
"""Conversations that show differences of templates: blanks, system messages, thoughts, template syntax."""


class OllamaExporter(GgufExporter):
    """A GGUF file and a Modelfile with the template, stops, context and temperature of the evaluation."""

    name = "ollama"
    Config: ClassVar[type[GgufConfig]] = GgufConfig

    def check(self, source: ExportSource) -> None:
        """Also refuse a chat template that is not ChatML, and a LoRA without its base."""
        super().check(source)
        if self.config.lora:
            raise NotExportable(
                "Ollama supports LoRA only for few architectures. Leave lora out to export the merged model."
            )
        default_system(source)

    def export(self, source: ExportSource, folder: Path) -> Exported:
        made = super().export(source, folder)
        (folder / MODELFILE).write_text(modelfile(source), encoding="utf-8")
        return Exported(made.noise, {**made.facts, "template": "ChatML, equal on 10 conversations"}, USAGE, "gguf")

    def check_artifact(self, folder: Path, source: ExportSource) -> None:
        """Also refuse a Modelfile with another template, system message or other parameters."""
        super().check_artifact(folder, source)
        require_measured(read_modelfile(folder), source)

    @contextmanager
    def open(self, folder: Path, source: ExportSource) -> Iterator[Runtime]:
        """Serve the GGUF file with llama.cpp, with the Modelfile's template and parameters."""
        with super().open(folder, source) as served:
            yield AsOllama(read_modelfile(folder), served)


class AsOllama(Runtime):
    """llama.cpp's server, with the template, the system message and the parameters of a Modelfile."""

    def __init__(self, modelfile: Modelfile, served: Any) -> None:
        self.modelfile, self._served = modelfile, served
        self.name = f"{served.name}, as the Modelfile says"

    def log_probabilities(self, ids: Sequence[int], answer: Sequence[int]) -> Sequence[float]:
        return self._served.log_probabilities(ids, answer)

    def encode(self, prompt: Prompt) -> list[int]:
        return self._served.encode(self._as_text(prompt))

    def answer(self, prompt: Prompt, max_new_tokens: int) -> str:
        own = self.modelfile.parameters
        # Answers are compared greedily; `check_artifact` compares the sampling settings.
        options = {name: own[name] for name in ("stop", "repeat_penalty", "repeat_last_n") if name in own}
        return self._served.answer(self._as_text(prompt), max_new_tokens, options)

    def _as_text(self, prompt: Prompt) -> Prompt:
        text = prompt.text if prompt.messages is None else self.modelfile.render(prompt.messages)
        return replace(prompt, messages=None, text=text)


def read_modelfile(folder: Path) -> Modelfile:
    """Read the Modelfile in a folder."""
    return Modelfile.read((folder / MODELFILE).read_text(encoding="utf-8"))


def require_measured(written: Modelfile, source: ExportSource) -> None:
    """Refuse a Modelfile whose parameters or conversations differ from the measured ones (ExportDiffers)."""
    expected = Modelfile.read(modelfile(source))
    require_settings(
        MODELFILE, {"FROM": written.model, **written.parameters}, {"FROM": expected.model, **expected.parameters}
    )
    for probe in PROBES:
        messages = [{"role": role, "content": content} for role, content in probe]
        theirs, ours = (file.render(messages) for file in (written, expected))
        if theirs != ours:
            at = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(theirs, ours, strict=False)))
            start = max(0, at - 12)
            raise ExportDiffers(
                f"the {MODELFILE} writes {theirs[start : at + 12]!r} where {ours[start : at + 12]!r} was measured, "
                f"after {start} characters of a conversation of {len(messages)} messages: its template or system "
                "message differs. Nothing was written."
            )


def modelfile(source: ExportSource) -> str:
    """Return the Modelfile, with every setting that Ollama would otherwise choose itself."""
    system, turns = default_system(source), source.processor.convert_ids_to_tokens(list(source.stop))
    sampled = sampling(source)
    parameters: list[tuple[str, Any]] = [("stop", f'"{token}"') for token in turns]
    parameters += [("num_ctx", source.max_length or 2048)]
    parameters += [(theirs, sampled[ours]) for ours, theirs in PARAMETERS.items()]
    lines = [f"FROM ./{FILE}", f'TEMPLATE """{CHATML}"""', *([f'SYSTEM """{system}"""'] if system else [])]
    return "\n".join([*lines, *(f"PARAMETER {name} {value}" for name, value in parameters)]) + "\n"


def default_system(source: ExportSource) -> str:
    """Return the default system message of the model's template; "" if it has none.

    Raises:
        NotExportable: the template is not ChatML (a conversation of PROBES has other tokens), or writes the date.
    """
    from ftengine.chat import has_template, render

    processor = source.processor
    if not has_template(processor):
        raise NotExportable(
            f"the tokenizer of {source.base!r} has no chat template, and Ollama would guess one. Export to gguf."
        )
    if "strftime_now" in str(processor.chat_template):
        raise NotExportable(
            f"the chat template of {source.base!r} writes today's date, but a Modelfile is fixed. Export to "
            "gguf and serve that with llama.cpp, which runs the template itself."
        )
    try:
        first = render(processor, Conversation((Message("user", SHORT),)), prompt=True)
        head = first.removeprefix("<|im_start|>system\n")
        system = head.partition("<|im_end|>")[0] if head != first else ""
        written = Modelfile("", CHATML, system, {})
        for probe in PROBES:
            messages = [{"role": role, "content": content} for role, content in probe]
            ours = render(processor, Conversation(tuple(Message(role, text) for role, text in probe)), prompt=True)
            ids = [processor(text, add_special_tokens=False)["input_ids"] for text in (ours, written.render(messages))]
            if ids[0] != ids[1]:
                raise NotExportable(
                    f"the chat template of {source.base!r} is not ChatML, the only one that this exporter can write in "
                    f"Go: it writes {ours!r}. Export to gguf and serve that with llama.cpp, which runs the template "
                    "itself."
                )
    except DataError as error:
        raise NotExportable(f"the chat template of {source.base!r} refuses a conversation: {error}") from None
    return system


INSTRUCTION = re.compile(r'^[ \t]*([A-Za-z]+)[ \t]+(?:"""(.*?)"""|([^\n]*))', re.DOTALL | re.MULTILINE)
ACTION = re.compile(r"\{\{(-?)\s*(.*?)\s*(-?)\}\}", re.DOTALL)
NUMBER = re.compile(r"-?\d+(\.\d+)?")


@dataclass(frozen=True)
class Modelfile:
    """The content of a Modelfile (https://github.com/ollama/ollama/blob/main/docs/modelfile.md).

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
