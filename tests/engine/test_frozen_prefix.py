"""Blocks below the lowest trained one: computed once per example where that changes nothing, else in every epoch."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from expected import raises
from runs import Heard, curve
from torch import nn
from torch.nn.functional import cross_entropy
from transformers import (
    DebertaV2Config,
    DebertaV2ForSequenceClassification,
    OPTConfig,
    OPTForCausalLM,
    RobertaConfig,
    RobertaForMaskedLM,
)

from ftengine import fine_tune
from ftengine.errors import RecipeError
from ftengine.run.directory import RunDirectory
from ftengine.run.records import Environment
from ftengine.testing import training_context
from ftengine_builtins.fast_paths.frozen_prefix import KeptOutputs, frozen_blocks

TOP = {"name": "lora", "rank": 4, "dropout": 0.1, "targets": r".*layers?\.1\..*(q_proj|down_proj|query)"}
ONCE = "below the lowest trained one is computed once per example"


def said_once(recipe):
    """Run a recipe; return the run, and whether it said that frozen blocks are computed once."""
    heard = Heard()
    run = fine_tune(recipe, listener=heard)
    return run, any(ONCE in text for text in heard.said)


@pytest.mark.slow
def test_a_run_that_takes_them_again_has_the_curve_of_one_that_computes_them(chat_recipe, tmp_path):
    top = {"strategy": TOP, "train__batch_tokens": 400}
    off, never = said_once(chat_recipe(**top, train__fast_paths="off", output=str(tmp_path / "off")))
    on, once = said_once(chat_recipe(**top, train__memory_limit="64 GB", output=str(tmp_path / "on")))
    assert once
    assert not never
    for ours, theirs in zip(curve(on.path), curve(off.path), strict=True):
        assert ours == pytest.approx(theirs, rel=1e-5)  # padded to other lengths, so rounded at other places


@pytest.mark.slow
def test_packed_examples_have_the_curve_of_padded_ones_and_their_frozen_blocks_are_computed_each_time(
    chat_recipe, tmp_path
):
    runs = []
    # At 60 tokens most micro-batches hold one example, which looks the same packed and padded.
    for packing, limits in ((False, [None]), (True, [None, 60])):
        for limit in limits:
            task, output = {"name": "causal-lm", "packing": packing}, str(tmp_path / f"{packing}{limit}")
            top = {**TOP, "dropout": 0.0}
            runs.append(fine_tune(chat_recipe(strategy=top, task=task, train__batch_tokens=limit, output=output)))
    for run in runs[1:]:
        for packed, padded in zip(curve(run.path), curve(runs[0].path), strict=True):
            assert packed == pytest.approx(padded, rel=1e-4)
    with raises(RecipeError, "task.packing"):
        fine_tune(chat_recipe(task={"name": "causal-lm", "packing": True}, strategy={"name": "prompt"}))


@pytest.mark.slow
def test_dropout_and_noise_in_frozen_blocks_are_drawn_anew_in_every_epoch(chat_recipe, label_recipe, tmp_path):
    assert not said_once(label_recipe(strategy=TOP, train__max_steps=8, train__epochs=2))[1]
    noise = {"regularize": [{"name": "neftune"}], "output": str(tmp_path / "noise")}
    assert not said_once(chat_recipe(strategy=TOP, train__max_steps=7, **noise))[1]


SMALL = {"vocab_size": 64, "hidden_size": 32, "num_attention_heads": 2, "num_hidden_layers": 4}
DRY = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}


class Pooling(nn.Module):
    """A classifier that also reads what stands at padding."""

    def __init__(self):
        super().__init__()
        self.table, self.head = nn.Embedding(64, 16), nn.Linear(16, 2)
        self.layers = nn.ModuleList(nn.Sequential(nn.Linear(16, 16), nn.Tanh()) for _ in range(4))

    def forward(self, input_ids, attention_mask, labels):
        hidden = self.table(input_ids)
        for layer in self.layers:
            hidden = layer(hidden)
        return SimpleNamespace(loss=cross_entropy(self.head(hidden.mean(1)), labels))


class Skipping(Pooling):
    """A classifier to which a little of the first block's output comes past the others."""

    def forward(self, input_ids, attention_mask, labels):
        hidden = first = self.layers[0](self.table(input_ids))
        for layer in self.layers[1:]:
            hidden = layer(hidden)
        kept = attention_mask[..., None]
        pooled = ((hidden + 1e-4 * first) * kept).sum(1) / kept.sum(1)
        return SimpleNamespace(loss=cross_entropy(self.head(pooled), labels))


class Sides(Pooling):
    """Looks at two texts an example, one after the other: at the tokens, and at them in reverse."""

    def forward(self, input_ids, attention_mask, labels):
        loss = 0
        for ids, mask in ((input_ids, attention_mask), (input_ids.flip(1), attention_mask.flip(1))):
            hidden, kept = self.table(ids), mask[..., None]
            for layer in self.layers:
                hidden = layer(hidden)
            loss = loss + cross_entropy(self.head((hidden * kept).sum(1) / kept.sum(1)), labels)
        return SimpleNamespace(loss=loss)


def of_pairs():
    config = DebertaV2Config(**SMALL, **DRY, intermediate_size=32, relative_attention=True, pos_att_type=["p2c", "c2p"])
    model = DebertaV2ForSequenceClassification(config)
    return model, model.deberta.encoder.layer, torch.tensor([0, 1])


def of_chance():
    config = OPTConfig(**SMALL, ffn_dim=32, word_embed_proj_dim=32, dropout=0.0, layerdrop=0.5)
    model = OPTForCausalLM(config)
    return model, model.model.decoder.layers, None


def of_padding():
    model = Pooling()
    return model, model.layers, torch.tensor([0, 1])


def of_skips():
    model = Skipping()
    return model, model.layers, torch.tensor([0, 1])


def of_sides():
    model = Sides()
    return model, model.layers, torch.tensor([0, 1])


def of_masks():
    model = RobertaForMaskedLM(RobertaConfig(**SMALL, **DRY, intermediate_size=32, max_position_embeddings=32))
    return model, model.roberta.encoder.layer, None


@pytest.mark.parametrize(
    ("make", "once"),
    [(of_pairs, True), (of_chance, False), (of_padding, False), (of_skips, False), (of_sides, False), (of_masks, True)],
)
def test_losses_are_those_of_blocks_that_are_computed(make, once):
    torch.manual_seed(0)
    model, layers, labels = make()
    for trained in (False, True):
        (model if not trained else layers[2:]).requires_grad_(trained)
    model.train()
    ids, mask = torch.randint(5, 64, (2, 7)), torch.ones(2, 7, dtype=torch.long)
    mask[0, 5:] = 0
    said = []
    prefix = KeptOutputs(frozen_blocks(model), replace(training_context(), tokens=12, message=said.append))
    for epoch in range(3):
        hidden = torch.rand(ids.shape, generator=torch.Generator().manual_seed(epoch)) < 0.4  # other masks each time
        shown = ids.masked_fill(hidden, 4) if make is of_masks else ids
        wanted = ids.masked_fill(~hidden | (mask == 0), -100) if labels is None else labels
        batch = {"input_ids": shown, "attention_mask": mask, "labels": wanted}

        def loss(batch=batch):
            return model(**batch).loss

        torch.manual_seed(epoch)
        expected = loss()
        with prefix.around(range(2), batch, loss):
            torch.manual_seed(epoch)
            assert loss().item() == pytest.approx(expected.item(), rel=1e-5)
    assert any("computed once per example" in text for text in said) == once == (prefix.replaced != {})


def test_outputs_are_forgotten_where_memory_becomes_scarce():
    model, layers, labels = of_pairs()
    model.requires_grad_(False)
    layers[2:].requires_grad_(True)
    rooms, said = iter([10**9, 10**9, 0]), []
    prefix = KeptOutputs(
        frozen_blocks(model), replace(training_context(), tokens=28, room=lambda: next(rooms), message=said.append)
    )
    batch = {"input_ids": torch.ones(2, 7).long(), "attention_mask": torch.ones(2, 7).long(), "labels": labels}
    for members in ([0, 1], [2, 3], [0, 1]):
        with prefix.around(members, batch, lambda: model(**batch).loss):
            model(**batch)
    assert [text.partition(":")[0].partition(";")[0] for text in said] == [
        "2 blocks below the lowest trained one are computed once per example",
        "2 blocks below the lowest trained one are computed in every epoch",
    ]


def stack(trained):
    module = nn.Sequential(nn.Embedding(9, 4), nn.ModuleList([nn.Sequential(nn.Linear(4, 4)) for _ in range(3)]))
    module.requires_grad_(False)
    for part in trained:
        module[1][part].requires_grad_(True)
    return module


def test_blocks_up_to_the_lowest_that_trains_are_found():
    for trained, expected in (([], 3), ([2], 2), ([1, 2], 1), ([0, 2], 0)):
        module = stack(trained)
        assert frozen_blocks(module) == list(module[1])[:expected]
    two = nn.Module()
    two.encoder, two.decoder = stack([]), stack([2])
    assert not frozen_blocks(two)
    assert not frozen_blocks(nn.Linear(2, 2))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("overrides", "kept"),
    [
        ({}, True),
        ({"train__epochs": 1}, False),
        ({"augment": ["case"]}, False),
        ({"strategy": {"name": "lora", "rank": 4}}, False),
    ],
)
def test_nothing_is_kept_where_it_would_not_be_used_again(chat_recipe, overrides, kept):
    run = fine_tune(chat_recipe(**{"strategy": TOP, "train__max_steps": 8, **overrides}))
    used = Environment.read(RunDirectory(run.path)).fast_paths["frozen-prefix"]
    assert used.active == kept
    assert used.replaced == ({"frozen blocks": 1} if kept else {})
