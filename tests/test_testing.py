"""The conformance checks pass what ships in the box and fail what is broken, each by the check that is meant."""

import random

import pytest
import torch
from tiny import tiny_t5
from transformers import AutoTokenizer

from ftengine.api import (
    Augmenter,
    Criterion,
    Labels,
    LoadRequest,
    Regularizer,
    Strategy,
    Task,
    TextAugmenter,
    View,
)
from ftengine.plugins.registry import Registry
from ftengine.testing import check_augmenter, check_regularizer, check_strategy, check_task
from ftengine_builtins.tasks.text_classification import TextClassification

REGISTRY = Registry()
ROWS = [{"text": f"The quick brown fox number {i} jumps over the lazy dog.", "label": "ab"[i % 2]} for i in range(4)]


def build(kind, name):
    return lambda: REGISTRY.build(kind, name, kind)


@pytest.fixture(scope="module")
def load(llama_folder):
    loader = REGISTRY.build("loader", "transformers", "model.loader")
    return lambda: loader.load(LoadRequest(str(llama_folder), "causal-lm"))


@pytest.fixture(scope="module")
def batch():
    ids = torch.randint(3, 300, (2, 12), generator=torch.Generator().manual_seed(0))
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids}


@pytest.fixture(scope="module")
def task():
    task = REGISTRY.build("task", "text-classification", "task")
    task.labels = task.bind({"train": ROWS})
    return task


TEXT = ("case", "delete-words", "keyboard", "ocr", "punctuation", "swap-words")


@pytest.mark.parametrize("name", [e.name for e in REGISTRY.entries("augmenter") if e.name in TEXT])
def test_augmenters_of_text_in_the_box_pass(name, task):
    check_augmenter(build("augmenter", name), task, ROWS)


@pytest.mark.parametrize("name", [entry.name for entry in REGISTRY.entries("regularizer")])
def test_regularizers_in_the_box_pass(name, gpt2_folder, batch):
    loader = REGISTRY.build("loader", "transformers", "model.loader")

    def load_whole():
        loaded = loader.load(LoadRequest(str(gpt2_folder), "causal-lm"))
        loaded.pretrained = frozenset(n for n, _ in loaded.module.named_parameters())
        return loaded

    check_regularizer(build("regularizer", name), REGISTRY.build("task", "causal-lm", "task"), load_whole, batch)


def loading(folder, head):
    loader = REGISTRY.build("loader", "transformers", "model.loader")
    return lambda labels: loader.load(LoadRequest(str(folder), head, labels))


TASKS = {
    "text-classification": ("sequence-classification", ROWS),
    "token-classification": ("token-classification", [{"tokens": ["Anna", "ran"], "tags": ["B-PER", "O"]}] * 2),
    "causal-lm": ("causal-lm", [{"prompt": "The fox", "completion": " jumps"}, {"text": "over the dog"}]),
    "seq2seq-lm": ("seq2seq-lm", [{"prompt": "The fox", "completion": "jumps"}] * 2),
}


@pytest.mark.parametrize("name", TASKS)
def test_tasks_in_the_box_pass(name, bert_folder, llama_folder, tmp_path):
    folder = {"causal-lm": llama_folder, "seq2seq-lm": tmp_path / "t5"}.get(name, bert_folder)
    if name == "seq2seq-lm":
        tiny_t5(folder)
    head, rows = TASKS[name]
    check_task(build("task", name), AutoTokenizer.from_pretrained(folder), rows, loading(folder, head))


class Creeping(Strategy):
    """Trains what it leaves out of its groups, and saves nothing."""

    name = "creeping"

    def prepare(self, loaded):
        loaded.module.requires_grad_(True)

    def param_groups(self, model, learning_rate, weight_decay):
        return [{"params": list(model.parameters())[:-1], "lr": learning_rate}]

    def save(self, loaded, directory):
        pass

    def load(self, loaded, directory):
        pass


def test_a_broken_strategy_fails(load, batch):
    with pytest.raises(AssertionError) as error:
        check_strategy(Creeping, load, batch)
    assert "groups_hold_each_trainable_parameter_once" in str(error.value)
    assert "saved_and_loaded_outputs_are_equal" in str(error.value)
    assert "frozen_weights_do_not_move" not in str(error.value)


class Growing(TextAugmenter):
    """Writes more behind each text than behind the one before."""

    name = "growing"
    seen = 0

    def change(self, text, rng):
        self.seen += 1
        return text + " x" * self.seen


class Relabelled(Augmenter):
    """Gives every row one label."""

    name = "relabelled"

    def augment(self, row, task, rng):
        yield {**row, "label": "b"}


class Losing(TextAugmenter):
    """Forgets to return what it made of a text."""

    name = "losing"

    def change(self, text, rng):
        text.upper()


@pytest.mark.parametrize(
    ("kind", "check"),
    [
        (Growing, "no_state_between_examples"),
        (Relabelled, "labels_stay"),
        (Losing, "new_examples_can_be_read"),
    ],
)
def test_a_broken_augmenter_fails_the_check_that_is_meant(task, kind, check):
    check_augmenter(kind, task, ROWS, {check: "on purpose"})


class Careless(Augmenter):
    """Changes its argument, and by a generator of its own."""

    name = "careless"

    def augment(self, row, task, rng):
        row["label"] = random.choice("ab") + str(random.random())
        yield dict(row)


def test_a_broken_augmenter_fails(task):
    with pytest.raises(AssertionError) as error:
        check_augmenter(Careless, task, [dict(row) for row in ROWS])
    for name in ("same_seed_same_examples", "given_examples_stay", "labels_stay"):
        assert name in str(error.value)


class Sticky(Regularizer):
    """Leaves its mark on the model, and forgets its own state."""

    name = "sticky"

    def attach(self, loaded, task):
        loaded.module.register_buffer("mark", torch.ones(1))
        self.seen = torch.zeros(1)

    def stepped(self, model, step):
        self.seen = self.seen + 1

    def tensors(self):
        return {"seen": self.seen}

    def restore(self, tensors):
        pass


def test_a_broken_regularizer_fails(load, batch):
    causal = REGISTRY.build("task", "causal-lm", "task")
    with pytest.raises(AssertionError) as error:
        check_regularizer(Sticky, causal, load, batch)
    assert "detaching_restores_the_model" in str(error.value)
    assert "state_survives_a_checkpoint" in str(error.value)
    assert "losses_and_penalties_are_finite_scalars" not in str(error.value)


class Forgetful(Task):
    """Returns features without a weight, and keeps to itself what it learns."""

    name = "forgetful"

    def bind(self, splits):
        self.predicts = frozenset({"label"})
        return Labels("single", ("a", "b"))

    def view(self, row):
        return View([row["text"]], row["label"])

    def with_inputs(self, row, inputs):
        return {**row, "label": "?"}

    def encode(self, example, processor, *, max_length=None):
        return {"length": 1, "truncated": False}

    def collate(self, features, processor):
        return {"x": torch.zeros(1)}


def test_a_broken_task_fails():
    with pytest.raises(AssertionError) as error:
        check_task(Forgetful, None, ROWS)
    for name in (
        "encoding_is_pure_and_whole",
        "labels_are_all_that_is_learnt",
        "batches_hold_every_example",
        "inputs_can_be_put_back",
    ):
        assert name in str(error.value)


class Averaging(TextClassification):
    """Divides its loss itself, and asks the criterion for one pass only."""

    def loss(self, model, batch, criterion):
        loss, weight = super().loss(model, batch, Criterion())
        return loss / weight, 1

    def predict(self, model, batch):
        return super().predict(model, batch)[:-1]


def test_a_task_that_computes_wrongly_fails(bert_folder):
    with pytest.raises(AssertionError) as error:
        check_task(
            Averaging, AutoTokenizer.from_pretrained(bert_folder), ROWS, loading(bert_folder, "sequence-classification")
        )
    assert "the_criterion_is_what_is_summed: the weight is 1" in str(error.value)
    assert "predictions_have_their_keys: 3 predictions of 4 examples" in str(error.value)
