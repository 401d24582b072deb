"""Measurements as files: what is written is read again, what is something else is refused, and files are compared."""

import json

import pytest
from bench_samples import row
from expected import raises

from ftengine.errors import InputError
from ftengine_bench.compare import Slower, check_slower, compare, noise, parse_share
from ftengine_bench.report import SCHEMA, Report


def report(*rows):
    return Report(True, {"device": "cpu"}, {"seconds": 0.5}, [{"dtype": "float32"}], list(rows), [])


def test_a_report_survives_its_file(tmp_path):
    written = report(row(layers=["q_proj"], recovered=0.25), row(provider="frozen"))
    written.write(tmp_path / "a.json")
    assert Report.read(tmp_path / "a.json") == written
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]


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


def test_slower_by_more_than_allowed_fails_and_less_does_not():
    found = compare([report(row(overhead=1.0)), report(row(overhead=1.04)), report(row(overhead=1.08))])
    check_slower(found, 0.09)
    with raises(Slower, "1.080") as error:
        check_slower(found, 0.05)
    assert error.value.exit_code == 1


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


def test_a_file_whose_own_repetitions_scatter_is_reported_as_disturbed():
    calm, wild = row(p20=0.98, p50=1.0, p80=1.02), row(p20=0.9, p50=1.0, p80=1.2)
    assert noise(report(calm, calm, wild)) is None
    assert "half of its rows spread by 30 % or more" in noise(report(calm, wild, wild))
    assert noise(report()) is None


@pytest.mark.parametrize("text", ["5", "0.05", "%", "-5%", "five%", "5%%", ""])
def test_what_is_no_percentage_is_refused(text):
    with raises(InputError, "5%"):
        parse_share(text)
