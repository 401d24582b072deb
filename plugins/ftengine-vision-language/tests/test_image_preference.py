"""Two answers about pictures: log-probabilities and DPO's loss are those of the model's own answers."""

import numpy as np
import pytest
import torch
from expected import raises
from vision_models import square, tiny

from ftengine.errors import DataError
from ftengine.model import Criterion
from ftengine_vision_language import ImagePreference, ImageTextToText


def pair(**other):
    return {"prompt": "what colour is it ?", "chosen": "red", "rejected": "it is blue", "image": square("red"), **other}


@pytest.mark.parametrize("name", ["llava", "qwen2_5_vl"])
def test_pairs_of_answers_are_two_conversations_with_the_same_pictures(name):
    """Loss, log-probabilities and the reference's part are those of the model's own logits."""
    module, processor = tiny(name)
    own = ImagePreference(ImagePreference.Config(beta=0.2))
    batch = own.collate([own.encode(row, processor) for row in (pair(), pair(image=square("blue", 50, 50)))], processor)
    expected = []
    for side in ("chosen", "rejected"):
        for colour in (square("red"), square("blue", 50, 50)):
            row = {"prompt": pair()["prompt"], "completion": pair()[side], "image": colour}
            [alone] = ImageTextToText().predict(
                module, ImageTextToText().collate([ImageTextToText().encode(row, processor)], processor)
            )
            expected.append((-alone["loss"], alone["tokens"]))
    found = own.predict(module, batch)
    for key, values in (("chosen", expected[:2]), ("rejected", expected[2:])):
        assert [one[f"{key}_logp"] for one in found] == pytest.approx([logp for logp, _ in values], rel=1e-4)
        assert [one[f"{key}_tokens"] for one in found] == [count for _, count in values]
    assert [one["margin"] for one in found] == [0, 0]  # without a reference the model is its own
    batch["reference"] = {"chosen_logp": torch.tensor([-1.0, -2.0]), "rejected_logp": torch.tensor([-3.0, -4.0])}
    margins = [0.2 * ((expected[i][0] + 1 + i) - (expected[2 + i][0] + 3 + i)) for i in range(2)]
    total, weight = own.loss(module, batch, Criterion())
    assert (weight, total.item()) == (2, pytest.approx(float(np.logaddexp(0, -np.array(margins)).sum()), rel=1e-4))


def test_pictures_of_pairs_are_never_cut_and_answers_have_none():
    _, processor = tiny("llava")
    own = ImagePreference(ImagePreference.Config(max_length=20))
    with raises(DataError, "max_length", "pictures"):
        own.encode(pair(), processor)
    assert not ImagePreference().encode(pair(rejected="red"), processor).weight
    for row, fact in (
        (pair(chosen=None), "`chosen`"),
        (pair(rejected=[{"role": "assistant", "content": "a"}, {"role": "assistant", "content": "b"}]), "`rejected`"),
        (
            pair(chosen=[{"role": "assistant", "content": [{"type": "image"}, {"type": "text", "text": "red"}]}]),
            "`chosen`",
        ),
    ):
        with raises(DataError, fact):
            ImagePreference().encode(row, processor)
    changed = ImagePreference().with_inputs(pair(), [square("green")])
    [picture] = ImagePreference().view(changed).inputs
    assert np.array_equal(np.asarray(picture), np.asarray(square("green")))
    assert ImagePreference().encode(changed, processor).weight == 1
    found = ImagePreference.recognise(["prompt", "chosen", "rejected", "image"], [pair(image="a.png")])
    assert found.certainty == 3
    assert ImagePreference.recognise(["prompt", "chosen", "rejected"], [pair(image=None)]) is None
