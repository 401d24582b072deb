"""Encoding of rows into features: once before training, to count tokens; batches then read the cached features.

Only a few integers an example are kept in memory, so that it does not grow with the text; features lie on disk
(`KeptFeatures`). Augmented rows, which differ in every epoch, are encoded when they are needed, and so are features
that JSON cannot hold, such as pixels.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field, replace
from hashlib import blake2b
from typing import Any

import numpy as np

from ftengine.api import Augmenter, Batch, Example, Features, Listener, Task, iterate
from ftengine.api.on_policy import is_on_policy
from ftengine.data.augmentation import augment, mix
from ftengine.data.batching import as_numbers, epoch_batches
from ftengine.data.features import KeptFeatures, features_key, keep_features
from ftengine.data.mixed import SOURCE, MixedRows, Mixture
from ftengine.data.row_facts import (
    COUNTS,
    UNKNOWN,
    Encoded,
    RowFacts,
    accepted,
    counted,
    encoded_rows,
    longest_sequence,
    nothing_left,
    percentiles,
    with_following,
)
from ftengine.data.row_hashes import identities, to_json
from ftengine.data.rows import DataRows
from ftengine.data.split_columns import numbers_of
from ftengine.errors import DataError
from ftengine.plugins.attribution import contract_error

SHOWN_ROWS = 5


@dataclass
class EncodedSplit:
    """A split whose examples were all encoded once.

    Args:
        lengths: (examples,) tokens.
        sequences: (examples,) tokens of each example's longest sequence; the model may read several of one example.
        weights: (examples,) each example's part of the loss's denominator; never 0.
        index: (examples,) the row of `rows` that each example was made of.
        content: a hash of all rows in their order, labels included.
        duplicates: (examples,) equal for duplicates, which count as one observation (`duplicate_numbers`); None if not
            needed.
        groups: (examples,) equal for rows that are not independent: duplicates, and rows with the same value in the
            data's group column; None if not needed.
        truncated: number of examples that were cut to the length limit.
        untrained_rows: number of rows left out because nothing of them is trained on.
        skipped: the reason of each row that could not be encoded (only with on_error: skip).
        facts: what the task reports about all rows.
        augmenters: applied in order to the batches of an epoch.
        seed: the run's seed; changes are a function of it, the epoch and the row.
        room: most tokens that the prepared model takes; longer augmented examples are not used. None: no limit.
        unknown: number of tokens for text that the tokenizer does not know; None if the task does not report it.
        unknown_rows: the first rows with such tokens.
        largest: the largest token id, and its row; the id is `UNKNOWN` if examples are not made of tokens.
        untruncated: percentiles of `sequences` before cutting, "100" included; None if the task does not report them.
        fixed_epoch: the epoch that all batches are augmented for (`under`); None: the epoch given to `batch`.
        cached: features of all rows; None if each is encoded again.
        shares: (examples,) probabilities with which an epoch draws its examples; None: each once.
        mixture: the shares of the sources, if there are several.
        reference: by key, (examples,) the reference model's predictions without augmentation (`ReferenceTask`).
    """

    rows: DataRows
    task: Task
    processor: Any
    max_length: int | None
    lengths: np.ndarray
    sequences: np.ndarray
    weights: np.ndarray
    index: np.ndarray
    truncated: int
    untrained_rows: int
    content: str
    skipped: Mapping[int, str] = field(default_factory=dict)
    augmenters: Sequence[Augmenter] = ()
    seed: int = 0
    duplicates: np.ndarray | None = None
    groups: np.ndarray | None = None
    room: int | None = None
    fixed_epoch: int | None = None
    untruncated: dict[str, int] | None = None
    unknown: int | None = None
    unknown_rows: Sequence[int] = ()
    largest: tuple[int, int] = (UNKNOWN, 0)
    cached: KeptFeatures | None = None
    shares: np.ndarray | None = None
    facts: RowFacts = field(default_factory=RowFacts)
    mixture: Mixture | None = None
    reference: Mapping[str, np.ndarray] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.index)

    def epoch(self, size: int, seed: int, epoch: int) -> list[np.ndarray]:
        """Return each effective batch of an epoch as members (`epoch_batches`); prompts are not sorted by length."""
        mixed = self.mixture if self.draws and self.shares is None else None
        order = None if mixed is None else mixed.epoch(seed, epoch)
        return epoch_batches(self.lengths * (not is_on_policy(self.task)), size, seed, epoch, self.shares, order)

    def drawn(self, size: int, seed: int, steps: int) -> np.ndarray:
        """Return the examples, ascending, of the effective batches of the first `steps` steps."""
        batches, epoch = list[np.ndarray](), 0
        while len(batches) < steps:
            batches += self.epoch(size, seed, epoch)
            epoch += 1
        return np.unique(np.concatenate(batches[:steps]))

    @property
    def draws(self) -> bool:
        """Whether an epoch may contain an example several times, or not at all."""
        return self.shares is not None or (self.mixture is not None and self.mixture.weighted)

    def mixed(self) -> EncodedSplit:
        """Return the same examples, of which an epoch takes each source's share if there are several sources."""
        several = isinstance(self.rows, MixedRows)
        return replace(self, mixture=Mixture.make(self.rows, self.index)) if several else self  # type: ignore[arg-type]

    def sampled_evenly(self) -> EncodedSplit:
        """Return the same examples, of which an epoch draws all labels equally often.

        Raises:
            DataError: a row does not have exactly one label.
        """
        labels = [self.rows.view(int(row), self.task).labels for row in self.index]
        for row, own in zip(self.index, labels, strict=True):
            if len(own) != 1:
                raise DataError(
                    "train.sampling=balanced draws all labels equally often, so each row must have one label; "
                    f"{self.rows.where(int(row))} has {len(own) or 'none'}. Set train.sampling=shuffle."
                )
        _, numbers, counts = np.unique([label for (label,) in labels], return_inverse=True, return_counts=True)
        return replace(self, shares=1 / (len(counts) * counts[numbers]))

    def batch(self, members: np.ndarray, epoch: int | None = None) -> Batch:
        """Encode and collate some examples; if an epoch is given, augment and mix them for it.

        The batch may be larger than `members`: augmenters may make several examples of one.
        """
        numbers = [int(self.index[i]) for i in members]
        if self.fixed_epoch is not None:
            features = [self._usable(number, self.fixed_epoch)[0][1] for number in numbers]
        elif epoch is None or not self.augmenters:
            features = [self.features(number) for number in numbers]
        else:
            features = [row_features for number in numbers for _, row_features in self._usable(number, epoch)]
        batch = self.task.collate(features, self.processor)
        if not isinstance(batch, dict):
            raise contract_error(self.task, "collate", batch, "a dict of tensors by name")
        if self.reference:
            batch["reference"] = {key: as_numbers(values[members]) for key, values in self.reference.items()}
        if epoch is None or self.fixed_epoch is not None:
            return batch
        return mix(batch, self.task, self.augmenters, self.seed, epoch, numbers)

    def features(self, number: int) -> Features:
        """Return the features of a row without augmentation."""
        if self.cached is not None:
            return self.cached[number]
        return self.encode(self.rows[number], number)

    def encode(self, row: Example, number: int) -> Features:
        """Return the features of a row that replaces row `number`."""
        return self.task.encode(row, self.processor, max_length=self.max_length, **self.rows.beside(number))

    def parts(self, members: np.ndarray) -> dict[str, list[int | None]]:
        """Return the argument `parts` of `GenerativeTask.generate` for some examples; {} if no row makes several."""
        if self.rows.parts is None:
            return {}
        return {"parts": [self.rows.part(number).get("part") for number in self.index[members].tolist()]}

    def example(self, member: int | np.integer[Any]) -> Example:
        """Return the row of an example, augmented if the split has a `fixed_epoch`."""
        number = int(self.index[member])
        return self.rows[number] if self.fixed_epoch is None else self._usable(number, self.fixed_epoch)[0][0]

    def augmented(self, number: int, epoch: int) -> list[Example]:
        """Return the examples that replace a row in an epoch (`augment`)."""
        row = deepcopy(self.rows[number])  # every epoch starts from the unchanged row
        return augment(row, self.task, self.augmenters, self.seed, epoch, number)

    def _usable(self, number: int, epoch: int) -> list[tuple[Example, Features]]:
        """Return the usable examples that replace a row, with their features; the row itself if there are none."""
        return list(self.changed(number, epoch)) or [(self.rows[number], self.features(number))]

    def changed(self, number: int, epoch: int) -> Iterator[tuple[Example, Features]]:
        """Yield the augmented forms of a row in an epoch that can be trained on, with their features."""
        try:
            rows = self.augmented(number, epoch)
        except DataError:  # encoding the unchanged row reports the fault
            return
        for row in rows:
            try:
                features = self.encode(row, number)
            except DataError:  # such as a text from which all words were removed
                continue
            if features.weight and (self.room is None or longest_sequence(features) <= self.room):
                yield row, features

    def under(self, augmenters: Sequence[Augmenter], epoch: int = 0) -> EncodedSplit:
        """Return the same examples in the same order, augmented as in one epoch.

        This serves to measure how a change affects a model: each example stays one example, and batches are not mixed.
        `lengths`, `weights` and the counts stay those of the unchanged examples.

        Args:
            augmenters: suitable for the split's task (`require_suitable`).
            epoch: whose random numbers are used, regardless of the epoch given to `batch`.
        """
        _show_processor(augmenters, self.processor)
        return replace(self, augmenters=tuple(augmenters), fixed_epoch=epoch, reference={})

    def sample(self, count: int, seed: int = 0) -> EncodedSplit:
        """Return at most `count` of the examples, drawn without replacement, as `take` does."""
        rng = np.random.default_rng([seed, len(self)])
        return self.take(np.sort(rng.choice(len(self), min(count, len(self)), replace=False)))

    def take(self, chosen: np.ndarray) -> EncodedSplit:
        """Return some examples by their positions, not augmented.

        `content`, `truncated`, `untrained_rows` and `skipped` stay those of the whole split.
        """
        index = self.index[chosen]
        return replace(
            self,
            lengths=self.lengths[chosen],
            sequences=self.sequences[chosen],
            weights=self.weights[chosen],
            index=index,
            augmenters=(),
            fixed_epoch=None,
            shares=None,
            mixture=None,
            duplicates=None if self.duplicates is None else self.duplicates[chosen],
            groups=None if self.groups is None else self.groups[chosen],
            reference={key: values[chosen] for key, values in self.reference.items()},
        )

    @property
    def left_out(self) -> list[int]:
        """The rows that could not be encoded, by their numbers before rows were repeated (`DataRows.before`)."""
        return np.unique(self.rows.before(np.array(list(self.skipped), dtype=int))).tolist()

    @property
    def longest(self) -> int:
        """The length in tokens of the longest sequence that the model reads."""
        return int(self.sequences.max())

    def summary(self) -> dict[str, Any]:
        """Return the counts that `plan` and the audit show."""
        return {
            "examples": len(self),
            "tokens": int(self.lengths.sum()),
            "trained_tokens": int(self.weights.sum()),
            "longest": self.longest,
            "percentiles": percentiles(self.sequences),
            "truncated": self.truncated,
            "untrained_rows": self.untrained_rows,
            "skipped": len(self.skipped),
            "skipped_first": list(self.skipped.values())[:SHOWN_ROWS],
            "untruncated": self.untruncated,
            "unknown": self.unknown,
            "unknown_first": [self.rows.where(row) for row in self.unknown_rows],
            "limit": self.max_length,
            **self.facts.to_json(),
            "rows": len(np.unique(self.rows.before(self.index))),
            "content": self.content,
            **({"sources": self._by_source(self.rows)} if isinstance(self.rows, MixedRows) else {}),
        }

    def _by_source(self, rows: MixedRows) -> list[dict[str, Any]]:
        facts = rows.counted(self.index, tokens=self.lengths, trained_tokens=self.weights)
        return facts if self.mixture is None else self.mixture.with_shares(facts)

    @property
    def source_names(self) -> list[str]:
        """The names of the sources, if there are several."""
        return [source.source for source in self.rows.sources] if isinstance(self.rows, MixedRows) else []

    @property
    def sources(self) -> np.ndarray:
        """(examples,) the number of each example's source."""
        return self.rows.of[self.index] if isinstance(self.rows, MixedRows) else np.zeros(len(self), dtype=int)


def _show_processor(augmenters: Sequence[Augmenter], processor: Any) -> None:
    for augmenter in augmenters:
        augmenter.set_processor(processor)


def content_of(rows: Iterable[Example], task: Task) -> str:
    """Return the hash `EncodedSplit.content` of some rows without encoding them."""
    content = blake2b(digest_size=16)
    for i, row in enumerate(rows):
        if isinstance(rows, MixedRows):  # the name of a source in the recipe is not part of the row
            row = {**row, SOURCE: None}
        identity = ""
        if task.file_columns:  # a file may change although its path does not
            view = rows.view(i, task) if isinstance(rows, DataRows) else task.view(row)
            identity = to_json(view.identity)
        content.update((to_json(row) + identity).encode())
    return content.hexdigest()


def unusable(rows: DataRows, task: Task, processor: Any, max_length: int | None) -> Iterator[tuple[str, str]]:
    """Yield the place of each row that cannot be encoded, and the reason; cache the features of the others."""
    key = features_key(content_of(rows, task), task, processor, max_length)
    rows = with_following(rows, task)
    encoded = (
        None
        if key is None
        else keep_features(key, rows.source, encoded_rows(rows, task, processor, max_length, rows.following))
    )
    for row, features in (
        encoded_rows(rows, task, processor, max_length, rows.following) if encoded is None else encoded
    ):
        if isinstance(features, DataError):
            yield rows.where(row), f"{rows.where(row)}: {features}"


def encode_split(
    name: str,
    rows: DataRows,
    task: Task,
    processor: Any,
    max_length: int | None,
    *,
    on_error: str,
    listener: Listener,
    augmenters: Sequence[Augmenter] = (),
    seed: int = 0,
    group: str | None = None,  # the column of groups, if these rows have one
) -> EncodedSplit:
    """Encode every row once, to count tokens and to find bad rows before the model is loaded.

    Raises:
        DataError: a row cannot be encoded (the message has file and line), or no row of the split can be trained on.
        RecipeError: an augmenter cannot work with this tokenizer or image processor.
    """
    _show_processor(augmenters, processor)
    facts, skipped, content = RowFacts(), dict[int, str](), content_of(rows, task)

    def encoded() -> Iterator[Encoded]:
        announced = iterate(listener, rows, f"encode {name}", len(rows))
        return accepted(encoded_rows(announced, task, processor, max_length, rows.following), rows, on_error)

    rows, key = with_following(rows, task), features_key(content, task, processor, max_length)
    features = None if key is None else keep_features(key, rows.source, encoded())
    attempts = encoded() if features is None else accepted(features, rows, on_error)
    counts = np.fromiter(counted(attempts, rows, facts, skipped), COUNTS)
    rows = rows.in_parts(np.bincount(facts.of, minlength=len(rows)))
    usable = counts[counts["weight"] != 0]
    if not len(usable):
        raise DataError(nothing_left(name, rows, counts, facts.reasons, len(skipped)))
    untruncated, unknown = usable["untruncated"], usable["unknown"]
    duplicates, groups = (None, None) if name == "train" else _numbers(rows, usable["row"], task, group, listener)
    return EncodedSplit(
        rows,
        task,
        processor,
        max_length,
        usable["length"],
        usable["sequence"],
        usable["weight"],
        usable["row"],
        int(counts["truncated"].sum()),
        len(counts) - len(usable),
        content,
        skipped,
        augmenters,
        seed,
        duplicates,
        groups,
        untruncated=None if (untruncated == UNKNOWN).any() else percentiles(untruncated, longest=True),
        unknown=None if (unknown == UNKNOWN).all() else int(unknown[unknown != UNKNOWN].sum()),
        unknown_rows=usable["row"][unknown > 0][:SHOWN_ROWS].tolist(),
        largest=tuple(max(usable[["token", "row"]].tolist())),
        cached=features,
        facts=facts,
    )


def _numbers(rows: DataRows, index: np.ndarray, task: Task, group: str | None, listener: Listener) -> Any:
    """Return `numbers_of` for the rows that examples are made of."""
    measured = rows if len(index) == len(rows) else rows.select(index)
    return numbers_of(measured, identities(measured, task, 0), group, listener)
