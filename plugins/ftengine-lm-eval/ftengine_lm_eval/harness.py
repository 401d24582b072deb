"""The harness on the two models of a run."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate.utils import set_seed
from transformers import PreTrainedModel

from ftengine import Recipe, registry_of
from ftengine.api import LoadedModel, LoadRequest, Task
from ftengine.errors import BaseMismatch, InputError, RunError
from ftengine.model import fingerprint_processor, fingerprint_weights
from ftengine_lm_eval.figures import Benchmarks, benchmarked, write
from ftengine_lm_eval.options import Options
from ftengine_lm_eval.tasks import contained, load_tasks

HEADS = ("causal-lm", "seq2seq-lm")
"""Heads that read and write text as the harness asks for it."""


def measure(run: Path, options: Options) -> Benchmarks:
    """Run the harness on the base and the tuned model of a run, and write lm_eval.json and lm_eval.parquet into it.

    Args:
        run: the run's folder; its trained part has to be there, its figures need not.
        options: what is asked.

    Raises:
        InputError: a task or the run cannot be used, or the base is not the one that was trained on.
    """
    with contained(), _own_generators():
        load_tasks(options.tasks)
        loaded, strategy, facts = _base(run)
        base = _answers(loaded, options, facts)
        set_seed(Recipe.read(run / "recipe.yaml").seed)  # what a strategy draws and does not save
        strategy.prepare(loaded)
        strategy.load(loaded, run / "adapter")
        _place(loaded, facts)
        tuned = _answers(loaded, options, facts)
    result, examples = benchmarked(base, tuned, options)
    write(run, result, examples)
    return result


def answers_under_autocast(loaded: LoadedModel, options: Options) -> dict[str, Any]:
    """Return what `lm_eval.evaluate` returns for the model of a run, in the dtype that autocast has now."""
    device = next(loaded.module.parameters()).device.type
    compute = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else torch.float32
    with contained(), _own_generators():
        return _answers(loaded, options, {"compute": str(compute).removeprefix("torch.")})


def require_head(task: Task) -> str:
    """Return the head of a task; refuse one whose model writes no text (InputError)."""
    if task.head not in HEADS:
        raise InputError(
            f"lm-evaluation-harness asks language models, and task {task.name!r} trains a model with head "
            f"{task.head!r}. Its tasks need {' or '.join(HEADS)}."
        )
    return task.head


def _base(run: Path) -> tuple[LoadedModel, Any, dict[str, Any]]:
    """Load a run's base model and build its strategy; return also what is on record of its precision and device."""
    try:
        trained = json.loads((run / "adapter" / "ftengine.json").read_text(encoding="utf-8"))
        environment = json.loads((run / "environment.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise RunError(f"run {str(run)!r} is not finished, or is damaged: {error}.") from None
    recipe, registry = Recipe.read(run / "recipe.yaml"), registry_of()
    head = require_head(registry.build("task", recipe.task, "task"))
    source = recipe.model.source
    set_seed(recipe.seed)
    loaded = registry.loader_of(source, recipe.model.loader).load(LoadRequest(source, head))
    # A loader that quantises says what the weights were before.
    weights = loaded.fingerprint.get("weights") or fingerprint_weights(loaded.module, loaded.new_modules)
    known = {"weights": weights, "processor": fingerprint_processor(loaded.processor)}
    if changed := [key for key, value in known.items() if value != trained["base"].get(key)]:
        raise BaseMismatch(
            f"run {str(run)!r} was trained on another base: the {' and the '.join(changed)} of {source!r} differ from "
            "what the run recorded. Restore that base, or train again."
        )
    loaded.module.requires_grad_(False)
    device = environment["device"] if torch.accelerator.is_available() else "cpu"
    facts = {**environment["precision"], "device": device}
    _place(loaded, facts)
    return loaded, registry.build("strategy", trained["strategy"], "strategy"), facts


def _place(loaded: LoadedModel, facts: Mapping[str, Any]) -> None:
    """Give a model the device and dtypes that the run trained with: float32 for what trains."""
    frozen = getattr(torch, facts["frozen_weights"])
    for parameter in loaded.module.parameters():
        if parameter.is_floating_point():
            parameter.data = parameter.data.to(torch.float32 if parameter.requires_grad else frozen)
    loaded.module.to(facts["device"])


def _answers(loaded: LoadedModel, options: Options, facts: Mapping[str, Any]) -> dict[str, Any]:
    """Return what `lm_eval.evaluate` returns for a model; tasks are loaded anew, as they keep requests and answers."""
    from lm_eval import evaluate
    from lm_eval.models.huggingface import HFLM

    if not isinstance(loaded.module, PreTrainedModel):
        raise InputError(
            f"lm-evaluation-harness asks models of transformers, and {loaded.source!r} is "
            f"{type(loaded.module).__name__}."
        )
    tasks = load_tasks(options.tasks)
    for task in tasks["tasks"].values():
        own = task.get_config("num_fewshot")
        if own != 0:  # 0 is meant: such a task has its examples, if any, in its texts
            task.set_config("num_fewshot", (own or 0) if options.num_fewshot is None else options.num_fewshot)
        task.set_fewshot_seed(seed=options.seed)
    set_seed(options.seed)
    loaded.module.eval()
    # Tying again what a strategy may have parted would change the model; it is tied where it was loaded.
    loaded.module.tie_weights = lambda *args, **kwargs: None  # type: ignore[assignment,method-assign]
    try:
        model = HFLM(
            pretrained=loaded.module,
            tokenizer=loaded.processor,
            batch_size=options.batch_size,
            max_length=options.max_length,
            mixed_precision_dtype=None if facts["compute"] == "float32" else facts["compute"],
        )
        chat = options.apply_chat_template
        found = evaluate(model, tasks, limit=options.limit, apply_chat_template=chat, fewshot_as_multiturn=chat)
    finally:
        del loaded.module.tie_weights
    return dict(found or {})


@contextmanager
def _own_generators() -> Iterator[None]:
    """Leave the process's random generators as they were: a run goes on after the harness."""
    python, numpy = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng():
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)
