"""Audit `misplaced-labels`."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping
from itertools import islice
from typing import Any

import numpy as np

from ftengine.api import Audit, AuditedData, Finding
from ftengine.text import counted, number, percent, quoted
from ftengine_builtins.audits.counting import split_name
from ftengine_builtins.audits.labelled_rows import OFFSETS, Answered, Labelled, labelled, misplaced
from ftengine_builtins.audits.labels_by_column import excess
from ftengine_builtins.audits.misplaced_numbers import mixed_up, of_another_unit, turned, unsigned
from ftengine_builtins.audits.split_shift import find_shift, is_nonrandom_split, unlike
from ftengine_builtins.audits.surface_features import are_words_of_one_length
from ftengine_builtins.audits.word_scores import TOKEN, WordRidge, tf_idf
from ftengine_builtins.label_blocks import Block, are_of_all_labels, find_run
from ftengine_builtins.label_fit import (
    ERRORS,
    SURE,
    Offset,
    agreement,
    confusion_of,
    find_swap,
    follow_one_another,
    is_less,
    is_lost,
    one_grade_off,
)

FEWEST, FEWEST_HELD = 60, 20
"""Rows with a text and a label below which nothing is said, of training and of a held-out split."""
PENALTY = 0.3
NOISY, COPIED = 5.0, 0.05
"""Standard errors by which training labels are contradicted more often than held-out ones, for them to look wrong, and
share of the held-out rows that may nearly repeat a training row."""
SLIGHT = 0.2
"""Cohen's kappa up to which an agreement is slight (Landis and Koch 1977, doi:10.2307/2529310)."""
OTHERWISE, OF_WORD, FOR_WORD = 0.1, 8, 3.0
"""By how much more held-out rows are answered rightly by one another than by training for labels to follow another rule
there, and rows of a split and standard errors that a word needs to be named. Of 40 random divisions of BBC news, some
with other shares of labels, none came to 0.07."""


class MisplacedLabels(Audit):
    """Finds labels of neighbouring rows, of other classes, by another rule, at random, or all one label from a row on.

    A ridge classifier on TF-IDF of words, trained on the training rows, answers each of them out of sample, and
    held-out rows of another source. Its answers are compared with the labels of the rows, of the neighbouring rows, and
    of swapped classes. Numbers are also compared in location and spread, as they are, in another unit and without
    signs.
    """

    name = "misplaced-labels"

    def examine(self, data: AuditedData) -> Iterator[Finding]:
        train = labelled(data, "train")
        if train is None or len(train.texts) < FEWEST:
            return
        held = {
            split: rows
            for split in data.splits
            if split != "train" and is_nonrandom_split(data, split)
            if (rows := labelled(data, split)) is not None and len(rows.texts) >= FEWEST_HELD
        }
        every = tf_idf([text for rows in (train, *held.values()) for text in rows.texts])
        ridge, start = WordRidge(every[: len(train.texts)]), len(train.texts)
        learnt = {offset: ridge.leave_one_out(train.targets(offset), PENALTY) for offset in OFFSETS}
        if (finding := _defaults_of_training(data, train) or _in_training(data, train, learnt)) is not None:
            yield finding
            return  # what learns from these says nothing of others
        for split, rows in held.items():
            answers = ridge.predict(every[start : start + len(rows.texts)], train.targets(), PENALTY)
            start += len(rows.texts)
            tests = (
                (_of_rows_around, turned, unsigned, of_another_unit, mixed_up)
                if train.numbers
                else (_defaults, _swapped, _of_rows_around, _by_chance, _noisy_training, _by_another_rule)
            )
            findings = (test(data, split, (train, learnt[0]), (rows, answers)) for test in tests)
            yield from islice((finding for finding in findings if finding is not None), 1)


def _in_training(data: AuditedData, train: Labelled, answers: Mapping[int, np.ndarray]) -> Finding | None:
    """Say whose labels fit the training rows better than their own."""
    offset, block = train.find_offset(answers), train.find_block(answers[0])
    if (offset or block) is None or follow_one_another(train.labels):
        return None
    return _of_offset(data, "train", train, block or offset)


def _of_rows_around(data: AuditedData, split: str, train: Answered, held: Answered) -> Finding | None:
    """Return a finding if neighbouring rows' labels fit the answers to a held-out split better than its own."""
    rows, answers = held
    # Where labels follow one another, those of a block's neighbours may fit by their order alone.
    block = None if follow_one_another(rows.labels) else rows.find_block(answers)
    found = block or rows.find_offset(dict.fromkeys(OFFSETS, answers))
    return None if found is None else _of_offset(data, split, rows, found)


def _of_offset(data: AuditedData, split: str, rows: Labelled, found: Offset | Block) -> Finding:
    """Return a finding on labels that belong to neighbouring rows, in a block of them or in all."""
    offset, at, figures = (
        (found, "", {}) if isinstance(found, Offset) else (found.offset, *_block(data, split, rows, found))
    )
    which = f"{counted(abs(offset.rows), 'row')} {'further down' if offset.rows > 0 else 'further up'}"
    fit = f"the labels {which} fit {percent(offset.fit)} of {offset.n:,} answers that words give, their own "
    fit += percent(offset.own)
    if rows.numbers:
        fit = f"with what words predict, the numbers {which} correlate by {number(offset.fit, 3)}, their own by "
        fit += number(offset.own, 3)
    way = "up" if offset.rows > 0 else "down"
    then = f"If they slipped, move the labels of {data.splits[split].source} {way} "
    then += f"by {counted(abs(offset.rows), 'row')}{' there' if at else ''}."
    figures |= {"offset": offset.rows, "fit": offset.fit, "own": offset.own, "n": offset.n}
    lead = f"check whether labels of {split_name(split)} rows {at} belong to them: they may have slipped" if at else ""
    return misplaced(split, fit, then, figures, lead)


def _block(data: AuditedData, split: str, rows: Labelled, block: Block) -> tuple[str, dict[str, Any]]:
    """Return the first and the last row of a block in words, and as figures."""
    first, last = int(rows.places[block.start]), int(rows.places[block.stop - 1])
    start, stop = (data.splits[split].where(row) for row in (first, last))
    return f"from {start} to {stop.rpartition(':')[2]}", {"first": first, "last": last}


def _defaults_of_training(data: AuditedData, train: Labelled) -> Finding | None:
    """Return a finding on consecutive training rows of one label, which those around them do not take for its rows."""
    if train.numbers or (run := find_run(train.labels[0])) is None:
        return None
    inside = np.zeros(len(train.texts), dtype=bool)
    inside[slice(*run)] = True
    features, targets = tf_idf(train.texts), train.targets()
    others, answers = WordRidge(features[~inside]), np.empty(targets.shape)
    answers[~inside] = others.leave_one_out(targets[~inside], PENALTY)
    answers[inside] = others.predict(features[inside], targets[~inside], PENALTY)
    around = train.select(np.flatnonzero(~inside)), answers[~inside]
    found = _of_default(data, "train", (train, answers), around, run)
    if found is None:
        return None
    return _as_note(found, " Or was a batch of one class added?")


def _as_note(found: Finding, also: str) -> Finding:
    """Return a finding that has another reading, which is said."""
    return found.model_copy(update={"level": "note", "text": found.text + also, "explains": ()})


def _defaults(data: AuditedData, split: str, train: Answered, held: Answered) -> Finding | None:
    """Return a finding on consecutive held-out rows of one label, which training does not take for its rows."""
    run = find_run(held[0].labels[0])
    return None if run is None else _of_default(data, split, held, train, run)


def _of_default(
    data: AuditedData, split: str, rows: Answered, others: Answered, run: tuple[int, int]
) -> Finding | None:
    """Return a finding if rows of one label are answered, and written, as rows of all labels are."""
    inside, label = slice(*run), int(rows[0].labels[0][run[0]])
    given, known = (of.argmax(1) == label for of in (rows[1][inside], others[1]))
    own = others[0].labels[0] == label
    if not are_of_all_labels(given, known[own], known):
        return None
    if find_shift(others[0].texts, rows[0].texts[inside]) is not None:
        return None
    places, name = rows[0].places[inside], rows[0].names[label]
    start, stop = (data.splits[split].where(int(row)) for row in (places[0], places[-1]))
    lead = f"check whether {split_name(split)} rows from {start} to {stop.rpartition(':')[2]} were ever labelled"
    fit = (
        f"all {len(places):,} have the label {quoted(name)}, and by their words {percent(float(given.mean()))} of them "
    )
    fit += f"are {quoted(name)}, of other rows with it {percent(float(known[own].mean()))}"
    figures = {"default": name, "first": int(places[0]), "last": int(places[-1]), "n": len(places)}
    then = "A program may have filled in its first label where nobody had chosen one. Label them, or leave them out."
    return misplaced(split, fit, then, figures, lead)


def _swapped(data: AuditedData, split: str, train: Answered, held: Answered) -> Finding | None:
    """Return a finding on classes that are answered as one another as often as training answers them rightly.

    If words mislead by design, as in a challenge set, answers contradict labels less often than that.
    """
    names, learnt, confusion = train[0].names, train[0].confusion(train[1]), held[0].confusion(held[1])
    if (swap := find_swap(confusion)) is None or not all(learnt[i, i] > learnt[i, j] for i, j in swap.classes):
        return None
    labels, answers = zip(*swap.classes, strict=True)
    before, after = agreement(learnt[np.ix_(labels, labels)]), agreement(confusion[np.ix_(labels, answers)])
    if is_less(before, after, errors=2):
        return None
    pairs = ", ".join(f"{names[i]} → {names[j]}" for i, j in swap.classes)
    fit = f"by their words, {swap.fit:,} of {swap.n:,} rows fit other labels ({pairs}); {swap.own:,} fit their own"
    figures = {"swapped": [(names[i], names[j]) for i, j in swap.classes]}
    figures |= {"fit": swap.fit, "own": swap.own, "n": swap.n}
    if grade := one_grade_off(confusion, swap, names):
        text = f"Check how {split_name(split)} rows were rated: {fit}. Are grades one "
        text += f"{'higher' if grade > 0 else 'lower'} there? If they were numbered in each file by itself, number "
        text += f"those of {data.splits[split].source} as training has them."
        return Finding(kind="splits", level="note", text=text, figures={"split": split, **figures, "grade": grade})
    then = f"If they are exchanged, swap them in {data.splits[split].source}."
    if not swap.is_exchange:
        then = "Were labels numbered in each file by itself? Number those of "
        then += f"{data.splits[split].source} as training has them."
    return misplaced(split, fit, then, figures)


def _by_chance(data: AuditedData, split: str, train: Answered, held: Answered) -> Finding | None:
    """Return a finding if the labels of a held-out split agree with answers only by chance, though texts are alike."""
    before, after = (agreement(rows.confusion(answers)) for rows, answers in (train, held))
    texts = (train[0].texts, held[0].texts)
    if not is_lost(before, after) or find_shift(*texts) is not None or not are_words_of_one_length(*texts):
        return None
    fit = f"by their words, {percent(after.share)} of {after.n:,} rows are answered rightly, as by chance "
    fit += f"({percent(after.chance)}), and {percent(before.share)} of training rows out of sample"
    figures = {"right": after.share, "chance": after.chance, "training": before.share, "n": after.n}
    then = (
        f"If rows of {data.splits[split].source} were mixed up, join labels and texts again by an id; a test set whose "
    )
    then += "words mislead by design looks the same."
    return misplaced(split, fit, then, figures)


def _by_another_rule(data: AuditedData, split: str, train: Answered, held: Answered) -> Finding | None:
    """Return a finding if a held-out split's own words predict its labels far better than training's do.

    Each held-out row is answered by the other held-out rows, and by at least as many training rows with the same shares
    of labels. The former are better only if training's labels were given differently: by keywords, say.
    """
    from scipy.stats import binom

    if data.splits[split].source == data.splits["train"].source:  # groups are alike within a split
        return None
    like, rows = _with_shares_of(train[0], held[0])
    words = tf_idf([*like.texts, *rows.texts])
    known = len(like.texts) + unlike(words[len(like.texts) :], np.zeros(len(rows.texts)))
    truths = rows.labels[0][known - len(like.texts)]
    if len(known) < FEWEST or len(like.texts) < len(known):
        return None
    one_hot = np.eye(len(rows.names))[truths]
    own = WordRidge(words[known]).leave_one_out(one_hot, PENALTY).argmax(1) == truths
    ridge = WordRidge(words[: len(like.texts)])
    learnt = ridge.predict(words[known], like.targets(), PENALTY).argmax(1) == truths
    only, against = int((own & ~learnt).sum()), int((learnt & ~own).sum())
    if own.mean() - learnt.mean() < OTHERWISE or binom.sf(only - 1, only + against, 0.5) > SURE:
        return None
    if find_shift(train[0].texts, held[0].texts) is not None:
        return None
    name = split_name(split)
    fit = f"of {len(known):,} {name} rows {percent(learnt.mean())} are answered rightly by training's words, "
    fit += f"{percent(own.mean())} by those of the other {name} rows{_other_words(like, rows, name)}"
    figures = {"right": float(learnt.mean()), "own": float(own.mean()), "n": len(known), "rule": True}
    then = "Was one file labelled by a program (by keywords, say) or by other guidelines? Label both in one way."
    lead = f"check whether training labels were given by another rule than {name} labels"
    trained = agreement(train[0].confusion(train[1]))
    if trained.kappa <= SLIGHT:  # by no rule
        fit = f"by their words, {percent(trained.share)} of {trained.n:,} rows are answered rightly out of sample, "
        fit += f"hardly more than by chance, {name} rows among themselves {percent(own.mean())}"
        then = f"If rows of {data.splits['train'].source} were mixed up, join labels and texts again by an id."
        lead = "check whether training labels belong to their rows"
        figures |= {"mixed_up": trained.share}
    return misplaced(split, fit, then, figures, lead)


def _noisy_training(data: AuditedData, split: str, train: Answered, held: Answered) -> Finding | None:
    """Return a finding if training's words contradict far more of its own labels than of a held-out split's.

    Rows of the same label are compared, and again the half of them that words are surest of: elsewhere texts may be
    harder. Not where held-out rows are near copies of training rows, which are answered rightly. A note, as training
    rows may be harder by intent; `label-noise` finds one class that is labelled as another.
    """
    if data.near is None or np.isin(data.near[split], data.near["train"]).mean() > COPIED:
        return None
    labels, answers = (np.concatenate(of) for of in ((train[0].labels[0], held[0].labels[0]), (train[1], held[1])))
    known = labels >= 0
    labels, answers, of = labels[known], answers[known], (np.arange(len(labels)) < len(train[0].texts))[known]
    preferred, ranked = answers.argmax(1), np.sort(answers, axis=1)
    wrong, margin = preferred != labels, ranked[:, -1] - ranked[:, -2]
    found, clear = excess(wrong, labels, of), margin >= np.median(margin)
    surely = excess(wrong[clear], labels[clear], of[clear])
    if found.errors < NOISY or surely.errors < ERRORS or not (found.is_large and surely.is_large):
        return None
    if find_shift(train[0].texts, held[0].texts) is not None:
        return None
    confusion = confusion_of(labels[of & clear], preferred[of & clear], len(train[0].names))
    np.fill_diagonal(confusion, 0)
    given, rather = np.unravel_index(int(confusion.argmax()), confusion.shape)
    names, name = train[0].names, split_name(split)
    lead = "look at the labels of training"
    fit = f"by their words, {percent(found.share)} of them look wrong, of {name} labels {percent(found.others)}; most "
    fit += f"often {quoted(names[given])} that are rather {quoted(names[rather])} ({int(confusion.max()):,})"
    figures = {"noise": found.share, "held_out": found.others, "given": names[given], "rather": names[rather]}
    then = "Were training rows labelled by somebody else, by a program, or by default? Correct them, or leave them out."
    return _as_note(misplaced("train", fit, then, figures | {"n": found.n}, lead), " Or are training rows harder?")


def _with_shares_of(train: Labelled, held: Labelled) -> tuple[Labelled, Labelled]:
    """Return as many training rows as have the held-out rows' shares of labels, and at most as many held-out rows."""
    counts = [np.bincount(rows.labels[0][rows.labels[0] >= 0], minlength=len(train.names)) for rows in (train, held)]
    shares = counts[1] / max(1, counts[1].sum())
    total = float(min((n / share for n, share in zip(counts[0], shares, strict=True) if share), default=0))
    kept = np.concatenate(
        [np.flatnonzero(train.labels[0] == i)[: int(total * share)] for i, share in enumerate(shares)]
    )
    others = np.random.default_rng(0).permutation(np.flatnonzero(held.labels[0] >= 0))[: len(kept)]
    return train.select(np.sort(kept)), held.select(np.sort(others))


def _other_words(train: Labelled, held: Labelled, name: str) -> str:
    """Return the word whose rows have a label significantly more often in one split; "" if there is none."""
    best = (FOR_WORD, "")
    having = [_rows_by_word(rows) for rows in (train, held)]
    for word in having[0].keys() & having[1].keys():
        n, m = (sum(side[word].values()) for side in having)
        for label, count in having[0][word].items() if min(n, m) >= OF_WORD else ():
            a, b, share = count / n, having[1][word][label] / m, (count + having[1][word][label]) / (n + m)
            error = math.sqrt(max(share * (1 - share), 1 / (n + m)) * (1 / n + 1 / m))
            what = f"; rows with {quoted(word)} are {quoted(train.names[label])} in {percent(a)} of training and "
            best = max(best, (abs(a - b) / error, f"{what}{percent(b)} of {name} rows"))
    return best[1]


def _rows_by_word(rows: Labelled) -> dict[str, Counter[int]]:
    """Return the number of rows of each label that contain each word."""
    found: dict[str, Counter[int]] = {}
    for text, label in zip(rows.texts, rows.labels[0].tolist(), strict=True):
        for word in set(TOKEN.findall(text.lower())) if label >= 0 else ():
            found.setdefault(word, Counter())[label] += 1
    return found
