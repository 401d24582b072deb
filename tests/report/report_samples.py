"""Folders of runs written by hand, in the format of real ones: a sound classifier, and one with everything in it."""

import copy
import json
from contextlib import suppress
from functools import cache

import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from ftengine.errors import RunError
from ftengine.evaluation.intervals import subtracted_interval
from ftengine.plugins.registry import Registry
from ftengine.report.verdict import judge
from ftengine.run.directory import RunDirectory
from ftengine.run.records import RunRecords

HOSTILE = (
    '</script><script>alert(1)</script>"><img src=x onerror=alert(2)>\'onclick="alert(3)" {{ 7 * 7 }} '
    "\u202egnp.exe\u202c\x00\x07\x1b[31m ]]>--> </style></title></textarea> &lt;b&gt; " + "W" * 200 + " \ud800"
)
"""Markup that tries to leave every context, template code, a right-to-left override, control characters, a word
without end, half of a surrogate pair."""

LABELS = ("business", "politics", "sports")

METRICS = {
    "accuracy": {"label": "accuracy", "higher_is_better": True, "proportion": True, "evaluator": "classification"},
    "macro_f1": {"label": "macro F1", "higher_is_better": True, "proportion": True, "evaluator": "classification"},
    "ece": {"label": "calibration error", "higher_is_better": False, "kind": "calibration", "evaluator": "calibration"},
    "perplexity": {"label": "perplexity", "higher_is_better": False, "evaluator": "language"},
    "verbatim": {"label": "verbatim", "higher_is_better": False, "proportion": True, "evaluator": "verbatim"},
    "refusal": {"label": "refusal", "higher_is_better": True, "proportion": True, "evaluator": "refusal"},
}


def figure(value, half=0.03, n=400):
    return {"value": value, "low": round(value - half, 6), "high": round(value + half, 6), "n": n}


def change(value, half=0.03, better=True, p=0.002, detectable=0.05):
    ends = {"low": round(value - half, 6), "high": round(value + half, 6)}
    return {"value": value, **ends, "p": p, "better": better, "detectable": detectable}


def details(confusion, ece):
    labels = [
        {"label": name, "precision": 0.9, "recall": 0.9, "f1": 0.9, "support": sum(row)}
        for name, row in zip(LABELS, confusion, strict=True)
    ]
    bins = [
        {"low": i / 10, "high": (i + 1) / 10, "n": 10 * i, "confidence": i / 10 + 0.05, "accuracy": i / 10 + 0.05 - ece}
        for i in range(1, 10)
    ]
    return {
        "classification": {"labels": labels, "confusion": confusion, "baseline": baseline(confusion)},
        "calibration": {"bins": bins, "temperature": 1.2},
    }


def baseline(confusion, figures=("accuracy", "macro_f1")):
    true, given = [sum(row) for row in confusion], [sum(column) for column in zip(*confusion, strict=True)]
    best, most, total = true.index(max(true)), given.index(max(given)), sum(true)
    return {
        "answer": LABELS[best],
        "share": true[best] / total,
        "figures": dict.fromkeys(figures, true[best] / total),
        "given": LABELS[most],
        "count": given[most],
        "total": total,
        "classes": list(zip(LABELS, true, given, strict=True)),
    }


def reliability(ece):
    points = [[i / 10 + 0.05, i / 10 + 0.05 - ece] for i in range(1, 10)]
    lines = [{"name": "as it answers", "points": points}]
    labels = {"x_label": "confidence", "y_label": "accuracy"}
    return {"title": "Reliability diagram", **labels, "lines": lines, "ends": [0, 1], "diagonal": True}


def displays(confusion, ece):
    matrix = {"title": "Confusion matrix", "names": LABELS, "cells": confusion, "row_label": "truth"}
    return [matrix, reliability(ece)]


def sound():
    """Return the files of a sound run: 100 steps, five validations, 400 test examples."""
    steps = [
        {
            "step": i,
            "epoch": i // 20,
            "loss": 1.1 * 0.96**i + 0.05 * (i % 3),
            "learning_rate": 2e-4 * (1 - i / 101),
            "grad_norm": 1.0,
            "examples": 16,
            "tokens": 1024,
            "trained_tokens": 16,
            "seconds": 0.5,
        }
        for i in range(1, 101)
    ]
    losses = [(0.62, 0.6), (0.35, 0.31), (0.24, 0.2), (0.21, 0.15), (0.205, 0.13)]
    validations = [
        {"step": 20 * i, "epoch": i, "validation_loss": held, "training_loss": seen}
        for i, (held, seen) in enumerate(losses, 1)
    ]
    lines = sorted([*steps, *validations], key=lambda line: line["step"])
    splits = {
        name: {
            "source": "news.jsonl",
            "rows": rows,
            "distinct": rows,
            "duplicates": 0,
            "near_duplicates": 0,
            "skipped": {"count": 0, "first": []},
        }
        for name, rows in (("train", 1600), ("validation", 200), ("test", 400))
    }
    encoded = {
        name: {"examples": split["rows"], "tokens": 64 * split["rows"], "trained_tokens": split["rows"], "longest": 128}
        | {"truncated": 10, "untrained_rows": 0, "skipped": 0, "content": f"content of {name}"}
        for name, split in splits.items()
    }
    return {
        "recipe": {
            "model": {"source": "models/minilm"},
            "task": {"name": "text-classification", "max_length": 128},
            "data": {"train": "news.jsonl", "validation": 0.1, "test": 0.2},
            "strategy": {"name": "lora", "rank": 8},
            "train": {"epochs": 5, "learning_rate": 2e-4, "keep_best": True},
            "seed": 0,
            "output": "runs/news",
        },
        "environment": {
            "versions": {"python": "3.11.7", "torch": "2.13.0"},
            "plugins": [],
            "hardware": {"processor": "CPU", "cores": 2, "gpus": []},
            "build": {},
            "device": "cpu",
            "processes": 1,
            "precision": {"compute": "float32", "frozen_weights": "float32", "reason": "the recipe asks for it"},
            "strategy": {},
            "base": {"source": "models/minilm", "weights": "a" * 32, "processor": "b" * 32},
        },
        "audit": {
            "splits": splits,
            "split": {"by": "random"},
            "encoded": encoded,
            "findings": [],
            "displays": [],
            "facts": {"leaks": []},
        },
        "training": {
            "steps": 100,
            "planned_steps": 100,
            "stopped_early": False,
            "best_step": 100,
            "best_loss": 0.205,
            "seconds": 61.5,
            "regularizers": [],
            "trainable_parameters": 339845,
            "total_parameters": 23053061,
            "peak_memory_bytes": 1179746304,
            "examples_per_second": 26.0,
            "tokens_per_second": 1664.0,
            "kernels": "LoRA layers: compiled (kernels for avx512)",
            "phases": {"load model": 1.2, "train": 61.5, "evaluate tuned": 8.0},
        },
        "evaluation": {
            "split": "test",
            "metrics": dict(METRICS),
            "base": {"accuracy": figure(0.65), "macro_f1": figure(0.63), "ece": figure(0.12, 0.02)},
            "tuned": {"accuracy": figure(0.93), "macro_f1": figure(0.925), "ece": figure(0.03, 0.01)},
            "difference": {"accuracy": change(0.28), "macro_f1": change(0.295), "ece": change(-0.09)},
            "details": {
                "base": details([[80, 40, 20], [30, 90, 10], [10, 30, 90]], 0.1),
                "tuned": details([[130, 7, 3], [6, 122, 2], [2, 8, 120]], 0.02),
            },
            "displays": {
                "base": displays([[80, 40, 20], [30, 90, 10], [10, 30, 90]], 0.1),
                "tuned": displays([[130, 7, 3], [6, 122, 2], [2, 8, 120]], 0.02),
            },
            "paired": {
                "evaluator": "classification",
                "both": 250,
                "only_base": 10,
                "only_tuned": 122,
                "neither": 18,
                "p": 1e-25,
            },
            "training": {
                "n": 200,
                "base": {"accuracy": figure(0.66, 0.06, 200)},
                "tuned": {"accuracy": figure(0.96, 0.025, 200)},
                "judged": {
                    "evaluator": "classification",
                    "rows": [[0.02, False, "news.jsonl:7"]] * 2 + [[0.97, True, "news.jsonl:8"]] * 198,
                },
            },
        },
        "metrics": lines,
        "facts": {
            "ftengine": "0.1.0",
            "base": {"source": "models/minilm", "weights": "a" * 32},
            "strategy": {"name": "lora", "rank": 8},
            "task": {"name": "text-classification"},
            "labels": {"kind": "single", "names": LABELS},
            "new_modules": [],
        },
    }


def everything():
    """Return the files of a run in which every section of the page has something to show, and all data is hostile."""
    files = sound()
    evaluation = files["evaluation"]
    files["recipe"]["data"]["train"] = files["recipe"]["model"]["source"] = HOSTILE.replace("\ud800", "")
    evaluation["details"]["tuned"]["classification"]["labels"][0]["label"] = HOSTILE
    for side in evaluation["displays"].values():
        side[0] |= {"title": HOSTILE, "names": [HOSTILE, *LABELS[1:]]}
    evaluation["slices"] = {
        HOSTILE: {
            "metric": "accuracy",
            "worst": HOSTILE,
            "base_gap": change(-0.01, 0.09, None, 0.8),
            "left_out": 3,
            "slices": [
                {
                    "value": value,
                    "examples": count,
                    "small": count < 30,
                    "base": {"accuracy": figure(0.65, 0.1, count)},
                    "tuned": {"accuracy": figure(tuned, 0.04, count)},
                    "difference": {"accuracy": change(tuned - 0.65)},
                    "gap": gap and change(gap, 0.12, None) | {"p_adjusted": 0.004},
                }
                for value, count, tuned, gap in (
                    (HOSTILE, 90, 0.66, -0.3),
                    ("plain", 300, 0.96, 0.28),
                    ("rare", 10, 0.9, None),
                    ("odd", 40, 0.9, None),
                )
            ],
        }
    }
    evaluation["probes"] = [
        {
            "kind": "robustness",
            "name": "keyboard-noise",
            "data": "test",
            "examples": 400,
            "base": {"accuracy": figure(0.6)},
            "tuned": {"accuracy": figure(0.85)},
            "difference": {"accuracy": change(0.25)},
            "against": {"accuracy": change(-0.08, better=False)},
        },
        {
            "kind": "forgetting",
            "name": "general",
            "data": HOSTILE,
            "examples": 300,
            "base": {"perplexity": figure(20.0, 1.0, 300)},
            "tuned": {"perplexity": figure(31.0, 2.0, 300)},
            "difference": {"perplexity": change(11.0, 1.5, better=False)},
            "against": {},
        },
        {
            "kind": "memorisation",
            "name": "verbatim",
            "data": "train",
            "examples": 100,
            "base": {"verbatim": figure(0.02, 0.02, 100)},
            "tuned": {"verbatim": figure(0.4, 0.1, 100)},
            "difference": {"verbatim": change(0.38, 0.1)},
            "held_out": {"base": {}, "tuned": {"verbatim": figure(0.03, 0.03, 100)}},
            "against": {"verbatim": change(0.37, 0.11, better=False)},
        },
        {
            "kind": "refusal",
            "name": "prompts",
            "data": "prompts.jsonl",
            "examples": 50,
            "base": {"refusal": figure(0.9, 0.08, 50)},
            "tuned": {"refusal": figure(0.4, 0.13, 50)},
            "difference": {"refusal": change(-0.5, 0.15, better=False)},
            "against": {},
        },
    ]
    item = {
        "place": HOSTILE,
        "shown": [[HOSTILE, False], [HOSTILE, True]],
        "base": {"label": HOSTILE, "predicted": "politics", "scores": {HOSTILE: 0.25, "politics": 0.75}},
        "tuned": {"label": HOSTILE, "predicted": HOSTILE, "scores": {HOSTILE: 0.95}},
        "base_score": 0.25,
        "tuned_score": 0.95,
        "base_right": False,
        "tuned_right": True,
    }
    files["examples"] = {"evaluator": "classification", "improved": [item] * 3, "worse": [item | {"base_right": None}]}
    audit = files["audit"]
    audit["findings"] = [{"kind": "data", "level": "note", "text": HOSTILE, "source": "oddities"}]
    audit["displays"] = [{"title": HOSTILE, "columns": ["label", "train"], "rows": [[HOSTILE, 3]]}]
    audit["facts"]["leaks"] = [
        {
            "between": ["train", "test"],
            "count": 12,
            "near": 5,
            "dropped": 0,
            "places": [f"{HOSTILE}:1 = b:2"],
            "text": f"12 of 400 test rows repeat a training row (e.g. {HOSTILE}:1 = b:2)",
        }
    ]
    for split in audit["splits"].values():
        split |= {"source": HOSTILE, "near_duplicates": 2}
    audit["splits"]["train"]["duplicates"] = 900
    files["training"]["regularizers"] = [
        {
            "name": "wise-ft",
            "alpha": 0.6,
            "curve": [{"alpha": i / 4, "validation_loss": 0.3 - 0.05 * i + 0.012 * i * i} for i in range(5)],
        }
    ]
    return files


def minus(one, other, higher):
    """Return the difference of two figures on different examples, as their intervals have it."""
    if None in (one["value"], other["value"]):
        return change(0) | dict.fromkeys(("value", "low", "high", "p", "better"))
    sides = (other["low"], other["high"]), (one["low"], one["high"])
    low, high = subtracted_interval(other["value"], one["value"], *sides, 0.0)
    apart = low is not None and not low <= 0 <= high
    value = round(one["value"] - other["value"], 6)
    ends = {"low": low and round(low, 6), "high": high and round(high, 6)}
    return {"value": value, **ends, "p": 0.001 if apart else 0.5, "better": (value > 0) == higher if apart else None}


def complete(evaluation):
    """Add what the engine makes of the figures: gaps to training rows, and gains over constant answers."""
    if not isinstance(evaluation["metrics"].get("accuracy", {}), dict):  # damaged on purpose
        return
    better = {name: one.get("higher_is_better") for name, one in evaluation["metrics"].items()}
    for told in evaluation["details"].get("tuned", {}).values():
        if (best := told.get("baseline")) is not None:
            for name, level in best["figures"].items():
                if evaluation["tuned"].get(name, {}).get("value") is not None and name in better:
                    level = {"value": level, "low": level, "high": level}
                    gain = minus(evaluation["tuned"][name], level, better[name])
                    best.setdefault("gains", {}).setdefault(name, gain)
    if (seen := evaluation.get("training")) is not None:
        for gaps, side in (("gap", "tuned"), ("base_gap", "base")):
            held = evaluation[side]
            seen[gaps] = {x: minus(one, held[x], better[x]) for x, one in seen[side].items() if x in held}
        changed, held = seen.get("difference", {}), evaluation["difference"]
        seen["grown"] = {x: minus(one, held[x], None) | {"p": None} for x, one in changed.items() if x in held}


def write_run(folder, files):
    """Write a run's folder, and its verdict where its files can be read; a file that is None is left out."""
    files = copy.deepcopy(files)
    if isinstance(files.get("evaluation"), dict):
        complete(files["evaluation"])
    (folder / "adapter").mkdir(parents=True)
    (folder / "recipe.yaml").write_text(yaml.safe_dump(files["recipe"], sort_keys=False, allow_unicode=True))
    for name in ("environment", "audit", "training", "evaluation", "examples"):
        if files.get(name) is not None:
            (folder / f"{name}.json").write_text(json.dumps(files[name]))
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in files["metrics"]))
    (folder / "adapter" / "ftengine.json").write_text(json.dumps(files["facts"]))
    for name, columns in files.get("predictions", {}).items():
        (folder / "predictions").mkdir(exist_ok=True)
        pq.write_table(pa.table(columns), folder / "predictions" / f"{name}.parquet")
    with suppress(RunError):
        judge(RunRecords.read(folder), registry()).write(RunDirectory(folder))
    return folder


registry = cache(Registry)
