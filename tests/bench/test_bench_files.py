"""Measurements as files: what is written is read again, what is something else is refused, and files are compared."""

import json
from dataclasses import replace

import pytest
from bench_samples import row
from expected import raises

from ftengine.errors import InputError
from ftengine_bench.compare import Slower, check_slower, compare, noise, parse_share
from ftengine_bench.plot import check_plot
from ftengine_bench.report import SCHEMA, Report, check_writable


def report(*rows):
    return Report(True, {"device": "cpu"}, {"seconds": 0.5}, [{"dtype": "float32"}], list(rows), [])


def test_a_report_survives_its_file(tmp_path):
    written = report(row(layers=["q_proj"], recovered=0.25), row(provider="frozen"))
    written.write(tmp_path / "a.json")
    assert Report.read(tmp_path / "a.json") == written
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]


def test_a_report_with_fields_of_later_versions_is_read(tmp_path):
    content = report(row()).to_json()
    content["rows"][0]["energy"] = 1.0
    (tmp_path / "a.json").write_text(json.dumps(content))
    assert Report.read(tmp_path / "a.json").rows == [row()]


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("", "is no JSON"),
        ("{", "is no JSON"),
        ("[]", "holds no measurements"),
        ('{"schema": 1}', "holds no measurements"),
        (json.dumps({**report().to_json(), "schema": SCHEMA + 1}), f"has schema {SCHEMA + 1}"),
        (json.dumps({**report().to_json(), "rows": [{}]}), "is damaged"),
        (json.dumps({**report().to_json(), "rows": 3}), "is damaged"),
        (json.dumps(report(row(overhead="fast")).to_json()), "is damaged"),
        (json.dumps(report(row(overhead=0)).to_json()), "overhead"),
        (json.dumps({k: v for k, v in report().to_json().items() if k != "peaks"}), "is damaged"),
    ],
)
def test_what_is_no_report_is_refused(tmp_path, content, expected):
    (tmp_path / "a.json").write_text(content)
    with raises(InputError, expected):
        Report.read(tmp_path / "a.json")


def test_a_file_that_is_not_there_is_named(tmp_path):
    with raises(InputError, "b.json"):
        Report.read(tmp_path / "b.json")


def test_binary_rubbish_is_refused(tmp_path):
    (tmp_path / "a.json").write_bytes(b"\xff\xfe\x00")
    with raises(InputError, "JSON"):
        Report.read(tmp_path / "a.json")


def test_places_that_cannot_be_written_to_are_refused(tmp_path):
    for place in (tmp_path, tmp_path / "no" / "a.json"):
        with pytest.raises(InputError):
            check_writable(place)
    check_writable(tmp_path / "a.json")
    assert list(tmp_path.iterdir()) == []


def test_a_picture_of_an_unknown_kind_is_refused(tmp_path):
    with raises(InputError, ".png, .svg, .pdf"):
        check_plot(tmp_path / "a.gif")


def test_overheads_are_compared_and_not_seconds():
    # The second machine is ten times slower, and so is its frozen layer.
    (found,) = compare([report(row(overhead=1.1)), report(row(overhead=1.1, p50=10.0))])
    assert found.ratios == [1.0, 1.0]


def test_slower_by_more_than_allowed_fails_and_less_does_not():
    found = compare([report(row(overhead=1.0)), report(row(overhead=1.04)), report(row(overhead=1.08))])
    check_slower(found, 0.09)
    with raises(Slower, "1.080") as error:
        check_slower(found, 0.05)
    assert error.value.exit_code == 1


def test_becoming_quicker_is_no_failure():
    check_slower(compare([report(row(overhead=1.5)), report(row(overhead=1.1))]), 0.0)


def test_only_ours_is_compared():
    others = [row(provider=name, overhead=1.0) for name in ("frozen", "eager", "peft", "torch-compile")]
    slower = [replace(other, overhead=9.0) for other in others]
    found = compare([report(*others, row()), report(*slower, row())])
    assert [comparison.row.provider for comparison in found] == ["compiled"]


@pytest.mark.parametrize(
    "change",
    [
        {"m": 3},
        {"k": 3},
        {"n": 3},
        {"rank": 2},
        {"p": 0.5},
        {"dtype": "bfloat16"},
        {"phase": "forward"},
        {"provider": "reference"},
        {"transposed": True},
    ],
)
def test_rows_of_different_things_are_not_compared(change):
    with pytest.raises(InputError):
        compare([report(row()), report(row(**change))])


def test_replays_of_graphs_are_not_compared_with_calls():
    graph = replace(report(row()), settings={"launch": "graph"})
    assert compare([graph, graph])
    with raises(InputError, "--launch graph"):
        compare([report(row()), graph])  # a file of before there was a choice


def test_the_reference_is_compared_and_not_guarded():
    reference = row(provider="reference")
    found = compare([report(row(), reference), report(row(), replace(reference, overhead=9.0))])
    assert [comparison.worst for comparison in found] == [1.0, 9.0]
    check_slower(found, 0.0)
    with raises(InputError, "provider compiled"):
        check_slower(found[1:], 0.0)


def test_a_file_whose_own_repetitions_scatter_is_reported_as_disturbed():
    calm, wild = row(p20=0.98, p50=1.0, p80=1.02), row(p20=0.9, p50=1.0, p80=1.2)
    assert noise(report(calm, calm, wild)) is None
    assert "half of its rows spread by 30 % or more" in noise(report(calm, wild, wild))
    assert noise(report()) is None


def test_a_row_that_one_file_lacks_is_left_open_there():
    (found,) = compare([report(row()), report(), report(row(overhead=2.0))])
    assert found.overheads == [1.0, None, 2.0]
    assert found.ratios == [1.0, None, 2.0]


def test_one_file_alone_is_refused():
    with raises(InputError, "two or more"):
        compare([report(row())])


def test_shares_are_read():
    assert (parse_share("5%"), parse_share("2.5 %"), parse_share("0%")) == (0.05, 0.025, 0.0)


@pytest.mark.parametrize("text", ["5", "0.05", "%", "-5%", "five%", "5%%", ""])
def test_what_is_no_percentage_is_refused(text):
    with raises(InputError, "5%"):
        parse_share(text)
