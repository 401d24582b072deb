"""The table of docs/strategies.md that says which program opens what: made from the folders themselves.

    FTENGINE_WRITE_TABLE=1 pytest tests/peers/test_opens_in.py       writes it first

Each cell is what the saved folder says of itself; the tests of this folder open it there.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch
from peer_models import ARCHITECTURES, loaded, outputs, shake
from peer_programs import claimed

import ftengine_bitfit
import ftengine_peft
from ftengine import api, registry_of
from ftengine.errors import NoMatch, RecipeError
from ftengine.model import save_model
from ftengine.model.saving import save_part

PAGE = Path(__file__).parents[2] / "docs" / "strategies.md"
BEGIN, END = "<!-- made by tests/peers -->\n", "<!-- end of what tests/peers made -->\n"
NOWHERE = "–"
MODELS = (
    *("llama", "gpt2", "qwen3", "gemma3", "llama-classifier", "gpt2-classifier", "bert", "bert-tokens", "roberta"),
    *("distilbert", "t5", "bart", "vit", "resnet", "timm", "torchvision"),
)
STRATEGIES = {
    "`full`": {"name": "full"},
    "`lora`": {"name": "lora"},
    "`lora`, merged": {"name": "lora"},
    "`adapter`": {"name": "adapter"},
    "`prompt`": {"name": "prompt", "virtual_tokens": 3},
    "`prefix`": {"name": "prefix", "virtual_tokens": 3},
    "`bitfit`": {"name": "bitfit"},
    "`peft-ia3`": {"name": "peft-ia3"},
}
CONVOLUTIONS = {"resnet": ["convolution"], "timm": r".*conv\d?", "torchvision": ["conv1", "conv2"]}
"""LoRA's targets where there is no linear layer but the head."""


def registry():
    """Return what is installed, with the distributions of the table."""
    return registry_of({"ftengine-bitfit": ftengine_bitfit, "ftengine-peft": ftengine_peft})


def prepared(options: dict, name: str, found=None) -> tuple[api.Strategy, api.LoadedModel]:
    """Prepare a model of the table for a strategy (RecipeError: it is refused), the same every time."""
    model = loaded(name)
    if options["name"] == "lora" and name in CONVOLUTIONS:
        options = {"targets": CONVOLUTIONS[name], **options}
    torch.manual_seed(0)
    strategy = (found or registry()).build("strategy", options, "strategy")
    strategy.prepare(model)
    for path in model.new_modules:
        model.module.get_submodule(path).requires_grad_(True)
    return strategy, model


def save(column: str, name: str, folder: Path, found=None) -> torch.Tensor:
    """Save a trained model as a run, or `ftengine merge`, does; return its outputs (RecipeError: it is refused)."""
    strategy, model = prepared(STRATEGIES[column], name, found)
    shake(model.module)
    ours = outputs(name, model.module)
    if "merged" in column:
        strategy.merge(model)
        save_model(model.module, model.processor, folder)
    else:
        save_part(strategy, model, folder)
    return ours


def cell(column: str, name: str, found=None) -> str:
    """Return the program that a folder is for, or a dash where the strategy refuses the model."""
    with tempfile.TemporaryDirectory() as folder:
        try:
            save(column, name, Path(folder), found)
        except (NoMatch, RecipeError):
            return NOWHERE
        return claimed(Path(folder))


def table() -> str:
    found = registry()
    rows = [["model", *STRATEGIES], ["---"] * (len(STRATEGIES) + 1)]
    rows += [[ARCHITECTURES[name].label, *(cell(column, name, found) for column in STRATEGIES)] for name in MODELS]
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


def on_page() -> str:
    """Return the table as the page has it."""
    return PAGE.read_text(encoding="utf-8").partition(BEGIN)[2].partition(END)[0]


def told() -> dict[tuple[str, str], str]:
    """Return what the page's table says, by column and model."""
    rows = [[text.strip() for text in line.split("|")[1:-1]] for line in on_page().splitlines()]
    names = {ARCHITECTURES[name].label: name for name in MODELS}
    return {
        (column, names[row[0]]): text for row in rows[2:] for column, text in zip(rows[0][1:], row[1:], strict=True)
    }


def write() -> None:
    """Write the table into the page."""
    page = PAGE.read_text(encoding="utf-8")
    before, _, rest = page.partition(BEGIN)
    PAGE.write_text(before + BEGIN + table() + END + rest.partition(END)[2], encoding="utf-8")
