"""Ollama: a GGUF file and the Modelfile by which `ollama create` takes it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from ftengine.api import Conversation, Exported, ExportSource, Message
from ftengine.errors import DataError, NotExportable
from ftengine_builtins.exporters.gguf import FILE, GgufConfig, GgufExporter

MODELFILE = "Modelfile"
USAGE = "ollama create NAME -f Modelfile"

CHATML = """{{- range .Messages }}<|im_start|>{{ .Role }}
{{ .Content }}<|im_end|>
{{ end }}<|im_start|>assistant
"""
"""ChatML in Go's template language, which Ollama has in place of Jinja."""

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
"""Conversations in which templates differ: blanks at ends, a system message or none, thoughts, signs of templates."""


class OllamaExporter(GgufExporter):
    """A GGUF file and a Modelfile with the template, stops, context and temperature of the evaluation."""

    name = "ollama"
    Config: ClassVar[type[GgufConfig]] = GgufConfig

    def check(self, source: ExportSource) -> None:
        """Refuse also a chat template that is not ChatML, and a LoRA alone."""
        super().check(source)
        if self.config.lora:
            raise NotExportable(
                "Ollama takes LoRA of few architectures. Leave lora out: the merged model runs everywhere."
            )
        default_system(source)

    def export(self, source: ExportSource, folder: Path) -> Exported:
        made = super().export(source, folder)
        (folder / MODELFILE).write_text(modelfile(source), encoding="utf-8")
        return Exported(made.noise, {**made.facts, "template": "ChatML, equal on 10 conversations"}, USAGE)


def modelfile(source: ExportSource) -> str:
    """Return the Modelfile: all that Ollama would otherwise set to defaults of its own."""
    system, turns = default_system(source), source.processor.convert_ids_to_tokens(list(source.stop))
    parameters: list[tuple[str, Any]] = [("stop", f'"{token}"') for token in turns]
    parameters += [
        ("num_ctx", source.max_length or 2048),
        ("temperature", source.generation.get("temperature", 0.0)),
        ("top_p", source.generation.get("top_p", 1.0)),
        ("repeat_penalty", 1.0),
    ]
    lines = [f"FROM ./{FILE}", f'TEMPLATE """{CHATML}"""', *([f'SYSTEM """{system}"""'] if system else [])]
    return "\n".join([*lines, *(f"PARAMETER {name} {value}" for name, value in parameters)]) + "\n"


def chatml(messages: Sequence[Mapping[str, str]], system: str) -> str:
    """Return what `CHATML` writes, and Ollama's SYSTEM where a conversation begins with none."""
    if system and messages[0]["role"] != "system":
        messages = [{"role": "system", "content": system}, *messages]
    turns = (f"<|im_start|>{turn['role']}\n{turn['content']}<|im_end|>\n" for turn in messages)
    return "".join(turns) + "<|im_start|>assistant\n"


def default_system(source: ExportSource) -> str:
    """Return the system message that the model's template writes by itself, "" for none.

    Raises:
        NotExportable: the template is not ChatML (a probe conversation has other tokens in it), or writes the day.
    """
    from ftengine.model import has_template, render

    processor = source.processor
    if not has_template(processor):
        raise NotExportable(
            f"the tokenizer of {source.base!r} has no chat template, so Ollama would have to guess one."
        )
    if "strftime_now" in str(processor.chat_template):
        raise NotExportable(
            f"the chat template of {source.base!r} writes today's date, which a Modelfile would fix. Export to "
            "gguf and serve that with llama.cpp, which runs the template itself."
        )
    try:
        first = render(processor, Conversation((Message("user", SHORT),)), prompt=True)
        head = first.removeprefix("<|im_start|>system\n")
        system = head.partition("<|im_end|>")[0] if head != first else ""
        for probe in PROBES:
            messages = [{"role": role, "content": content} for role, content in probe]
            ours = render(processor, Conversation(tuple(Message(role, text) for role, text in probe)), prompt=True)
            ids = [processor(text, add_special_tokens=False)["input_ids"] for text in (ours, chatml(messages, system))]
            if ids[0] != ids[1]:
                raise NotExportable(
                    f"the chat template of {source.base!r} is not ChatML, the only one that is known to be the same in "
                    f"Go: it writes {ours!r}. Export to gguf and serve that with llama.cpp, which runs the template "
                    "itself."
                )
    except DataError as error:
        raise NotExportable(f"the chat template of {source.base!r} refuses a conversation: {error}") from None
    return system
