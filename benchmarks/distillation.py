"""A system prompt taken into the weights: on-policy distillation against supervised tuning on the teacher's answers.

The teacher is the base with a system prompt, the student the base without. Task distillation learns along the
student's answers; task causal-lm learns the teacher's, one to each prompt. Both take the same steps over the same
prompts by LoRA with the same settings, and draw one answer a prompt. Measured on held-out prompts, with bootstrap
intervals over prompts: KL from the teacher along the model's own answers, and along answers of the teacher's;
forgetting is perplexity on other answers, as `evaluation.forgetting` measures it.

    python benchmarks/distillation.py MODEL_FOLDER WORK_FOLDER --json benchmarks/results/DEVICE/distillation.json
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from pathlib import Path
from runpy import run_path
from typing import Any

import numpy as np

from ftengine import Recipe, Run, fine_tune, load_model
from ftengine.api import LoadedModel
from ftengine.chat import stop_tokens
from ftengine.generation import GenerationOptions, draw_answers
from ftengine.run.environment import hardware, versions
from ftengine_builtins.tasks import Distillation
from ftengine_builtins.tasks.distillation import TaughtAnswer

SYSTEM = "You are a pirate. Answer in one short sentence, as a pirate."
TOKENS = 32
TEST, GENERAL = 60, 100
TRAINED = {"batch_size": 8, "learning_rate": 5e-4, "epochs": 1}
Pairs = list[tuple[float, int]]


def questions() -> list[dict[str, str]]:
    """Return the questions of examples/pirate with an answer each, in a fixed random order."""
    prepare = run_path(str(Path(__file__).parents[1] / "examples" / "pirate" / "prepare.py"))
    every = prepare["questions"]()
    return [every[i] for i in np.random.default_rng(0).permutation(len(every))]


def taught(task: Distillation, loaded: LoadedModel, rows: Sequence[dict[str, str]]) -> list[TaughtAnswer]:
    """Return answers of the teacher's, drawn at temperature 1."""
    prompts = [task._taught(row, loaded.processor) for row in rows]
    options = GenerationOptions(max_new_tokens=TOKENS, temperature=1.0, seed=1)
    drawn = draw_answers(loaded, prompts, options, stop_tokens(loaded), own_settings=False)
    asked = [task._asked(row, loaded.processor) for row in rows]
    each = zip(asked, drawn, prompts, strict=True)
    return [TaughtAnswer.of(task._answer(query, one, loaded.processor), prompt) for query, one, prompt in each]


def measured(task: Distillation, loaded: LoadedModel, rows: Any, answers: Sequence[TaughtAnswer]) -> dict[str, Pairs]:
    """Return both divergences of a model from the teacher, summed over an answer, and its tokens, by prompt."""
    own = task.generate(loaded, rows, {"temperature": 1.0, "seed": 0, "max_new_tokens": TOKENS})
    return {
        "own": [(one["teacher_kl"], one["teacher_tokens"]) for one in own],
        "teacher": task.divergences(loaded, answers, beta=0.0),
    }


def estimates(pairs: dict[str, Pairs]) -> dict[str, Any]:
    """Return the mean per token of each arm, and of each difference between two, with 95 % intervals over prompts."""
    arms = {name: np.array(own) for name, own in pairs.items()}
    draws = np.random.default_rng(0).integers(0, TEST, (4000, TEST))
    means = {name: own[:, 0].sum() / own[:, 1].sum() for name, own in arms.items()}
    resampled = {name: own[draws, 0].sum(1) / own[draws, 1].sum(1) for name, own in arms.items()}
    found = {name: [means[name], *np.quantile(resampled[name], [0.025, 0.975])] for name in arms}
    for first, second in (("distillation", "base"), ("supervised", "base"), ("distillation", "supervised")):
        ends = np.quantile(resampled[first] - resampled[second], [0.025, 0.975])
        found[f"{first} - {second}"] = [means[first] - means[second], *ends]
    return {name: [round(float(x), 4) for x in values] for name, values in found.items()}


def run_of(folder: Path, model: str, name: str, task: dict[str, Any], given: Any) -> tuple[Run, dict[str, float]]:
    """Train an arm; return its run and seconds."""
    data = {"train": str(folder / f"{name}.jsonl"), "validation": None, "test": str(folder / f"{name}-test.jsonl")}
    recipe = {
        "model": {"source": model},
        "task": task,
        "data": data,
        "strategy": {"name": "lora", "rank": 8, "dropout": 0.0},
        "train": {**TRAINED, "learning_rate": given.learning_rate},
        "evaluate": ["perplexity"],
        "evaluation": {"forgetting": str(folder / "general.jsonl"), "answers": None, "training_sample": None},
        "seed": given.seed,
        "output": str(folder / f"run-{name}"),
    }
    started, used = time.monotonic(), time.process_time()
    run = fine_tune(Recipe.make(recipe))
    return run, {"seconds": time.monotonic() - started, "processor_seconds": time.process_time() - used}


def forgotten(run: Run) -> dict[str, Any]:
    """Return perplexity on general data of the base and the tuned model, and their difference."""
    [probe] = [probe for probe in run.evaluation["probes"] if probe["kind"] == "forgetting"]
    return {side: probe[side]["perplexity"] for side in ("base", "tuned", "difference")}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--learning-rate", type=float, default=TRAINED["learning_rate"])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    given.folder.mkdir(parents=True, exist_ok=True)
    rows, prompts = questions(), given.steps * TRAINED["batch_size"]
    test, general, train = rows[:TEST], rows[TEST : TEST + GENERAL], rows[TEST + GENERAL :][:prompts]
    if len(train) < prompts:
        raise SystemExit(f"error: there are {len(train)} prompts to train on; take fewer --steps.")
    base = load_model(given.model).open_model()
    options = {"teacher_system_prompt": SYSTEM, "max_new_tokens": TOKENS}
    task = Distillation(Distillation.Config(**options))
    task.set_model(base, None)
    answers = taught(task, base, test)
    started = time.monotonic()
    drawn = taught(task, base, train)
    drew = time.monotonic() - started
    for name, own in {
        "distillation": train,
        "distillation-test": test,
        "general": general,
        "supervised": [{**row, "completion": one.text} for row, one in zip(train, drawn, strict=True)],
        "supervised-test": [{**row, "completion": one.text} for row, one in zip(test, answers, strict=True)],
    }.items():
        kept = [row for row in own if row["completion"].strip()]
        (given.folder / f"{name}.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in kept))
    values, result = {"base": measured(task, base, test, answers)}, dict[str, Any]()
    for name, spec in {
        "supervised": {"name": "causal-lm"},
        "distillation": {"name": "distillation", **options},
    }.items():
        run, spent = run_of(given.folder, given.model, name, spec, given)
        values[name] = measured(task, run.open_model(), test, answers)
        result[name] = {**spent, "forgetting": forgotten(run)}
        print(name, json.dumps(result[name]), flush=True)
    result["supervised"]["drawing_seconds"] = drew
    for along in ("own", "teacher"):
        result[f"kl along {along} answers"] = estimates({name: own[along] for name, own in values.items()})
        print(along, json.dumps(result[f"kl along {along} answers"]), flush=True)
    if given.json:
        settings = {"steps": given.steps, "learning_rate": given.learning_rate, "seed": given.seed, "system": SYSTEM}
        given.json.parent.mkdir(parents=True, exist_ok=True)
        given.json.write_text(json.dumps({**hardware(), **versions(), **settings, **result}, indent=2) + "\n")


if __name__ == "__main__":
    main()
