"""Running audits on data; findings of ftengine's own audits are cached."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from hashlib import blake2b
from typing import Any

from ftengine.api import AuditedData, Task
from ftengine.data.audit import audit_order, run_audits
from ftengine.data.features import component_state
from ftengine.identity.cache import cache_key, cached_text, keep_text
from ftengine.plugins.registry import BUILT_IN, Entry, Registry
from ftengine.run.own_code import code_of
from ftengine.run.records import AuditResult


def audited(data: AuditedData, encoded: Mapping[str, Mapping[str, Any]], task: Task, registry: Registry) -> AuditResult:
    """Run the installed audits and return their findings.

    Findings of ftengine's own audits are cached for the same data. Audits of other distributions run each time, since a
    list of words, a library or a service that they use may have changed.

    Args:
        encoded: the encoded splits by name; the cache key uses the hash of their rows (`content`).

    Raises:
        PluginError: an audit yields something other than findings and displays.
    """
    every = registry.entries("audit")
    own = [audit for audit in every if audit.origin.distribution == BUILT_IN]
    key = _key(data, encoded, task, own)
    if key is not None and (text := cached_text(key)) is not None:
        result = AuditResult.model_validate(json.loads(text))
    else:
        result = run_audits(data, encoded, own)
        if key is not None:
            keep_text(key, "what audits found", json.dumps(result.model_dump(mode="json")))
    if len(own) == len(every):
        return result
    others = run_audits(data, encoded, [audit for audit in every if audit not in own])
    findings = sorted((*result.findings, *others.findings), key=audit_order)
    both = {"findings": tuple(findings), "displays": (*result.displays, *others.displays)}
    return result.model_copy(update=both)


def _key(
    data: AuditedData, encoded: Mapping[str, Mapping[str, Any]], task: Task, audits: Sequence[Entry]
) -> str | None:
    """Return a cache key of everything that findings depend on; None where that is unknown."""
    code, state = code_of([type(task), *(audit.cls for audit in audits)]), component_state(task)
    if code is None or state is None:
        return None
    places = blake2b(digest_size=20)
    for name, rows in data.splits.items():
        for numbers in (data.distinct, data.same_words or {}, data.targets):
            places.update(numbers[name].tobytes() if numbers else b"")
        places.update("\n".join(rows.where(row) for row in range(len(rows))).encode("utf-8", "surrogatepass"))
    facts = [data.settings, data.facts, encoded, places.hexdigest()]
    names = [audit.name for audit in audits]
    return cache_key("audits", [names, code, state, facts])
