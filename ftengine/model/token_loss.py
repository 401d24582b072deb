"""Cross entropy over labelled tokens, without the logits of a whole batch.

Logits are the largest tensors of a language model: 49,152 numbers a token for SmolLM2, whose hidden state has 576. So
only the hidden states of labelled positions reach the output head, `CHUNK` at a time, and each chunk's gradient is
computed before the next chunk (Liger-Kernel, arXiv:2410.10989).

torch.nn.functional.linear_cross_entropy (torch 2.13) works alike, but it needs a plain weight matrix, splits 150
positions of SmolLM2 into pieces of one or two (20 times slower on a CPU), and in bfloat16 returns a sum rounded to two
or three digits (1616 for 1640.87).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.utils.checkpoint import checkpoint

from ftengine.equivalence import rounding, row_distances
from ftengine.model.modes import evaluating, widen
from ftengine.model.probing import raw_outputs
from ftengine.model.tokens import IGNORED

if TYPE_CHECKING:
    from ftengine.model.criterion import Criterion

CHUNK = 128
"""Positions whose logits exist at one time: enough for a matrix product to be as fast as over all of them."""

PROBE_TOKENS = 4
"""Length of the input with which a model's tail is found out."""

Tail = Callable[[nn.Module, Tensor], Tensor]
"""What a model does with the output of its head, position by position: nothing, a cap, a scale, a sum."""


class TokenLoss:
    """Sums of losses over labelled tokens of one or more models.

    Args:
        ahead: how far ahead of its own position a state predicts: 1 where a decoder reads the labels themselves, 0
            where it reads them shifted by one.
    """

    def __init__(self, ahead: int = 1) -> None:
        self._ahead = ahead
        self._tails: WeakKeyDictionary[nn.Module, Tail | None] = WeakKeyDictionary()

    def sum(
        self, model: nn.Module, inputs: Mapping[str, Tensor], labels: Tensor, criterion: Criterion
    ) -> tuple[Tensor, int]:
        """Return the summed loss of a batch, in at least fp32, and the number of tokens it sums over.

        Args:
            inputs: input_ids and attention_mask, each (B, T); of an encoder-decoder decoder_input_ids as well. `labels`
                among them are not handed to the model.
            labels: (B, T) token ids at their own positions in the decoder's (unshifted) input, `IGNORED` where nothing
                is trained.
            criterion: computes the loss of one chunk of tokens after the other. Of each of its passes only the states
                of labelled tokens are kept.
        """
        passes = [self.labelled(model, inputs, labels) for _ in range(criterion.passes)]
        labelled, states = passes[0], [part.states for part in passes]
        parameters = labelled.parameters if torch.is_grad_enabled() else ()
        totals = _ChunkedSums.apply(criterion, labelled, None, 1, len(states), *states, *parameters)
        return totals[0], len(labelled.targets)

    @torch.no_grad()
    def by_example(self, model: nn.Module, inputs: Mapping[str, Tensor], labels: Tensor) -> tuple[Tensor, Tensor]:
        """Return (B,) summed losses and (B,) token counts, one per example."""
        sums, counts = self.log_probs(model, inputs, labels)
        return -sums, counts

    def log_probs(self, model: nn.Module, inputs: Mapping[str, Tensor], labels: Tensor) -> tuple[Tensor, Tensor]:
        """Return the summed log-probability of the labelled tokens of each example, for losses that compare examples.

        Gradients flow back. If the head trains, each chunk's logits are computed twice: the gradient of an example
        depends on the loss of all.

        Args:
            inputs, labels: as in `sum`.

        Returns:
            (B,) log-probabilities, in at least fp32, summed over the labelled tokens of each example, and their (B,)
            numbers.
        """
        from ftengine.model.criterion import Criterion

        values, examples = self.each(model, inputs, labels, Criterion())
        counts = torch.bincount(examples, minlength=len(labels))
        return -values.new_zeros(len(labels)).index_add(0, examples, values), counts

    def each(
        self, model: nn.Module, inputs: Mapping[str, Tensor], labels: Tensor, criterion: Criterion
    ) -> tuple[Tensor, Tensor]:
        """Return the loss of each labelled token, for losses that weigh tokens; gradients as of `log_probs`.

        Args:
            inputs, labels: as in `sum`.
            criterion: one of a single pass.

        Returns:
            (N,) losses of the labelled tokens, example by example, in at least fp32; the (N,) row that each is of.
        """
        labelled = self.labelled(model, inputs, labels)
        count = len(labelled.targets)
        if not (labelled.parameters and torch.is_grad_enabled()):
            places = torch.arange(count, device=labels.device)
            return _ChunkedSums.apply(criterion, labelled, places, count, 1, labelled.states), labelled.examples

        def losses(states: Tensor, targets: Tensor) -> Tensor:
            return criterion.single(targets, labelled.logits(states))

        chunks = zip(labelled.states.split(CHUNK), labelled.targets.split(CHUNK), strict=True)
        values = [checkpoint(losses, *chunk, use_reentrant=False) for chunk in chunks]
        return torch.cat(values) if values else widen(labelled.states.new_zeros(0)), labelled.examples

    def labelled(self, model: nn.Module, inputs: Mapping[str, Tensor], labels: Tensor) -> Labelled:
        """Return the states that predict the labelled tokens, from which a part's logits are computed when needed.

        Args:
            inputs, labels: as in `sum`.
        """
        predicted = labels[:, self._ahead :]
        trained = predicted != IGNORED
        targets, examples = predicted[trained], trained.nonzero()[:, 0]
        head = _output_head(model)
        tail = self._tail(model, head) if head is not None else None
        if head is None or tail is None:  # what follows the head is unknown, so the model computes its logits itself
            logits = logits_of(model, inputs)[:, : trained.shape[1]][trained]
            return Labelled(logits, targets, examples, widen, ())
        states = _head_inputs(model, head, inputs)[:, : trained.shape[1]][trained]
        parameters = tuple(p for p in head.parameters() if p.requires_grad)
        return Labelled(states, targets, examples, lambda states: tail(model, widen(head(states))), parameters)

    def _tail(self, model: nn.Module, head: nn.Module) -> Tail | None:
        if head not in self._tails:
            self._tails[head] = find_tail(model, head)
        return self._tails[head]


@dataclass(frozen=True)
class Labelled:
    """The labelled positions of a batch.

    Args:
        states: (N, H) hidden states that predict the labelled tokens.
        targets: (N,) the labelled tokens.
        examples: (N,) the row of the batch each belongs to.
        logits: turns (n, H) states into (n, V) logits in at least fp32.
        parameters: trainable parameters that `logits` uses.
    """

    states: Tensor
    targets: Tensor
    examples: Tensor
    logits: Callable[[Tensor], Tensor]
    parameters: tuple[nn.Parameter, ...]


class _ChunkedSums(torch.autograd.Function):
    """Sums over positions whose gradients are computed in the forward pass, a chunk at a time.

    Nothing is computed twice, and dropout inside the head draws once. Parameters' gradients are added up in at least
    fp32, if any parameter trains.
    """

    @staticmethod
    def forward(
        ctx: Any,
        criterion: Criterion,
        labelled: Labelled,
        groups: Tensor | None,
        count: int,
        passes: int,
        *tensors: Tensor,
    ) -> Tensor:
        """Add up criterion.single(targets, logits(states), …) over the states of all passes.

        Args:
            groups: (N,) which of the sums each position counts in; None: all in one.
            count: how many sums there are; one where parameters follow.
            tensors: (N, H) states of each pass, then trainable parameters that `logits` uses.

        Returns:
            (count,) sums.
        """
        states, parameters = tensors[:passes], tensors[passes:]
        totals = widen(states[0].new_zeros(count))
        slopes = [torch.zeros_like(s) if s.requires_grad else None for s in states]
        sums = [widen(torch.zeros_like(p)) for p in parameters]
        for start in range(0, len(labelled.targets), CHUNK):
            rows = slice(start, start + CHUNK)
            chunks = [s[rows].detach().requires_grad_(s.requires_grad) for s in states]
            leaves = [chunk for chunk in chunks if chunk.requires_grad] + list(parameters)
            with torch.set_grad_enabled(bool(leaves)):
                losses = criterion.single(labelled.targets[rows], *(labelled.logits(chunk) for chunk in chunks))
                part = losses.sum()
            if groups is None:
                totals += part.detach()
            else:
                totals.index_add_(0, groups[rows], losses.detach())
            if not leaves:
                continue
            gradients = iter(torch.autograd.grad(part, leaves, allow_unused=True))
            for slope in slopes:
                if slope is not None:
                    slope[rows] = next(gradients)
            for added, gradient in zip(sums, gradients, strict=True):
                if gradient is not None:
                    added += gradient
        ctx.slopes, ctx.sums, ctx.dtypes, ctx.groups = slopes, sums, [p.dtype for p in parameters], groups
        return totals

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        each = upstream if ctx.groups is None else upstream[ctx.groups, None]
        slopes = [None if slope is None else (slope * each).to(slope.dtype) for slope in ctx.slopes]
        sums = [(s * upstream).to(dtype) for s, dtype in zip(ctx.sums, ctx.dtypes, strict=True)]
        return None, None, None, None, None, *slopes, *sums


@torch.no_grad()
def find_tail(model: nn.Module, head: nn.Module) -> Tail | None:
    """Find the function that a model applies to the logits of its output head, by replacing them with test numbers.

    Gemma caps its logits, Cohere and Granite scale them, BART and Marian add a vector; known architectures' formulas
    are compared with the actual output, to the rounding of float32. The probe runs without dropout and draws no random
    numbers. None if no formula fits: logits then come from the model's own forward pass only.
    """
    probes: list[Tensor] = []

    def replace(module: nn.Module, args: tuple[Any, ...], output: Any) -> Tensor | None:
        if not (isinstance(output, Tensor) and args and output.shape[:2] == args[0].shape[:2] == ids.shape):
            return None
        probes.append(_probe_logits(output))
        return probes[-1].clone()  # the model may work in place

    ids = torch.arange(PROBE_TOKENS, device=next(model.parameters()).device)[None]
    handle = head.register_forward_hook(replace)
    try:
        with evaluating(model):
            returned = logits_of(model, _probe_inputs(model, ids))
    finally:
        handle.remove()
        # Autocast keeps its casts of trainable weights; those made here have no graph, and torch before 2.13 may
        # use them again where a gradient is wanted.
        torch.clear_autocast_cache()
    if len(probes) != 1 or probes[0].shape != returned.shape or probes[0].dtype != returned.dtype:
        return None
    for tail in _known_tails(model):
        distances = row_distances(returned[..., None], tail(model, probes[0])[..., None])  # of each number
        if bool((distances <= rounding(returned.dtype)).all()):
            return tail
    return None


def _probe_inputs(model: Any, ids: Tensor) -> dict[str, Any]:
    """Return the arguments with which a model reads `ids`; its decoder, where the encoder reads no tokens (audio)."""
    if not is_encoder_decoder(model):
        return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    if getattr(model, "main_input_name", "input_ids") == "input_ids":
        return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "decoder_input_ids": ids}
    from transformers.modeling_outputs import BaseModelOutput

    states = torch.zeros(*ids.shape, model.config.hidden_size, device=ids.device, dtype=model.dtype)
    outputs: Any = BaseModelOutput(last_hidden_state=states)
    outputs.attention_mask = None  # Moonshine's decoder asks for it
    return {"encoder_outputs": outputs, "decoder_input_ids": ids}


def _probe_logits(output: Tensor) -> Tensor:
    """Return test logits (1, PROBE_TOKENS, V) in at least fp32: zeros, which show what is added, and ± 10⁻³ to 10⁴."""
    dtype = torch.promote_types(output.dtype, torch.float32)
    sizes = torch.logspace(-3, 4, output[0, 1:].numel(), dtype=dtype, device=output.device)
    sizes[::2] *= -1
    return torch.cat([sizes.new_zeros(output.shape[-1]), sizes]).view(output.shape)


def _known_tails(model: nn.Module) -> Iterator[Tail]:
    """Yield what architectures of transformers do with their logits, the most specific first."""
    config: Any = getattr(model, "config", None)
    config = config.get_text_config() if hasattr(config, "get_text_config") else config
    if cap := getattr(config, "final_logit_softcapping", None):
        yield partial(_capped, cap)  # Gemma 2, 3n, 4
    if cap := getattr(config, "logits_soft_cap", None):
        yield partial(_capped, cap)  # RecurrentGemma
    if scale := getattr(config, "logit_scale", None):
        yield lambda _, logits: scale * logits  # Cohere
    if divisor := getattr(config, "logits_scaling", None):
        yield lambda _, logits: logits / divisor  # Granite
    if multiplier := getattr(config, "lm_head_multiplier", None):
        yield lambda _, logits: multiplier * logits  # Falcon-H1
    if isinstance(bias := getattr(model, "final_logits_bias", None), Tensor) and not bias.requires_grad:
        yield _with_bias  # BART, Marian, Pegasus, Blenderbot, LED
    yield lambda _, logits: logits


def _capped(cap: float, _: nn.Module, logits: Tensor) -> Tensor:
    return cap * torch.tanh(logits / cap)


def _with_bias(model: Any, logits: Tensor) -> Tensor:
    return logits + model.final_logits_bias  # (1, V)


def _head_inputs(model: nn.Module, head: nn.Module, inputs: Mapping[str, Tensor]) -> Tensor:
    """Return the inputs of the output head, (B, T, H).

    On a CPU the head computes no position meanwhile: one position takes as long as many, and longer in bfloat16, as
    torch copies the head's weights. Elsewhere it computes one, which every kind of head supports.
    """
    inputs_of_head: list[Tensor] = []

    def keep(module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        inputs_of_head.append(args[0])
        return (args[0][:1, : 0 if args[0].device.type == "cpu" else 1], *args[1:])

    handle = head.register_forward_pre_hook(keep)
    try:
        logits_of(model, inputs)
    finally:
        handle.remove()
    return inputs_of_head[0]


@contextmanager
def head_by_rows(model: nn.Module) -> Iterator[None]:
    """Let a model's output head compute all positions of a batch as one matrix product, on a CPU.

    Otherwise torch copies a frozen linear layer's weights for each row of the batch: twelve answers of SmolLM2 in
    bfloat16 then take 650 MiB more and twice the time.
    """
    head = _output_head(model)
    if head is None or any(p.device.type != "cpu" for p in head.parameters()):
        yield
        return
    shapes = list[torch.Size | None]()

    def flat(module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
        many = bool(args) and isinstance(args[0], Tensor) and args[0].dim() > 2
        shapes.append(args[0].shape[:-1] if many else None)
        return (args[0].flatten(0, -2), *args[1:]) if many else None

    def back(module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        shape = shapes.pop()
        return None if shape is None else output.unflatten(0, shape)

    handles = [head.register_forward_pre_hook(flat), head.register_forward_hook(back)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def states_of(model: nn.Module, inputs: Mapping[str, Tensor]) -> Tensor:
    """Return the inputs of a model's output head, (B, T, H), or its logits if the head is not known to be a module."""
    head = _output_head(model)
    try:
        return logits_of(model, inputs) if head is None else _head_inputs(model, head, inputs)
    except IndexError:  # the head was not called, or wants a position
        return logits_of(model, inputs)


def is_encoder_decoder(model: nn.Module) -> bool:
    """Return whether a model reads one sequence and writes another."""
    return bool(getattr(getattr(model, "config", None), "is_encoder_decoder", False))


def _output_head(model: nn.Module) -> nn.Module | None:
    """Return the module from hidden states to logits, or None if the model does not name it."""
    getter = getattr(model, "get_output_embeddings", None)
    return getter() if getter is not None else None


def logits_of(model: nn.Module, inputs: Mapping[str, Tensor]) -> Tensor:
    """Return a model's logits for whole sequences."""
    # Keys and values of past tokens are of use in generation alone.
    cache = {"use_cache": False} if hasattr(getattr(model, "config", None), "use_cache") else {}
    return raw_outputs(model, {**inputs, **cache})
