"""Result shapes and dtypes of the operators, by name, for torch.compile."""

# mypy: disable-error-code="no-untyped-def"

from math import prod

import torch


def lowrank_shrink(x, a, *_):
    return x.new_empty(x.shape[0], a.shape[0])


def lowrank_expand(y, *_):
    return y.new_empty(y.shape)


def lowrank_backward_output(dy, s, b, scale):
    return dy.new_empty(s.shape), b.new_empty(b.shape)


def lowrank_backward_input(x, ds, a, *_):
    return x.new_empty(x.shape), a.new_empty(a.shape)


def lowrank_backward_input_(dx, x, ds, a, *_):
    return a.new_empty(a.shape)


def lowrank_expand_(*_):
    return None


lowrank_merge_ = lowrank_expand_


def lowrank_group_forward(x, weights, biases, a, b, scales, p, seed):
    ys = [x.new_empty(*x.shape[:-1], weight.shape[0]) for weight in weights]
    s = x.new_empty(prod(x.shape[:-1]), sum(factor.shape[0] for factor in a))
    return ys, s, x.new_empty(() if p else (0,), dtype=torch.int64)


def lowrank_forward(x, weight, bias, a, b, scale, p, seed):
    (y,), s, seed = lowrank_group_forward(x, [weight], [bias], [a], [b], [scale], p, seed)
    return y, s, seed


def lowrank_group_backward(dys, x, s, seed, weights, a, b, scales, p, input_gradient):
    gradients = [factor.new_empty(factor.shape) for factor in (*a, *b)]
    return [*gradients, x.new_empty(x.shape)] if input_gradient else gradients


def lowrank_backward(dy, x, s, seed, weight, a, b, scale, p, input_gradient):
    return a.new_empty(a.shape), b.new_empty(b.shape), x.new_empty(x.shape if input_gradient else 0)
