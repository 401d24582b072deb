"""Loaded models for strategies, and the bound that their numbers are held to."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from ftengine.api import LoadedModel

Values = torch.Tensor | dict[str, torch.Tensor]


@pytest.fixture(scope="session")
def sums(tmp_path_factory) -> Path:
    """A data file of 24 questions and answers."""
    rows = [{"prompt": f"What is {i} and {i}?", "completion": f"{i} and {i} is {2 * i}."} for i in range(24)]
    file = tmp_path_factory.mktemp("data") / "sums.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


@pytest.fixture
def load() -> Callable[..., LoadedModel]:
    """Load a folder as a loader would: (folder, head, dtype) -> LoadedModel; a classifier gets a fresh head."""

    def load(folder: Path, head: str = "causal-lm", dtype: torch.dtype = torch.float32) -> LoadedModel:
        processor = AutoTokenizer.from_pretrained(folder)
        if head == "causal-lm":
            module = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)
            return LoadedModel(module, processor, str(folder), head)
        torch.manual_seed(0)
        module = AutoModelForSequenceClassification.from_pretrained(folder, num_labels=3, dtype=dtype)
        return LoadedModel(module, processor, str(folder), head, new_modules=("classifier",))

    return load


@pytest.fixture(params=["llama", "gpt2", "bert"])
def loaded(request, load) -> LoadedModel:
    """Each tiny model in turn: Linear, Conv1D, and a classifier with a fresh head."""
    folder = request.getfixturevalue(f"{request.param}_folder")
    return load(folder, "sequence-classification" if request.param == "bert" else "causal-lm")


@pytest.fixture
def numbers() -> SimpleNamespace:
    """How outputs and gradients are computed and compared."""
    return SimpleNamespace(
        batch=batch, logits=logits, gradients=gradients, shake=shake, assert_as_exact=assert_as_exact
    )


def batch(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Return a batch of two sequences with labels, the same every time."""
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(5, 60, (2, 12), generator=generator)
    classifies = type(module).__name__.endswith("ForSequenceClassification")
    return {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "labels": torch.tensor([0, 2]) if classifies else ids,
    }


@torch.no_grad()
def logits(module: torch.nn.Module, base: torch.nn.Module | None = None) -> torch.Tensor:
    """Return the logits of the batch in evaluation mode; `base` is the bare model where `module` wraps it."""
    return module.eval()(**batch(base or module)).logits


def gradients(module: torch.nn.Module, base: torch.nn.Module | None = None) -> dict[str, torch.Tensor]:
    """Return the gradient of the loss for each trainable parameter, in float64."""
    module.zero_grad()
    module(**batch(base or module)).loss.backward()
    return {n: p.grad.double() for n, p in module.named_parameters() if p.requires_grad}


@torch.no_grad()
def shake(module: torch.nn.Module, seed: int = 2) -> None:
    """Give every trainable parameter random values, so that an update that starts at zero is no longer zero."""
    torch.manual_seed(seed)
    for parameter in module.parameters():
        if parameter.requires_grad:
            parameter.copy_(torch.randn(parameter.shape) * 0.1)


def assert_as_exact(ours: Values, theirs: Values, exact: Values, dtype: torch.dtype) -> None:
    """Assert that our error against float64 is at most twice that of another computation in the same dtype.

    Tensors of one model are taken together, each scaled by its largest value: in a tensor of a few
    numbers luck decides, while a wrong tensor stands out in the sum by orders of magnitude. One unit
    roundoff of the whole is allowed, for where the other is exact by luck.
    """
    if isinstance(exact, torch.Tensor):
        ours, theirs, exact = {"": ours}, {"": theirs}, {"": exact}
    assert ours.keys() == theirs.keys() == exact.keys()
    top = {name: tensor.abs().max() for name, tensor in exact.items()}

    def error(values: dict[str, torch.Tensor]) -> torch.Tensor:
        return torch.cat([((values[n].double() - exact[n].double()) / top[n]).flatten() for n in top]).norm()

    whole = torch.cat([(exact[n].double() / top[n]).flatten() for n in top]).norm()
    assert error(ours) <= 2 * error(theirs) + torch.finfo(dtype).eps * whole


@pytest.fixture
def doubled() -> Callable[[torch.nn.Module], torch.nn.Module]:
    """Return a float64 copy of a module."""
    return lambda module: copy.deepcopy(module).double()
