"""The command `ftengine studio` as a process: its address, a kill in the middle of judging, and Ctrl-C."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from contextlib import contextmanager
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import pytest
from studio_runs import write_run

from ftengine_studio import read

pytest.importorskip("uvicorn")
pytestmark = pytest.mark.slow


@contextmanager
def serving(run):
    """Start the command; yield its process and a function that asks it, as the page does."""
    command = [sys.executable, "-c", "from ftengine_studio.command import studio; studio()", str(run)]
    environ = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}  # as here, where it need not be installed
    with subprocess.Popen(command, env=environ, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            place, token = re.search(r"(http://127\.0\.0\.1:\d+)/\?token=(\S+)", process.stdout.readline()).groups()

            def ask(path, content=None, token=token):
                data = None if content is None else json.dumps(content).encode()
                headers = {"Content-Type": "application/json", "Cookie": f"ftengine-studio-{place[17:]}={token}"}
                return json.load(urlopen(Request(place + path, data, headers), timeout=60))

            yield process, ask
        finally:
            process.kill()


def test_a_killed_server_loses_nothing_and_ctrl_c_ends_one_in_order(tmp_path):
    run = write_run(tmp_path / "support", 5)
    (run / "verdict.json").write_text("{}")
    with serving(run) as (process, ask):
        shown = ask("/api/judge/0/0?name=Ada")
        judged = ask("/api/judge/0/0", {"name": "Ada", "verdict": "tie", "shown": shown["shown"]})
        process.kill()
    assert judged["judged"] == len(read(run)) == 1
    with serving(run) as (process, ask):
        assert ask("/api/judge/0?name=Ada") == {"title": "support: base and tuned", **judged}
        with pytest.raises(HTTPError, match="403"):
            ask("/api/overview", token="wrong")
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 0
        last = process.stderr.read().splitlines()[-1]
    assert last.startswith("ended")
    assert f"ftengine report {run} --renew" in last
