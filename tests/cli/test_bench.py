"""`ftengine bench` on a layer so small that it takes a second."""

import json

import pytest

SMALL = (
    "--shape",
    "24x32x16",
    "--ranks",
    "2",
    "--seconds",
    "0.001",
    "--device",
    "cpu",
    "--providers",
    "eager,reference",
)


@pytest.fixture(scope="module", autouse=True)
def _small_peaks():
    from ftengine_bench import machine

    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(machine.COPIED_BYTES, "cpu", 1 << 16)
        patch.setitem(machine.PRODUCT_SIZE, "cpu", 32)
        yield


@pytest.fixture(scope="module")
def measured(ftengine, tmp_path_factory):
    """What `bench kernels` printed, and its file."""
    file = tmp_path_factory.mktemp("bench") / "a.json"
    return ftengine("bench", "kernels", *SMALL, "--json", file), file


def compiled(file, factor, spread=0.0):
    """Write a copy whose rows of ours are compiled and slower, all with that spread, and return its path."""
    content = json.loads(file.read_text())
    for row in content["rows"]:
        row["p20"], row["p80"] = row["p50"] * (1 - spread / 2), row["p50"] * (1 + spread / 2)
        if row["provider"] == "reference":
            row["provider"] = "compiled"
            row["overhead"] *= factor
    other = file.with_name(f"{factor}-{spread}.json")
    other.write_text(json.dumps(content))
    return other


def test_a_measurement_is_printed_and_written(measured):
    result, file = measured
    for text in ("24x32x16", "bfloat16", "over frozen", "recovered", "lowrank_backward_input_", "of copy"):
        assert text in result.stdout, text
    assert "measuring layers: 2" in result.stderr
    assert json.loads(file.read_text())["schema"] == 1


def test_comparing_with_itself_passes(ftengine, measured):
    file = compiled(measured[1], 1)
    result = ftengine("bench", "compare", file, file, "--fail-over", "0%")
    assert "1.000" in result.stdout
    assert result.stderr == ""


def test_slower_than_allowed_exits_with_1(ftengine, measured):
    file, other = compiled(measured[1], 1), compiled(measured[1], 1.5)
    assert "1.500" in ftengine("bench", "compare", file, other).stdout
    ftengine("bench", "compare", file, other, "--fail-over", "60%")
    result = ftengine("bench", "compare", file, other, "--fail-over", "5%", code=1)
    assert "error: 12 of 12 rows of compiled are slower" in result.stderr


@pytest.mark.parametrize(
    ("args", "expected"),
    [
        (["kernels", "--preset", "gtp2"], "Did you mean 'gpt2'?"),
        (["kernels", "--shape", "512x2048"], "512x2048x2048"),
        (["kernels", *SMALL, "--json", "no/such/folder/a.json"], "cannot write no/such/folder/a.json"),
        (["kernels", *SMALL, "--plot", "a.gif"], ".png"),
        (["compare", "no.json", "no.json"], "cannot read no.json"),
        (["compare", "no.json", "--fail-over", "much"], "for example 5%"),
        (["compare"], "FILE"),
        (["kernel"], "Did you mean 'kernels'?"),
    ],
)
def test_wrong_input_is_one_line_before_anything_is_measured(ftengine, args, expected, monkeypatch):
    monkeypatch.setattr("ftengine_bench.kernels.measure_kernels", None)
    result = ftengine("bench", *args, code=2)
    assert expected in result.stderr
    assert len(result.stderr.strip().split("\n")) == 1
