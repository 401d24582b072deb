"""Task reward: its loss against NumPy, what it reads of pairs, and rows that are refused."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from expected import raises
from tiny import byte_level_tokenizer

from ftengine.errors import DataError
from ftengine.model import Criterion
from ftengine_builtins.tasks import Reward


class Scores(torch.nn.Module):
    """Gives each sequence a score of its own."""

    def __init__(self, scores):
        super().__init__()
        self.scores = torch.nn.Parameter(torch.tensor(scores, dtype=torch.float32)[:, None])

    def forward(self, **inputs):
        return SimpleNamespace(logits=self.scores)


@pytest.mark.parametrize("centring", [None, 0.01])
@pytest.mark.parametrize("least", [[0.0, 0.0, 0.0], [0.5, 2.0, 0.0]])
def test_loss_and_gradients_are_those_of_the_formula(centring, least):
    c, r, m = np.array([1.0, -2.0, 0.3]), np.array([0.5, 1.0, 0.3]), np.array(least)
    task, model = Reward(Reward.Config(centring=centring)), Scores([*c, *r])
    tokens = torch.ones(6, 3, dtype=torch.int64)
    batch = {"input_ids": tokens, "attention_mask": tokens, "labels": tokens, "least": torch.tensor(m).float()}
    loss, weight = task.loss(model, batch, Criterion())
    loss.backward()

    weight_of_sum, wrong = centring or 0.0, 1 / (1 + np.exp(c - r - m))
    wanted = np.log1p(np.exp(-(c - r - m))) + weight_of_sum * (c + r) ** 2
    assert weight == 3
    assert loss.item() == pytest.approx(wanted.sum(), rel=1e-6)
    both = 2 * weight_of_sum * (c + r)
    expected = np.concatenate([both - wrong, both + wrong])
    np.testing.assert_allclose(model.scores.grad[:, 0].numpy(), expected, rtol=1e-5, atol=1e-7)
    found = task.predict(model, batch)
    assert [one["margin"] for one in found] == pytest.approx((c - r).tolist())
    assert {one["chosen_tokens"] for one in found} == {2}


PAIR = {"prompt": "How are you?", "chosen": "I am fine.", "rejected": "Go away!", "gap": "1.5"}


def test_a_pair_is_two_sequences_that_end_with_their_answers_and_brings_its_margin():
    processor = byte_level_tokenizer(pad_token="<|im_end|>")
    task = Reward(Reward.Config(margin="gap", chat_template="never"))
    features = task.encode(PAIR, processor)
    batch = task.collate([features, features], processor)
    assert batch["least"].tolist() == [1.5, 1.5]
    texts = [processor.decode(ids, skip_special_tokens=True) for ids in batch["input_ids"]]
    assert texts == [PAIR["prompt"] + PAIR[side] for side in ("chosen", "chosen", "rejected", "rejected")]


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"rejected": "I am fine."}, "same"),
        ({"chosen": " "}, "`chosen`"),
        ({"rejected": None}, "`rejected`"),
        ({"gap": "much"}, "much"),
        ({"gap": None}, "gap"),
    ],
)
def test_rows_that_prefer_nothing_are_refused(changed, said):
    with raises(DataError, said):
        Reward(Reward.Config(margin="gap")).encode({**PAIR, **changed}, byte_level_tokenizer(pad_token="<|im_end|>"))


def test_columns_are_looked_at_first():
    with raises(DataError, "'gap'"):
        Reward(Reward.Config(margin="gap")).check_columns(["prompt", "chosen", "rejected"])
    with raises(DataError, "rejected"):
        Reward().check_columns(["prompt", "chosen"])
    with raises(DataError, "`completion`"):
        Reward().check_input({"prompt": "How are you?"})
