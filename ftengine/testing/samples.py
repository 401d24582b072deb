"""Shipped small models with heads, data for them, and batches, on which components are checked.

Everything is made in code and the same in each call. Weights are large and biases are not zero (`models.sensitise`), so
that a missing or wrong part changes the outputs.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache, cached_property, partial
from typing import Any

import torch
from torch import nn
from transformers import BertForSequenceClassification, BertForTokenClassification

from ftengine.api import Batch, Example, Labels, LoadedModel, LoadRequest, Strategy, Task
from ftengine.engine.prepared_data import apply_strategy
from ftengine.errors import DataError, InputError
from ftengine.plugins.registry import BUILT_IN, Registry
from ftengine.testing import models
from ftengine.testing.models import Made

NAMES = ("business", "politics", "sports")
TEXTS = (
    "The match ended in a draw after a late goal.",
    "Shares rose after the company said that its profits had grown.",
    "How do I reset my password? Open the settings.",
    "The film was wonderful, the acting was terrible.",
    "Good morning! How are you today?",
    "My computer does not start.",
)
QUESTIONS = (
    ("What is the capital of France?", "The capital of France is Paris."),
    ("How do I reset my password?", "Open the settings, choose the account, and follow the link."),
    ("How are you today?", "I am fine, thank you, and what can I do for you?"),
    ("Does the dog mind?", "The dog does not mind at all."),
)


@dataclass(frozen=True)
class Fixture:
    """A small model with a head, and a task of that head with data for it.

    Args:
        name: the model's class.
        head: the model's head, as `Task.head`.
        make: returns module and processor; its argument `num_labels` is the number of outputs of a new head.
        new_modules: the newly initialised head, as in `LoadedModel`.
        max_length: longest input in tokens.
        rows: rows of JSON values; PIL images for image heads.
        of: a task with that head; by default ftengine's own.
        strategy: builds the strategy that prepares models for regularizers; by default full tuning.
    """

    name: str
    head: str
    make: Callable[..., tuple[Any, Any]]
    rows: tuple[Example, ...]
    new_modules: tuple[str, ...] = ()
    max_length: int | None = None
    of: Task | None = None
    strategy: Callable[[], Strategy] | None = None

    def load(self, labels: Labels | None = None) -> LoadedModel:
        """Return a new copy of the same model, in evaluation mode, as a loader returns it.

        Args:
            labels: labels of the head; by default those of `task`.
        """
        labels = labels or self.task.labels
        module, source = _copy(self._made_for(labels)[0]), f"a tiny {self.name}"
        return LoadedModel(module, self.processor, source, self.head, self.new_modules, labels, {}, self.max_length)

    def load_trainable(self) -> LoadedModel:
        """Return the model as `strategy` prepares it; `pretrained` names the base's parameters."""
        loaded = self.load()
        if self.strategy is not None:
            torch.manual_seed(0)
            apply_strategy(self.strategy(), loaded)
            return loaded
        loaded.module.requires_grad_(True)
        new = tuple(f"{name}." for name in self.new_modules)
        loaded.pretrained = frozenset(n for n, _ in loaded.module.named_parameters() if not n.startswith(new))
        return loaded

    def skeleton(self) -> LoadedModel:
        """Return the model on the meta device, as a loader's skeleton is."""
        return on_meta(self.load())

    @cached_property
    def task(self) -> Task:
        """The task with the labels of `rows`: `of`, else ftengine's own task with this head."""
        task = self.of or task_of(self.head, self.rows)
        task.labels = task.learn_labels({"train": self.rows})
        return task

    @property
    def processor(self) -> Any:
        """The tokenizer or image processor."""
        return self._made_for(self.task.labels)[1]

    @cached_property
    def batch(self) -> Batch:
        """All rows as a batch with labels, as arguments of the model's forward."""
        return self.task.collate([self.task.encode(row, self.processor) for row in self.rows], self.processor)

    def _made_for(self, labels: Labels | None) -> Made:
        return _sensitive(self.make, len(labels.names) if self.new_modules and labels else None)


@cache
def _sensitive(make: Callable[..., Made], outputs: int | None) -> Made:
    module, processor = make() if outputs is None else make(num_labels=outputs)
    models.sensitise(module)
    return module, processor


def _copy(module: nn.Module) -> nn.Module:
    """Copy a model; without looking into the ten empty dictionaries of each module, which takes half of the time."""
    own = [value for part in module.modules() for value in vars(part).values()]
    empty = {id(value): value.copy() for value in own if isinstance(value, (dict, set)) and not value}
    return copy.deepcopy(module, empty)


def on_meta(loaded: LoadedModel) -> LoadedModel:
    """Return a model with every tensor on the meta device, tied ones still tied."""
    tensors = [*loaded.module.parameters(), *loaded.module.buffers()]
    memo = {id(x): nn.Parameter(x.to("meta")) if isinstance(x, nn.Parameter) else x.to("meta") for x in tensors}
    return dataclasses.replace(loaded, module=copy.deepcopy(loaded.module, memo))


@cache
def registry() -> Registry:
    """Return the registry of all installed components."""
    return Registry()


def task_of(head: str, rows: Sequence[Example]) -> Task:
    """Build ftengine's own task with a head that accepts rows with these columns (LookupError: there is none)."""
    for entry in registry().buildable("task"):
        if entry.origin.distribution == BUILT_IN and getattr(entry.cls, "head", None) == head:
            task: Task = registry().build("task", entry.name, "task")
            with suppress(DataError):
                task.check_columns(sorted(set().union(*rows)))
                return task
    raise LookupError(f"no task of ftengine has the head {head!r} and takes these rows.")


@cache
def fixtures() -> tuple[Fixture, ...]:
    """Return models of each head, several for heads whose architectures differ for strategies."""
    questions, images, new = rows_of_questions(), rows_of_images(), ("classifier",)
    classifier = partial(models.tiny_bert, BertForSequenceClassification)
    tagger = partial(models.tiny_bert, BertForTokenClassification)
    llama = partial(models.tiny_llama, attention_bias=True, mlp_bias=True)
    return (
        Fixture("BertForSequenceClassification", "sequence-classification", classifier, rows_of_texts(), new, 128),
        Fixture("BertForTokenClassification", "token-classification", tagger, rows_of_tags(), new, 128),
        Fixture("LlamaForCausalLM", "causal-lm", llama, questions, (), 512),
        Fixture("GPT2LMHeadModel", "causal-lm", models.tiny_gpt2, questions, (), 256),
        Fixture("T5ForConditionalGeneration", "seq2seq-lm", models.tiny_t5, questions),
        Fixture("ViTForImageClassification", "image-classification", models.tiny_vit, images, new),
        Fixture("ResNetForImageClassification", "image-classification", models.tiny_resnet, images, new),
    )


def fixture(head: str) -> Fixture:
    """Return the first model with a head (LookupError: none is shipped)."""
    for model in fixtures():
        if model.head == head:
            return model
    heads = ", ".join(dict.fromkeys(model.head for model in fixtures()))
    raise LookupError(f"no model with the head {head!r} is shipped; there are {heads}.")


def fixture_of(source: str, task: str) -> Fixture:
    """Return a fixture of your own small model, with shipped rows that its task accepts.

    Args:
        source: the model, as in a recipe's `model.source`.
        task: name of the task, which determines the head.

    Raises:
        InputError: the source cannot be loaded, or the task accepts none of the rows.
    """
    of: Task = registry().build("task", task, "task")
    loader = registry().loader_of(source, {"name": "auto"})
    rows = _rows_for(of, loader.load_processor(source))

    def load(labels: Labels | None) -> LoadedModel:
        return loader.load(LoadRequest(source, of.head, labels, "float32"))

    def make(num_labels: int | None = None) -> Any:
        labels = of.labels
        if labels is not None and num_labels not in (None, len(labels.names)):
            labels = Labels(labels.kind, tuple(map(str, range(num_labels))))
        loaded = load(labels)
        return loaded.module, loaded.processor

    first = load(of.labels)
    return Fixture(type(first.module).__name__, of.head, make, rows, first.new_modules, first.max_length, of)


def _rows_for(task: Task, processor: Any) -> tuple[Example, ...]:
    """Return the first rows that a task takes, its labels bound to them (InputError: there are none)."""
    for rows in rows_of(task.modality):
        try:
            task.labels = task.learn_labels({"train": rows})
            for row in rows:
                task.encode(row, processor)
        except InputError:
            continue
        return tuple(rows)
    raise InputError(f"task {task.name!r} takes none of the rows that are shipped; use ftengine.testing with yours.")


TAGS = ("O", "B-PER", "I-PER", "B-LOC", "I-LOC")


def rows_of_texts() -> tuple[Example, ...]:
    """Return rows of a text and one of three labels."""
    return tuple({"text": text, "label": NAMES[i % 3]} for i, text in enumerate(TEXTS))


def rows_of_tags() -> tuple[Example, ...]:
    """Return rows of words and IOB2 tags."""
    words = (["Anna", "Smith", "lives", "in", "Paris"], ["Shares", "rose"], ["New", "York", "beat", "Anna"])
    tags = (["B-PER", "I-PER", "O", "O", "B-LOC"], ["O", "O"], ["B-LOC", "I-LOC", "O", "B-PER"])
    return tuple({"tokens": list(w), "tags": list(t)} for w, t in zip(words, tags, strict=True))


def rows_of_questions() -> tuple[Example, ...]:
    """Return rows of a prompt and its completion, of different lengths."""
    return tuple({"prompt": question, "completion": answer} for question, answer in QUESTIONS)


def rows_of_images() -> tuple[Example, ...]:
    """Return rows of an image of random pixels, no two alike, and one of three labels."""
    from PIL import Image

    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(256, (len(TEXTS), models.SIDE, models.SIDE, 3), generator=generator).to(torch.uint8)
    return tuple({"image": Image.fromarray(image.numpy()), "label": NAMES[i % 3]} for i, image in enumerate(pixels))


def rows_of(modality: str) -> list[Sequence[Example]]:
    """Return rows in the usual shapes of a modality, to try on any task.

    For text: a text with a label (a name, several names, a number), a pair of texts with a label, words with tags,
    prompt and completion, a conversation, a text alone, a pair of preferred and rejected answers, an answer that is
    desirable or not. For images: an image with a label.
    """
    if modality != "text":
        return [rows_of_images()] if modality == "image" else []
    texts = rows_of_texts()
    turns = [(("user", question), ("assistant", answer)) for question, answer in QUESTIONS]
    return [
        texts,
        [{**row, "label": list(NAMES[: 1 + i % 3])} for i, row in enumerate(texts)],
        [{**row, "label": 0.5 + i * i} for i, row in enumerate(texts)],
        [{**row, "pair": TEXTS[-1 - i]} for i, row in enumerate(texts)],
        rows_of_tags(),
        rows_of_questions(),
        [
            {"messages": [{"role": role, "content": content} for role, content in conversation]}
            for conversation in turns
        ],
        [{"text": text} for text in TEXTS],
        [
            {"prompt": question, "chosen": answer, "rejected": QUESTIONS[i - 1][1]}
            for i, (question, answer) in enumerate(QUESTIONS)
        ],
        [{**row, "label": i % 2 == 0} for i, row in enumerate(rows_of_questions())],
    ]
