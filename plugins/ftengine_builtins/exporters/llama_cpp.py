"""llama.cpp's own server in a process of its own, by the package xllamacpp, as it answers from a GGUF file."""

from __future__ import annotations

import importlib.util
import json
import math
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from http.client import HTTPException
from importlib.metadata import version
from pathlib import Path
from threading import Timer
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

from ftengine.api import ExportSource, Prompt, Runtime
from ftengine.errors import ExportDiffers, NoRuntime, ProgramFailed
from ftengine.text import one_line

TOLD = 100
"""The likeliest tokens of which the server tells log-probabilities."""
PATIENCE = 600
"""Seconds for one answer, and for opening a file."""

SERVER = """import json, sys, xllamacpp

given = json.loads(sys.argv[1])
settings = xllamacpp.CommonParams()
settings.model.path = given["model"]
settings.n_ctx = given["context"]
settings.n_parallel = 1
settings.warmup = False
settings.ui = False
settings.port = 0
settings.verbosity = -1
settings.cpuparams.n_threads = settings.cpuparams_batch.n_threads = given["threads"]
if given["lora"]:
    settings.lora_adapters = [xllamacpp.CommonAdapterLoraInfo(given["lora"], 1.0)]
server = xllamacpp.Server(settings)
print("listening at", server.listening_address, flush=True)
sys.stdin.read()
"""
"""What the other process runs, until its input is closed: a file that ends llama.cpp does not end this process."""


class LlamaCpp(Runtime):
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

    def answer(self, prompt: Prompt, max_new_tokens: int, options: Mapping[str, Any] | None = None) -> str:
        asked: dict[str, Any] = {"temperature": 0, "max_tokens": max_new_tokens, "n_predict": max_new_tokens}
        asked |= options or {}
        if prompt.messages is None:
            return self._ask("completion", {**asked, "prompt": prompt.text})["content"]
        told = self._ask("v1/chat/completions", {**asked, "messages": list(prompt.messages)})
        return told["choices"][0]["message"]["content"] or ""

    def _ask(self, path: str, content: dict[str, Any]) -> dict[str, Any]:
        request = Request(f"{self.address}/{path}", json.dumps(content).encode(), {"Content-Type": "application/json"})
        try:
            with urlopen(request, timeout=PATIENCE) as reply:
                return json.load(reply)
        except HTTPError as error:
            raise ExportDiffers(f"llama.cpp refuses {path!r} of the exported file: {error}.") from None
        except (OSError, HTTPException, ValueError) as error:  # of the connection, or an answer that is cut off
            said = one_line(str(error)) or type(error).__name__
            raise ProgramFailed(f"llama.cpp does not answer {path!r} (in at most {PATIENCE} s): {said}.") from None


@contextmanager
def served(file: Path, source: ExportSource, lora: Path | None = None) -> Iterator[LlamaCpp]:
    """Serve a file on this machine alone, for the time being.

    Raises:
        NoRuntime: xllamacpp is not installed.
        ProgramFailed: it ends, or takes too long, before it has opened the file.
    """
    import torch

    if importlib.util.find_spec("xllamacpp") is None:
        raise NoRuntime("xllamacpp, which runs GGUF files, is not installed: pip install xllamacpp.")
    given = {
        "model": str(file),
        "context": min(source.max_length or 2048, 4096),
        "threads": torch.get_num_threads(),
        "lora": str(lora) if lora is not None else None,
    }
    with tempfile.TemporaryFile("w+", errors="replace") as log:
        process = subprocess.Popen(
            [sys.executable, "-c", SERVER, json.dumps(given)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
        )
        try:
            yield LlamaCpp(_address(process, log))
        finally:
            process.kill()
            process.communicate()


def _address(process: subprocess.Popen[str], log: Any) -> str:
    """Return where a server that was started listens, once it does (ProgramFailed: it ended, or takes too long)."""
    assert process.stdout is not None
    too_long = Timer(PATIENCE, process.kill)
    too_long.start()
    try:
        for line in process.stdout:
            if line.startswith("listening at "):
                return line.split()[-1]
    finally:
        too_long.cancel()
    status = process.wait()
    log.seek(0)
    last = [one_line(line) for line in log.read().splitlines() if line.strip()][-1:]
    said = f": {last[0]}" if last else ""
    raise ProgramFailed(f"llama.cpp ended before it had opened the exported file (status {status}){said}.")
