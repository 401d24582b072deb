"""Two hosts train together over a network that is cut: both end with the cause, and go on when it is back."""

import json
import time

import pytest
from hosts import ADDRESSES, CARD, enter, plug, two_hosts
from processes import launch, start
from runs import losses

from ftengine import fine_tune, load_run
from ftengine.run.directory import RunDirectory

SETTINGS = {"strategy__dropout": 0.0, "train__checkpoint_every": 2, "train__validate_every": 1000, "train__epochs": 20}
SECONDS = 8


def command(recipe):
    from ftengine.cli import main

    main(["train", recipe, "--resume"])


def torchrun(namespace, host, recipe):
    """Start torchrun's agent on a host, with one worker."""
    enter(namespace)
    launch(
        1,
        command,
        recipe,
        min_nodes=2,
        max_nodes=2,
        rdzv_endpoint=f"{ADDRESSES['a']}:29400",
        rdzv_configs={"is_host": host == "a", "read_timeout": SECONDS},
        local_addr=ADDRESSES[host],
    )


def test_a_cut_network_ends_both_hosts_and_the_run_goes_on(build_chat_recipe, tmp_path):
    recipe = build_chat_recipe(**SETTINGS, train__batch_size=4, output=str(tmp_path / "run"))
    file, run = tmp_path / "recipe.yaml", RunDirectory(recipe.output)
    file.write_text(json.dumps(recipe.resolved()))

    def started(name, namespaces):
        variables = {"GLOO_SOCKET_IFNAME": CARD, "FTENGINE_TIMEOUT": str(SECONDS)}
        return [
            start(tmp_path / name / host, torchrun, namespace, host, str(file), ranks=1, **variables)[0]
            for host, namespace in namespaces.items()
        ]

    with two_hosts() as namespaces:
        hosts = started("first", namespaces)
        deadline = time.monotonic() + 120
        while not any(line["step"] >= 5 for line in run.metrics()):
            assert all(host.process.is_alive() for host in hosts), [host.said.read_text() for host in hosts]
            assert time.monotonic() < deadline, "slow"
            time.sleep(0.02)
        plug(namespaces["b"], "down")
        cut = time.monotonic()
        while not all("error: " in host.said.read_text() for host in hosts):
            assert time.monotonic() - cut < 60, [host.said.read_text() for host in hosts]
            time.sleep(0.1)
        first, second = (host.said.read_text() for host in hosts)
        assert "error: process 1 of 2" in first
        assert f"error: host {ADDRESSES['a']}, which holds the processes together, has not answered" in second
        for host in hosts:  # torchrun's agents wait longer for each other
            host.process.kill()
        assert not run.finished

        plug(namespaces["b"], "up")
        for host in started("second", namespaces):
            status, said = host.ended()
            assert status == 0, said
    one = fine_tune(build_chat_recipe(**SETTINGS, train__batch_size=8, output=str(tmp_path / "one")))
    assert losses(load_run(recipe.output)) == pytest.approx(losses(one), rel=1e-3)  # float32 sums, 120 steps on
