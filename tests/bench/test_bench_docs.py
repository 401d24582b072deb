"""docs/benchmarks.md lists every provider and preset, and docstrings every field of a measurement."""

from docs_commands import ROOT

from ftengine_bench.report import Report
from ftengine_bench.tables import device_table, markdown


def test_the_table_of_devices_is_what_the_command_prints():
    results = ROOT / "benchmarks" / "results"
    files = sorted(results.glob("*/kernels-*.json"))
    assert files
    printed = markdown(device_table([Report.read(file) for file in files]))
    assert printed in (results / "README.md").read_text(encoding="utf-8"), "the page says which command prints it"
