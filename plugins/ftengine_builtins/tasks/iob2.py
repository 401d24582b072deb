"""The IOB2 scheme: entities as tags of words, and back (Tjong Kim Sang and Veenstra 1999, arXiv:cs/9907006).

B-NAME begins an entity, I-NAME continues it, O is outside of any.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from ftengine.api import Labels

OUTSIDE = "O"
_TAG = re.compile(r"[BI]-.+", re.DOTALL)
_OTHER_SCHEMES = re.compile(r"[ELSU]-.+", re.DOTALL)

Entity = tuple[str, int, int]
"""Its name, its first word, and the one after its last."""


def has_entities(labels: Labels) -> bool:
    """Return whether labels are IOB2 tags of which some mark entities."""
    return labels.kind == "single" and is_iob2(labels.names)


def is_iob2(names: Iterable[str]) -> bool:
    """Return whether all tags are IOB2, and whether any marks an entity."""
    names = set(names)
    return names != {OUTSIDE} and all(name == OUTSIDE or _TAG.fullmatch(name) for name in names)


def foreign_tag(names: Iterable[str]) -> str | None:
    """Return a tag of another scheme (IOBES, BILOU), if entities are tagged at all."""
    names = set(names)
    if not any(_TAG.fullmatch(name) for name in names):
        return None
    return min((name for name in names if _OTHER_SCHEMES.fullmatch(name)), default=None)


def completed(names: Iterable[str]) -> set[str]:
    """Add missing tags of the scheme: O, and B and I of each entity."""
    kinds = {name[2:] for name in names if name != OUTSIDE}
    return {OUTSIDE} | {f"{prefix}-{kind}" for kind in kinds for prefix in "BI"}


def entities(tags: Sequence[str]) -> list[Entity]:
    """Return the entities that tags describe.

    An I that continues nothing begins an entity, as in the CoNLL shared tasks' own evaluation.
    """
    spans: list[Entity] = []
    kind, start = None, 0
    for i, tag in enumerate([*tags, OUTSIDE]):
        if tag.startswith("I-") and tag[2:] == kind:
            continue
        if kind is not None:
            spans.append((kind, start, i))
        kind, start = (None if tag == OUTSIDE else tag[2:]), i
    return spans


def tagged(words: int, spans: Iterable[Entity]) -> list[str]:
    """Return the tags of `words` words with these entities, which do not overlap."""
    tags = [OUTSIDE] * words
    for kind, start, stop in spans:
        tags[start:stop] = [f"B-{kind}"] + [f"I-{kind}"] * (stop - start - 1)
    return tags
