"""llama.cpp's own server in this process, by the package xllamacpp, as it answers from a GGUF file."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

from ftengine.api import ExportSource, Prompt
from ftengine.errors import ExportDiffers, NoRuntime

TOLD = 100
"""The likeliest tokens of which the server tells log-probabilities."""
PATIENCE = 600
"""Seconds for one answer."""


class LlamaCpp:
    """A running server."""

    def __init__(self, address: str) -> None:
        self.address = address
        self.name = f"llama.cpp (xllamacpp {version('xllamacpp')})"

    def encode(self, prompt: Prompt) -> list[int]:
        text = prompt.text
        if prompt.messages is not None:
            text = self._ask("apply-template", {"messages": list(prompt.messages)})["prompt"]
        return self._ask("tokenize", {"content": text, "add_special": True, "parse_special": True})["tokens"]

    def log_probabilities(self, ids: Sequence[int], answer: Sequence[int]) -> list[float]:
        """Ask for one token behind each part of the answer: of longer ones half a character's tokens are not told."""
        log_probabilities = []
        for at, wanted in enumerate(answer):
            asked = {"prompt": [*ids, *answer[:at]], "n_predict": 1, "temperature": 0, "n_probs": TOLD}
            steps = self._ask("completion", {**asked, "ignore_eos": True}).get("completion_probabilities")
            told = {one["id"]: one["logprob"] for one in steps[0]["top_logprobs"]} if steps else {wanted: math.nan}
            log_probabilities.append(told.get(wanted, min(told.values())))
        return log_probabilities

    def answer(self, prompt: Prompt, max_new_tokens: int) -> str:
        asked: dict[str, Any] = {"temperature": 0, "max_tokens": max_new_tokens, "n_predict": max_new_tokens}
        if prompt.messages is None:
            return self._ask("completion", {**asked, "prompt": prompt.text})["content"]
        told = self._ask("v1/chat/completions", {**asked, "messages": list(prompt.messages)})
        return told["choices"][0]["message"]["content"] or ""

    def _ask(self, path: str, content: dict[str, Any]) -> dict[str, Any]:
        request = Request(f"{self.address}/{path}", json.dumps(content).encode(), {"Content-Type": "application/json"})
        try:
            with urlopen(request, timeout=PATIENCE) as reply:
                return json.load(reply)
        except OSError as error:  # of the connection, and every status that is no success
            raise ExportDiffers(f"llama.cpp does not answer {path!r} from the exported file: {error}.") from None


@contextmanager
def served(file: Path, source: ExportSource, lora: Path | None = None) -> Iterator[LlamaCpp]:
    """Serve a file on this machine alone, for the time being (NoRuntime: xllamacpp is not installed)."""
    import torch

    try:
        import xllamacpp
    except ImportError:
        raise NoRuntime("xllamacpp, which runs GGUF files, is not installed: pip install xllamacpp.") from None
    settings = xllamacpp.CommonParams()
    settings.model.path = str(file)
    settings.n_ctx = min(source.max_length or 2048, 4096)
    settings.n_parallel = 1
    settings.warmup = False
    settings.ui = False
    settings.port = 0
    settings.verbosity = -1
    for one in (settings.cpuparams, settings.cpuparams_batch):
        one.n_threads = torch.get_num_threads()
    if lora is not None:
        settings.lora_adapters = [xllamacpp.CommonAdapterLoraInfo(str(lora), 1.0)]
    server = xllamacpp.Server(settings)
    try:
        yield LlamaCpp(server.listening_address)
    finally:
        del server
