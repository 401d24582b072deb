"""Effects of a distribution's import on the rest of the process, measured in a process of its own."""

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
"""Time limit of that process."""
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
"""Names that torch itself replaces when its default dtype changes."""
ENDS = "the process, which it ends with status"
SLOW = "its import takes longer than"
GROUPS = ("ftengine", "ftengine.commands")


def import_effects(offered: Iterable[Offer]) -> list[str]:
    """Return what the import of a distribution's plugins and commands changes, such as "torch.nn.functional.gelu".

    Changes by the libraries that it imports are left out. Its hooks are called, as `plugins list` calls them.
    """
    distributions = {offer.distribution for offer in offered}
    try:
        first = _in_another_process(distributions, [])
        if not first["changed"]:
            return []
        with_libraries = _in_another_process(distributions, first["imported"])
    except subprocess.TimeoutExpired:
        return [f"{SLOW} {SECONDS} s"]
    return [name for name in first["changed"] if name in with_libraries["changed"]]


def _in_another_process(distributions: Iterable[str], libraries: Iterable[str]) -> dict[str, list[str]]:
    """Run `import_and_compare` in another process, with `libraries` imported before the comparison."""
    with tempfile.TemporaryDirectory() as folder:
        request, response = Path(folder) / "request", Path(folder) / "response"
        request.write_text(json.dumps([sys.path, sorted(distributions), list(libraries)]), encoding="utf-8")
        command = [sys.executable, "-c", _MAIN, str(request), str(response)]
        done = subprocess.run(command, capture_output=True, timeout=SECONDS)
        if not response.is_file():
            return {"changed": [f"{ENDS} {done.returncode}"], "imported": []}
        content: dict[str, list[str]] = json.loads(response.read_text(encoding="utf-8"))
        return content


_MAIN = f"""
import json, sys
from pathlib import Path
path, *arguments = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
sys.path[:] = path
from {__name__} import import_and_compare
Path(sys.argv[2]).write_text(json.dumps(import_and_compare(*arguments)), encoding="utf-8")
"""


def import_and_compare(distributions: Iterable[str], libraries: Iterable[str]) -> dict[str, list[str]]:
    """Import distributions; return the names of what they changed, and of the libraries' modules that they imported."""
    for name in ("ftengine.api", *libraries):
        with suppress(Exception, SystemExit):  # a part of another module may fail to import alone
            import_module(name)
    before, loaded = _state(), set(sys.modules)
    own = set[str]()
    for offer in (o for group in GROUPS for o in offers(group) if o.distribution in distributions):
        own.add(offer.entry_point.module.partition(".")[0])
        with suppress(Exception, SystemExit):  # discovery reports it as broken
            plugin = offer.entry_point.load()
            for hook in (value for value in vars(plugin).values() if hasattr(value, "ftengine_impl")):
                classes(hook)
    excluded = own | {"ftengine", "ftengine_builtins"}
    imported = sorted(name for name in set(sys.modules) - loaded if name.partition(".")[0] not in excluded)
    return {"changed": _differing(before, _state()), "imported": imported}


def _state() -> dict[str, Any]:
    """Return the state that all code in a process shares, by name."""
    import numpy as np
    import torch

    state: dict[str, Any] = {
        "the working directory": os.getcwd(),
        "the filters of warnings": [str(entry) for entry in warnings.filters],
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
    """Return the names of state that changed or is gone, and of new environment variables."""
    changed = [name for name, value in before.items() if after.get(name) is not value and after.get(name) != value]
    new = (name for name in after if name not in before and name.startswith("the environment"))
    return [name for name in (*changed, *new) if name not in BY_DTYPE]
