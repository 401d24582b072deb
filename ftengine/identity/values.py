"""Hashes of JSON values."""

from __future__ import annotations

import json
from hashlib import blake2b
from pathlib import Path
from typing import Any

from ftengine.identity.files import file_hashes


def json_hash(value: Any) -> str:
    """Return a hash of a JSON value as it is read back, independent of the order of keys."""
    text = json.dumps(json.loads(json.dumps(value)), sort_keys=True)
    return blake2b(text.encode(), digest_size=20).hexdigest()


def folder_hash(folder: Path) -> str:
    """Return a hash of a folder's files and their names."""
    return json_hash(file_hashes(folder))
