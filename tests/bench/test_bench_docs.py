"""docs/benchmarks.md tells of every provider, preset and field that there is."""

from dataclasses import fields

from docs_commands import ROOT, code, table

from ftengine_bench.layers import PRESETS, PROVIDERS
from ftengine_bench.report import OperatorRow, Report, Row
from ftengine_bench.tables import device_table, markdown

PAGE = ROOT / "docs" / "benchmarks.md"


def test_every_provider_is_documented():
    assert table(PAGE, "Providers").names() == list(PROVIDERS)


def test_every_preset_is_documented():
    assert PRESETS.keys() <= set(code(PAGE.read_text(encoding="utf-8")))


def test_every_field_is_documented():
    for heading, kind, more in (
        ("The file", Report, {"format", "schema"}),
        ("`rows`", Row, set()),
        ("`operators`", OperatorRow, set()),
    ):
        names = table(PAGE, heading).names()
        assert len(names) == len(set(names))
        assert set(names) == {field.name for field in fields(kind)} | more


def test_the_table_of_devices_is_what_the_command_prints():
    results = ROOT / "benchmarks" / "results"
    files = sorted(results.glob("*/kernels-*.json"))
    assert files
    printed = markdown(device_table([Report.read(file) for file in files]))
    assert printed in (results / "README.md").read_text(encoding="utf-8"), "the page says which command prints it"
