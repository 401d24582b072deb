"""The cells of the matrix test: each architecture with its task and data, each strategy, and a watched run of both."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
from rows import photos, tagged, write_rows
from tiny import tiny_bert, tiny_gpt2, tiny_llama, tiny_resnet, tiny_t5, tiny_vit
from torch import Tensor, nn

from ftengine import Recipe, Run, load_run
from ftengine.api import LoadedModel, SilentListener, Strategy, Task
from ftengine.engine import prepared_model
from ftengine.engine.experiment import Experiment
from ftengine.engine.fine_tune import train
from ftengine.engine.merge import outputs_of, probe_of
from ftengine.engine.prepared_data import LabelledTask, prepare_data
from ftengine.parallel.device import Device
from ftengine.run.directory import RunDirectory
from ftengine.run.phases import TimedPhases

OPINIONS = {"good": ("wonderful", "fine", "good"), "bad": ("terrible", "late", "bad")}
EXAMPLES = 24

STRATEGIES: dict[str, dict[str, Any]] = {
    "full": {"name": "full"},
    "lora": {"name": "lora", "rank": 4, "dropout": 0.1},
    "adapter": {"name": "adapter", "bottleneck": 4, "dropout": 0.1},
    "prompt": {"name": "prompt", "virtual_tokens": 4, "lr_ratio": 20.0},
    "prefix": {"name": "prefix", "virtual_tokens": 4, "lr_ratio": 20.0},
}
RATES = {"full": 0.005, "lora": 0.02, "adapter": 0.02, "prompt": 0.02, "prefix": 0.02}


def answers(file: Path) -> str:
    """One answer to whatever is asked."""
    rows = [{"prompt": f"What is {'and ' * (i % 4)}{i}?", "completion": "Paris is fine."} for i in range(EXAMPLES)]
    return write_rows(file.with_suffix(".jsonl"), rows)


def opinions(file: Path) -> str:
    """Sentences that a word makes good or bad."""
    words = [(word, label) for label, many in OPINIONS.items() for word in many]
    chosen = [(*words[i % len(words)], i // len(words)) for i in range(EXAMPLES)]
    rows = [{"text": f"{word} {word}{' music' * more}", "label": label} for word, label, more in chosen]
    return write_rows(file.with_suffix(".jsonl"), rows)


def tags(file: Path) -> str:
    """Sentences whose words are names of people, of places, or neither."""
    return write_rows(file.with_suffix(".jsonl"), tagged(EXAMPLES))


def photographs(folder: Path) -> str:
    """Dark and light noise, a subfolder each."""
    return str(photos(folder, EXAMPLES // 2))


@dataclass(frozen=True)
class Architecture:
    """A tiny model and its task.

    Args:
        model: writes the model's folder.
        task: the task's name.
        data: writes the training data beside a path, and returns where.
        asked: rows to answer, of different lengths; images are relative to the data.
        config: overrides of the model's config.
        options: of strategies, by their names, where the defaults do not fit.
    """

    model: Callable[..., Path]
    task: str
    data: Callable[[Path], str]
    asked: tuple[dict[str, Any], ...]
    config: dict[str, Any] = field(default_factory=dict)
    options: dict[str, dict[str, Any]] = field(default_factory=dict)


QUESTIONS = ({"prompt": "What is 3?"}, {"prompt": "How do I reset my password, please, and what is 4?"})
TEXTS = ({"text": "fine music"}, {"text": "bad"})
IMAGES = ({"image": "dark/0.png"}, {"image": "light/1.png"})
# Weights larger than at initialisation, so that what comes in matters to what comes out, as in a trained model.
LIVELY = {"initializer_range": 0.2}

ARCHITECTURES = {
    "gpt2": Architecture(tiny_gpt2, "causal-lm", answers, QUESTIONS, LIVELY),
    "llama": Architecture(tiny_llama, "causal-lm", answers, QUESTIONS, LIVELY | {"hidden_size": 32}),
    "t5": Architecture(tiny_t5, "seq2seq-lm", answers, QUESTIONS),
    # Its own dropout is noise enough for a loss of 18 examples.
    "bert": Architecture(
        tiny_bert, "text-classification", opinions, TEXTS, LIVELY, options={"adapter": {"dropout": 0.0}}
    ),
    "t5-classes": Architecture(tiny_t5, "text-classification", opinions, TEXTS),
    "gpt2-classes": Architecture(tiny_gpt2, "text-classification", opinions, TEXTS, LIVELY),
    "llama-classes": Architecture(tiny_llama, "text-classification", opinions, TEXTS, LIVELY | {"hidden_size": 32}),
    "bert-tokens": Architecture(
        tiny_bert, "token-classification", tags, ({"tokens": ["anna", "likes", "paris"]}, {"tokens": ["bob"]}), LIVELY
    ),
    "vit": Architecture(tiny_vit, "image-classification", photographs, IMAGES),
    "resnet": Architecture(
        tiny_resnet, "image-classification", photographs, IMAGES, options={"lora": {"targets": ["convolution"]}}
    ),
}


class Watched:
    """The model inside a run: as it was loaded, as the strategy left it, and as training left it.

    Args:
        device, task, loaded: the run's own, with the weights that training ended with.
        strategy: the one that prepared the model.
        base: the base's parameters and buffers before the strategy saw them, each with a copy of what it held.
        started: the trainable parameters by name, each with a copy of what it held before the first step.
        base_outputs, first_outputs: logits on the task's probe before and after the strategy prepared the model.
    """

    def __init__(self, device: Device, task: Task, loaded: LoadedModel, prepare: Callable[[], Strategy]) -> None:
        self.device, self.task = device, task
        module, self.probe = loaded.module, probe_of(task, loaded)
        self.base: dict[str, tuple[Tensor, Tensor]] = {
            name: (tensor, tensor.detach().clone())
            for name, tensor in [*module.named_parameters(), *module.named_buffers()]
        }
        self.base_outputs = self.outputs(loaded)
        self.strategy = prepare()
        self.loaded = replace(loaded)  # the run lets go of the module once it is saved
        self.started = {n: (p, p.detach().clone()) for n, p in module.named_parameters() if p.requires_grad}
        self.first_outputs = self.outputs(loaded)

    def outputs(self, loaded: LoadedModel) -> Tensor:
        """Return a model's logits on the probe, in the run's precision."""
        with self.device.inference(loaded):
            return outputs_of(self.task, loaded.module, self.probe).clone()

    def infer(self, rows: list[dict], options: dict | None) -> list[dict]:
        """Answer rows with the model as training left it."""
        with self.device.inference(self.loaded):
            return self.task.infer(self.loaded, rows, options)


@dataclass(frozen=True)
class Cell:
    """A finished run of one strategy on one architecture.

    Args:
        recipe: makes its recipe for another output folder.
        run: the run as it is opened again.
        seen: the model inside it.
        asked: rows to answer.
        options: of the answers, or None where the task has none.
    """

    recipe: Callable[[str], Recipe]
    run: Run
    seen: Watched
    asked: list[dict]
    options: dict | None

    @property
    def module(self) -> nn.Module:
        return self.seen.loaded.module


def recipe(strategy: str, architecture: str, precision: str, folder: Path, output: str) -> Recipe:
    """Return a recipe of a few steps, after writing model and data into `folder` unless they are there."""
    kind, model, data = ARCHITECTURES[architecture], folder / f"{architecture}-model", folder / f"{architecture}-data"
    if not model.exists():
        kind.model(model, **kind.config)
        kind.data(data)
    return Recipe.make(
        {
            "model": {"source": str(model)},
            "task": kind.task,
            "data": {"train": str(data if data.exists() else data.with_suffix(".jsonl")), "validation": 0.25},
            "strategy": STRATEGIES[strategy] | kind.options.get(strategy, {}),
            "train": {
                "epochs": 4,
                "batch_size": 6,
                "learning_rate": RATES[strategy],
                "precision": precision,
                "checkpoint_every": 4,
            },
            "evaluation": {"resamples": 100, "answers": None, "training_sample": None},
            "output": str(folder / f"{strategy}-{architecture}-{precision}-{output}"),
        }
    )


def make_cell(strategy: str, architecture: str, precision: str, folder: Path) -> Cell:
    """Run a cell to its end and keep the model that it trained."""

    def made(output: str) -> Recipe:
        return recipe(strategy, architecture, precision, folder, output)

    kind, prepare, seen = ARCHITECTURES[architecture], prepared_model.prepare_strategy, []
    whole = made("whole")
    data = prepare_data(Experiment.open(whole))

    def watched(device: Device, known: LabelledTask, loaded: LoadedModel) -> Strategy:
        seen.append(Watched(device, known.task, loaded, lambda: prepare(device, known, loaded)))
        return seen[0].strategy

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(prepared_model, "prepare_strategy", watched)
        model = prepared_model.prepare_model(data)
    train(model, RunDirectory(whole.output), False, TimedPhases(SilentListener()))
    images = folder / f"{architecture}-data"
    asked = [{k: str(images / v) if k == "image" else v for k, v in row.items()} for row in kind.asked]
    return Cell(
        made, load_run(whole.output), seen[0], asked, {"max_new_tokens": 6} if kind.task.endswith("-lm") else None
    )
