"""From rows to features: counted once before training, encoded again when a batch needs them.

Only a few integers an example are kept, so that memory does not grow with the text, and augmentation
can give another text in every epoch.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Any

import numpy as np

from ftengine.api import Augmenter, Batch, Example, Features, Listener, Task, iterate
from ftengine.data.audit import identities, to_json
from ftengine.data.read import Rows
from ftengine.errors import DataError


@dataclass
class EncodedSplit:
    """A split whose examples were all encoded once.

    Args:
        lengths: (examples,) tokens.
        weights: (examples,) what each adds to the loss's denominator; never 0.
        index: (examples,) row of `rows` behind each example.
        content: a hash of all rows in their order, labels included.
        groups: (examples,) equal for duplicates, which say no more than one of them; None where not needed.
        longest: the longest sequence that the model reads.
        truncated: number of examples that were cut to the length limit.
        masked: number of rows left out because nothing of them is trained on.
        skipped: reasons of rows that could not be encoded (only with on_error: skip).
    """

    rows: Rows
    task: Task
    processor: Any
    max_length: int | None
    lengths: np.ndarray
    weights: np.ndarray
    index: np.ndarray
    longest: int
    truncated: int
    masked: int
    content: str
    skipped: list[str] = field(default_factory=list)
    augmenters: Sequence[Augmenter] = ()
    seed: int = 0
    groups: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.index)

    def batch(self, members: np.ndarray, epoch: int | None = None) -> Batch:
        """Encode and collate some examples; with an epoch, augmented for it."""
        features = [f for i in members for f in self._features(int(self.index[i]), epoch)]
        return self.task.collate(features, self.processor)

    def _features(self, row: int, epoch: int | None) -> Iterator[Features]:
        examples: list[Example] = [self.rows[row]]
        if epoch is not None and self.augmenters:
            rng = random.Random(f"{self.seed}/{epoch}/{row}")
            for augmenter in self.augmenters:
                examples = [new for example in examples for new in augmenter.augment(example, rng)]
        for example in examples:
            yield self.task.encode(example, self.processor, max_length=self.max_length)

    def summary(self) -> dict[str, int]:
        """Return the counts that `plan` and the audit show."""
        return {
            "examples": len(self),
            "tokens": int(self.lengths.sum()),
            "trained_tokens": int(self.weights.sum()),
            "longest": self.longest,
            "truncated": self.truncated,
            "masked": self.masked,
            "skipped": len(self.skipped),
        }


def encode_split(
    name: str,
    rows: Rows,
    task: Task,
    processor: Any,
    max_length: int | None,
    *,
    on_error: str,
    listener: Listener,
    augmenters: Sequence[Augmenter] = (),
    seed: int = 0,
) -> EncodedSplit:
    """Encode every row once, to count tokens and to find bad rows before the model loads.

    Raises:
        DataError: a row cannot be encoded (with file and line), or nothing of the split is trained on.
    """
    lengths, weights, index, skipped = [], [], [], []
    longest = truncated = masked = 0
    content = blake2b(digest_size=16)
    for i, row in enumerate(iterate(listener, rows, f"encode {name}", len(rows))):
        content.update(to_json(row).encode())
        if task.paths:  # what lies behind a path may change without the row
            content.update(to_json(task.identity(row)).encode())
        try:
            features = task.encode(row, processor, max_length=max_length)
        except DataError as error:
            reason = f"{rows.where(i)}: {error}"
            if on_error == "fail":
                raise DataError(f"{reason} (data.on_error: skip leaves such rows out)") from None
            skipped.append(reason)
            continue
        truncated += bool(features["truncated"])
        if not features["weight"]:
            masked += 1
            continue
        lengths.append(features["length"])
        longest = max(longest, int(features.get("longest") or features["length"]))
        weights.append(features["weight"])
        index.append(i)
    if not index:
        causes = f"{masked} have no token to train on, {truncated} were cut to {max_length} tokens"
        raise DataError(
            f"nothing is left to learn from in the {name} split ({rows.source}): of {len(rows)} rows {causes}, "
            f"{len(skipped)} were skipped. Check the columns, the task's max_length and what the loss is on."
        )
    return EncodedSplit(
        rows,
        task,
        processor,
        max_length,
        np.asarray(lengths, dtype=np.int64),
        np.asarray(weights, dtype=np.float64),
        np.asarray(index, dtype=np.int64),
        longest,
        truncated,
        masked,
        content.hexdigest(),
        skipped,
        augmenters,
        seed,
        None if name == "train" else np.unique(identities(rows, task, 0)[index], return_inverse=True)[1],
    )
