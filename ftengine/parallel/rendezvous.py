"""Rendezvous of processes that torchrun starts, also after a restart."""

from __future__ import annotations

import json
import os
import time
import uuid
from contextlib import suppress
from datetime import timedelta
from hashlib import blake2b
from typing import Any

import torch.distributed as dist

from ftengine.errors import InputError, ProcessLost

TIMEOUT = 300.0
"""Default of FTENGINE_TIMEOUT: a process counts as lost after so many seconds without a sign."""

TOGETHER = 5.0
"""Seconds within which processes with a common error all fail."""


def timeout() -> float:
    """Return FTENGINE_TIMEOUT in seconds (InputError: it is not a number above 0)."""
    value = os.environ.get("FTENGINE_TIMEOUT", TIMEOUT)
    try:
        seconds = float(value)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < float("inf"):
        raise InputError(f"FTENGINE_TIMEOUT is {value!r}; set it to seconds above 0, such as 60.")
    return seconds


def own_store() -> dict[str, Any]:
    """Return arguments of `init_process_group` with a store free of entries of dead workers; {} if torchrun has none.

    torchrun's agent keeps one store for all its restarts. Addresses of dead workers remain under the keys of the living
    ones (pytorch#135712, #167288), and the count of restarts differs between hosts.

    Raises:
        ProcessLost: not all processes arrive in time.
    """
    ranks = int(os.environ.get("WORLD_SIZE", "1"))
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != str(True) or ranks == 1 or dist.is_initialized():
        return {}
    rank, host, port = int(os.environ["RANK"]), os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    seconds = timeout()
    try:
        store = dist.TCPStore(host, port, is_master=False, timeout=timedelta(seconds=seconds))
        name = agreed_name(store, rank, ranks, seconds)
    except dist.DistError as error:
        raise ProcessLost(
            f"not all of {ranks} processes arrived at {host}:{port} within {seconds:g} s (FTENGINE_TIMEOUT): "
            f"{str(error).splitlines()[0]}"
        ) from None
    return {"store": dist.PrefixStore(name, store), "rank": rank, "world_size": ranks}


def reported_by_rank0(message: str) -> bool:
    """Return whether process 0 reports the same error; in process 0, publish its message and return False.

    If process 0 holds the store (the launcher does not), it waits TOGETHER seconds for the other processes.
    """
    of_launcher, wait = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == str(True), timedelta(seconds=TOGETHER)
    life = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    with suppress(dist.DistError, KeyError, ValueError):  # others do not arrive, or no launcher set the variables
        rank, ranks = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
        words = [f"ftengine/error/{life}/{number}" for number in range(ranks)]
        store = dist.TCPStore(
            os.environ["MASTER_ADDR"],
            int(os.environ["MASTER_PORT"]),
            is_master=rank == 0 and not of_launcher and not dist.is_initialized(),
            wait_for_workers=False,
            timeout=wait,
        )
        reported = rank > 0 and store.get(words[0]) == message.encode()
        store.set(words[rank], message)
        if rank == 0 and not of_launcher:
            store.wait(words, wait)
        return reported
    return False


def agreed_name(store: dist.Store, rank: int, ranks: int, seconds: float) -> str:
    """Agree with the other living processes on a name that was never used before.

    Each process publishes a random word. Process 0 publishes the list of words, again and again until every process has
    found its own word in it and confirmed; the word of a dead process is never confirmed.

    Raises:
        DistStoreError: not all processes confirm in time.
    """
    own, deadline = uuid.uuid4().hex, time.monotonic() + seconds
    words, answers = ([f"ftengine/{kind}/{number}" for number in range(ranks)] for kind in ("word", "answer"))
    store.set(words[rank], own)
    while time.monotonic() < deadline:
        if rank == 0:
            store.set("ftengine/words", json.dumps([word.decode() for word in store.multi_get(words)]))
        listed = store.get("ftengine/words")
        if json.loads(listed)[rank : rank + 1] == [own]:
            name = blake2b(listed, digest_size=16).hexdigest()
            store.set(answers[rank], name)
            if rank == 0 and store.multi_get(answers) == [name.encode()] * ranks:
                store.set("ftengine/agreed", name)
            if store.check(["ftengine/agreed"]) and store.get("ftengine/agreed") == name.encode():
                return name
        time.sleep(0.05)
    raise dist.DistStoreError("not all processes confirmed.")
