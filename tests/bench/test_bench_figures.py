"""Operations, bytes and the headline figure, against numbers worked out by hand."""

import pytest
from bench_samples import row
from expected import raises

from ftengine.errors import InputError
from ftengine_bench.figures import least_bytes, least_overhead, operations, recovered, roofline
from ftengine_bench.layers import PRESETS, Shape, parse_shape
from ftengine_bench.report import Report
from ftengine_bench.tables import block_table


@pytest.mark.parametrize(
    ("phase", "frozen", "low_rank"), [("forward", 60, 32), ("backward", 60, 64), ("both", 120, 96)]
)
def test_operations(phase, frozen, low_rank):
    # M, K, N = 2, 3, 5: a product with W takes 2·2·3·5, the two with A and B take 2·2·1·(3 + 5).
    assert operations(Shape(2, 3, 5), 0, phase) == frozen
    assert operations(Shape(2, 3, 5), 1, phase) == frozen + low_rank


def test_least_bytes():
    shape = Shape(2, 3, 5)  # x 6, W 15, y 10 elements; s 2, A and B 8 together for rank 1
    assert least_bytes(shape, 0, "forward", 2) == 2 * (6 + 15 + 10)
    assert least_bytes(shape, 1, "forward", 2) == 2 * (6 + 15 + 10 + 2) + 4 * 8
    assert least_bytes(shape, 0, "backward", 2) == 2 * (10 + 15 + 6)
    assert least_bytes(shape, 1, "backward", 2) == 2 * (10 + 15 + 6 + 6 + 2) + 2 * 4 * 8
    assert least_bytes(shape, 1, "both", 2) == sum(least_bytes(shape, 1, phase, 2) for phase in ("forward", "backward"))


@pytest.mark.parametrize(("shape", "rank", "share"), [((1, 4096, 4096), 16, 0.01171875), ((1, 576, 1536), 8, 0.028645)])
def test_the_floor_lies_one_and_a_half_r_times_k_plus_n_over_nk_above_the_frozen_layer(shape, rank, share):
    assert least_overhead(Shape(*shape), rank, "both") == pytest.approx(1 + share, abs=1e-6)


def test_recovered_overhead():
    # Eager costs 50 % more than the frozen layer, of which 2 % cannot be avoided; we cost 14 %.
    assert recovered("ours", {"eager": 1.5, "ours": 1.14}, 1.02) == pytest.approx(0.36 / 0.48)
    assert recovered("ours", {"eager": 1.5, "ours": 1.02}, 1.02) == 1
    assert recovered("ours", {"eager": 1.5, "ours": 1.5}, 1.02) == 0
    assert recovered("ours", {"eager": 1.5, "ours": 1.74}, 1.02) == pytest.approx(-0.5)


def test_the_roofline_is_the_slower_of_computing_and_moving():
    assert roofline(100, 10, 10.0, 10.0) == 10.0
    assert roofline(100, 1000, 10.0, 10.0) == 100.0


def test_a_block_adds_its_layers_as_often_as_it_has_them():
    small = {"m": 1, "k": 4, "n": 4, "rank": 1, "layers": ["q", "o"]}  # the floor is 1 + 1.5 · 8 / 16 = 1.75
    large = {"m": 1, "k": 4, "n": 12, "rank": 1, "layers": ["up"]}  # the floor is 1 + 1.5 · 16 / 48 = 1.5
    rows = [
        row(**small, provider="frozen", p50=1.0),
        row(**large, provider="frozen", p50=3.0),
        row(**small, provider="eager", overhead=4.0),
        row(**large, provider="eager", overhead=3.0),
        row(**small, provider="compiled", overhead=2.0),
        row(**large, provider="compiled", overhead=2.0),
        row(**small, provider="reference", overhead=2.0),  # and not on the large one
        row(**small, provider="compiled", phase="forward", overhead=9.0),
        row(m=1, k=7, n=7, provider="compiled", overhead=9.0),  # not of a block
    ]
    _, cells = block_table(Report(True, {}, {}, [], rows, []))
    # Frozen 2·1 + 3 = 5, eager 2·4 + 9 = 17, ours 2·2 + 6 = 10, the floor 2·1.75 + 4.5 = 8: (17 - 10) / (17 - 8).
    block = ("3 layers, 1 tokens", "float32", "1", "0")
    assert cells == [(*block, "eager", "3.400", "–"), (*block, "compiled", "2.000", "78 %")]


@pytest.mark.parametrize(
    ("preset", "parameters"),
    # Parameters of the linear layers of all blocks: of the whole model, less embeddings, norms and biases.
    [("smollm2-135m", 106_168_320 // 30), ("llama3-8b", 6_979_321_856 // 32), ("gpt2", 84_934_656 // 12)],
)
def test_a_preset_has_every_weight_of_a_block(preset, parameters):
    assert sum(k * n for _, k, n in PRESETS[preset]) == parameters


@pytest.mark.parametrize("text", ["", "512", "512x2048", "0x8x8", "8x8x8x8", "-1x8x8", "8,8,8", "axbxc"])
def test_malformed_shapes_are_refused(text):
    with raises(InputError, "512x2048x2048"):
        parse_shape(text)
