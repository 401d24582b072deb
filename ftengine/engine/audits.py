"""What audits found in data, kept under a hash of all that it depends on, so that the same data are looked at once."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from hashlib import blake2b
from pathlib import Path
from typing import Any

from ftengine.api import AuditedData, Task
from ftengine.data.audit import run_audits
from ftengine.data.cache_folder import ROWS, entry_of, known_entry
from ftengine.data.features import component_state
from ftengine.engine.dependencies import key_of
from ftengine.model.code import code_of
from ftengine.plugins.registry import Entry, Registry
from ftengine.run.environment import required_versions, versions
from ftengine.run.records import AuditResult

AUDITS_FORMAT = 1
"""Part of every key; raised when findings would be stored in another way."""


def audited(data: AuditedData, encoded: Mapping[str, Mapping[str, Any]], task: Task, registry: Registry) -> AuditResult:
    """Return what the installed audits find, in the same data before or now.

    Args:
        encoded: for each split what the model gets, a hash of its rows (`content`) among it.

    Raises:
        PluginError: an audit yields something else than findings and displays.
        DataError: the cache is another user's, or has no room.
    """
    key = _key(data, encoded, task, registry.entries("audit"))
    if key is not None and (entry := known_entry(key)) is not None:
        return AuditResult.model_validate(json.loads((entry / ROWS).read_text(encoding="utf-8")))
    result = run_audits(data, encoded, registry)

    def write(folder: Path) -> dict[str, Any]:
        (folder / ROWS).write_text(json.dumps(result.model_dump(mode="json")), encoding="utf-8")
        return {}

    if key is not None:
        entry_of(key, "what audits found", write)
    return result


def _key(
    data: AuditedData, encoded: Mapping[str, Mapping[str, Any]], task: Task, audits: Sequence[Entry]
) -> str | None:
    """Return a hash of all that findings depend on; None where that cannot be told."""
    code, state = code_of([type(task), *(one.cls for one in audits)]), component_state(task)
    if code is None or state is None:
        return None
    installed = {one.origin.distribution: required_versions(one.origin.distribution) for one in audits}
    places = blake2b(digest_size=20)
    for name, rows in data.splits.items():
        for numbers in (data.distinct, data.same_words or {}, data.targets):
            places.update(numbers[name].tobytes() if numbers else b"")
        places.update("\n".join(rows.where(row) for row in range(len(rows))).encode("utf-8", "surrogatepass"))
    facts = [data.settings, data.facts, encoded, places.hexdigest()]
    return key_of("audits", [AUDITS_FORMAT, code, state, versions(), installed, facts])
