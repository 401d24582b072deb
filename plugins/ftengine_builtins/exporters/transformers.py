"""A plain transformers folder, as transformers, vLLM, SGLang and TGI serve it."""

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
"""What rounding the weights is taken to explain of a token's log-probability, in the mean."""

TEMPLATE_FILE = "chat_template.jinja"


class TransformersConfig(Config):
    """Options of exporter transformers."""

    dtype: Literal["auto", "float32", "float16", "bfloat16"] = Field(
        "auto", description="of the merged weights; auto keeps the base's"
    )


class TransformersExporter(Exporter):
    """The merged model as a plain transformers folder, with every end token, and the template where servers read it."""

    name = "transformers"
    Config = TransformersConfig

    def check(self, source: ExportSource) -> None:
        """Refuse a model of another library, and a strategy that has no merged form."""
        if not hasattr(source.module, "save_pretrained"):
            raise NotExportable(
                f"{type(source.module).__name__} is no model of transformers. Use `ftengine merge`, which writes it as "
                "its own library opens it."
            )
        source.check_merge()

    def export(self, source: ExportSource, folder: Path) -> Exported:
        merged = source.merged(self.config.dtype)
        shutil.copytree(merged, folder, copy_function=_linked, dirs_exist_ok=True)
        if source.stop:
            write_generation(folder / "generation_config.json", source)
        if (folder / TEMPLATE_FILE).is_file():  # older programs read it in tokenizer_config.json alone
            template = (folder / TEMPLATE_FILE).read_text(encoding="utf-8")
            rewrite(folder / "tokenizer_config.json", {"chat_template": template})
        dtype = read(folder / "config.json").get("dtype", "float32")
        return Exported(NOISE[dtype], {"dtype": dtype, "end_tokens": list(source.stop)}, usage(source), self.name)

    def check_artifact(self, folder: Path, source: ExportSource) -> None:
        """Refuse other tensors, and another config.json, than those of the merged model."""
        merged = source.merged(self.config.dtype)
        require_settings("config.json", *(read(one / "config.json") for one in (folder, merged)))
        require_tensors(folder, merged)

    @contextmanager
    def open(self, folder: Path, source: ExportSource) -> Iterator[Runtime]:
        """Open the folder with transformers alone."""
        import torch
        from transformers import AutoConfig

        from ftengine.model import open_model

        module, wrong = open_model(folder, torch.float32)
        if wrong:
            raise NotExportable(f"{str(folder)!r} lacks, or holds beyond the model, {len(wrong):,} keys: {wrong[0]!r}.")
        AutoConfig.from_pretrained(folder, local_files_only=True)  # as every server does first
        yield Runtime(model=LoadedModel(module, processor_of(folder, source.processor), str(folder), source.head))


def write_generation(file: Path, source: ExportSource) -> None:
    """Write the generation settings that were measured, and every token that ends an answer."""
    from ftengine.model import measured_settings

    settings = {**measured_settings(read(file), source.generation), "eos_token_id": _one_or_all(source.stop)}
    file.write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")


def usage(source: ExportSource) -> str:
    """Return Python that loads the folder."""
    kind, processor = type(source.module).__name__, _processor_kind(source.processor)
    return (
        f'from transformers import {processor}, {kind}\n\nmodel = {kind}.from_pretrained("FOLDER")\n'
        f'processor = {processor}.from_pretrained("FOLDER")'
    )


def require_tensors(folder: Path, merged: Path) -> None:
    """Refuse (ExportDiffers) a folder of which a tensor is not that of the merged one, to the bit."""
    import torch

    from ftengine.model import read_tensors

    for file in sorted(merged.glob("*.safetensors")):
        own = folder / file.name
        if own.is_file() and own.samefile(file):
            continue
        found, wanted = read_tensors(own) if own.is_file() else {}, read_tensors(file)
        for name, tensor in wanted.items():
            other = found.get(name)
            if other is None or other.dtype != tensor.dtype or not torch.equal(other, tensor):
                raise ExportDiffers(f"{name!r} in {file.name} is not that of the merged model. Nothing was written.")


def processor_of(folder: Path, like: Any) -> Any:
    """Open the tokenizer, or image processor, that lies in a folder."""
    import transformers

    return getattr(transformers, _processor_kind(like)).from_pretrained(folder, local_files_only=True)


def _processor_kind(like: Any) -> str:
    return "AutoTokenizer" if hasattr(like, "eos_token_id") else "AutoImageProcessor"


def _one_or_all(tokens: tuple[int, ...]) -> int | list[int]:
    return tokens[0] if len(tokens) == 1 else sorted(tokens)


def _linked(source: str, target: str) -> None:
    """Have a file in a second place, without a second copy where the file system can; JSON is rewritten, so copied."""
    if source.endswith(".safetensors"):
        try:
            os.link(source, target)
            return
        except OSError:
            pass
    shutil.copy2(source, target)


def read(file: Path) -> dict[str, Any]:
    """Return a JSON file's keys; none where there is no such file."""
    return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}


def rewrite(file: Path, settings: dict[str, Any]) -> None:
    """Set keys of a JSON file; the others stay."""
    text = json.dumps({**read(file), **settings}, indent=2, ensure_ascii=False)
    file.write_text(text + "\n", encoding="utf-8")
