"""Features cached on disk: a row is tokenised once for all epochs, evaluations and runs with the same settings."""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import asdict, is_dataclass
from hashlib import blake2b
from itertools import islice
from operator import attrgetter
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary, WeakSet

from ftengine.api import Component, Features, Task
from ftengine.chat.template_date import template_date
from ftengine.data.cache import BATCH_ROWS
from ftengine.data.row_facts import Encoded
from ftengine.errors import DataError
from ftengine.identity.cache import ROWS, cache_key, entry_of
from ftengine.run.own_code import code_of, own_packages, package_of

ROW, FEATURES = "row", "features"
"""Columns of the cache: a row's number, and the features of an example made of it."""
FASTEST = 1
"""zlib's level of compression, at which token ids take 23 % of the size of their JSON."""

_fields = attrgetter(*Features.__slots__)
_processors: WeakKeyDictionary[Any, tuple[int, str]] = WeakKeyDictionary()


class Unkeepable(Exception):
    """Features that cannot be restored from JSON, such as pixels."""


class KeptFeatures:
    """Features of examples by number, read from a memory-mapped file."""

    def __init__(self, entry: Path) -> None:
        import pyarrow as pa

        self._file = str(entry / ROWS)
        with pa.memory_map(self._file) as source:
            self._texts = pa.ipc.open_stream(source).read_all()[FEATURES]

    def __getitem__(self, number: int) -> Features:
        """Return the features of an example (its row could be encoded)."""
        return Features(*_read(self._texts[number].as_py()))

    def __iter__(self) -> Iterator[Encoded]:
        """Yield the features of rows, or their errors, with one batch in memory at a time."""
        import pyarrow as pa

        with pa.OSFile(self._file) as source, pa.ipc.open_stream(source) as batches:
            for batch in batches:
                for row, text in zip(batch[ROW].to_pylist(), batch[FEATURES].to_pylist(), strict=True):
                    fields = _read(text)
                    yield row, DataError(fields) if isinstance(fields, str) else Features(*fields)


def _read(text: bytes) -> Any:
    """Return the fields of features as a list, or the error as text."""
    return json.loads(zlib.decompress(text))


def features_key(content: str, task: Task, processor: Any, max_length: int | None) -> str | None:
    """Return a hash of all that features depend on, including the rows' `content`; None if that is not known."""
    tokenizer, state = processor_state(processor), component_state(task)
    code = code_of([type(task), type(processor)]) if tokenizer and state else None
    if code is None or task.file_columns:
        return None
    return cache_key("features", [content, state, code, tokenizer, max_length])


def keep_features(key: str, source: str, encoded: Iterable[Encoded]) -> KeptFeatures | None:
    """Return the features cached under a key, after storing `encoded` if there are none; None if JSON cannot hold them.

    Args:
        source: the name of the rows in messages.
        encoded: the features of all rows in order; iterated only if nothing is cached.
    """
    import pyarrow as pa

    def write(folder: Path) -> dict[str, Any]:
        schema = pa.schema([(ROW, pa.int64()), (FEATURES, pa.large_binary())])
        with pa.ipc.new_stream(str(folder / ROWS), schema) as writer:
            encoded_texts = ((row, _text(features)) for row, features in encoded)
            while some := list(islice(encoded_texts, BATCH_ROWS)):
                writer.write_batch(pa.record_batch([list(column) for column in zip(*some, strict=True)], schema))
        return {}

    try:
        return KeptFeatures(entry_of(key, f"the encoded rows of {source}", write))
    except Unkeepable:
        return None


def processor_state(processor: Any) -> str | None:
    """Return a hash of all that determines the output of a fast tokenizer; None for any other processor."""
    backend = getattr(processor, "backend_tokenizer", None)
    if backend is None:
        return None
    size, digest = _processors.get(processor, (-1, ""))
    if size != len(processor):  # recomputed after tokens were added
        # Each call sets truncation and padding itself.
        settings = {k: v for k, v in json.loads(backend.to_str()).items() if k not in ("truncation", "padding")}
        every = [settings, getattr(processor, "init_kwargs", {}), processor.all_special_tokens]
        digest = blake2b(json.dumps(every, default=str).encode(), digest_size=20).hexdigest()
        _processors[processor] = len(processor), digest
    return f"{digest} {getattr(processor, 'chat_template', None)} {template_date(processor)}"


def component_state(component: Component) -> list[Any] | None:
    """Return a component's config and attributes as JSON; None if an attribute cannot be identified."""
    own = {name: value for name, value in vars(component).items() if name != "config"}
    cls = type(component)
    state = [cls.__module__, cls.__qualname__, component.config.model_dump(mode="json"), own]
    try:
        return json.loads(json.dumps(state, default=_identity))
    except (TypeError, ValueError):
        return None


def _identity(value: Any) -> Any:
    """Return JSON that identifies the value of a component's attribute (TypeError: its type is not supported)."""
    if is_dataclass(value) and not isinstance(value, type):
        return asdict(value)
    if hasattr(value, "model_dump"):
        return value.model_dump(mode="json")
    if isinstance(value, (set, frozenset)):
        return sorted(map(repr, value))
    if isinstance(value, (WeakKeyDictionary, WeakSet)):
        return None  # a cache, which does not affect features
    if package_of(type(value)) not in own_packages():
        raise TypeError
    return [type(value).__module__, type(value).__qualname__, vars(value)]


def _text(features: Features | DataError) -> bytes:
    """Return features as compressed JSON (Unkeepable: JSON would not restore them unchanged)."""
    content = str(features) if isinstance(features, DataError) else list(_fields(features))
    try:
        text = json.dumps(content)
    except (TypeError, ValueError):
        raise Unkeepable from None
    if json.loads(text) != content:
        raise Unkeepable
    return zlib.compress(text.encode(), FASTEST)
