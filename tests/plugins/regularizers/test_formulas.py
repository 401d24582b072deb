"""Each regularizer against its paper's formula, computed by hand."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from transformers.pytorch_utils import Conv1D

from ftengine.api import LoadedModel
from ftengine.model import Criterion, state_tensors, trainable
from ftengine_builtins.regularizers.criteria import LabelSmoothing, RDrop, binary_divergence, divergence
from ftengine_builtins.regularizers.dropout import Dropout
from ftengine_builtins.regularizers.ema import Ema
from ftengine_builtins.regularizers.l2_sp import L2SP
from ftengine_builtins.regularizers.mixout import Mixout, kept_neurons, mixed
from ftengine_builtins.regularizers.neftune import Neftune
from ftengine_builtins.regularizers.wise_ft import WiseFT


def build(cls, **options):
    return cls(cls.Config(**options))


def plain(**weights):
    """A module with these parameters, all of them from the base but those called new."""
    module = nn.Module()
    for name, value in weights.items():
        module.register_parameter(name, nn.Parameter(torch.tensor(value, dtype=torch.float64)))
    old = frozenset(name for name in weights if not name.startswith("new"))
    return LoadedModel(module, None, "here", "none", pretrained=old)


# label smoothing


def smoothed(epsilon):
    return build(LabelSmoothing, epsilon=epsilon).criterion(Criterion())


def test_smoothed_loss_of_one_label_by_hand():
    logits = torch.tensor([[0.0, math.log(2), math.log(5)]], dtype=torch.float64)  # p = 1/8, 2/8, 5/8
    target = [0.1 / 3, 0.1 / 3, 0.9 + 0.1 / 3]
    expected = -sum(t * math.log(p) for t, p in zip(target, (1 / 8, 2 / 8, 5 / 8), strict=True))
    assert smoothed(0.1).single(torch.tensor([2]), logits).item() == pytest.approx(expected, rel=1e-12)


def test_smoothed_loss_of_several_labels_by_hand():
    logits = torch.tensor([[math.log(3), 0.0]], dtype=torch.float64)  # p = 3/4, 1/2
    targets = torch.tensor([[1.0, 0.0]], dtype=torch.float64)
    expected = -(0.9 * math.log(3 / 4) + 0.1 * math.log(1 / 4) + math.log(1 / 2)) / 2
    assert smoothed(0.2).multi(targets, logits).item() == pytest.approx(expected, rel=1e-12)


def test_mixed_targets_equal_the_mix_of_losses_and_are_smoothed_as_torch_does():
    logits, labels = torch.randn(4, 3, dtype=torch.float64), torch.tensor([0, 2, 1, 1])
    soft = 0.7 * F.one_hot(labels, 3).double() + 0.3 * F.one_hot(labels.flip(0), 3)
    for epsilon in (0.1, 0.5):
        expected = F.cross_entropy(logits, soft, reduction="none", label_smoothing=epsilon)
        torch.testing.assert_close(smoothed(epsilon).single(soft, logits), expected)
        by_id = [
            F.cross_entropy(logits, y, reduction="none", label_smoothing=epsilon) for y in (labels, labels.flip(0))
        ]
        torch.testing.assert_close(0.7 * by_id[0] + 0.3 * by_id[1], expected)


@pytest.mark.parametrize("kind", ["classes", "text", "pairs"])
def test_smoothing_a_task_equals_torch(make, kind):
    case = make(kind)
    build(Dropout, p=0).attach(case.loaded, case.task) if kind != "text" else None
    labels, inputs = case.batch["labels"], case.batch
    if kind == "pairs":
        from ftengine_builtins.tasks.seq2seq_lm import shifted

        inputs = {**case.batch, "decoder_input_ids": shifted(case.module, labels)}
    logits = case.module(**{key: value for key, value in inputs.items() if key != "labels"}).logits
    if kind == "text":
        logits, labels = logits[:, :-1], labels[:, 1:]
    logits, labels = logits.reshape(-1, logits.shape[-1]), labels.reshape(-1)
    loss, _ = case.task.loss(case.module, case.batch, smoothed(0.2))
    torch.testing.assert_close(loss, F.cross_entropy(logits, labels, reduction="sum", label_smoothing=0.2))


# l2-sp


def test_l2_sp_by_hand():
    loaded = plain(w=[1.0, 2.0], still=[3.0], new=[4.0])
    loaded.module.still.requires_grad_(False)
    regularizer = build(L2SP, alpha=0.2, beta=0.5)
    regularizer.attach(loaded, None)
    with torch.no_grad():
        loaded.module.w.copy_(torch.tensor([1.5, 1.0]))
    penalty = regularizer.penalty(loaded.module, {}, torch.tensor(0.0))
    assert penalty.item() == pytest.approx(0.2 / 2 * (0.25 + 1.0) + 0.5 / 2 * 16, rel=1e-12)
    (3 * penalty).backward()
    torch.testing.assert_close(loaded.module.w.grad, 3 * 0.2 * torch.tensor([0.5, -1.0], dtype=torch.float64))
    torch.testing.assert_close(loaded.module.new.grad, torch.tensor([3 * 0.5 * 4], dtype=torch.float64))
    assert loaded.module.still.grad is None


# r-drop


def test_divergence_by_hand():
    p, q = (0.2, 0.8), (0.5, 0.5)
    forward = sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))
    backward = sum(b * math.log(b / a) for a, b in zip(p, q, strict=True))
    first, second = torch.tensor([p], dtype=torch.float64).log(), torch.tensor([q], dtype=torch.float64).log()
    assert divergence(first, second).item() == pytest.approx((forward + backward) / 2, rel=1e-12)
    # The same two choices, as one of several labels.
    logits = (torch.tensor([[math.log(0.2 / 0.8)]], dtype=torch.float64), torch.zeros(1, 1, dtype=torch.float64))
    assert binary_divergence(*logits).item() == pytest.approx((forward + backward) / 2, rel=1e-12)


@pytest.mark.parametrize("kind", ["classes", "text", "pairs"])
def test_r_drop_is_the_loss_of_both_passes_and_their_divergence(make, kind):
    """Two passes are replayed with the same dropout masks, and the formula is written out with all logits."""
    case = make(kind)
    build(Dropout, p=0.3).attach(case.loaded, case.task)
    regularizer = build(RDrop, alpha=0.7)
    regularizer.attach(case.loaded, case.task)
    case.task.loss(case.module, case.batch, Criterion())  # finds out the model's tail, once
    torch.manual_seed(5)
    loss, weight = case.task.loss(case.module, case.batch, regularizer.criterion(Criterion()))
    whole = loss / weight
    case.module.zero_grad()
    whole.backward()
    found = {name: p.grad for name, p in trainable(case.module).items() if p.grad is not None}

    inputs, labels = {k: v for k, v in case.batch.items() if k != "labels"}, case.batch["labels"]
    if kind == "pairs":
        from ftengine_builtins.tasks.seq2seq_lm import shifted

        inputs["decoder_input_ids"] = shifted(case.module, labels)
    torch.manual_seed(5)
    passes = [case.module(**inputs).logits for _ in range(2)]
    if kind == "text":
        passes, labels = [logits[:, :-1] for logits in passes], labels[:, 1:]
    wanted = labels != -100
    passes, labels = [logits[wanted] for logits in passes], labels[wanted]
    log_p, log_q = (logits.log_softmax(-1) for logits in passes)
    kl = F.kl_div(log_p, log_q, log_target=True, reduction="sum") + F.kl_div(
        log_q, log_p, log_target=True, reduction="sum"
    )
    losses = sum(F.cross_entropy(logits, labels, reduction="sum") for logits in passes)
    expected = (losses + 0.7 * kl / 2) / len(labels)
    assert kl > 1e-6
    torch.testing.assert_close(whole, expected, rtol=1e-9, atol=0)
    case.module.zero_grad()
    expected.backward()
    for name, parameter in trainable(case.module).items():
        if parameter.grad is not None:
            torch.testing.assert_close(found[name], parameter.grad, rtol=1e-7, atol=1e-10)


# mixout


def test_mixout_by_hand():
    layer = nn.Linear(160_000, 3, dtype=torch.float64)
    weight, start = torch.full_like(layer.weight, 3.0), torch.full_like(layer.weight, 1.0)
    torch.manual_seed(0)
    result = mixed(weight, start, kept_neurons(layer, 0.25), 0.25)
    swapped, kept = (1.0 - 0.25 * 1.0) / 0.75, (3.0 - 0.25 * 1.0) / 0.75
    is_swapped = (result - swapped).abs() < 1e-12
    assert result.shape == weight.shape
    assert (is_swapped == is_swapped[0]).all()  # a neuron with all its outgoing weights, or none of them
    assert ((result - kept).abs() < 1e-12).logical_xor(is_swapped).all()
    assert is_swapped.double().mean().item() == pytest.approx(0.25, abs=5 * math.sqrt(0.25 * 0.75 / 160_000))
    assert result.mean().item() == pytest.approx(3.0, abs=5 * (kept - swapped) * math.sqrt(0.25 * 0.75 / 160_000))


@pytest.mark.parametrize(
    ("layer", "x"),
    [
        (nn.Linear(12, 8), torch.ones(1, 12)),
        (Conv1D(8, 12), torch.ones(1, 12)),
        (nn.Conv1d(12, 8, 3), torch.ones(1, 12, 3)),
        (nn.Conv2d(12, 8, 3), torch.ones(1, 12, 3, 3)),
        (nn.Conv2d(12, 8, 3, groups=4), torch.ones(1, 12, 3, 3)),
        (nn.Conv2d(12, 12, 3, groups=12), torch.ones(1, 12, 3, 3)),
        (nn.Conv3d(12, 8, 3, groups=2), torch.ones(1, 12, 3, 3, 3)),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else "",
)
def test_mixout_swaps_all_that_goes_out_from_a_neuron_or_channel(layer, x):
    """With u = 0 a swapped neuron is as good as absent: the layer computes what dropout on its input would."""
    torch.manual_seed(0)
    kept = kept_neurons(layer, 0.5)
    mix = mixed(layer.weight, torch.zeros_like(layer.weight), kept, 0.5)
    torch.manual_seed(0)
    drawn = torch.empty(12).bernoulli_(0.5)
    assert 0 < drawn.sum() < 12
    dropped = layer(x * drawn.reshape(1, 12, *(1 for _ in x.shape[2:])) / 0.5)
    torch.testing.assert_close(torch.func.functional_call(layer, {"weight": mix}, (x,)), dropped)


def test_an_error_inside_a_mixed_layer_leaves_its_weight(make):
    case = make("classes")
    layer = case.module.bert.encoder.layer[0].intermediate.dense
    weight = layer.weight
    build(Mixout).attach(case.loaded, case.task)
    with pytest.raises(RuntimeError):
        layer(torch.ones(3, 5))
    assert layer.weight is weight


# neftune


@pytest.mark.parametrize("kind", ["classes", "text", "pairs"])
def test_noise_is_uniform_with_the_papers_size_by_each_examples_own_length(make, kind):
    case = make(kind)
    seen = []
    table = case.module.encoder.embed_tokens if kind == "pairs" else case.module.get_input_embeddings()
    heard = []
    if kind == "pairs":  # the decoder looks up its own input, and that stays as it is
        case.module.decoder.embed_tokens.register_forward_hook(lambda module, args, output: heard.append(output))
    table.register_forward_hook(lambda module, args, output: seen.append(output.detach()))
    regularizer = build(Neftune, alpha=5.0)
    regularizer.attach(case.loaded, case.task)
    table.register_forward_hook(lambda module, args, output: seen.append(output.detach()))
    case.module.eval()
    case.task.loss(case.module, case.batch, Criterion())  # finds out the model's tail
    assert all(torch.equal(a, b) for a, b in zip(seen[::2], seen[1::2], strict=True))
    case.module.train()
    seen.clear()
    case.task.loss(case.module, case.batch, Criterion())
    assert len(seen) == 2
    noise, lengths = seen[1] - seen[0], case.batch["attention_mask"].sum(1)
    assert len(set(lengths.tolist())) > 1
    for one, length in zip(noise, lengths.tolist(), strict=True):
        limit = 5 / math.sqrt(length * table.embedding_dim)
        assert 0.95 * limit < one.abs().max() <= limit * (1 + 1e-6)
        assert one.square().mean().sqrt().item() == pytest.approx(limit / math.sqrt(3), rel=0.2)
    if kind == "pairs":
        assert torch.equal(heard[-1], heard[-2])


# ema


def test_ema_by_hand():
    loaded = plain(w=[1.0])
    regularizer = build(Ema, decay=0.3)
    regularizer.attach(loaded, None)
    for step, value in ((1, 2.0), (2, 4.0), (3, 8.0)):
        with torch.no_grad():
            loaded.module.w.fill_(value)
        regularizer.on_step_end(loaded.module, step)
    first = 2 / 11 * 1 + 9 / 11 * 2
    second = 3 / 12 * first + 9 / 12 * 4
    third = 0.3 * second + 0.7 * 8  # 4/13 is above the decay
    with regularizer.averaged_weights(loaded.module):
        assert loaded.module.w.item() == pytest.approx(third, rel=1e-12)
    assert loaded.module.w.item() == 8.0


def test_ema_averages_in_fp32_and_forgets_its_start():
    loaded = plain(w=[1.0])
    loaded.module.to(torch.bfloat16)
    regularizer = build(Ema)
    regularizer.attach(loaded, None)
    with torch.no_grad():
        loaded.module.w.fill_(0.0)
    for step in range(1, 11):
        regularizer.on_step_end(loaded.module, step)
    average = regularizer.state_dict()["w"]
    assert average.dtype == torch.float32
    assert 0 < average.item() < 1e-4


# wise-ft


def test_wise_ft_by_hand():
    loaded = plain(w=[1.0], v=[0.0])
    loaded.new_modules = ("v",)
    regularizer = build(WiseFT, alpha=0.25, points=3)
    regularizer.attach(loaded, None)
    with torch.no_grad():
        loaded.module.w.fill_(5.0)
    facts = regularizer.on_train_end(loaded.module, lambda: {"validation_loss": loaded.module.w.item()})
    assert loaded.module.w.item() == 2.0
    assert facts["alpha"] == 0.25
    assert [(p["alpha"], p["validation_loss"]) for p in facts["curve"]] == [(0, 1), (0.25, 2), (0.5, 3), (1, 5)]


def test_wise_ft_keeps_a_fresh_head_and_brings_lora_back_to_the_base(make, lora):
    case = make("classes", lora(dropout=0.0), dtype=torch.float32)
    case.module.eval()
    before = case.module(**{k: v for k, v in case.batch.items() if k != "labels"}, output_hidden_states=True)
    regularizer = build(WiseFT, alpha=0, points=2)
    regularizer.attach(case.loaded, case.task)
    with torch.no_grad():
        for tensor in state_tensors(case.module).values():
            tensor.add_(0.1 * torch.randn_like(tensor))
    head = case.module.classifier.weight.detach().clone()
    regularizer.on_train_end(case.module, dict)
    after = case.module(**{k: v for k, v in case.batch.items() if k != "labels"}, output_hidden_states=True)
    assert torch.equal(before.hidden_states[-1], after.hidden_states[-1])
    assert torch.equal(case.module.classifier.weight, head)
