"""A whole measurement, tiny: it has what it was asked for, and it needs torch alone."""

import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from bench_samples import SMALL
from expected import raises

from ftengine.errors import InputError
from ftengine_bench import layers, machine
from ftengine_bench.__main__ import main
from ftengine_bench.kernels import measure_kernels, prepare
from ftengine_bench.layers import PROVIDERS, SCALE, Layer, Shape
from ftengine_bench.report import Report
from ftengine_bench.settings import Settings

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def _small_peaks(monkeypatch):
    monkeypatch.setitem(machine.COPIED_BYTES, "cpu", 1 << 16)
    monkeypatch.setitem(machine.PRODUCT_SIZE, "cpu", 32)


@pytest.fixture(scope="module")
def told():
    """What a measurement told of its progress."""
    return []


@pytest.fixture(scope="module")
def report(told):
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(machine.COPIED_BYTES, "cpu", 1 << 16)
        patch.setitem(machine.PRODUCT_SIZE, "cpu", 32)
        settings = Settings.parse(**{**SMALL, "ranks": "2,3"}, device="cpu", providers="eager,peft,reference")
        return measure_kernels(settings, lambda *progress: told.append(progress))


def test_every_provider_is_measured_on_every_layer_in_every_phase(report):
    found = {(row.dtype, row.rank, row.p, row.phase, row.provider) for row in report.rows}
    assert found == {
        (dtype, rank, p, phase, provider)
        for dtype in ("float32", "bfloat16")
        for rank in (2, 3)
        for p in (0.0, 0.25)
        for phase in ("forward", "backward", "both")
        for provider in ("frozen", "eager", "peft", "reference")  # frozen is measured unasked
    }
    assert len(report.rows) == len(found)


def test_figures_of_a_row_belong_together(report):
    assert report.complete
    for row in report.rows:
        assert 0 < row.p20 <= row.p50 <= row.p80
        assert row.overhead > 0
        assert row.roofline_share > 0
        assert row.peak_bytes > 0
        assert (row.recovered is None) >= (row.provider in ("frozen", "eager"))
        if row.provider == "frozen":
            assert (row.overhead, row.saved_bytes) == (1.0, 0)


def test_every_operator_is_measured_alone(report):
    found = {(row.operator, row.p) for row in report.operators}
    assert found == {
        ("lowrank_shrink", 0.0),
        ("lowrank_shrink", 0.25),
        ("lowrank_backward_input_", 0.0),
        ("lowrank_backward_input_", 0.25),
        ("lowrank_expand_", 0.0),
        ("lowrank_backward_output", 0.0),
        ("lowrank_merge_", 0.0),
    }
    for row in report.operators:
        assert row.copy_share > 0
        assert (row.random_ns is not None) == (row.operator == "lowrank_shrink" and row.p > 0)


def test_an_interrupted_measurement_leaves_what_it_had(tmp_path):
    def interrupt(name, done, total):
        if name == "measuring layers":
            raise KeyboardInterrupt

    settings = Settings.parse(**SMALL, device="cpu", providers="eager")
    with pytest.raises(KeyboardInterrupt):
        measure_kernels(settings, interrupt, lambda report: report.write(tmp_path / "a.json"))
    left = Report.read(tmp_path / "a.json")
    assert not left.complete
    assert {row.dtype for row in left.rows} == {row.dtype for row in left.operators} == {"float32"}


COMPILER = shutil.which("c++") or shutil.which("g++")
COMPUTING = [
    pytest.param(name, marks=[pytest.mark.slow, pytest.mark.skipif(not COMPILER, reason="there is no C++ compiler")])
    if name == "torch-compile"
    else name
    for name in PROVIDERS
    if name not in ("frozen", "lorafusion", "unsloth")  # the last two compute on GPUs alone
]


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("name", COMPUTING)
def test_every_provider_computes_the_same_layer(name, transposed):
    layer = Layer.make(Shape(24, 32, 16, transposed=transposed), 2, torch.float32, 0.0, "cpu")
    step = PROVIDERS[name](layer)
    step.forward()
    step.backward()
    x, weight, a, b = (t.detach().double() for t in (layer.x, layer.weight, layer.a, layer.b))
    torch.testing.assert_close(step.y.double(), x @ weight.T + SCALE * (x @ a.T) @ b.T, rtol=1e-4, atol=1e-4)
    dy = layer.dy.double()
    da, db = SCALE * (dy @ b).T @ x, SCALE * dy.T @ (x @ a.T)
    for found, expected in zip(step.gradients[1:], (da, db), strict=True):
        torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=1e-4)


def test_a_compiler_that_fails_is_left_out_with_the_reason(monkeypatch):
    def broken(layer):
        def call():
            raise RuntimeError("no compiler here\nand more lines")

        return layers.eager(layer).__class__(call, (layer.x,), layer.dy, ())

    monkeypatch.setitem(PROVIDERS, "torch-compile", broken)
    left_out = {}
    layer = Layer.make(Shape(8, 16, 8), 2, torch.float32, 0.0, "cpu")
    steps = prepare(("frozen", "torch-compile", "eager"), layer, left_out)
    assert list(steps) == ["frozen", "eager"]
    assert left_out == {"torch-compile": "RuntimeError: no compiler here"}


@pytest.mark.parametrize(
    ("wrong", "expected"),
    [
        ({"preset": "lama3-8b"}, "'llama3-8b'"),
        ({"ranks": "0"}, "from 1 to 256"),
        ({"ranks": "257"}, "from 1 to 256"),
        ({"ranks": "8,,16"}, "empty"),
        ({"tokens": "many", "preset": "gpt2"}, "--tokens 'many'"),
        ({"dropout": "1"}, "--dropout '1'"),
        ({"dropout": "nan"}, "--dropout 'nan'"),
        ({"dtypes": "float16", "device": "cpu"}, "float32, bfloat16"),
        ({"device": "tpu"}, "auto, cpu, cuda"),
        ({"providers": "eagre"}, "'eager'"),
        ({"seconds": "inf"}, "--seconds 'inf'"),
        ({"seconds": "nan"}, "--seconds 'nan'"),
        ({"seconds": "long"}, "above 0"),
        ({"instruction_set": "avx9", "device": "cpu"}, "--instruction-set 'avx9'"),
        ({"launch": "graph", "device": "cpu"}, "on cpu"),
    ],
)
def test_wrong_settings_are_refused(wrong, expected):
    with raises(InputError, expected):
        Settings.parse(**wrong)


def test_an_asked_for_provider_that_is_missing_is_refused_and_an_unasked_one_left_out(monkeypatch):
    monkeypatch.setattr("ftengine_bench.layers.find_spec", lambda name: None)
    with raises(InputError, "PEFT"):
        Settings.parse(providers="peft")
    settings = Settings.parse(device="cpu")
    assert "peft" not in settings.providers
    assert "pip install peft" in settings.left_out["peft"]


@pytest.mark.slow
def test_torch_alone_is_enough(tmp_path):
    script = f"""
import sys
for name in ("accelerate", "click", "datasets", "matplotlib", "numpy", "peft", "pluggy", "psutil", "pydantic",
             "rich", "scipy", "transformers", "yaml"):
    sys.modules[name] = None
from ftengine_bench import __main__, machine
machine.COPIED_BYTES["cpu"], machine.PRODUCT_SIZE["cpu"] = 1 << 16, 32
arguments = ["--shape", "24x32x16", "--ranks", "2", "--seconds", "0.001", "--device", "cpu"]
arguments += ["--providers", "frozen,eager,compiled"]
sys.exit(__main__.main(["kernels", *arguments, "--json", {str(tmp_path / "a.json")!r}]))
"""
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "lowrank_shrink" in done.stdout
    assert "measuring layers: 2/2" in done.stderr
    assert Report.read(tmp_path / "a.json").rows


def test_without_click_compare_fails_with_1(report, tmp_path, capsys):
    measured = [replace(row, provider="compiled") for row in report.rows]
    replace(report, rows=measured).write(tmp_path / "a.json")
    slower = [replace(row, overhead=2 * row.overhead) for row in measured]
    replace(report, rows=slower).write(tmp_path / "b.json")
    assert main(["compare", str(tmp_path / "a.json"), str(tmp_path / "b.json")]) == 0
    assert main(["compare", str(tmp_path / "a.json"), str(tmp_path / "b.json"), "--fail-over", "5%"]) == 1
    assert "2.000 times" in capsys.readouterr().err
