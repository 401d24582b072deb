"""Runs the adapters library, in its own environment: makes adapters, opens ftengine's, and notes the outputs.

    python adapterhub_library.py JOBS.json

Each job is {"model", "class", "batch", "out"} and either "config" (make an adapter, save it in out/adapter)
or "adapter" (open that folder); it leaves out/outputs.safetensors and out/found.json.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import adapters
import torch
import transformers
from safetensors.torch import load_file, save_file

NAME = "task"


def main(jobs: list[dict]) -> None:
    for job in jobs:
        out = Path(job["out"])
        out.mkdir(parents=True, exist_ok=True)
        try:
            found = exchanged(job, out)
        except Exception as error:  # whatever the library raises: the job's own test tells
            found = {"error": f"{type(error).__name__}: {error}"}
        (out / "found.json").write_text(json.dumps(found))


def exchanged(job: dict, out: Path) -> dict:
    """Make or open one adapter, and write the outputs."""
    model = getattr(transformers, job["class"]).from_pretrained(job["model"])
    adapters.init(model)
    found = make(model, job, out / "adapter") if "config" in job else read(model, job["adapter"])
    model.eval().double()
    batch = {key: tensor.double() if tensor.is_floating_point() else tensor for key, tensor in batch_of(job).items()}
    with torch.no_grad():
        outputs = {"adapted": logits(model, batch)}
        model.set_active_adapters(None)
        outputs["base"] = logits(model, batch)
    save_file(outputs, out / "outputs.safetensors")
    return found


def make(model: torch.nn.Module, job: dict, folder: Path) -> dict:
    """Add an adapter with random weights, so that no initialisation hides a difference, and save it."""
    model.add_adapter(NAME, config=adapters.BnConfig.from_dict(job["config"]))
    model.train_adapter(NAME)
    torch.manual_seed(3)
    trained = [
        (key, p) for key, p in model.named_parameters() if f".{NAME}." in key or key.startswith(("classifier", "score"))
    ]
    for _, parameter in trained:
        torch.nn.init.normal_(parameter, std=0.1)
    model.save_adapter(str(folder), NAME, use_safetensors=not job.get("pickle"))
    return {"adapter": sorted(key for key, _ in trained)}


def read(model: torch.nn.Module, folder: str) -> dict:
    """Open an adapter, and return what the library missed or did not expect in it."""
    info: dict = {}
    name = model.load_adapter(folder, set_active=True, use_safetensors=True, loading_info=info)
    own = {key for key in model.state_dict() if f".{name}." in key}
    head = Path(folder) / "model_head.safetensors"
    state = model.state_dict()
    return {
        "name": name,
        "missing": sorted(info["missing_keys"]),
        "unexpected": sorted(info["unexpected_keys"]),
        "of_file": own == set(load_file(Path(folder) / "adapter.safetensors")),
        "head": all(torch.equal(state[key], tensor) for key, tensor in load_file(head).items())
        if head.exists()
        else None,
    }


def batch_of(job: dict) -> dict[str, torch.Tensor]:
    return load_file(job["batch"])


def logits(model: torch.nn.Module, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    return model(**batch).logits.contiguous()


if __name__ == "__main__":
    main(json.loads(Path(sys.argv[1]).read_text()))
