"""GRPOTrainer and RLOOTrainer of TRL beside task grpo: advantages, loss and gradient of the same draws and rewards."""

import copy

import pytest
import torch

from ftengine.model import TokenLoss
from ftengine.testing.models import tiny_llama
from ftengine_builtins.rewards import Scored
from ftengine_builtins.tasks import GRPO
from ftengine_builtins.tasks.drawn_answers import DrawnAnswer, Tempered, overlong

pytest.importorskip("trl")

PROMPTS, ANSWERS, LONGEST, TEMPERATURE = ([5, 6, 7], [8, 9]), 4, 6, 0.7
REWARDS = [[0.0, 1.0, 1.0, 0.25], [2.0, -1.0, 0.5, 0.5]]
THEIRS = {
    "grpo": {"loss_type": "grpo"},
    "dr-grpo": {"loss_type": "dr_grpo", "scale_rewards": "none"},
    "dapo": {"loss_type": "dapo", "epsilon_high": 0.28},
    "gspo": {
        "loss_type": "grpo",
        "importance_sampling_level": "sequence",
        "epsilon": 3e-4,
        "epsilon_high": 4e-4,
    },
    "cispo": {"loss_type": "cispo", "epsilon_high": 5.0},
    "rloo": {},
}
CASES = {
    **{name: (name, {}, {}) for name in THEIRS},
    "grpo of a batch's deviation": ("grpo", {"scale_rewards": "batch"}, {"scale_rewards": "batch"}),
    "truncated answers masked": ("dapo", {"mask_truncated": True}, {"mask_truncated_completions": True}),
    **{f"{name} against the reference": (name, {"beta": 0.3}, {"beta": 0.3}) for name in THEIRS},
    **{f"{name} a second time": (name, {"updates_per_draw": 2}, {"num_iterations": 2}) for name in THEIRS},
}


@pytest.fixture(scope="module")
def models():
    """The policy now, the policy that drew, and the reference, which differ, and the tokenizer."""
    made, tokenizer = tiny_llama()
    torch.manual_seed(0)
    versions = [made.eval(), copy.deepcopy(made), copy.deepcopy(made)]
    with torch.no_grad():
        for model, size in zip(versions[1:], (0.003, 0.02), strict=True):
            for parameter in model.parameters():
                parameter += size * torch.randn_like(parameter)
    return versions, tokenizer


def drawn(tokenizer):
    """Return answers of several lengths by prompt; every other one ends, those behind are cut off."""
    draw, groups = torch.Generator().manual_seed(1), []
    for prompt in PROMPTS:
        group = []
        for number in range(ANSWERS):
            ends = number % 2 == 0
            ids = torch.randint(10, 60, (2 + number if ends else LONGEST,), generator=draw).tolist()
            group.append((prompt, [*ids[: LONGEST - ends], *([tokenizer.eos_token_id] if ends else [])], ends))
        groups.append(group)
    return groups


def logps(model, prompt, ids):
    """Return the log-probabilities of an answer's tokens."""
    inputs = torch.tensor([[*prompt, *ids]])
    labels = torch.tensor([[-100] * len(prompt) + ids])
    batch = {"input_ids": inputs, "attention_mask": torch.ones_like(inputs)}
    with torch.no_grad():
        return (-TokenLoss(1).each(model, batch, labels, Tempered(TEMPERATURE))[0]).tolist()


def ours(models, options):
    """Return our advantages, loss and gradients."""
    (policy, old, reference), tokenizer = models
    config = {"rewards": [{"name": "exact-match"}], "num_generations": ANSWERS, "max_new_tokens": LONGEST}
    task = GRPO(GRPO.Config(**config, temperature=TEMPERATURE, **options))
    before = old if task.updates_per_draw > 1 else policy
    groups = []
    for group, rewards in zip(drawn(tokenizer), REWARDS, strict=True):
        answers = []
        for (prompt, ids, ends), reward in zip(group, rewards, strict=True):
            known = {"drawn": logps(before, prompt, ids)} if task._drawn_needed else {}
            known |= {"reference": logps(reference, prompt, ids)} if task.uses_reference else {}
            answers.append(DrawnAnswer(prompt, "", ids, "", ends, scored=Scored((reward,), reward), **known))
        groups.append(answers)
    draws = task.learn_from(groups)
    total, computed, _, _ = task.learn(policy, task.collate(draws.examples, tokenizer))
    loss = total / (computed + draws.idle_weight)
    return [record["advantage"] for record in draws.records], loss, torch.autograd.grad(loss, [*policy.parameters()])


def theirs(models, name, options, folder):
    """Return TRL's advantages, loss and gradients."""
    from datasets import Dataset
    from trl import GRPOConfig, GRPOTrainer, RLOOConfig, RLOOTrainer
    from trl.trainer.utils import add_fused_lm_head

    (policy, old, reference), tokenizer = models
    groups = drawn(tokenizer)
    answers = [answer for group in groups for answer in group]
    config_of, trainer_of = (RLOOConfig, RLOOTrainer) if name == "rloo" else (GRPOConfig, GRPOTrainer)
    settings = {"report_to": "none", "use_cpu": True, "bf16": False, "gradient_checkpointing": False}
    config = config_of(
        output_dir=str(folder),
        per_device_train_batch_size=len(answers),
        num_generations=ANSWERS,
        max_completion_length=LONGEST,
        temperature=TEMPERATURE,
        **{**settings, **THEIRS[name], **options, "beta": 0.0},  # it would load the reference by its name
    )
    rewards = [reward for row in REWARDS for reward in row]
    data = Dataset.from_list([{"prompt": "x"} for _ in answers])
    trainer = trainer_of(
        copy.deepcopy(old if "num_iterations" in options else policy),
        lambda prompts, completions, **_: rewards,
        config,
        train_dataset=data,
        processing_class=tokenizer,
    )
    prompts, ids = [prompt for prompt, _, _ in answers], [ids for _, ids, _ in answers]
    texts = ["" for _ in ids]
    made = (prompts, ids, texts) if name == "rloo" else (prompts, ids, None, texts, None, {}, None, None)
    trainer._generate = lambda prompts: made
    trainer.current_gradient_accumulation_steps = 1
    trainer.model.train()
    trainer.beta, trainer.ref_model = options.get("beta", 0.0), copy.deepcopy(reference)
    add_fused_lm_head(trainer.ref_model, temperature=TEMPERATURE)
    inputs = trainer._generate_and_score_completions([{"prompt": "x"} for _ in answers])
    trainer.model.load_state_dict(policy.state_dict())
    loss = trainer._compute_loss(trainer.model, inputs)
    return inputs["advantages"].tolist(), loss, torch.autograd.grad(loss, list(trainer.model.parameters()))


@pytest.mark.parametrize("case", CASES)
def test_advantages_losses_and_gradients_are_trls(models, case, tmp_path):
    name, own, options = CASES[case]
    advantages, loss, gradients = ours(models, {"loss": name, **own})
    their_advantages, their_loss, their_gradients = theirs(models, name, options, tmp_path)
    assert advantages == pytest.approx(their_advantages, rel=1e-4, abs=1e-6)
    assert loss.item() == pytest.approx(their_loss.item(), rel=1e-4, abs=1e-6)
    for gradient, other in zip(gradients, their_gradients, strict=True):
        torch.testing.assert_close(gradient, other, rtol=1e-3, atol=1e-6)


def test_the_punishment_of_length_is_trls():
    from trl.rewards import get_soft_overlong_punishment

    theirs = get_soft_overlong_punishment(max_completion_len=20, soft_punish_cache=8)
    lengths = range(1, 21)
    expected = theirs([[5] * length for length in lengths])
    assert [overlong(length, 20, 8) for length in lengths] == pytest.approx(expected)
