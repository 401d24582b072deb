"""Rows of the forms that TRL knows, in its chat templates and in the tests': SFTTrainer's tokens and labels and ours.

What comes of each is in tests/golden/trl.txt, and why in docs/your-file.md. FTENGINE_GOLDEN=write writes the file anew.
"""

import copy
import logging
import os
import re
from collections import Counter
from itertools import product
from pathlib import Path

import pytest
from chat_templates import TEMPLATES, TOKENS

from ftengine.errors import DataError
from ftengine.testing.models import tiny_llama
from ftengine_builtins.tasks.causal_lm import CausalLM, CausalLMConfig

trl = pytest.importorskip("trl")

GOLDEN = Path(__file__).parents[1] / "golden" / "trl.txt"

SYSTEM, ASKED = {"role": "system", "content": "Be brief."}, {"role": "user", "content": "2 + 2?"}
FOUR = {"role": "assistant", "content": "Four."}
THOUGHT = {**FOUR, "reasoning_content": "It is even."}
MORE, EIGHT = {"role": "user", "content": "Twice?"}, {"role": "assistant", "content": "Eight."}
CALL = {"type": "function", "function": {"name": "add", "arguments": {"a": 2, "b": 2}}}
CALLS = {"role": "assistant", "content": "", "tool_calls": [CALL]}
RESULT = {"role": "tool", "name": "add", "content": "4"}
PARAMETERS = {"type": "object", "properties": {"a": {"type": "integer"}, "b": {"type": "integer"}}}
ADD = {"name": "add", "description": "Adds.", "parameters": PARAMETERS}
TOOLS = {"tools": [{"type": "function", "function": ADD}]}
ALL, KWARGS = {"train_on": "all"}, {"chat_template_kwargs": {"enable_thinking": False}}
WHOLE, ASSISTANT = {"completion_only_loss": False}, {"assistant_only_loss": True}

FORMS = {
    "messages": ({"messages": [ASKED, FOUR]}, {}, ALL),
    "a system message": ({"messages": [SYSTEM, ASKED, FOUR]}, {}, ALL),
    "several turns": ({"messages": [ASKED, FOUR, MORE, EIGHT]}, {}, ALL),
    "an earlier thought": ({"messages": [ASKED, THOUGHT, MORE, EIGHT]}, {}, ALL),
    "calls": ({"messages": [ASKED, CALLS, RESULT, FOUR], **TOOLS}, {}, ALL),
    "messages with kwargs": ({"messages": [ASKED, FOUR], **KWARGS}, {}, ALL),
    "a completion": ({"prompt": [ASKED], "completion": [FOUR]}, {}, {}),
    "behind a system message": ({"prompt": [SYSTEM, ASKED], "completion": [FOUR]}, {}, {}),
    "behind earlier turns": ({"prompt": [ASKED, FOUR, MORE], "completion": [EIGHT]}, {}, {}),
    "with a thought": ({"prompt": [ASKED], "completion": [THOUGHT]}, {}, {}),
    "with kwargs": ({"prompt": [ASKED], "completion": [FOUR], **KWARGS}, {}, {}),
    "a call": ({"prompt": [ASKED], "completion": [CALLS], **TOOLS}, {}, {}),
    "behind a result": ({"prompt": [ASKED, CALLS, RESULT], "completion": [FOUR], **TOOLS}, {}, {}),
    "calls and an answer": ({"prompt": [ASKED], "completion": [CALLS, RESULT, FOUR], **TOOLS}, {}, {}),
    "not the completion only": ({"prompt": [ASKED], "completion": [FOUR]}, WHOLE, ALL),
    "the assistant's turns": ({"messages": [ASKED, FOUR, MORE, EIGHT]}, ASSISTANT, {}),
    "the assistant's calls": ({"messages": [ASKED, CALLS, RESULT, FOUR], **TOOLS}, ASSISTANT, {}),
    "the assistant's in a completion": ({"prompt": [ASKED], "completion": [FOUR, MORE, EIGHT]}, ASSISTANT, {}),
}

OWN = {f"tests: {name}": text for name, text in TEMPLATES.items()}
FAMILIES = (
    *(
        "cohere",
        "deepseek_r1_distill",
        "deepseekv3",
        "gemma",
        "gemma3",
        "gemma4",
        "gemma4_v2",
        "gemma4_v5",
        "glm4moe",
        "gptoss",
        "lfm2",
    ),
    *("llama3", "llama3_1", "llama3_2", "nemotron_3_nano", "phi3", "phi3_5", "qwen2_5", "qwen3", "qwen3_5_think"),
    *("qwen3_6", "qwen3_instruct_2507"),
)


def template_of(family):
    return OWN.get(family) or (Path(trl.__file__).parent / "chat_templates" / f"{family}.jinja").read_text()


def model_of(template):
    """Return a tiny model whose tokenizer has the template's special tokens."""
    made, tokenizer = tiny_llama()
    known = set(
        re.findall(r"<\|[A-Za-z_]+\|>|<[A-Za-z_]+\|>|<\|[A-Za-z_]+>|<(?:start|end)_of_turn>|<｜[^｜]+｜>", template)
    )
    tokenizer.add_tokens(sorted(known | set(TOKENS)), special_tokens=True)
    made.resize_token_embeddings(len(tokenizer))
    tokenizer.chat_template = template
    return made, tokenizer


def theirs(made, tokenizer, row, folder, options):
    """Return (input_ids, labels) as TRL prepares a row; None where it refuses it."""
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    usual = {"max_length": None, "shuffle_dataset": False, "bf16": False, "report_to": "none", "use_cpu": True}
    config = SFTConfig(output_dir=str(folder), **usual, **options)
    data = Dataset.from_list([row])
    try:
        # Copies: the trainer gives the model a forward of its own, and the tokenizer a template for training.
        trainer = SFTTrainer(copy.deepcopy(made), config, train_dataset=data, processing_class=copy.deepcopy(tokenizer))
    except Exception:  # a template raises what it likes
        return None
    (prepared,) = trainer.train_dataset
    return prepared["input_ids"], prepared["labels"]


def ours(tokenizer, row, options):
    """Return (input_ids, labels) of each example that a row makes; None where it is refused."""
    task = CausalLM(CausalLMConfig(max_length=8192, **options))
    try:
        examples = [task.encode(row, tokenizer, part=n) for n in range(task.parts(row, tokenizer))]
    except DataError:
        return None
    return [(one.inputs["input_ids"], one.inputs["labels"]) for one in examples]


def outcome(family, form, made, tokenizer, folder):
    """Return a line of what comes of a row."""
    row, options, own = FORMS[form]
    its, examples = theirs(made, tokenizer, row, folder, options), ours(tokenizer, row, own)
    if its is None or examples is None:
        return "refused by " + ("both" if its is examples else "TRL" if its is None else "ftengine")
    (ids, labels), several = examples[-1], f"{len(examples)} examples, " if len(examples) > 1 else ""
    if ids[: len(its[0])] != its[0]:
        return f"{several}other tokens"
    labels, beyond = labels[: len(its[0])], ids[len(its[0]) :]
    more = [other for one, other in zip(labels, its[1], strict=True) if one == -100 != other]
    less = [one for one, other in zip(labels, its[1], strict=True) if other == -100 != one]
    assert all(one == other for one, other in zip(labels, its[1], strict=True) if -100 not in (one, other))
    told = [f"TRL trains on {tokenizer.decode(more)!r} too"] * bool(more)
    told += [f"ftengine trains on {tokenizer.decode(less)!r} too"] * bool(less)
    told += [f"ftengine ends with {tokenizer.decode(beyond)!r}"] * bool(beyond)
    return several + ("; ".join(told) or "the same")


KINDS = {
    "a plain answer": FOUR,
    "a call": CALLS,
    "a call with text": {**CALLS, "content": "Four."},
    "two calls": {**CALLS, "tool_calls": [CALL, CALL]},
    "two calls with text": {**CALLS, "content": "Four.", "tool_calls": [CALL, CALL]},
}


@pytest.mark.slow
def test_no_template_of_trl_trains_a_thought_behind_its_answer_or_call():
    templates = sorted((Path(trl.__file__).parent / "chat_templates").glob("*.jinja"))
    assert len(templates) > 60
    _, tokenizer = tiny_llama()
    seen = Counter()
    for path, (kind, answer), masked in product(templates, KINDS.items(), ("train", "mask")):
        tokenizer.chat_template = path.read_text()
        row = {"messages": [ASKED, {**answer, "reasoning_content": "It is even."}], **TOOLS}
        task = CausalLM(CausalLMConfig(max_length=8192, thoughts=masked))
        try:
            example = task.encode(row, tokenizer, part=task.parts(row, tokenizer) - 1)
        except DataError:
            seen["refused"] += 1
            continue
        counts = example.counts
        trained = tokenizer.decode([label for label in example.inputs["labels"] if label != -100])
        places = [trained.find(word) for word in ("add", "Four.") if word in trained]
        dropped = counts.get("thoughts_dropped", 0)
        assert ("It is even." in trained) == (masked == "train" and not dropped), (path.stem, kind)
        assert trained.find("It is even.") < min(places), (path.stem, kind)
        assert "untrained_calls" not in counts, (path.stem, kind)
        seen["dropped" if dropped else "written"] += 1
    assert seen["written"] > 300


@pytest.mark.slow
@pytest.mark.parametrize("family", [*OWN, *FAMILIES])
def test_tokens_and_labels_are_as_recorded(family, tmp_path, caplog):
    caplog.set_level(logging.CRITICAL)
    made, tokenizer = model_of(template_of(family))
    lines = [f"  {form}: {outcome(family, form, made, tokenizer, tmp_path)}" for form in FORMS]
    known = sections()
    if os.environ.get("FTENGINE_GOLDEN") == "write":
        known[family] = lines
        GOLDEN.write_text(
            "\n".join(line for name in (*OWN, *FAMILIES) if name in known for line in (name, *known[name])) + "\n"
        )
    assert lines == known.get(family)


def sections():
    """Return the recorded lines of each template."""
    found, lines = {}, []
    for line in GOLDEN.read_text().splitlines() if GOLDEN.is_file() else ():
        if line.startswith("  "):
            lines.append(line)
        else:
            lines = found.setdefault(line, [])
    return found
