"""What the import of a distribution changes for all others in the process, found out in a process of its own."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Iterable, Mapping
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import Any

from ftengine.plugins.class_validation import classes
from ftengine.plugins.distributions import Offer, offers

SECONDS = 300
"""What the import may take there."""
MODULES = (
    "torch",
    "torch.nn",
    "torch.nn.functional",
    "torch.nn.init",
    "torch.autograd",
    "torch.optim",
    "torch.utils.data",
)
"""Modules whose functions, and whose classes' methods, an import may not replace."""
BY_DTYPE = ("torch.Storage",)
"""What torch replaces itself with its default dtype."""
ENDS = "the process, which it ends with status"
SLOW = "its import takes longer than"
GROUPS = ("ftengine", "ftengine.commands")


def import_effects(offered: Iterable[Offer]) -> list[str]:
    """Return what the import of a distribution's plugins and commands changes, such as "torch.nn.functional.gelu".

    What the libraries that it imports change by themselves is left out. Its hooks are called, as lists call them.
    """
    wanted = {offer.distribution for offer in offered}
    try:
        first = _in_another_process(wanted, [])
        if not first["changed"]:
            return []
        with_libraries = _in_another_process(wanted, first["imported"])
    except subprocess.TimeoutExpired:
        return [f"{SLOW} {SECONDS} s"]
    return [name for name in first["changed"] if name in with_libraries["changed"]]


def _in_another_process(distributions: Iterable[str], libraries: Iterable[str]) -> dict[str, list[str]]:
    """Return the names of what changed, and of libraries' modules that were imported, each before if it is given."""
    with tempfile.TemporaryDirectory() as folder:
        asked, found = Path(folder) / "asked", Path(folder) / "found"
        asked.write_text(json.dumps([sys.path, sorted(distributions), list(libraries)]), encoding="utf-8")
        command = [sys.executable, "-c", _MAIN, str(asked), str(found)]
        done = subprocess.run(command, capture_output=True, timeout=SECONDS)
        if not found.is_file():
            return {"changed": [f"{ENDS} {done.returncode}"], "imported": []}
        content: dict[str, list[str]] = json.loads(found.read_text(encoding="utf-8"))
        return content


_MAIN = f"""
import json, sys
from pathlib import Path
asked = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
sys.path[:] = asked[0]
from {__name__} import look
found = look(*asked[1:])
Path(sys.argv[2]).write_text(json.dumps(found), encoding="utf-8")
"""


def look(distributions: Iterable[str], libraries: Iterable[str]) -> dict[str, list[str]]:
    """Import distributions here, and return what `_in_another_process` does."""
    for name in ("ftengine.api", *libraries):
        with suppress(Exception, SystemExit):  # it was imported as a part of another, and may not by itself
            import_module(name)
    before, loaded = _state(), set(sys.modules)
    own = set[str]()
    for offer in (one for group in GROUPS for one in offers(group) if one.distribution in distributions):
        own.add(offer.entry_point.module.partition(".")[0])
        with suppress(Exception, SystemExit):  # it is told as broken
            plugin = offer.entry_point.load()
            for hook in (one for one in vars(plugin).values() if hasattr(one, "ftengine_impl")):
                classes(hook)
    kept = own | {"ftengine", "ftengine_builtins"}
    imported = sorted(name for name in set(sys.modules) - loaded if name.partition(".")[0] not in kept)
    return {"changed": _differing(before, _state()), "imported": imported}


def _state() -> dict[str, Any]:
    """Return what code of all distributions shares in a process, by its name."""
    import numpy as np
    import torch

    state: dict[str, Any] = {
        "the working directory": os.getcwd(),
        "the filters of warnings": [str(one) for one in warnings.filters],
        "torch's default dtype": torch.get_default_dtype(),
        "torch's default device": str(torch.get_default_device()),
        "torch's number of threads": torch.get_num_threads(),
        "torch's random numbers": torch.get_rng_state().tolist(),
        "numpy's random numbers": str(np.random.get_state()),
        "Python's random numbers": random.getstate(),
        "sys.excepthook": sys.excepthook,
    }
    state |= {f"the environment variable {name}": value for name, value in os.environ.items()}
    for place in MODULES:
        module = import_module(place)
        public = {name: value for name, value in vars(module).items() if name[0] != "_" and callable(value)}
        state |= {f"{place}.{name}": value for name, value in public.items()}
        for name, cls in ((n, x) for n, x in public.items() if isinstance(x, type)):
            state |= {f"{place}.{name}.{n}": x for n, x in vars(cls).items() if callable(x)}
    return state


def _differing(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[str]:
    """Return the names of what is another value, or gone, and of environment variables that are new."""
    changed = [name for name, value in before.items() if after.get(name) is not value and after.get(name) != value]
    new = (name for name in after if name not in before and name.startswith("the environment"))
    return [name for name in (*changed, *new) if name not in BY_DTYPE]
