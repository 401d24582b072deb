"""Heartbeats of processes that train together: each one ends if another is lost."""

from __future__ import annotations

import itertools
import json
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import NoReturn

import torch.distributed as dist

from ftengine.errors import ProcessLost
from ftengine.parallel.device import processes
from ftengine.parallel.rendezvous import timeout

GRACE = 10.0
"""Seconds that processes with a common error have to end by themselves, each with its own message."""

_HEARTBEATS = itertools.count()
"""Numbers of heartbeats, equal in all processes, for equal keys in the store."""


@contextmanager
def heartbeat() -> Iterator[None]:
    """End this process with an error if another one dies, stops or cannot be reached; do nothing for a single process.

    A collective operation that fails raises within seconds. One that hangs never returns to Python; after `timeout`
    seconds a thread prints the error, and the process exits with 1.

    Raises:
        ProcessLost: another process is lost; the message names it and its host.
        InputError: FTENGINE_TIMEOUT is not a number above 0.
    """
    seconds = timeout()
    try:
        state = processes()
        heartbeat = Heartbeat(state.process_index, state.num_processes, seconds) if state.num_processes > 1 else None
    except RuntimeError as error:
        if not _of_a_group(error):
            raise
        raise ProcessLost(_message(f"the processes cannot reach each other: {error}")) from None
    if heartbeat is None:
        yield
        return
    try:
        yield
    except BaseException as error:
        if _of_a_group(error):
            heartbeat.lost(error)
        heartbeat.close(str(error) or type(error).__name__)
        raise
    heartbeat.close("")


class Heartbeat:
    """Writes a counter to the process group's store every second, and reads those of the other processes.

    The store is the launcher's: torchrun's agent, or process 0.

    Args:
        rank, ranks: this process, and the number of processes.
        seconds: a process without a sign for this long counts as lost.
    """

    def __init__(self, rank: int, ranks: int, seconds: float) -> None:
        store = dist.distributed_c10d._get_default_store()
        self._store = store.clone()  # type: ignore[attr-defined]  # one connection for each thread; torch's stubs lack it
        self._seconds, self._interval = seconds, min(1.0, seconds / 5)
        heartbeat = next(_HEARTBEATS)
        self._keys = [f"ftengine/{heartbeat}/{number}" for number in range(ranks)]
        self._own, self._over = self._keys[rank], threading.Event()
        self._say(0)
        self._store.wait(self._keys, timedelta(seconds=seconds))
        self._reached = time.monotonic()
        self._heard = [(value, self._reached) for value in self._store.multi_get(self._keys)]
        for task in (self._beat, self._watch):
            threading.Thread(target=task, daemon=True).start()

    def close(self, reason: str) -> None:
        """Tell the other processes that this one ends, and why; "" for a normal end."""
        with suppress(RuntimeError):  # processes that wait for a lost store notice it themselves
            self._say(0, ended=reason)
        self._over.set()

    def lost(self, error: BaseException) -> NoReturn:
        """Raise ProcessLost for a failed collective operation, after waiting to learn which process is missing."""
        if threading.current_thread() is threading.main_thread():
            signal.signal(
                signal.SIGTERM, signal.SIG_IGN
            )  # torchrun sends SIGTERM when a process is lost; report it first
        deadline = time.monotonic() + min(self._seconds, GRACE)
        while not (missing := self.missing(3 * self._interval)) and time.monotonic() < deadline:
            time.sleep(self._interval / 2)
        self.close("")
        raise ProcessLost(_message(missing or f"the processes no longer reach each other: {error}")) from None

    def missing(self, seconds: float) -> str:
        """Return the processes that ended or gave no sign for so many seconds, in words; "" if there are none."""
        now, reasons = time.monotonic(), []
        reached = now - self._reached <= min(
            seconds, 3 * self._interval
        )  # else the store is lost, and no process can be judged
        for rank, (value, since) in enumerate(self._heard):
            host, _, ended = json.loads(value)
            who = f"process {rank} of {len(self._keys)} (host {host})"
            if ended and now - since > min(seconds, GRACE):
                reasons.append(f"{who} ended: {ended.rstrip('.')}")
            elif ended is None and now - since > seconds and reached:
                reasons.append(f"{who} has not answered for {now - since:.0f} s: it was killed, stopped or cut off")
        if now - self._reached > seconds and not reasons:
            host = os.environ.get("MASTER_ADDR", "of process 0")
            reasons.append(f"host {host}, which connects the processes, has not answered for {seconds:.0f} s")
        return "; ".join(reasons)

    def _say(self, number: int, ended: str | None = None) -> None:
        self._store.set(self._own, json.dumps([socket.gethostname(), number, ended]))

    def _beat(self) -> None:
        for number in itertools.count(1):
            if self._over.wait(self._interval):
                return
            try:
                self._say(number)
                values = self._store.multi_get(self._keys)
            except RuntimeError:
                return  # the store is gone; `_watch` counts the seconds
            self._reached = time.monotonic()
            self._heard = [
                before if before[0] == value else (value, self._reached)
                for before, value in zip(self._heard, values, strict=True)
            ]

    def _watch(self) -> None:
        while not self._over.wait(self._interval):
            if missing := self.missing(self._seconds):
                print(f"error: {_message(missing)}", file=sys.stderr, flush=True)
                os._exit(ProcessLost.exit_code)  # a thread cannot end an operation that the main one waits for


def _of_a_group(error: BaseException) -> bool:
    """Return whether an operation of a process group failed; gloo's errors have no class of their own."""
    return isinstance(error, dist.DistError) or (isinstance(error, RuntimeError) and "gloo" in str(error).lower())


def _message(missing: str) -> str:
    return f"{missing}. Start all processes again; `ftengine train RECIPE --resume` continues from the last checkpoint."
