"""Of two processes one is killed, stopped, cut off or asked to end: the other ends and says why; the run goes on."""

import json
import os
import signal
import threading
import time

import pytest
import torch.distributed as dist
from expected import raises
from hosts import ADDRESSES, CARD, enter, plug, two_hosts
from processes import launch, start
from runs import losses

from ftengine import fine_tune, load_run
from ftengine.engine import fine_tune as fine_tuning
from ftengine.errors import InputError, RunError
from ftengine.parallel.rendezvous import agreed_name, timeout
from ftengine.run.directory import RunDirectory

SETTINGS = {"strategy__dropout": 0.0, "train__checkpoint_every": 2, "train__validate_every": 1000}
SETTINGS |= {"train__epochs": 15}


@pytest.fixture(scope="module")
def whole(build_chat_recipe, tmp_path_factory):
    """The run in one process that nothing happens to."""
    folder = tmp_path_factory.mktemp("whole")
    return fine_tune(build_chat_recipe(**SETTINGS, train__batch_size=8, output=str(folder / "run")))


SECONDS = 8
"""FTENGINE_TIMEOUT where a process is stopped or cut off."""


def wait_for(run, step, ranks):
    """Wait until a run has done so many steps."""
    deadline = time.monotonic() + 250
    while not any(line["step"] >= step for line in run.metrics()):
        assert all(rank.process.is_alive() for rank in ranks), [rank.said.read_text() for rank in ranks]
        assert time.monotonic() < deadline, "slow"
        time.sleep(0.02)


class Ends:
    """Two processes that train a recipe, step after step further."""

    def __init__(self, recipe, folder):
        self.run, self.folder, self.file = RunDirectory(recipe.output), folder, folder / "recipe.yaml"
        self.file.write_text(json.dumps(recipe.resolved()))

    def train(self, name, *, until, **variables):
        """Start both and wait until so many steps are done."""
        ranks = start(self.folder / name, command, str(self.file), **variables)
        wait_for(self.run, until, ranks)
        return ranks

    def saved(self):
        return max(int(path.name.removeprefix("step-")) for path in self.run.checkpoints.glob("step-*"))


def command(recipe):
    from ftengine.cli import main

    main(["train", recipe, "--resume"])


@pytest.mark.slow
def test_the_other_process_ends_with_the_cause_and_the_run_goes_on(whole, build_chat_recipe, tmp_path):
    recipe = build_chat_recipe(**SETTINGS, train__batch_size=4, output=str(tmp_path / "run"))
    both = Ends(recipe, tmp_path)
    host = os.uname().nodename

    first, second = both.train("terminated", until=5)
    os.kill(second.process.pid, signal.SIGTERM)
    (status, said), (other, _) = first.ended(), second.ended()
    assert (status, other) == (143, 143)
    steps = [line["step"] for line in both.run.metrics()]
    assert both.saved() == steps[-1]  # a checkpoint of the very step after which both stopped
    assert f"saved: the checkpoint of step {steps[-1]} in" in said

    first, second = both.train("killed", until=steps[-1] + 5)
    os.kill(second.process.pid, signal.SIGKILL)
    status, said = first.ended()
    assert status == 1
    assert f"error: process 1 of 2 (host {host}) has not answered for" in said
    assert "--resume" in said
    assert said.count("error:") == 1
    assert "go on from there with: ftengine train" in said

    first, second = both.train("stopped", until=both.saved() + 5, FTENGINE_TIMEOUT=str(SECONDS))
    os.kill(second.process.pid, signal.SIGSTOP)
    began = time.monotonic()
    status, said = first.ended()
    os.kill(second.process.pid, signal.SIGKILL)
    assert status == 1
    assert f"error: process 1 of 2 (host {host}) has not answered for" in said
    assert time.monotonic() - began < 60  # and not the half hour of gloo

    for rank in start(tmp_path / "last", command, str(both.file)):
        assert rank.ended()[0] == 0, rank.said.read_text()
    assert losses(load_run(recipe.output)) == pytest.approx(losses(whole), rel=1e-3)  # float32 sums, 60 steps on


def broken(recipe):
    """Train, and fail in the second process alone."""
    from ftengine.training.loop import Trainer

    step = Trainer.step

    def failing(self, *args):
        if self.progress.step == 2 and os.environ["RANK"] == "1":
            raise MemoryError("no memory is left")
        return step(self, *args)

    Trainer.step = failing
    command(recipe)


@pytest.mark.slow
def test_a_process_that_fails_is_named_with_its_error(build_chat_recipe, tmp_path):
    recipe = build_chat_recipe(train__max_steps=4, train__batch_size=4, output=str(tmp_path / "run"))
    file = tmp_path / "recipe.yaml"
    file.write_text(json.dumps(recipe.resolved()))
    first, second = start(tmp_path, broken, str(file))
    assert second.ended()[0] == 1
    status, said = first.ended()
    assert status == 1
    assert "process 1 of 2" in said
    assert "ended: no memory is left. Start all processes again" in said
    host = os.uname().nodename
    assert f"error: process 1 (host {host}): " in second.said.read_text()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("wrong", "reason"), [({"model": 3}, "key 'model': must be"), ({"data": {"train": "absent.csv"}}, "no data file")]
)
def test_what_all_processes_end_with_is_reported_once(build_chat_recipe, tmp_path, wrong, reason):
    """Before they come together and after it."""
    file = tmp_path / "recipe.yaml"
    file.write_text(json.dumps(build_chat_recipe(output=str(tmp_path / "run")).resolved() | wrong))
    first, second = (rank.ended() for rank in start(tmp_path, command, str(file)))
    assert (first[0], second[0]) == (2, 2)
    assert (first[1].count("error:"), first[1].count(reason)) == (1, 1)
    assert "error" not in second[1]


def killed_once(recipe):
    """Train without --resume; the second process is killed in its first life."""
    from ftengine.cli import main
    from ftengine.training.loop import Trainer

    step = Trainer.step

    def dying(self, *args):
        if self.progress.step == 5 and os.environ["RANK"] == "1" and os.environ["TORCHELASTIC_RESTART_COUNT"] == "0":
            os.kill(os.getpid(), signal.SIGKILL)
        return step(self, *args)

    Trainer.step = dying
    main(["train", recipe])


def launched(recipe):
    launch(2, killed_once, recipe, max_restarts=1)


@pytest.mark.slow
def test_workers_that_torchrun_starts_again_resume(whole, build_chat_recipe, tmp_path):
    settings = {**SETTINGS, "train__max_steps": 8, "train__schedule": "constant", "train__warmup": 0}
    recipe = build_chat_recipe(**settings, train__batch_size=4, output=str(tmp_path / "run"))
    file = tmp_path / "recipe.yaml"
    file.write_text(json.dumps(recipe.resolved()))
    (launcher,) = start(tmp_path, launched, str(file), ranks=1)
    status, said = launcher.ended()
    assert status == 0, said
    run = load_run(recipe.output)
    one = fine_tune(build_chat_recipe(**settings, train__batch_size=8, output=str(tmp_path / "one")))
    assert losses(run) == pytest.approx(losses(one), rel=1e-4)
    assert "has not answered for" in said
    # Another launch, or one that began nothing, is refused what is there.
    environment = run.directory.read_json("environment.json")
    assert environment["launch"] == "launch"
    (run.path / "evaluation.json").unlink()
    (launcher,) = start(tmp_path / "again", another, str(file), ranks=1)
    status, said = launcher.ended()
    assert status == 1
    assert said.count("it holds an unfinished run. Continue it with --resume") == 2  # the launcher tried twice


def another(recipe):
    launch(1, killed_once, recipe, max_restarts=1, run_id="another")


def torchrun_on(namespace, host, recipe):
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


@pytest.mark.slow
def test_a_cut_network_ends_both_hosts_and_the_run_goes_on(whole, build_chat_recipe, tmp_path):
    recipe = build_chat_recipe(**SETTINGS, train__batch_size=4, output=str(tmp_path / "run"))
    file, run = tmp_path / "recipe.yaml", RunDirectory(recipe.output)
    file.write_text(json.dumps(recipe.resolved()))

    def started(name, namespaces):
        variables = {"GLOO_SOCKET_IFNAME": CARD, "FTENGINE_TIMEOUT": str(SECONDS)}
        return [
            start(tmp_path / name / host, torchrun_on, namespace, host, str(file), ranks=1, **variables)[0]
            for host, namespace in namespaces.items()
        ]

    with two_hosts() as namespaces:
        hosts = started("first", namespaces)
        wait_for(run, 5, hosts)
        plug(namespaces["b"], "down")
        cut = time.monotonic()
        while not all("error: " in host.said.read_text() for host in hosts):
            assert time.monotonic() - cut < 60, [host.said.read_text() for host in hosts]
            time.sleep(0.1)
        first, second = (host.said.read_text() for host in hosts)
        assert "error: process 1 of 2" in first
        assert f"error: host {ADDRESSES['a']}" in second
        for host in hosts:  # torchrun's agents wait longer for each other
            host.process.kill()
        assert not run.finished

        plug(namespaces["b"], "up")
        for host in started("second", namespaces):
            status, said = host.ended()
            assert status == 0, said
    assert losses(load_run(recipe.output)) == pytest.approx(losses(whole), rel=1e-3)  # float32 sums, 60 steps on


def test_processes_agree_on_a_name_and_what_dead_ones_reported_is_not_taken():
    """The second process comes late, and its forerunner's word and answer are still there."""
    store = dist.HashStore()

    def agree(late):
        names = [None, None]

        def come(rank):
            time.sleep(late * rank)
            names[rank] = agreed_name(store, rank, 2, 20.0)

        threads = [threading.Thread(target=come, args=(rank,)) for rank in (0, 1)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return names

    first, again = agree(0.0), agree(0.3)
    assert first[0] == first[1]
    assert again[0] == again[1] not in (None, first[0])


def test_a_folder_that_a_host_does_not_share_is_an_error(monkeypatch, tmp_path):
    monkeypatch.setattr(fine_tuning, "NFS_TIMEOUT", 0.0)
    with raises(RunError, "file system"):
        fine_tuning.require_shared_folder(RunDirectory(tmp_path))


@pytest.mark.parametrize("given", ["soon", "0", "inf", "-1"])
def test_a_timeout_is_seconds(monkeypatch, given):
    monkeypatch.setenv("FTENGINE_TIMEOUT", given)
    with raises(InputError, f"FTENGINE_TIMEOUT is '{given}'"):
        timeout()
