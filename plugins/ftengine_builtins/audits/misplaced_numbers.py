"""Numbers of a held-out split that are of another unit, scale, sign or direction than those of training."""

from __future__ import annotations

import math

import numpy as np

from ftengine.api import AuditedData, Finding
from ftengine.text import number, percent
from ftengine_builtins.audits.counting import share_within, split_name
from ftengine_builtins.audits.labelled_rows import Answered, misplaced
from ftengine_builtins.audits.number_forms import scaled_form
from ftengine_builtins.audits.split_shift import find_shift
from ftengine_builtins.audits.word_scores import WordRidge, tf_idf
from ftengine_builtins.label_fit import (
    find_curve,
    find_unit,
    is_distributed_alike,
    is_distributed_otherwise,
    signed_correlation,
)

OFF, WIDER = 0.5, 1.6
"""How far the numbers of a split may lie from those of training, in interquartile ranges of these, and how many times
their spread; beyond, they are compared."""
NEGATIVE, SIZES = 0.2, 5
"""Share of negative numbers (interval's near end) of one split, where the other has none, and how many distinct sizes
numbers have there at least, from which signs may have been lost: one or two sizes are alike in any case."""

FEWEST, PENALTY, BY_CHANCE, WELL = 60, 0.3, 2.0, 0.5
"""Held-out rows that words are learnt from, the ridge's penalty, standard errors of training's correlation that are
chance, and the correlation in the split from which words tell its numbers."""


def turned(data: AuditedData, split: str, train: Answered, held: Answered) -> Finding | None:
    """Return a finding if words predict training's numbers, and a split's the other way round."""
    found = [signed_correlation(answers[:, 0], rows.labels[0]) for rows, answers in (train, held)]
    if found[0][1] or not found[1][1] or not found[0][2] or find_shift(train[0].texts, held[0].texts) is not None:
        return None
    (own, *_), (there, *_) = found
    fit = f"with what training's words predict they correlate by {number(there, 3)}, those of training by "
    fit += number(own, 3)
    then = "If a small number means much in one of both files (1 is best here, worst there), turn the "
    then += f"numbers of {data.splits[split].source} round."
    lead = f"check which way the numbers of {split_name(split)} rows run"
    return misplaced(split, fit, then, {"correlation": there, "training": own}, lead)


def unsigned(data: AuditedData, split: str, train: Answered, held: Answered) -> Finding | None:
    """Return a finding if training or a split has no minus signs, and equals the other without its signs."""
    numbers = {name: of.labels[0][~np.isnan(of.labels[0])] for name, (of, _) in (("train", train), (split, held))}
    lost, other = ("train", split) if numbers["train"].min() >= 0 else (split, "train")
    negative = int((numbers[other] < 0).sum())
    sizes = np.abs(numbers[other])
    if share_within(negative, len(sizes))[0] < NEGATIVE or len(np.unique(sizes)) < SIZES:
        return None
    if any(isinstance(view.label, float) and view.label < 0 for view in data.splits[lost]):
        return None
    if not is_distributed_otherwise(*numbers.values()) or not is_distributed_alike(numbers[lost], sizes):
        return None
    if find_shift(train[0].texts, held[0].texts) is not None:
        return None
    share = negative / len(sizes)
    fit = f"{split_name(lost)} numbers have no minus sign, {percent(share)} of {split_name(other)} numbers do, and "
    fit += "without signs they are alike"
    then = f"If so, export {data.splits[lost].source} again with signs."
    lead = f"check whether {split_name(lost)} numbers lost their minus signs"
    return misplaced(split, fit, then, {"lost": lost, "negative": share, "n": len(sizes)}, lead)


def of_another_unit(data: AuditedData, split: str, train: Answered, held: Answered) -> Finding | None:
    """Return a finding if a split's numbers differ from training's in location or spread, though texts are alike."""
    trained, other = (of.labels[0][~np.isnan(of.labels[0])] for of, _ in (train, held))
    middle, there = float(np.median(trained)), float(np.median(other))
    spread, wide = (float(np.subtract(*np.percentile(x, (75, 25)))) for x in (trained, other))
    if not spread or not wide:
        return None
    differ = abs(there - middle) >= OFF * spread or max(wide / spread, spread / wide) >= WIDER
    if not differ or not is_distributed_otherwise(trained, other):
        return None
    if find_shift(train[0].texts, held[0].texts) is not None:
        return None
    fit = f"their median is {number(there, 3)} and their interquartile range {number(wide, 3)}, in training "
    fit += f"{number(middle, 3)} and {number(spread, 3)}, though the texts are alike"
    figures = {"median": there, "spread": wide, "training_median": middle, "training_spread": spread, "n": len(other)}
    for source, scaled in (("train", scaled_form(trained, other)), (split, scaled_form(other, trained))):
        if scaled is not None:
            then = f"Write both in one way: those of {data.splits[source].source} as they were before."
            lead = f"bring training and {split_name(split)} numbers to one scale: {split_name(source)} numbers are "
            lead += f"{scaled}, the others not"
            return misplaced(split, fit, then, {**figures, "scaled": source}, lead)
    if (unit := find_unit(trained, other)) is None:
        if (curve := find_curve(trained, other)) is not None:
            fit += f"; {curve} those of training is like them"
            then = f"If so, bring the numbers of {data.splits[split].source} and of training to one scale."
            lead = f"check whether {split_name(split)} rows have numbers on another scale than training"
            return misplaced(split, fit, then, {**figures, "curve": curve}, lead)
        lead = f"{split_name(split)} rows have other numbers than training"
        text = f"{lead[:1].upper()}{lead[1:]}: {fit}."
        return Finding(kind="splits", level="note", text=text, brief=lead, figures={"split": split, **figures})
    factor, plus = unit
    fit += f"; {number(factor, 3)} times those of training{f' plus {number(plus, 3)}' if plus else ''} are like them"
    then = f"If so, convert the numbers of {data.splits[split].source} to training's unit."
    lead = f"check whether {split_name(split)} rows have numbers of another unit than training"
    return misplaced(split, fit, then, {**figures, "factor": factor, "plus": plus}, lead)


def mixed_up(data: AuditedData, split: str, train: Answered, held: Answered) -> Finding | None:
    """Return a finding if words tell a split's numbers among themselves, and training's by chance, texts alike."""
    own, *_ = signed_correlation(train[1][:, 0], train[0].labels[0])
    if len(held[0].texts) < FEWEST or abs(own) * math.sqrt(len(train[0].texts)) > BY_CHANCE:
        return None
    ridge = WordRidge(tf_idf(held[0].texts))
    there, _, sure = signed_correlation(ridge.leave_one_out(held[0].targets(), PENALTY)[:, 0], held[0].labels[0])
    if not sure or there < WELL or find_shift(train[0].texts, held[0].texts) is not None:
        return None
    fit = (
        f"with what words predict out of sample they correlate by {number(own, 2)}, as by chance; {split_name(split)} "
    )
    fit += f"numbers do among themselves by {number(there, 2)}"
    then = f"If rows of {data.splits['train'].source} were mixed up, join numbers and texts again by an id."
    lead = "check whether training numbers belong to their rows"
    return misplaced("train", fit, then, {"mixed_up": own, "held_out": there}, lead)
