"""A plain transformers folder for transformers, vLLM, SGLang and TGI."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from ftengine.api import Config, Exported, Exporter, ExportSource, LoadedModel, Runtime
from ftengine.errors import ExportDiffers, NotExportable
from ftengine_builtins.exporters.settings import require_settings

NOISE = {"float32": 1e-3, "float16": 2e-2, "bfloat16": 1e-1}
"""Mean difference of a token's log-probability that rounding of the weights may explain, by dtype."""

TEMPLATE_FILE = "chat_template.jinja"


class TransformersConfig(Config):
    """Options of exporter transformers."""

    dtype: Literal["auto", "float32", "float16", "bfloat16"] = Field(
        "auto", description="dtype of the merged weights; auto keeps the base's"
    )


class TransformersExporter(Exporter):
    """The merged model as a plain transformers folder, with all end tokens and the chat template."""

    name = "transformers"
    Config = TransformersConfig

    def check(self, source: ExportSource) -> None:
        """Refuse a model of another library, and a strategy that cannot be merged."""
        if not hasattr(source.module, "save_pretrained"):
            raise NotExportable(
                f"{type(source.module).__name__} is not a transformers model. Use `ftengine merge`, which writes it in "
                "the format of its own library."
            )
        source.check_merge()

    def export(self, source: ExportSource, folder: Path) -> Exported:
        merged = source.merged(self.config.dtype)
        shutil.copytree(merged, folder, copy_function=_linked, dirs_exist_ok=True)
        if source.stop:
            write_generation(folder / "generation_config.json", source)
        if (folder / TEMPLATE_FILE).is_file():  # older programs read it only from tokenizer_config.json
            template = (folder / TEMPLATE_FILE).read_text(encoding="utf-8")
            rewrite(folder / "tokenizer_config.json", {"chat_template": template})
        dtype = read(folder / "config.json").get("dtype", "float32")
        return Exported(NOISE[dtype], {"dtype": dtype, "end_tokens": list(source.stop)}, usage(source), self.name)

    def check_artifact(self, folder: Path, source: ExportSource) -> None:
        """Refuse tensors and a config.json that differ from the merged model's."""
        merged = source.merged(self.config.dtype)
        require_settings("config.json", *(read(place / "config.json") for place in (folder, merged)))
        require_tensors(folder, merged)

    @contextmanager
    def open(self, folder: Path, source: ExportSource) -> Iterator[Runtime]:
        """Open the folder with plain transformers."""
        import torch
        from transformers import AutoConfig

        from ftengine.model import open_model

        module, wrong = open_model(folder, torch.float32)
        if wrong:
            raise NotExportable(
                f"{str(folder)!r} has {len(wrong):,} missing or unexpected tensors, such as {wrong[0]!r}."
            )
        AutoConfig.from_pretrained(folder, local_files_only=True)  # as every server does first
        yield Runtime(model=LoadedModel(module, processor_of(folder, source.processor), str(folder), source.head))


def write_generation(file: Path, source: ExportSource) -> None:
    """Write the measured generation settings with all end tokens."""
    from ftengine.generation import measured_settings

    settings = {**measured_settings(read(file), source.generation), "eos_token_id": _one_or_all(source.stop)}
    file.write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")


def usage(source: ExportSource) -> str:
    """Return Python code that loads the folder."""
    kind, processor = type(source.module).__name__, _processor_kind(source.processor)
    return (
        f'from transformers import {processor}, {kind}\n\nmodel = {kind}.from_pretrained("FOLDER")\n'
        f'processor = {processor}.from_pretrained("FOLDER")'
    )


def require_tensors(folder: Path, merged: Path) -> None:
    """Refuse a folder with a tensor that is not bitwise equal to the merged one (ExportDiffers)."""
    import torch

    from ftengine.model import read_tensors

    for file in sorted(merged.glob("*.safetensors")):
        own = folder / file.name
        if own.is_file() and own.samefile(file):
            continue
        written, expected = read_tensors(own) if own.is_file() else {}, read_tensors(file)
        for name, tensor in expected.items():
            other = written.get(name)
            if other is None or other.dtype != tensor.dtype or not torch.equal(other, tensor):
                raise ExportDiffers(f"{name!r} in {file.name} differs from the merged model's. Nothing was written.")


def processor_of(folder: Path, like: Any) -> Any:
    """Open the tokenizer, or whatever processor the run has (`like`), in a folder."""
    import transformers

    return getattr(transformers, _processor_kind(like)).from_pretrained(folder, local_files_only=True)


def _processor_kind(like: Any) -> str:
    if hasattr(like, "tokenizer"):  # beside a feature extractor or an image processor
        return "AutoProcessor"
    if hasattr(like, "eos_token_id"):
        return "AutoTokenizer"
    return "AutoFeatureExtractor" if hasattr(like, "sampling_rate") else "AutoImageProcessor"


def _one_or_all(tokens: tuple[int, ...]) -> int | list[int]:
    return tokens[0] if len(tokens) == 1 else sorted(tokens)


def _linked(source: str, target: str) -> None:
    """Hard-link safetensors files if the file system can, and copy other files, as JSON will be rewritten."""
    if source.endswith(".safetensors"):
        try:
            os.link(source, target)
            return
        except OSError:
            pass
    shutil.copy2(source, target)


def read(file: Path) -> dict[str, Any]:
    """Return a JSON file's content; {} if the file does not exist."""
    return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}


def rewrite(file: Path, settings: dict[str, Any]) -> None:
    """Set keys of a JSON file; other keys stay."""
    text = json.dumps({**read(file), **settings}, indent=2, ensure_ascii=False)
    file.write_text(text + "\n", encoding="utf-8")
