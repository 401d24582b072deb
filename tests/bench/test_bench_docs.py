"""docs/benchmarks.md lists every provider and preset, and docstrings every field of a measurement."""

import inspect
import re
from dataclasses import fields

from docs_commands import ROOT, code, table

from ftengine_bench.layers import PRESETS, PROVIDERS
from ftengine_bench.report import Case, OperatorRow, Report, Row
from ftengine_bench.tables import device_table, markdown

PAGE = ROOT / "docs" / "benchmarks.md"


def test_every_provider_is_documented():
    assert table(PAGE, "Providers").names() == list(PROVIDERS)


def test_every_preset_is_documented():
    assert PRESETS.keys() <= set(code(PAGE.read_text(encoding="utf-8")))


def test_every_field_is_documented():
    for kind in (Case, Row, OperatorRow, Report):
        text = inspect.getdoc(kind).partition("Args:\n")[2]
        names = {name for found in re.findall(r"(?m)^    (?! )([\w, ]+):", text) for name in found.split(", ")}
        own = {field.name for field in fields(kind)} - {f.name for f in fields(Case) if kind is not Case}
        assert names == own, kind


def test_the_table_of_devices_is_what_the_command_prints():
    results = ROOT / "benchmarks" / "results"
    files = sorted(results.glob("*/kernels-*.json"))
    assert files
    printed = markdown(device_table([Report.read(file) for file in files]))
    assert printed in (results / "README.md").read_text(encoding="utf-8"), "the page says which command prints it"
