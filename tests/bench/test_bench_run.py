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
from ftengine.ops import active_backend, instruction_sets
from ftengine.ops.schemas import REFERENCE
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


def test_factors_count_in_the_dtype_that_they_have(report):
    chosen = [row for row in report.rows if (row.dtype, row.rank, row.phase) == ("bfloat16", 2, "both")]
    moved = {row.provider: row.bytes for row in chosen}
    factors = 3 * 2 * (32 + 16)  # elements of A, B and their gradients, read and written once, of rank 2
    assert moved["reference"] - moved["peft"] == 2 * factors


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


def test_progress_ends_where_it_reported(report, told):
    expected = {"measuring what the device can do": 2, "measuring layers": 4}
    assert told == [(name, done, total) for name, total in expected.items() for done in range(1, total + 1)]


def test_a_real_report_survives_its_file(report, tmp_path):
    report.write(tmp_path / "a.json")
    read = Report.read(tmp_path / "a.json")
    assert (read.rows, read.operators) == (report.rows, report.operators)


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


def test_it_says_what_it_ran_on(report):
    environment = report.environment
    assert (environment["device"], environment["torch"]) == ("cpu", torch.__version__)
    assert environment["threads"] == torch.get_num_threads()
    assert environment["kernels"]["backend"] == active_backend("cpu")[0]
    assert {peak["dtype"] for peak in report.peaks} == {"float32", "bfloat16"}


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


def test_our_reference_takes_the_reference_in_both_directions(monkeypatch):
    called = []
    for name in ("lowrank_shrink", "lowrank_expand_", "lowrank_backward_output", "lowrank_backward_input_"):
        original = getattr(REFERENCE, name)

        def record(*arguments, name=name, original=original):
            called.append(name)
            return original(*arguments)

        monkeypatch.setattr(REFERENCE, name, record)
    step = layers.our_reference(Layer.make(Shape(8, 16, 8), 2, torch.float32, 0.25, "cpu"))
    step.forward()
    step.backward()
    assert called == ["lowrank_shrink", "lowrank_expand_", "lowrank_backward_output", "lowrank_backward_input_"]


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


def test_nobody_else_is_excused(monkeypatch):
    def broken(layer):
        raise ZeroDivisionError

    monkeypatch.setitem(PROVIDERS, "compiled", broken)
    with pytest.raises(ZeroDivisionError):
        prepare(("compiled",), Layer.make(Shape(8, 16, 8), 2, torch.float32, 0.0, "cpu"), {})


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


@pytest.mark.skipif(not instruction_sets(), reason="there are no compiled kernels for CPUs here")
def test_the_instruction_set_that_was_asked_for_is_used_and_recorded():
    before = active_backend("cpu")
    for name in instruction_sets():
        settings = Settings.parse(**SMALL, device="cpu", dtypes="float32", providers="compiled", instruction_set=name)
        report = measure_kernels(settings, lambda *progress: None)
        assert f"kernels for {name}," in report.environment["kernels"]["reason"]
    assert active_backend("cpu") == before


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_a_gpu_that_is_not_there_is_refused():
    with raises(InputError, "NVIDIA"):
        Settings.parse(device="cuda")


def test_an_asked_for_provider_that_is_missing_is_refused_and_an_unasked_one_left_out(monkeypatch):
    monkeypatch.setattr("ftengine_bench.layers.find_spec", lambda name: None)
    with raises(InputError, "PEFT"):
        Settings.parse(providers="peft")
    settings = Settings.parse(device="cpu")
    assert "peft" not in settings.providers
    assert "pip install peft" in settings.left_out["peft"]


def test_what_is_asked_for_twice_is_measured_once():
    settings = Settings.parse(shape=["8x8x8", "8x8x8"], ranks="8,08", dropout="0,0.0", dtypes="float32,float32")
    assert (len(settings.shapes), settings.ranks, settings.dropouts, len(settings.dtypes)) == (1, (8,), (0.0,), 1)


def test_dropout_is_what_the_kernels_apply():
    assert Settings.parse(dropout="0.05").dropouts == (3277 / 65536,)


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


def test_without_click_errors_are_one_line_too(capsys):
    assert main(["kernels", "--preset", "gtp2"]) == 2
    assert capsys.readouterr().err.startswith("error: no preset 'gtp2'.")


def test_without_click_compare_fails_with_1(report, tmp_path, capsys):
    measured = [replace(row, provider="compiled") for row in report.rows]
    replace(report, rows=measured).write(tmp_path / "a.json")
    slower = [replace(row, overhead=2 * row.overhead) for row in measured]
    replace(report, rows=slower).write(tmp_path / "b.json")
    assert main(["compare", str(tmp_path / "a.json"), str(tmp_path / "b.json")]) == 0
    assert main(["compare", str(tmp_path / "a.json"), str(tmp_path / "b.json"), "--fail-over", "5%"]) == 1
    assert "2.000 times" in capsys.readouterr().err


def test_a_table_of_devices_has_a_row_a_layer_of_each(report, tmp_path, capsys):
    report.write(tmp_path / "a.json")
    other = replace(report, environment={**report.environment, "name": "Other", "device": "cuda"})
    other.write(tmp_path / "b.json")
    files = [str(tmp_path / "a.json"), str(tmp_path / "b.json")]
    assert main(["compare", "--by", "device", *files, files[1]]) == 0
    columns, _, *lines = [line.strip("| ").split(" | ") for line in capsys.readouterr().out.splitlines()]
    layers = {row.layer for row in report.rows}
    assert len(lines) == 2 * len(layers)  # a layer that is measured again replaces what there was
    assert {line[0].partition(",")[0] for line in lines} == {report.environment["name"], "Other"}
    row = next(row for row in report.rows if (row.phase, row.provider) == ("both", "eager"))
    line = next(line for line in lines if line[2:5] == [row.dtype, str(row.rank), f"{row.p:.3g}"])
    assert line[columns.index("eager")] == f"{row.overhead:.2f}"
    assert main(["compare", "--by", "colour", *files]) == 2


def test_a_plot_is_drawn_where_matplotlib_is_installed(report, tmp_path):
    pytest.importorskip("matplotlib")
    from ftengine_bench.plot import check_plot, draw

    check_plot(tmp_path / "a.png")
    draw(report, tmp_path / "a.png")
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
