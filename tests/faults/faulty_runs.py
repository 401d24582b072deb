"""Runs that lose their process, their disk or their permissions, and what `--resume` makes of what they left.

A program: `python faulty_runs.py FOLDER LIBRARY`, with LIBRARY, `file_faults.cpp` compiled, as LD_PRELOAD. It imports
all that a run needs once, and every run is a fork of it. For each `Case`, a line of JSON on stdin, one comes out.
"""

from __future__ import annotations

import ctypes
import gc
import importlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

CLOSE = 1e-5
"""Largest difference of two curves, or of two figures."""
LIVES = 5
"""Of a run that is killed at random moments, at most."""
SLOW = 600
"""Seconds after which a run hangs."""


@dataclass
class Case:
    """One run with a fault, resumed until it ends.

    Args:
        kind: "kill" or an errno's name at a file operation and all after it; "moment" for SIGKILL at random moments;
            "disk" for one of a random size, which may be mounted.
        at: the file operation, from 1; the seed of what is random.
    """

    kind: str
    at: int
    operation: str = ""
    said: str = ""
    wrong: list[str] = field(default_factory=list)


class Runs:
    """One tiny run, as it is undisturbed, and under faults."""

    def __init__(self, folder: Path, shim: str) -> None:
        self.folder = folder
        self.arm = ctypes.CDLL(shim).arm_faults
        self.arm.argtypes = [ctypes.c_char_p, ctypes.c_long, ctypes.c_int, ctypes.c_int]
        with (folder / "imported").open("w") as names, (folder / "journal").open("w") as journal:
            began = time.monotonic()
            status, said = self.run(
                "whole", journal=journal.fileno(), after=lambda: names.write("\n".join(sys.modules)), setup=self.prepare
            )
            self.seconds = time.monotonic() - began
        assert status == 0, said
        self.operations = (folder / "journal").read_text().splitlines()
        for name in (folder / "imported").read_text().splitlines():
            with suppress(Exception):
                importlib.import_module(name)
        gc.collect()
        gc.freeze()
        began = time.monotonic()
        status, said = self.run("timed")  # as fast as all that follow
        assert status == 0, said
        self.seconds = time.monotonic() - began

    def prepare(self) -> None:
        """Write model, data and recipe."""
        from rows import sentences, write_rows
        from tiny import tiny_gpt2

        tiny_gpt2(self.folder / "model", n_layer=1)
        rng = random.Random(0)
        write_rows(self.folder / "rows.jsonl", [{"text": row["text"]} for row in sentences(40, rng)])
        recipe = {
            "model": {"source": str(self.folder / "model")},
            "task": "causal-lm",
            "data": {"train": str(self.folder / "rows.jsonl"), "validation": 0.2, "test": 0.2},
            "strategy": {"name": "lora", "rank": 2, "dropout": 0.1},
            "train": {"max_steps": 4, "batch_size": 4, "precision": "float32", "learning_rate": 0.01}
            | {"checkpoint_every": 2, "validate_every": 2, "keep_checkpoints": 1},
            "evaluation": {"resamples": 100, "training_sample": 4, "answers": 1},
        }
        (self.folder / "recipe.json").write_text(json.dumps(recipe))  # JSON is YAML

    def run(
        self,
        name: str,
        *,
        at: int = 0,
        error: int = 0,
        journal: int = -1,
        seconds: float = SLOW,
        setup: Callable[[], Any] = lambda: None,
        after: Callable[[], Any] = lambda: None,
    ) -> tuple[int, str]:
        """Train in a fork, or resume; return its exit status, negative for a signal, and what it said on stderr."""
        place, log = self.folder / name, self.folder / f"{name}.log"
        child = os.fork()
        if not child:
            status = 70
            try:
                with log.open("w") as said:
                    os.dup2(said.fileno(), 1)
                    os.dup2(said.fileno(), 2)
                setup()
                os.environ["FTENGINE_CACHE"] = str(place / "cache")
                place.mkdir(exist_ok=True)
                self.arm(f"{place}/".encode(), at, error, journal)
                status = command("train", self.folder / "recipe.json", "--resume", "--set", f"output={place / 'run'}")
                after()
            except BaseException:
                traceback.print_exc()
            finally:
                self.arm(b"", 0, 0, -1)
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(status)
        ended = time.monotonic() + seconds
        while not (done := os.waitpid(child, os.WNOHANG))[0]:
            if time.monotonic() > ended:
                os.kill(child, signal.SIGKILL)
                done = os.waitpid(child, 0)
                break
            time.sleep(0.005)
        return os.waitstatus_to_exitcode(done[1]), log.read_text(errors="replace")

    def go_through(self, case: Case) -> Case:
        """Run a case and note what is wrong with it."""
        name = f"{case.kind}-{case.at}"
        if case.kind == "moment":
            rng = random.Random(case.at)
            for _ in range(LIVES):
                status, _ = self.run(name, seconds=rng.uniform(0, self.seconds))
                if status != -signal.SIGKILL or rng.random() < 0.5:
                    break
        elif case.kind == "disk":
            self.on_small_disk(case, name)
        else:
            case.operation = self.operations[case.at - 1]
            error = 0 if case.kind == "kill" else getattr(__import__("errno"), case.kind)
            status, case.said = self.run(name, at=case.at, error=error)
            if error:
                case.wrong += unclear(status, case.said)
            elif status != -signal.SIGKILL:
                case.wrong.append(f"was not killed, but ended with {status}: {case.said[-500:]}")
        status, said = self.run(name)
        if status:
            case.wrong.append(f"does not resume: {said[-500:]}")
        else:
            case.wrong += differences(self.folder / "whole" / "run", self.folder / name / "run")
        if case.kind == "disk":
            subprocess.run(["umount", self.folder / name], check=True)
        if not case.wrong:
            shutil.rmtree(self.folder / name)
        return case

    def on_small_disk(self, case: Case, name: str) -> None:
        """Run on a disk that is too small for it, and give it room."""
        used = sum(file.stat().st_blocks * 512 for file in (self.folder / "whole").rglob("*"))
        size, place = random.Random(case.at).randrange(4096, used), self.folder / name
        place.mkdir()
        subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", place], check=True)
        status, case.said = self.run(name)
        case.operation = f"{size:,} of {used:,} bytes"
        case.wrong += unclear(status, case.said)
        subprocess.run(["mount", "-o", f"remount,size={10 * used}", place], check=True)


def command(*arguments: Any) -> int:
    """Run a command of ftengine in this process; return its exit status."""
    from ftengine.cli import main

    try:
        main([*map(str, arguments)], prog_name="ftengine")
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    return 0


def unclear(status: int, said: str) -> list[str]:
    """Return what is wrong with how a command failed: it says one error, and nothing unexpected."""
    errors = [line for line in said.splitlines() if line.startswith("error:")]
    wrong = [] if status in (0, 1, 2) else [f"ended with {status}: {said[-500:]}"]
    if len(errors) != (status != 0) or "Traceback" in said or "unexpected" in said:
        wrong.append(f"said with status {status}: {said[-800:]}")
    return wrong


def differences(whole: Path, other: Path) -> list[str]:
    """Return in what a resumed run differs from an undisturbed one: files, curve, figures, weights."""
    names = [{str(file.relative_to(run)) for file in run.rglob("*")} for run in (whole, other)]
    wrong = [f"has {name}" for name in sorted(names[1] - names[0])]
    wrong += [f"lacks {name}" for name in sorted(names[0] - names[1])]
    for name in sorted(names[0] & names[1]):
        one, two = whole / name, other / name
        if name.endswith(".jsonl"):
            same = alike(*([json.loads(line) for line in file.read_text().splitlines()] for file in (one, two)))
        elif name.endswith(".json"):
            same = alike(json.loads(one.read_text()), json.loads(two.read_text()))
        else:
            same = name.endswith(OTHERWISE) or one.is_dir() or one.read_bytes() == two.read_bytes()
        wrong += [] if same else [f"has another {name}"]
    return wrong


OTHERWISE = ("report.html", "recipe.yaml", "state.json")
"""Files that hold times, or the run's own place."""
TIMES = {"seconds", "phases", "examples_per_second", "tokens_per_second", "peak_memory_bytes", "sha256", "hardware"}
"""Values that hold times or depend on them."""


def alike(a: Any, b: Any) -> bool:
    """Say whether two values of JSON are the same but for rounding and times."""
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(key in TIMES or alike(a[key], b[key]) for key in a)
    if isinstance(a, list) and isinstance(b, list):
        return len(a) == len(b) and all(map(alike, a, b))
    if isinstance(a, float) and isinstance(b, float):
        return abs(a - b) <= CLOSE * max(1, abs(a))
    return a == b


def main() -> None:
    sys.path.insert(0, str(Path(__file__).parents[1]))
    for name in ("tiny", "rows", "ftengine.engine.fine_tune"):  # with most of what the first run imports
        importlib.import_module(name)
    runs = Runs(Path(sys.argv[1]), sys.argv[2])
    print(json.dumps({"operations": runs.operations, "seconds": runs.seconds}), flush=True)
    for line in sys.stdin:
        print(json.dumps(asdict(runs.go_through(Case(**json.loads(line))))), flush=True)


if __name__ == "__main__":
    main()
