"""The launcher page's scripts are shell and YAML, and what they launch are commands that torchrun and ftengine take."""

import re
import shlex
import shutil
import subprocess

import pytest
import yaml
from docs_commands import ROOT, blocks
from torch.distributed.run import get_args_parser

from ftengine.cli.train import train

PAGE = ROOT / "docs" / "launchers.md"
VALUES = {
    "$head": "host-0",
    "$SLURM_NNODES": "4",
    "$SLURM_JOB_ID": "7",
    "$SKYPILOT_NUM_NODES": "2",
    "$SKYPILOT_NUM_GPUS_PER_NODE": "8",
}
"""What the variables of the scripts stand for."""


def scripts():
    """Yield each script of the page with its place; those inside of YAML too."""
    for block in blocks(PAGE, "sh", "bash", "yaml"):
        if block.language != "yaml":
            yield block.place, block.text
            continue
        for document in yaml.safe_load_all(block.text):
            if "run" in document:
                yield block.place, document["run"]
            job = document if document.get("kind") == "Job" else {"spec": {"template": {"spec": {"containers": []}}}}
            for container in job["spec"]["template"]["spec"]["containers"]:
                assert container["command"] == ["sh", "-c"]
                yield block.place, container["args"][0]


SCRIPTS = list(scripts())


def test_the_page_has_torchrun_slurm_skypilot_and_kubernetes():
    assert [re.findall(r"srun|SKYPILOT|exec|torchrun", text)[0] for _, text in SCRIPTS] == [
        "torchrun",
        "srun",
        "SKYPILOT",
        "exec",
    ]


@pytest.mark.parametrize(("place", "text"), SCRIPTS, ids=[place for place, _ in SCRIPTS])
def test_what_a_script_launches_is_a_command(place, text):
    if bash := shutil.which("bash"):
        subprocess.run([bash, "-n"], input=text, text=True, check=True)
    joined = re.sub(r"\\\n\s*", "", text)
    (line,) = [line for line in joined.splitlines() if "torchrun" in line]
    for name, value in VALUES.items():
        line = re.sub(re.escape(name) + r"\b", value, line)
    assert "$" not in line, line
    words = shlex.split(line.partition("torchrun")[2])
    launched = get_args_parser().parse_args(words)
    assert (launched.module, launched.training_script, launched.rdzv_backend) == (True, "ftengine", "c10d")
    assert int(launched.nnodes) >= 2
    assert launched.rdzv_endpoint.endswith(":29400")
    assert launched.rdzv_id
    name, *arguments = launched.training_script_args
    assert name == "train"
    with train.make_context(name, arguments) as context:
        assert context.params["resume"]
        assert "output=/shared/runs/support" in context.params["overrides"]
