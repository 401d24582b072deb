"""How processes that torchrun started find each other, also when it has started them before."""

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
"""Seconds of silence after which a process counts as lost, unless FTENGINE_TIMEOUT says otherwise."""

TOGETHER = 5.0
"""Seconds within which processes that fail for one reason all do."""


def timeout() -> float:
    """Return the seconds of FTENGINE_TIMEOUT (InputError: it is no number above 0)."""
    given = os.environ.get("FTENGINE_TIMEOUT", TIMEOUT)
    try:
        seconds = float(given)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < float("inf"):
        raise InputError(f"FTENGINE_TIMEOUT is {given!r}; it takes seconds above 0, such as 60.")
    return seconds


def own_store() -> dict[str, Any]:
    """Return what `init_process_group` is to take so that nothing of workers that have died is read; {} where none did.

    torchrun's agent keeps one store for all its restarts, in which the addresses of dead workers stand under the keys
    of the living (pytorch#135712, #167288), and its count of restarts differs from host to host.

    Raises:
        ProcessLost: the others do not come.
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
            f"not all of {ranks} processes came together at {host}:{port} within {seconds:g} s (FTENGINE_TIMEOUT): "
            f"{str(error).splitlines()[0]}"
        ) from None
    return {"store": dist.PrefixStore(name, store), "rank": rank, "world_size": ranks}


def reported_by_rank0(message: str) -> bool:
    """Say whether process 0 ends with the same error, which it tells; in process 0, let the others ask.

    Where process 0 holds the store (no launcher does), it waits for the others for as long as they wait for it.
    """
    of_launcher, wait = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == str(True), timedelta(seconds=TOGETHER)
    life = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    with suppress(dist.DistError, KeyError, ValueError):  # others do not come, or no launcher set the variables
        rank, ranks = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
        words = [f"ftengine/error/{life}/{number}" for number in range(ranks)]
        store = dist.TCPStore(
            os.environ["MASTER_ADDR"],
            int(os.environ["MASTER_PORT"]),
            is_master=rank == 0 and not of_launcher and not dist.is_initialized(),
            wait_for_workers=False,
            timeout=wait,
        )
        told = rank > 0 and store.get(words[0]) == message.encode()
        store.set(words[rank], message)
        if rank == 0 and not of_launcher:
            store.wait(words, wait)
        return told
    return False


def agreed_name(store: dist.Store, rank: int, ranks: int, seconds: float) -> str:
    """Agree with the other processes that live now on a name that none has used before.

    Each says a word of its own. Process 0 lists the words, and lists them again until every process that is listed
    has found its own word there and answered; what a dead one said is never answered.

    Raises:
        DistStoreError: some do not come.
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
    raise dist.DistStoreError("some did not answer.")
