"""GKDTrainer of TRL beside task distillation: loss and gradients of the first step on the same answers."""

import copy

import pytest
import torch

from ftengine.api import LoadedModel
from ftengine.testing.models import tiny_llama
from ftengine_builtins.tasks import Distillation
from ftengine_builtins.tasks.distillation import TaughtAnswer
from ftengine_builtins.tasks.teachers import Teacher

pytest.importorskip("trl.experimental.gkd")


@pytest.fixture(scope="module")
def models():
    """Return student, teacher and tokenizer."""
    student, tokenizer = tiny_llama()
    torch.manual_seed(0)
    teacher = copy.deepcopy(student)
    with torch.no_grad():
        for parameter in teacher.parameters():
            parameter += 0.05 * torch.randn_like(parameter)
    return student.eval(), teacher.eval(), tokenizer


def answers(tokenizer):
    """Return prompts with answers of several lengths, of which the second does not end."""
    draw = torch.Generator().manual_seed(1)
    made = []
    for prompt, length, ends in (([5, 6, 7], 2, True), ([8, 9], 6, False), ([8, 9, 10, 11], 5, True)):
        ids = torch.randint(10, 60, (length,), generator=draw).tolist()
        made.append(
            TaughtAnswer(prompt, "", [*ids, *([tokenizer.eos_token_id] if ends else [])], "", ends, taught=prompt)
        )
    return made


@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("beta", [0.0, 0.1, 0.5, 0.9, 1.0])
def test_loss_and_gradients_are_trls(models, tmp_path, beta, temperature):
    from datasets import Dataset
    from trl.experimental.gkd import GKDConfig, GKDTrainer

    student, teacher, tokenizer = models
    task = Distillation(Distillation.Config(teacher="elsewhere", beta=beta, temperature=temperature))
    task._source.teacher = Teacher(teacher)
    assert isinstance(task._source.teacher, Teacher)
    draws = task.learn_from([answers(tokenizer)])
    batch = task.collate(draws.examples, tokenizer)
    total, weight, _, tokens = task.learn(student, batch)
    loss = total / weight
    gradients = torch.autograd.grad(loss, [*student.parameters()])

    config = GKDConfig(
        output_dir=str(tmp_path), beta=beta, temperature=temperature, report_to="none", use_cpu=True, bf16=False
    )
    own = copy.deepcopy(student)
    data = Dataset.from_list([{"messages": [{"role": "user", "content": "x"}, {"role": "assistant", "content": "y"}]}])
    trainer = GKDTrainer(own, copy.deepcopy(teacher), config, train_dataset=data, processing_class=tokenizer)
    if temperature == 1:
        inputs = {key: batch[key] for key in ("input_ids", "attention_mask", "labels")}
        theirs = trainer.compute_loss(own, inputs, num_items_in_batch=tokens)
    else:  # its trainer divides no logits; its loss does
        inputs = {key: batch[key] for key in ("input_ids", "attention_mask")}
        logits = [model(**inputs).logits[:, :-1] for model in (own, teacher)]
        theirs = GKDTrainer.generalized_jsd_loss(
            logits[0], logits[1].detach(), batch["labels"][:, 1:], beta=beta, temperature=temperature
        )
    assert loss.item() == pytest.approx(theirs.item(), rel=1e-4, abs=1e-7)
    for gradient, other in zip(gradients, torch.autograd.grad(theirs, [*own.parameters()]), strict=True):
        torch.testing.assert_close(gradient, other, rtol=1e-3, atol=1e-6)


def test_the_base_with_the_same_prompt_teaches_nothing(models):
    student, _, tokenizer = models
    task = Distillation(Distillation.Config(teacher_system_prompt="Shout."))
    task.set_model(LoadedModel(student, tokenizer, "", "causal-lm"), None)
    draws = task.learn_from([answers(tokenizer)])
    assert task.learn(student, task.collate(draws.examples, tokenizer))[0].item() == pytest.approx(0, abs=1e-5)
