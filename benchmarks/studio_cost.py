"""What a page of ftengine studio costs: the time of a training step while it is open, and of 20,000 rows of data.

    python benchmarks/studio_cost.py training --json FILE
    python benchmarks/studio_cost.py rows --json FILE

`training`: one LoRA run, in which a page is open during every second block of steps, drawn for each pair of blocks:
ratios of a step's time and of the training process's processor time, which other load disturbs less, and what the
server takes. The server is a process of its own; the page is asked for as its script does (`--client http`), or open in
Chromium. `rows`: what Chromium paints first, when the first rows are there, and the server's memory. Both need what
ftengine-studio does.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

import numpy as np
import psutil

from ftengine import Recipe, fine_tune
from ftengine.api import SilentListener
from ftengine.run.environment import hardware, versions
from ftengine.testing.models import tiny_llama
from ftengine_bench.timing import spread

EVERY = 1.0
"""Seconds between two requests of the page's script."""
DRAWN = 2000
"""Resamples of pairs of blocks."""
WORDS = [f"{a}{b}{c}{d}" for a in "bdklmnprst" for b in "aeiou" for c in "lnrst" for d in "aeio"]


def write_rows(file: Path, count: int, most: int = 60) -> Path:
    """Write prompts and completions of 5 to `most` made-up words."""
    rng = random.Random(0)
    with open(file, "w", encoding="utf-8") as opened:
        for _ in range(count):
            prompt, completion = (" ".join(rng.choices(WORDS, k=rng.randrange(5, most))) for _ in range(2))
            opened.write(json.dumps({"prompt": prompt, "completion": completion}) + "\n")
    return file


def write_model(folder: Path, **config: int) -> Path:
    """Write a small Llama that knows nothing."""
    for part in tiny_llama(**config):
        part.save_pretrained(folder)
    return folder


@contextmanager
def studio(run: Path) -> Iterator[tuple[psutil.Process, str]]:
    """Serve a run; yield the server's process and the page's address."""
    command = [sys.executable, "-m", "ftengine", "studio", str(run)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as server:
        assert server.stdout is not None
        found = re.search(r"http://\S+", server.stdout.readline())
        if found is None:
            sys.exit("`ftengine studio` did not start: is ftengine-studio installed here?")
        try:
            yield psutil.Process(server.pid), found[0]
        finally:
            server.terminate()


@contextmanager
def chromium() -> Iterator[Any]:
    """Open a page of the machine's Chromium."""
    from playwright.sync_api import sync_playwright

    path = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))))
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=path, args=["--no-sandbox", "--disable-gpu"])
        yield browser.new_page(viewport={"width": 1280, "height": 900})
        browser.close()


def follow(address: str, kind: str) -> None:
    """Open the page after a line "open" of stdin, and close it after any other line, until there is no more."""
    with chromium() if kind == "browser" else Polling(address) as page:
        for line in sys.stdin:
            page.goto(f"{address}#runs" if line.strip() == "open" else "about:blank")
            print("done", flush=True)


class Polling:
    """Asks as runs.js does: for what was added to metrics.jsonl, once a second."""

    def __init__(self, address: str) -> None:
        import threading

        self.place, token = address.split("/?token=")
        self.cookie = f"ftengine-studio-{self.place.rpartition(':')[2]}={token}"
        self.open, self.ended = threading.Event(), threading.Event()
        self.after, self.file = 0, ""
        self.thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Polling:
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.ended.set()

    def goto(self, address: str) -> None:
        self.open.set() if address.endswith("#runs") else self.open.clear()

    def _get(self, path: str) -> Any:
        with urlopen(Request(f"{self.place}{path}", headers={"Cookie": self.cookie}), timeout=30) as answer:
            return json.load(answer)

    def _run(self) -> None:
        while not self.ended.is_set():
            self.open.wait()
            with suppress(OSError):
                got = self._get(f"/api/runs/0/metrics?after={self.after}&file={self.file}")
                self.after, self.file = got["after"], got["file"]
            self.ended.wait(EVERY)


@dataclass
class Block:
    """Some steps with the page open or closed.

    Args:
        seconds, processor: of each step that counts, by the clock and of the training process (user and system).
        server: seconds of the server's processor, and `clock` those that passed, over the whole block.
    """

    is_open: bool
    server: float
    clock: float
    seconds: list[float] = field(default_factory=list)
    processor: list[float] = field(default_factory=list)


class Blocks(SilentListener):
    """Times the steps of a run, and opens and closes the page between blocks of them.

    Args:
        run: the run's folder, which is served from the first step on.
        client: "http" or "browser".
        warm_up: first steps that do not count; `size` steps are a block, of which the first `skip` do not count.
    """

    def __init__(self, run: Path, client: str, warm_up: int, size: int, skip: int) -> None:
        self.run, self.kind, self.warm_up, self.size, self.skip = run, client, warm_up, size, skip
        self.training, self.step, self.last, self.draw = False, 0, (0.0, 0.0), random.Random(0)
        self.order: list[bool] = []
        self.blocks: list[Block] = []
        self.serving: Any = None

    def phase(self, name: str, total: int | None = None) -> None:
        self.training = name == "train"

    def advance(self, steps: int = 1, **figures: float) -> None:
        if not self.training or not steps:
            return
        clock, processor = time.perf_counter(), time.process_time()
        self.step += 1
        if self.step > self.warm_up:
            at = (self.step - self.warm_up - 1) % self.size
            if at == 0:
                self._begin()
            elif at > self.skip:
                self.blocks[-1].seconds.append(clock - self.last[0])
                self.blocks[-1].processor.append(processor - self.last[1])
        self.last = time.perf_counter(), time.process_time()

    def _begin(self) -> None:
        if self.serving is None:
            self.serving = studio(self.run)
            self.server, address = self.serving.__enter__()
            command = [sys.executable, __file__, "follow", address, "--client", self.kind]
            self.page = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        if not self.order:
            first = self.draw.random() < 0.5
            self.order = [first, not first]
        opened = self.order.pop(0)
        self._finish()
        assert self.page.stdin is not None and self.page.stdout is not None  # noqa: PT018
        self.page.stdin.write("open\n" if opened else "closed\n")
        self.page.stdin.flush()
        self.page.stdout.readline()
        self.blocks.append(Block(opened, self._used(), time.perf_counter()))

    def _used(self) -> float:
        used = self.server.cpu_times()
        return used.user + used.system

    def _finish(self) -> None:
        """Set what the last block used."""
        if self.blocks:
            block = self.blocks[-1]
            block.server, block.clock = self._used() - block.server, time.perf_counter() - block.clock

    def close(self) -> None:
        self._finish()
        self.page.stdin.close()  # type: ignore[union-attr]
        self.page.wait(30)
        self.serving.__exit__(None, None, None)


def ratio(pairs: Sequence[tuple[Block, Block]], of: Callable[[Block], float]) -> dict[str, float]:
    """Return the geometric mean of a figure's ratio, page open to closed, with its 95 % interval over pairs."""
    logs = []
    for pair in pairs:
        figures = {block.is_open: of(block) for block in pair}
        logs.append(np.log(figures[True] / figures[False]))
    drawn = np.random.default_rng(0).choice(logs, (DRAWN, len(logs))).mean(axis=1)
    low, high = np.exp(np.percentile(drawn, [2.5, 97.5]))
    return {"ratio": float(np.exp(np.mean(logs))), "low": float(low), "high": float(high)}


def training(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Return ratios of step times and of the process's processor time with and without the page, and the server's."""
    steps = options.warm_up + 2 * options.pairs * options.steps
    recipe = {
        "model": {"source": str(options.model or write_model(folder / "model", hidden_size=256, num_hidden_layers=4))},
        "task": {"name": "causal-lm", "max_length": 128},
        "data": {"train": str(write_rows(folder / "rows.jsonl", 400, 6)), "validation": 0.05},
        "strategy": "lora",
        "train": {
            "max_steps": steps,
            "epochs": steps,
            "batch_size": options.batch,
            "precision": "float32",
            "validate_every": 10**6,
        }
        | {"checkpoint_every": 10**6},
        "evaluation": {"answers": 1, "training_sample": None, "resamples": 100},
        "output": str(folder / "run"),
    }
    blocks = Blocks(folder / "run", options.client, options.warm_up, options.steps, options.skip)
    fine_tune(Recipe.make(recipe), listener=blocks)
    blocks.close()
    pairs = list(zip(blocks.blocks[::2], blocks.blocks[1::2], strict=True))
    closed = [block for block in blocks.blocks if not block.is_open]
    used = {
        name: float(np.mean([block.server / block.clock for block in blocks.blocks if block.is_open == is_open]))
        for name, is_open in (("open", True), ("closed", False))
    }
    return {
        "client": options.client,
        "pairs": len(pairs),
        "steps_per_block": options.steps,
        "step": ratio(pairs, lambda block: statistics.median(block.seconds)),
        "processor": ratio(pairs, lambda block: statistics.median(block.processor)),
        "step_seconds": spread([second for block in closed for second in block.seconds]),
        "step_processor_seconds": spread([second for block in closed for second in block.processor]),
        "server_cpu_seconds_a_second": used,
    }


def rows(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Return when the data view of many rows is painted, and the server's memory."""
    data = write_rows(folder / "rows.jsonl", options.rows)
    recipe = {"model": {"source": str(write_model(folder / "model"))}, "task": "causal-lm", "strategy": "lora"}
    (folder / "run").mkdir()
    (folder / "run" / "recipe.yaml").write_text(json.dumps(recipe | {"data": {"train": str(data)}}))
    with studio(folder / "run") as (server, address), chromium() as page:
        before = server.memory_info().rss
        began = time.perf_counter()
        page.goto(f"{address}#data")
        page.wait_for_selector(".row", timeout=600_000)
        read = time.perf_counter() - began
        ready, paints = server.memory_info().rss, []
        for _ in range(options.visits):
            page.goto("about:blank")
            page.goto(f"{address}#data")
            page.wait_for_selector(".row", timeout=60_000)
            paints.append(page.evaluate(PAINTED))
        for offset in range(0, options.rows, max(1, options.rows // 50)):
            page.evaluate("path => fetch(path).then((answer) => answer.json())", f"/api/data/0/rows?offset={offset}")
        return {
            "rows": options.rows,
            "read_seconds": read,
            "first_paint_seconds": spread([first for first, _ in paints]),
            "first_rows_seconds": spread([shown for _, shown in paints]),
            "memory_mib": {"empty": before >> 20, "read": ready >> 20, "paged": server.memory_info().rss >> 20},
            "page_heap_mib": page.evaluate("performance.memory.usedJSHeapSize") / 2**20,
        }


PAINTED = """() => [
  performance.getEntriesByType("paint").find((entry) => entry.name === "first-contentful-paint").startTime / 1000,
  performance.now() / 1000,
]"""
"""Seconds from the start of the navigation to the first paint of content, and to now."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    trained = commands.add_parser("training", help="a page open on a run that is trained")
    trained.add_argument("--model", type=Path, metavar="FOLDER", help="default: a Llama of 4 layers, 256 wide")
    trained.add_argument("--client", choices=["http", "browser"], default="http")
    trained.add_argument("--pairs", type=int, default=24, help="of blocks with and without the page (default: 24)")
    trained.add_argument("--steps", type=int, default=40, help="of a block (default: 40)")
    trained.add_argument("--skip", type=int, default=1, help="first steps of a block that do not count (default: 1)")
    trained.add_argument("--warm-up", type=int, default=20, help="steps before the first block (default: 20)")
    trained.add_argument("--batch", type=int, default=4, help="rows of a step (default: 4)")
    shown = commands.add_parser("rows", help="the data view of many rows")
    shown.add_argument("--rows", type=int, default=20_000)
    shown.add_argument("--visits", type=int, default=10, help="of the page once the data is read (default: 10)")
    for command in (trained, shown):
        command.add_argument("--json", type=Path, metavar="FILE", help="write the figures as JSON")
    inner = commands.add_parser("follow")
    inner.add_argument("address")
    inner.add_argument("--client", default="http")
    options = parser.parse_args()
    if options.command == "follow":
        follow(options.address, options.client)
        return
    with tempfile.TemporaryDirectory() as name:
        figures = {"training": training, "rows": rows}[options.command](options, Path(name))
    figures |= {"load_before": os.getloadavg(), "hardware": hardware(), "versions": versions()}
    text = json.dumps(figures, indent=2)
    print(text)
    if options.json is not None:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
