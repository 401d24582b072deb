"""From rows to features: counted once before training, encoded again when a batch needs them.

Only a few integers an example are kept, so that memory does not grow with the text, and augmentation
can give another text in every epoch.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from hashlib import blake2b
from typing import Any

import numpy as np

from ftengine.api import Augmenter, Batch, Example, Features, Listener, Task, iterate
from ftengine.data.read import Rows
from ftengine.data.row_hashes import group_numbers, identities, to_json
from ftengine.errors import DataError

PERCENTILES = (5, 25, 50, 75, 95, 99)


@dataclass
class EncodedSplit:
    """A split whose examples were all encoded once.

    Args:
        lengths: (examples,) tokens.
        weights: (examples,) what each adds to the loss's denominator; never 0.
        index: (examples,) row of `rows` behind each example.
        content: a hash of all rows in their order, labels included.
        groups: (examples,) equal for duplicates, which say no more than one of them, whatever split or file they are
            in (`group_numbers`); None where not needed.
        longest: the longest sequence that the model reads.
        truncated: number of examples that were cut to the length limit.
        masked: number of rows left out because nothing of them is trained on.
        skipped: reasons of rows that could not be encoded (only with on_error: skip).
        augmenters: what changes examples where an epoch is asked for, in order.
        seed: the run's seed; changes are a function of it, the epoch and the row.
        room: most tokens that the prepared model takes; a changed example that is longer is not used. None: no limit.
        uncut: as `length_percentiles`, "100" included, before cutting; None where the task does not tell.
        standing: the epoch under which every batch is augmented (`under`); None: only where an epoch is asked for.
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
    room: int | None = None
    standing: int | None = None
    uncut: dict[str, int] | None = None

    def __len__(self) -> int:
        return len(self.index)

    def batch(self, members: np.ndarray, epoch: int | None = None) -> Batch:
        """Encode and collate some examples; with an epoch, augmented for it and mixed.

        Augmenters may make several examples of one, so the batch may be larger than `members`.
        """
        rows = [int(self.index[i]) for i in members]
        if self.standing is not None:
            changed = [next(self._usable(row, self.standing))[1] for row in rows]
            return self.task.collate(changed, self.processor)
        batch = self.task.collate([f for row in rows for _, f in self._usable(row, epoch)], self.processor)
        return batch if epoch is None else self._mixed(batch, rows, epoch)

    def example(self, member: int | np.integer[Any]) -> Example:
        """Return the row behind an example, changed as its batch is where the split is seen under augmenters."""
        row = int(self.index[member])
        return self.rows[row] if self.standing is None else next(self._usable(row, self.standing))[0]

    def augmented(self, row: int, epoch: int) -> list[Example]:
        """Return what takes the place of a row in an epoch.

        Each augmenter draws from random numbers of its own, a function of (seed, epoch, row), its name and how often
        that name came before: leaving one out, or putting another in front, changes no draw of the others.
        """
        examples: list[Example] = [self.rows[row]]
        for augmenter, name in _numbered(self.augmenters):
            examples = [
                new
                for number, example in enumerate(examples)
                for new in augmenter.augment(example, random.Random(f"{self.seed}/{epoch}/{row}/{name}/{number}"))
            ]
        return examples

    def _usable(self, row: int, epoch: int | None) -> Iterator[tuple[Example, Features]]:
        """Yield what takes a row's place with its features, at least one; where nothing usable is made, the row."""
        usable = False
        if epoch is not None and self.augmenters:
            for changed in self._changed(row, epoch):
                usable = True
                yield changed
        if not usable:
            example = self.rows[row]
            yield example, self.task.encode(example, self.processor, max_length=self.max_length)

    def _changed(self, row: int, epoch: int) -> Iterator[tuple[Example, Features]]:
        try:
            examples = self.augmented(row, epoch)
        except DataError:  # what is wrong with the row itself is said where it is encoded as it stands
            return
        for example in examples:
            try:
                features = self.task.encode(example, self.processor, max_length=self.max_length)
            except DataError:  # a change left nothing to read, say
                continue
            fits = self.room is None or (features.get("longest") or features["length"]) <= self.room
            if features["weight"] and fits:
                yield example, features

    def _mixed(self, batch: Batch, rows: Sequence[int], epoch: int) -> Batch:
        for augmenter, name in _numbered(self.augmenters):
            members = ",".join(map(str, rows))
            batch = augmenter.mix(batch, random.Random(f"{self.seed}/{epoch}/{members}/{name}"))
        return batch

    def under(self, augmenters: Sequence[Augmenter], epoch: int = 0) -> EncodedSplit:
        """Return the same examples in the same order, each as these augmenters make it in one epoch.

        For measuring what a change does to a model: one example stays one example, and batches are not mixed.
        `lengths`, `weights` and the counts stay those of the examples as they stand.

        Args:
            augmenters: bound to the split's task.
            epoch: whose random numbers are drawn, whatever epoch a batch is asked for.
        """
        for augmenter in augmenters:
            augmenter.bind_processor(self.processor)
        return replace(self, augmenters=tuple(augmenters), standing=epoch)

    def sample(self, count: int, seed: int = 0) -> EncodedSplit:
        """Return at most `count` of the examples, drawn without replacement and not augmented, in their order.

        `groups` are filled in. `content`, `truncated`, `masked` and `skipped` stay those of the whole split.
        """
        if count >= len(self):
            chosen = np.arange(len(self))
        else:
            chosen = np.sort(np.random.default_rng([seed, len(self)]).choice(len(self), count, replace=False))
        index = self.index[chosen]
        return replace(
            self,
            lengths=self.lengths[chosen],
            weights=self.weights[chosen],
            index=index,
            augmenters=(),
            standing=None,
            groups=group_numbers(identities(self.rows.select(index), self.task, 0)),
        )

    def length_percentiles(self) -> dict[str, int]:
        """Return the lengths that 5, 25, 50, 75, 95 and 99 % of the examples do not exceed, after cutting."""
        return _percentiles(self.lengths)

    def summary(self) -> dict[str, Any]:
        """Return the counts that `plan` and the audit show."""
        return {
            "examples": len(self),
            "tokens": int(self.lengths.sum()),
            "trained_tokens": int(self.weights.sum()),
            "longest": self.longest,
            "percentiles": self.length_percentiles(),
            "truncated": self.truncated,
            "untrained_rows": self.masked,
            "skipped": len(self.skipped),
            "skipped_first": self.skipped[:5],
            "uncut": self.uncut,
            "limit": self.max_length,
            "content": self.content,
        }


def _percentiles(lengths: np.ndarray, at: Sequence[int] = PERCENTILES) -> dict[str, int]:
    values = np.percentile(lengths, at, method="inverted_cdf")
    return {str(p): int(value) for p, value in zip(at, values, strict=True)}


def _numbered(augmenters: Sequence[Augmenter]) -> Iterator[tuple[Augmenter, str]]:
    """Yield augmenters, each with its name and how often that came before."""
    seen: Counter[str] = Counter()
    for augmenter in augmenters:
        yield augmenter, f"{augmenter.name}/{seen[augmenter.name]}"
        seen[augmenter.name] += 1


def content_of(rows: Iterable[Example], task: Task) -> str:
    """Return what `EncodedSplit.content` of these rows would be, without encoding them."""
    content = blake2b(digest_size=16)
    for row in rows:
        content.update(_content(row, task))
    return content.hexdigest()


def _content(row: Example, task: Task) -> bytes:
    text = to_json(row)
    return (text + to_json(task.identity(row)) if task.paths else text).encode()  # a file may change, not its path


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
        RecipeError: an augmenter cannot work with this tokenizer or image processor.
    """
    for augmenter in augmenters:
        augmenter.bind_processor(processor)
    lengths, full, weights, index, skipped = [], [], [], [], []
    longest = truncated = masked = 0
    content = blake2b(digest_size=16)
    for i, row in enumerate(iterate(listener, rows, f"encode {name}", len(rows))):
        content.update(_content(row, task))
        try:
            features = task.encode(row, processor, max_length=max_length)
        except DataError as error:
            reason = f"{rows.where(i)}: {error}"
            if on_error == "fail":
                raise DataError(f"{reason} (data.on_error: skip leaves such rows out)") from None
            skipped.append(f"{rows.where(i)}: {error}")
            continue
        truncated += bool(features["truncated"])
        if not features["weight"]:
            masked += 1
            continue
        lengths.append(features["length"])
        full.append(features.get("full_length"))
        longest = max(longest, int(features.get("longest") or features["length"]))
        weights.append(features["weight"])
        index.append(i)
    if not index:
        causes = f"{masked} have no token to train on, {truncated} were cut to {max_length} tokens"
        raise DataError(
            f"nothing is left to learn from in the {name} split ({rows.source}): of {len(rows)} rows {causes}, "
            f"{len(skipped)} were skipped. Check the columns, the task's max_length (and what of the model's length a "
            "strategy takes, such as virtual tokens) and what the loss is on."
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
        None if name == "train" else group_numbers(identities(rows, task, 0)[index]),
        uncut=None if None in full else _percentiles(np.asarray(full), (*PERCENTILES, 100)),
    )
