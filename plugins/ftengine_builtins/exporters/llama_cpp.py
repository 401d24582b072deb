"""llama.cpp's server for a GGUF file, run by the package xllamacpp in a separate process."""

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

TOP = 100
"""The server reports log-probabilities of this many likeliest tokens."""
PATIENCE = 600
"""Time limit in seconds for one answer, and for opening a file."""

SERVER = """import json, sys, xllamacpp

options = json.loads(sys.argv[1])
settings = xllamacpp.CommonParams()
settings.model.path = options["model"]
settings.n_ctx = options["context"]
settings.n_parallel = 1
settings.warmup = False
settings.ui = False
settings.port = 0
settings.verbosity = -1
settings.cpuparams.n_threads = settings.cpuparams_batch.n_threads = options["threads"]
if options["lora"]:
    settings.lora_adapters = [xllamacpp.CommonAdapterLoraInfo(options["lora"], 1.0)]
server = xllamacpp.Server(settings)
print("listening at", server.listening_address, flush=True)
sys.stdin.read()
"""
"""The program of the server's process, which runs until its input is closed. A file that crashes llama.cpp ends only
that process."""


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
        """Request one token after each prefix, as longer answers lack tokens of incomplete characters."""
        log_probabilities = []
        for at, token in enumerate(answer):
            request = {"prompt": [*ids, *answer[:at]], "n_predict": 1, "temperature": 0, "n_probs": TOP}
            steps = self._ask("completion", {**request, "ignore_eos": True}).get("completion_probabilities")
            reported = (
                {entry["id"]: entry["logprob"] for entry in steps[0]["top_logprobs"]} if steps else {token: math.nan}
            )
            log_probabilities.append(reported.get(token, min(reported.values())))
        return log_probabilities

    def answer(self, prompt: Prompt, max_new_tokens: int, options: Mapping[str, Any] | None = None) -> str:
        request: dict[str, Any] = {"temperature": 0, "max_tokens": max_new_tokens, "n_predict": max_new_tokens}
        request |= options or {}
        if prompt.messages is None:
            return self._ask("completion", {**request, "prompt": prompt.text})["content"]
        reply = self._ask("v1/chat/completions", {**request, "messages": list(prompt.messages)})
        return reply["choices"][0]["message"]["content"] or ""

    def _ask(self, path: str, content: dict[str, Any]) -> dict[str, Any]:
        request = Request(f"{self.address}/{path}", json.dumps(content).encode(), {"Content-Type": "application/json"})
        try:
            with urlopen(request, timeout=PATIENCE) as reply:
                return json.load(reply)
        except HTTPError as error:
            raise ExportDiffers(f"llama.cpp refuses request {path!r} for the exported file: {error}.") from None
        except (OSError, HTTPException, ValueError) as error:  # the connection failed, or the reply is incomplete
            reason = one_line(str(error)) or type(error).__name__
            raise ProgramFailed(f"llama.cpp did not answer request {path!r} within {PATIENCE} s: {reason}.") from None


@contextmanager
def served(file: Path, source: ExportSource, lora: Path | None = None) -> Iterator[LlamaCpp]:
    """Serve a file on this machine during the block.

    Raises:
        NoRuntime: xllamacpp is not installed.
        ProgramFailed: llama.cpp ended, or took longer than PATIENCE, before it opened the file.
    """
    import torch

    if importlib.util.find_spec("xllamacpp") is None:
        raise NoRuntime("xllamacpp, which runs GGUF files, is not installed: pip install xllamacpp.")
    settings = {
        "model": str(file),
        "context": min(source.max_length or 2048, 4096),
        "threads": torch.get_num_threads(),
        "lora": str(lora) if lora is not None else None,
    }
    with tempfile.TemporaryFile("w+", errors="replace") as log:
        process = subprocess.Popen(
            [sys.executable, "-c", SERVER, json.dumps(settings)],
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
    """Wait for a server to listen and return its address (ProgramFailed: it ended, or took too long)."""
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
    reason = f": {last[0]}" if last else ""
    raise ProgramFailed(f"llama.cpp ended before it opened the exported file (status {status}){reason}.")
