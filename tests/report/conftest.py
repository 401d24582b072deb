"""Verdicts on runs written by hand."""

import pytest
from report_samples import sound, write_run

from ftengine.plugins.registry import Registry
from ftengine.report.verdict import judge
from ftengine.run.records import RunRecords


@pytest.fixture(scope="module")
def registry():
    return Registry()


@pytest.fixture
def verdict(tmp_path, registry):
    """Judge a sound run after it was spoilt: by changes to its files."""

    counter = iter(range(10))

    def of(*spoil):
        files = sound()
        for one in spoil:
            one(files)
        return judge(RunRecords.read(write_run(tmp_path / f"run{next(counter)}", files)), registry)

    return of
