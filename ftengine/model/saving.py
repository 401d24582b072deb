"""Weights on disk: trained parts and whole models, as safetensors."""

from __future__ import annotations

import json
import warnings
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from ftengine.api import LoadedModel, Strategy, overrides
from ftengine.errors import BaseMismatch, PluginError, RunError, json_of_file
from ftengine.model.parameters import state_tensors

TRAINED_FILE = "trained.safetensors"
"""The trained part, where its strategy has no format of its own."""

MODEL_FILE = "model.safetensors"
"""The state of a model that is none of transformers."""

CALIBRATION = "calibration"
"""Key of a classifier's config.json."""

LOADING_FAULTS = ("missing_keys", "unexpected_keys", "mismatched_keys")
"""What transformers tells of keys that do not fit."""


def save_tensors(tensors: Mapping[str, Tensor], file: Path, facts: Mapping[str, str] | None = None) -> None:
    """Write tensors by name as safetensors: on the CPU, contiguous, without shared memory.

    Args:
        facts: metadata for the file's header, in place of transformers' mark.

    Raises:
        RunError: the file cannot be written (disk full, no permission).
    """
    plain = {name: tensor.detach().to("cpu").contiguous().clone() for name, tensor in tensors.items()}
    try:
        save_file(plain, file, metadata={"format": "pt"} if facts is None else dict(facts))
    except (OSError, SafetensorError) as error:
        raise RunError(f"cannot write {str(file)!r}: {error}. Free some space or choose another output.") from None


def read_tensors(file: Path) -> dict[str, Tensor]:
    """Read a safetensors file to the CPU.

    Raises:
        RunError: the file is missing, truncated, or of another format.
    """
    try:
        with safe_open(file, framework="pt") as handle:
            return {name: handle.get_tensor(name) for name in handle.keys()}  # noqa: SIM118 (no mapping)
    except FileNotFoundError:
        raise RunError(f"{str(file)!r} is missing.") from None
    except (OSError, SafetensorError) as error:
        raise RunError(
            f"{str(file)!r} is not a readable safetensors file: {error}. Pickled weights are not read; "
            "convert them to safetensors first."
        ) from None


def save_trained(module: nn.Module, directory: Path) -> None:
    """Write what training changes (`state_tensors`), by name, to `trained.safetensors` in `directory`."""
    save_tensors(state_tensors(module), Path(directory) / TRAINED_FILE)


def load_trained(module: nn.Module, directory: Path) -> None:
    """Read what `save_trained` wrote into a module with the same trainable parameters.

    Raises:
        BaseMismatch: keys are missing or unexpected, or a shape differs.
    """
    file = Path(directory) / TRAINED_FILE
    copy_into(state_tensors(module), read_tensors(file), str(file))


@torch.no_grad()
def copy_into(parameters: Mapping[str, Tensor], tensors: Mapping[str, Tensor], origin: str) -> None:
    """Copy tensors into parameters of the same names, all or none.

    Args:
        parameters: targets by name; each keeps its dtype and device.
        tensors: sources by name.
        origin: where the tensors come from, for the message.

    Raises:
        BaseMismatch: keys are missing or unexpected, or a shape or the kind of a dtype differs.
    """
    missing, unexpected = parameters.keys() - tensors.keys(), tensors.keys() - parameters.keys()
    if missing or unexpected:
        raise BaseMismatch(
            f"{origin} does not fit this model: {len(missing)} keys missing{_some(missing)}, "
            f"{len(unexpected)} unexpected{_some(unexpected)}. It was trained with another base or other options."
        )
    wrong = {n: (tuple(tensors[n].shape), tuple(p.shape)) for n, p in parameters.items() if tensors[n].shape != p.shape}
    if wrong:
        name, (actual, expected) = next(iter(wrong.items()))
        raise BaseMismatch(
            f"{origin} does not fit this model: {name!r} has shape {actual}, the model expects {expected}"
            f" ({len(wrong)} of {len(parameters)} tensors differ)."
        )
    for name, parameter in parameters.items():
        if parameter.is_floating_point() != tensors[name].is_floating_point() or tensors[name].is_complex():
            raise BaseMismatch(
                f"{origin} does not fit this model: {name!r} is {tensors[name].dtype}, the model's is "
                f"{parameter.dtype}. Quantised or damaged weights are not read."
            )
    for name, parameter in parameters.items():
        parameter.copy_(tensors[name])


def _some(names: Iterable[str]) -> str:
    names = sorted(names)
    return f" ({', '.join(names[:3])}{', …' if len(names) > 3 else ''})" if names else ""


def save_model(module: nn.Module, processor: Any, directory: Path) -> None:
    """Write a whole model in its library's format: a transformers folder, safetensors only, with the processor.

    A module without `save_pretrained` is written as `model.safetensors`, its state by name.

    Raises:
        RunError: it cannot be written (disk full, no permission).
    """
    directory = Path(directory)
    try:
        if hasattr(module, "save_pretrained"):
            _save_pretrained(module, directory)
        else:
            save_tensors(module.state_dict(), directory / MODEL_FILE)
    except (OSError, SafetensorError) as error:
        raise RunError(
            f"cannot write the model to {str(directory)!r}: {error}. Free some space or choose another output."
        ) from None
    save_processor(processor, directory)


def save_part(strategy: Strategy, loaded: LoadedModel, directory: Path) -> None:
    """Write what a strategy trained with its own `save`, else every trainable tensor by name.

    Raises:
        RunError: a file cannot be written.
        PluginError: the strategy writes pickles, whose reader runs what they say, or files beside the folder.
    """
    if not overrides(strategy, "save"):
        save_trained(loaded.module, directory)
        return
    before = set(directory.parent.iterdir())
    strategy.save(loaded, directory)
    if beside := sorted(path.name for path in set(directory.parent.iterdir()) - before):
        raise PluginError(
            f"save() of strategy {strategy.name!r} wrote {beside[0]!r} beside the folder that it is given, where "
            "nothing belongs to the trained part: write into `directory` alone."
        )
    if pickled := [path for path in sorted(directory.rglob("*")) if path.is_file() and is_pickle(path)]:
        raise PluginError(
            f"save() of strategy {strategy.name!r} wrote {pickled[0].name!r}, a pickle: whoever opens it runs what it "
            "says. Write tensors with ftengine.model.save_tensors (safetensors), and all else as JSON."
        )


def is_pickle(file: Path) -> bool:
    """Return whether a file is a pickle, or one of torch.save, by its first bytes (pickle protocols 2 to 5)."""
    with file.open("rb") as opened:
        start = opened.read(8)
    if zipfile.is_zipfile(file):
        with zipfile.ZipFile(file) as archive:
            return any(name.endswith(".pkl") for name in archive.namelist())
    # A safetensors file may begin so by the length of its header, which is followed by zeros.
    return start[:1] == b"\x80" and start[1:2] in (b"\2", b"\3", b"\4", b"\5") and start[3:] != bytes(5)


def load_part(strategy: Strategy, loaded: LoadedModel, directory: Path) -> None:
    """Read what `save_part` wrote into a model that the strategy has prepared."""
    if overrides(strategy, "load"):
        strategy.load(loaded, directory)
    else:
        load_trained(loaded.module, directory)


def save_processor(processor: Any, directory: Path) -> None:
    """Write a tokenizer or image processor, if it supports that (RunError: disk full, no permission)."""
    if not hasattr(processor, "save_pretrained"):
        return
    try:
        processor.save_pretrained(directory)
    except Exception as error:
        if not isinstance(error, OSError) and type(error) is not Exception:  # what tokenizers raises, written in Rust
            raise
        raise RunError(
            f"cannot write the processor to {str(directory)!r}: {error}. Free some space or choose another output."
        ) from None


def write_calibration(module: nn.Module, calibration: Mapping[str, Any]) -> None:
    """Set or remove the calibration in the config.json that will be saved with a classifier.

    transformers has no key for it but keeps unknown ones, so users find it at `model.config.calibration`. A base's own
    calibration is removed, as it does not hold after tuning.
    """
    config = getattr(module, "config", None)
    if hasattr(config, "id2label"):
        vars(config).pop(CALIBRATION, None)
        if calibration:
            setattr(config, CALIBRATION, dict(calibration))


def add_calibration(module: nn.Module, directory: Path) -> None:
    """Add a classifier's calibration (`write_calibration`) to each config.json that was written before."""
    if calibration := getattr(getattr(module, "config", None), CALIBRATION, None):
        for file in sorted(Path(directory).rglob("config.json")):
            if "model_type" in (config := json_of_file(file)):
                text = json.dumps({**config, CALIBRATION: calibration}, indent=2, sort_keys=True)
                file.write_text(f"{text}\n", encoding="utf-8")


def is_pretrained(directory: Path) -> bool:
    """Return whether a folder is one of transformers: its config.json names a class."""
    return bool(_architectures(directory))


def open_model(directory: Path, dtype: torch.dtype, own: type | None = None) -> tuple[nn.Module, list[str]]:
    """Open a transformers folder with transformers alone, as the class that its config.json names.

    Args:
        directory: the folder.
        dtype: of the model.
        own: class of a model that was written there; taken if transformers has none of that name.

    Returns:
        The model in a dtype, and the keys that the files lack, or hold without the model having them.

    Raises:
        RunError: transformers has no such class, or cannot read the files.
    """
    import transformers

    name = _architectures(directory)[0]
    kind: Any = getattr(transformers, name, own if own is not None and own.__name__ == name else None)
    if kind is None:
        raise RunError(f"{str(directory)!r} holds a {name}, which transformers does not have.")
    try:
        with quiet_transformers():
            module, info = kind.from_pretrained(
                directory, dtype=dtype, use_safetensors=True, local_files_only=True, output_loading_info=True
            )
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise RunError(f"transformers cannot read {str(directory)!r}: {error}") from error
    return module, sorted(str(key) for what in LOADING_FAULTS for key in info[what])


def _architectures(directory: Path) -> list[str]:
    file = Path(directory) / "config.json"
    return json_of_file(file).get("architectures") or [] if file.is_file() else []


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Silence progress bars and warnings of transformers; restore both afterwards."""
    from transformers.utils import logging

    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()


def _save_pretrained(module: Any, directory: Path) -> None:
    """Save without the progress bar that transformers draws."""
    generation: Any = getattr(module, "generation_config", None)
    contradicts = False
    with ExitStack() as stack:
        stack.enter_context(quiet_transformers())
        try:
            if generation is not None:
                generation.validate(strict=True)
        except ValueError:
            # Published models contradict themselves here (a temperature without sampling), and transformers
            # refuses to save what it considers changed. The settings are passed on as they were.
            contradicts = True
            stack.callback(setattr, module, "generation_config", generation)
            module.generation_config = type(generation)()
        module.save_pretrained(directory)
    if contradicts:
        generation.to_json_file(directory / "generation_config.json")
