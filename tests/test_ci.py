"""What continuous integration runs, with commands that stand in for those that take long."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

RUN = Path(__file__).parents[1] / ".ci" / "run"
NEEDED = ("awk", "bash", "dirname", "mktemp", "rm", "sh", "sort", "tee", "timeout", "touch")
MAKE = """case $1 in
test) echo 'SKIPPED [3] tests/a.py:20: no GPU: none is here'; echo 'SKIPPED [2] tests/b.py:1: no browser' ;;
test-slow) echo 'SKIPPED [4] tests/c.py:7: no GPU: none is here' ;;
lint) exit $LINT ;;
esac
"""


@pytest.mark.parametrize(("lint", "chromium"), [(0, True), (2, False)])
def test_what_was_skipped_is_reported_by_reason_and_a_browser_is_no_must(tmp_path, lint, chromium):
    commands = {"make": MAKE, "id": "echo 0", "apt-get": f"touch {tmp_path}/asked; exit 100"}
    for name, script in (commands | ({"chromium": ""} if chromium else {})).items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{script}\n")
        (tmp_path / name).chmod(0o755)
    for name in NEEDED:
        (tmp_path / name).symlink_to(shutil.which(name))
    environment = os.environ | {"PATH": str(tmp_path), "LINT": str(lint)}
    done = subprocess.run([RUN], env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == lint, done.stderr
    assert done.stdout.splitlines()[-2:] == [
        "skipped: 2: no browser (tests/b.py)",
        "skipped: 7: no GPU: none is here (tests/a.py tests/c.py)",
    ]
    assert (tmp_path / "asked").exists() != chromium
