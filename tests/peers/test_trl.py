"""TRL beside ours: SFTTrainer's tokens and labels, differing as docs/your-file.md says, and KTO's loss and gradient."""

import copy

import pytest
import torch
from chat_templates import QWEN3, SMOLLM2, TOKENS

from ftengine.model import Criterion
from ftengine.testing.models import tiny_llama
from ftengine_builtins.tasks import UnpairedPreference
from ftengine_builtins.tasks.causal_lm import CausalLM, CausalLMConfig

pytest.importorskip("trl")

PROMPT = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "2 + 2?"}]
FOUR = {"role": "assistant", "content": "Four."}
THOUGHT = {**FOUR, "reasoning_content": "It is even."}
MORE = [{"role": "user", "content": "Twice?"}, {"role": "assistant", "content": "Eight."}]
CALL = {"type": "function", "function": {"name": "add", "arguments": {"a": 2, "b": 2}}}
PARAMETERS = {"type": "object", "properties": {"a": {"type": "integer"}}}
TOOLS = [{"type": "function", "function": {"name": "add", "description": "Adds.", "parameters": PARAMETERS}}]
ASKS, RESULT = (
    {"role": "assistant", "content": "", "tool_calls": [CALL]},
    {"role": "tool", "name": "add", "content": "4"},
)
CALLED = [*PROMPT, ASKS, RESULT, FOUR]
ALL, NONE = {"train_on": "all"}, {"enable_thinking": False}
USERS = "\n<|im_start|>user\nTwice?<|im_end|>\n<|im_start|>assistant\n\n"
MARKED = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.role == 'assistant' %}{% generation %}{{ m.content }}"
    "<|im_end|>{% endgeneration %}{% else %}{{ m.content }}<|im_end|>{% endif %}\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@pytest.fixture(scope="module")
def model():
    made, tokenizer = tiny_llama()
    tokenizer.add_tokens(list(TOKENS), special_tokens=True)
    made.resize_token_embeddings(len(tokenizer))
    return made, tokenizer


def theirs(model, row, folder, **options):
    """Return (input_ids, labels) as TRL prepares a row."""
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    made, tokenizer = model
    whole = {"max_length": None, "shuffle_dataset": False, "bf16": False, "report_to": "none", "use_cpu": True}
    config = SFTConfig(output_dir=str(folder), **whole, **options)
    # A copy: the trainer gives the model a forward of its own, which leaves logits out.
    data = Dataset.from_list([row])
    trainer = SFTTrainer(copy.deepcopy(made), config, train_dataset=data, processing_class=tokenizer)
    (row,) = trainer.train_dataset
    return row["input_ids"], row["labels"]


def ours(model, row, **options):
    task = CausalLM(CausalLMConfig(**options))
    examples = [task.encode(row, model[1], part=n) for n in range(task.parts(row, model[1]))]
    return [(one.inputs["input_ids"], one.inputs["labels"]) for one in examples]


CASES = {
    "text": ({"text": "The fox runs."}, None, {}, {}, ""),
    "prompt and completion": ({"prompt": "2 + 2 =", "completion": " 4"}, None, {}, {}, ""),
    "every token": ({"messages": [*PROMPT, FOUR]}, SMOLLM2, {}, ALL, ""),
    "every token of several turns": ({"messages": [*PROMPT, FOUR, *MORE]}, QWEN3, {}, ALL, ""),
    "every token with tools": ({"messages": CALLED, "tools": TOOLS}, QWEN3, {}, ALL, ""),
    "marked by the template": ({"messages": [*PROMPT, FOUR, *MORE]}, MARKED, {"assistant_only_loss": True}, {}, ""),
    # TRL trains all that the template writes behind a prompt: also the line break behind the token that ends the turn,
    "a completion": ({"prompt": PROMPT, "completion": [FOUR]}, SMOLLM2, {}, {}, "\n"),
    "a thought": ({"prompt": PROMPT, "completion": [THOUGHT]}, QWEN3, {}, {}, "\n"),
    "no thinking": ({"prompt": PROMPT, "completion": [FOUR], "chat_template_kwargs": NONE}, QWEN3, {}, {}, "\n"),
    # an empty thought that nobody wrote,
    "an empty thought": ({"prompt": PROMPT, "completion": [FOUR]}, QWEN3, {}, {}, "<think>\n\n</think>\n\n\n"),
    # and what the user says in a completion.
    "a completion of several turns": ({"prompt": PROMPT, "completion": [FOUR, *MORE]}, SMOLLM2, {}, {}, USERS),
}


@pytest.mark.parametrize("case", CASES)
def test_tokens_are_equal_and_labels_but_for_what_is_not_the_assistants(model, case, tmp_path):
    row, template, options, own, more = CASES[case]
    model[1].chat_template = template
    ((ids, labels),) = ours(model, row, **own)
    their_ids, their_labels = theirs(model, row, tmp_path, **options)
    assert ids == their_ids
    assert all(one in (-100, other) for one, other in zip(labels, their_labels, strict=True))
    extra = [other for one, other in zip(labels, their_labels, strict=True) if one == -100 != other]
    assert model[1].decode(extra) == more


def test_a_thought_of_an_earlier_turn_is_trained_on_by_ours_alone(model, tmp_path):
    """The template writes none when others follow: TRL's row has lost it, one of ours ends with its turn."""
    row = {"messages": [*PROMPT, THOUGHT, *MORE]}
    model[1].chat_template = QWEN3
    first, last = ours(model, row)
    ids, _ = theirs(model, row, tmp_path)
    assert last[0] == ids
    assert ["even" in model[1].decode(one) for one in (first[0], ids)] == [True, False]


def test_a_prompt_as_text_is_a_chat_where_there_is_a_template_and_as_trls_where_the_recipe_says(model, tmp_path):
    row = {"prompt": "2 + 2 =", "completion": " 4"}
    model[1].chat_template = SMOLLM2
    its = theirs(model, row, tmp_path)
    assert ours(model, row)[0] != its
    assert ours(model, row, chat_template="never")[0] == its


def test_loss_and_gradient_of_kto_are_trls(model, tmp_path):
    """Of a batch that is the whole data, against a reference that differs; TRL turns answers the other way round."""
    from datasets import Dataset
    from trl import KTOConfig, KTOTrainer

    made, tokenizer = model
    tokenizer.chat_template = None
    words = ["red", "green", "fox", "house", "no", "yes"]
    rows = [
        {"prompt": f"Say {word}:", "completion": f" {word} {words[i - 2]}", "label": i % 3 > 0}
        for i, word in enumerate(words)
    ]
    sides = [made.eval(), copy.deepcopy(made).eval()]
    with torch.no_grad():
        torch.manual_seed(0)
        for parameter in sides[1].parameters():
            parameter += 0.05 * torch.randn_like(parameter)
    task = UnpairedPreference(UnpairedPreference.Config(beta=0.3, desirable_weight=1.2, undesirable_weight=0.7))
    settings = {"report_to": "none", "use_cpu": True, "bf16": False, "gradient_checkpointing": False}
    weights = {"beta": 0.3, "desirable_weight": 1.2, "undesirable_weight": 0.7}
    clamped = []
    for policy, reference in (sides, sides[::-1]):
        pairs = zip(rows, rows[1:] + rows[:1], strict=True)
        batch = task.collate([task.encode(row, tokenizer, following=other) for row, other in pairs], tokenizer)
        known = task.predict(reference, batch)
        batch["reference"] = {key: torch.tensor([one[key] for one in known]) for key in task.reference}
        clamped.append(
            sum(one["mismatched_logp"] for one in task.predict(policy, batch))
            < sum(batch["reference"]["mismatched_logp"])
        )
        total, weight = task.loss(policy, batch, Criterion())
        parameters = list(policy.parameters())
        gradients = torch.autograd.grad(total / weight, parameters)
        arguments = {**settings, **weights, "per_device_train_batch_size": len(rows), "output_dir": str(tmp_path)}
        config = KTOConfig(**arguments, train_sampling_strategy="sequential")
        trainer = KTOTrainer(
            copy.deepcopy(policy), copy.deepcopy(reference), config, train_dataset=Dataset.from_list(rows[::-1]),
            processing_class=tokenizer,
        )  # fmt: skip
        theirs = trainer.compute_loss(trainer.model.eval(), next(iter(trainer.get_train_dataloader())))
        assert (total / weight).item() == pytest.approx(theirs.item(), rel=1e-5)
        for one, other in zip(gradients, torch.autograd.grad(theirs, list(trainer.model.parameters())), strict=True):
            torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-6)
    assert sorted(map(bool, clamped)) == [False, True]
