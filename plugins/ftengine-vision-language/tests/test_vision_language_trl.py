"""TRL beside ours on the same rows with pictures: the first step's loss and gradients of SFTTrainer and DPOTrainer."""

import copy

import pytest
import torch
from vision_models import square, tiny

from ftengine.model import Criterion
from ftengine_vision_language import ImagePreference, ImageTextToText

pytest.importorskip("trl")
pytestmark = pytest.mark.slow


@pytest.fixture(params=["llava", "qwen2_5_vl"])
def made(request):
    """A tiny model; its template ends an answer by the token that ends it, as TRL trains all that follows too."""
    module, processor = tiny(request.param)
    processor.chat_template = processor.chat_template.replace("<|im_end|>\n{% endfor", "<|im_end|>{% endfor")
    return module, processor


def message(role, content):
    return [{"role": role, "content": content}]


def rows():
    return [
        {
            "images": [square("red")],
            "prompt": message("user", "what colour is it ?"),
            "chosen": "red",
            "rejected": "blue",
        },
        {
            "images": [square("blue", 64, 40), square("green", 33, 70)],
            "prompt": message("user", "what is the second ?"),
            "chosen": "the second is green .",
            "rejected": "red",
        },
        {
            "images": [square("green")],
            "prompt": message("user", "is it green ?"),
            "chosen": "yes",
            "rejected": "no , it is red",
        },
    ]


def first_step(trainer):
    """Return the loss of the first batch; the gradients are left in `trainer.model`."""
    batch = next(iter(trainer.get_train_dataloader()))
    trainer.current_gradient_accumulation_steps = 1
    return trainer.training_step(trainer.model, batch).item()


def options(folder):
    return {
        "output_dir": str(folder),
        "per_device_train_batch_size": 3,
        "max_length": None,
        "report_to": "none",
        "use_cpu": True,
        "bf16": False,
        "gradient_checkpointing": False,
    }


def require_equal_gradients(ours, theirs):
    of_theirs = {name.removeprefix("module."): parameter.grad for name, parameter in theirs.named_parameters()}
    trained = 0
    for name, parameter in ours.named_parameters():
        other = of_theirs[name]
        if parameter.grad is None or other is None:
            assert not any(grad is not None and grad.any() for grad in (parameter.grad, other)), name
            continue
        trained += 1
        torch.testing.assert_close(
            parameter.grad, other, rtol=2e-3, atol=2e-6, msg=lambda text, name=name: f"{name}: {text}"
        )
    assert trained > 20


def test_the_first_step_is_that_of_sfttrainer(made, tmp_path):
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    module, processor = made
    some = [
        {"images": row["images"], "prompt": row["prompt"], "completion": message("assistant", row["chosen"])}
        for row in rows()
    ]
    trainer = SFTTrainer(
        copy.deepcopy(module),
        SFTConfig(**options(tmp_path)),
        train_dataset=Dataset.from_list(some),
        processing_class=processor,
    )
    theirs = first_step(trainer)
    own, ours = ImageTextToText(), copy.deepcopy(module).train()
    total, weight = own.loss(ours, own.collate([own.encode(row, processor) for row in some], processor), Criterion())
    (total / weight).backward()
    assert (total / weight).item() == pytest.approx(theirs, rel=1e-5)
    require_equal_gradients(ours, trainer.model)


def test_the_first_step_is_that_of_dpotrainer(made, tmp_path):
    """With a reference that is not the model, so that margins are not zero."""
    from datasets import Dataset
    from trl import DPOConfig, DPOTrainer

    module, processor = made
    reference = copy.deepcopy(module)
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in reference.parameters():
            parameter += 0.05 * torch.randn_like(parameter)
    some = [{**row, **{side: message("assistant", row[side]) for side in ("chosen", "rejected")}} for row in rows()]
    trainer = DPOTrainer(
        copy.deepcopy(module),
        ref_model=copy.deepcopy(reference),
        args=DPOConfig(beta=0.5, **options(tmp_path)),
        train_dataset=Dataset.from_list(some),
        processing_class=processor,
    )
    theirs = first_step(trainer)
    own, ours = ImagePreference(ImagePreference.Config(beta=0.5)), copy.deepcopy(module).train()
    batch = own.collate([own.encode(row, processor) for row in rows()], processor)
    before = own.predict(reference.eval(), batch)
    batch["reference"] = {key: torch.tensor([one[key] for one in before]) for key in own.reference}
    total, weight = own.loss(ours, batch, Criterion())
    (total / weight).backward()
    assert weight == 3
    assert (total / weight).item() == pytest.approx(theirs, rel=1e-5)
    require_equal_gradients(ours, trainer.model)
