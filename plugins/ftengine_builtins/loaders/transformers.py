"""Models in transformers' own layout: a folder, or a repository of the Hugging Face hub."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import huggingface_hub
import transformers
import yaml
from huggingface_hub import errors
from pydantic import Field

from ftengine import api
from ftengine.api import LoadedModel, LoadRequest, ModelLoader, Provenance
from ftengine.errors import SourceError, did_you_mean, shown
from ftengine_builtins.loaders.heads import HEADLESS, Shape, auto_class, reads_audio, reads_pictures
from ftengine_builtins.loaders.pretrained import (
    build_skeleton,
    load_pretrained,
    pad_with_eos,
    read_json,
    refuse_adapter,
    require_possible,
    sentence_encoder,
    stored_tensors,
)
from ftengine_builtins.loaders.quiet import cause, reading

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl", "*.h5", "*.msgpack")
VOCABULARIES = ("tokenizer.json", "vocab.*", "tokenizer.model*", "spiece.model", "*.bpe.model", "tekken.json")
PREPROCESSORS = ("preprocessor_config.json", "processor_config.json")
NOT_FETCHED: Mapping[type[Exception], str] = {
    errors.GatedRepoError: "the hub requires that you accept the terms of {source!r}. Accept them on its page, "
    "then log in with `hf auth login` or set HF_TOKEN.",
    errors.RevisionNotFoundError: "the hub's {source!r} has no revision {revision!r}. Correct model.loader.revision.",
    errors.RepositoryNotFoundError: "the hub has no model {source!r}, or it is private. Check the "
    "spelling; for a private model log in with `hf auth login` or set HF_TOKEN.",
    **dict.fromkeys(
        (errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled),
        "the hub cannot be reached and its cache on this machine has no model of that name. Give a folder, "
        "or check the connection (HF_HUB_OFFLINE must not be set).",
    ),
}
"""Why a hub model could not be downloaded, and what to do, by class of the error; the first match counts."""
UNKNOWN_FAILURE = (
    "no hub model of that name could be downloaded: {cause} Check the spelling, the connection, and for gated models "
    "the access token."
)
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")


class TransformersLoader(ModelLoader):
    """Load a transformers folder or a model of the Hugging Face hub.

    Weights are read from safetensors only; code that comes with a model runs only on request.
    """

    name = "transformers"

    class Config(api.Config):
        revision: str | None = Field(None, description="branch, tag or commit of a hub model")
        subfolder: str | None = Field(None, description="folder inside the source that holds the model")
        processor: Literal["auto", "tokenizer", "image", "all"] = Field(
            "auto",
            description="which to use if a model has both a tokenizer and an image processor; auto: the tokenizer, and "
            "all of it of models that read audio, or pictures with text",
        )
        attention: Literal["auto", "sdpa", "eager", "flash_attention_2", "flex_attention"] = Field(
            "auto",
            description="implementation of attention; flash_attention_2 needs package flash-attn and a "
            "GPU; auto: transformers' choice",
        )
        trust_remote_code: bool = Field(False, description="run Python code that comes with the model")

    def accepts(self, source: str) -> bool:
        """Accept a folder with a config, adapter config or weights, and every source in the form of a hub id."""
        place = Path(source)
        try:
            if place.is_dir():
                inside = self._inside(place)
                return any((inside / name).exists() for name in ("config.json", "adapter_config.json", WEIGHTS))
            exists = place.exists()
        except (OSError, ValueError):  # not a path: too long, or with a null byte
            return False
        return not exists and place.suffix.lower() != ".gguf" and HUB_ID.fullmatch(source) is not None

    def check_source(self, source: str) -> None:
        """Check config and weights; for a hub model, only small files are downloaded."""
        folder = self._folder(source, weights=False)
        if Path(source).is_dir():
            check_weights(folder, source)

    def check_head(self, source: str, head: str) -> None:
        """Check that transformers has the head for this config, and for vectors the sentence-transformers files."""
        request = LoadRequest(source, head, processor=False)
        config, _ = self._beside_weights(self._folder(source, weights=False), request)
        auto_class(head, config, source, **self._code)
        if head == HEADLESS:
            sentence_encoder(Path(config._name_or_path), source)

    def provenance(self, source: str) -> Provenance:
        return of_folder(Path(source)) if Path(source).is_dir() else of_hub(source)

    def runs_code(self, source: str) -> str | None:
        """Return what code runs, if `trust_remote_code` is set."""
        return "Python code that comes with the model" if self.config.trust_remote_code else None

    def load_processor(self, source: str) -> Any:
        """Load the tokenizer, or the image processor if the model has no tokenizer or the option asks for it.

        A model that reads audio, or pictures with text, gets all of its processor.
        """
        folder = self._folder(source, weights=False)
        requested = self.config.processor
        texts = _holds(folder, VOCABULARIES) or (folder / "tokenizer_config.json").exists()
        if requested in ("auto", "all") and _holds(folder, PREPROCESSORS):
            with reading(source):
                config = transformers.AutoConfig.from_pretrained(folder, **self._code)
                if texts and (requested == "all" or reads_pictures(config) or reads_audio(config)):
                    return transformers.AutoProcessor.from_pretrained(folder, **self._code)
                if reads_audio(config):
                    return transformers.AutoFeatureExtractor.from_pretrained(folder, **self._code)
        if texts and requested != "image":
            with reading(source):
                tokenizer = transformers.AutoTokenizer.from_pretrained(folder, **self._code)
                # Without files transformers silently builds an empty tokenizer; byte-level ones need none.
                if _holds(folder, VOCABULARIES) or not tokenizer.vocab_files_names:
                    return pad_with_eos(tokenizer)
        elif requested != "tokenizer" and _holds(folder, PREPROCESSORS):
            from transformers import AutoImageProcessor  # imports torchvision and much of torch

            with reading(source):
                # Always use one backend: torchvision and Pillow resize differently.
                return AutoImageProcessor.from_pretrained(folder, backend="pil", **self._code)
        raise SourceError(
            f"{source!r} has no tokenizer vocabulary and no image processor. Put the model's tokenizer.json and "
            "tokenizer_config.json (or preprocessor_config.json) beside its config.json."
        )

    def load(self, request: LoadRequest) -> LoadedModel:
        folder = self._folder(request.source, weights=True)
        check_weights(folder, request.source)
        return load_pretrained(request, folder, *self._beside_weights(folder, request), **self._code)

    def load_skeleton(self, request: LoadRequest) -> LoadedModel:
        folder = self._folder(request.source, weights=False)
        stored = stored_shapes(folder, request.source)
        return build_skeleton(request, *self._beside_weights(folder, request), stored=stored, **self._code)

    def _beside_weights(self, folder: Path, request: LoadRequest) -> tuple[Any, Any]:
        """Return the config and, if requested, the processor."""
        attention = self.config.attention
        chosen = {} if attention == "auto" else {"attn_implementation": attention}
        if attention == "flash_attention_2" and not transformers.utils.is_flash_attn_2_available():
            raise SourceError(
                "model.loader.attention flash_attention_2 needs an NVIDIA GPU and the package flash-attn, and one is "
                "missing. Set it to auto, sdpa or eager."
            )
        with reading(request.source):
            config = transformers.AutoConfig.from_pretrained(folder, **self._code, **chosen)
        return config, self.load_processor(request.source) if request.processor else None

    @property
    def _code(self) -> dict[str, bool]:
        return {"trust_remote_code": self.config.trust_remote_code}

    def _folder(self, source: str, *, weights: bool) -> Path:
        """Return the checked folder of the model, downloaded into the hub's cache if it is not local."""
        place = Path(source)
        local = place.is_dir()
        if local and self.config.revision is not None:
            raise SourceError(
                f"{source!r} is a folder, but only hub models have revisions. Remove {self.config.revision!r}."
            )
        if not local and (place.exists() or not HUB_ID.fullmatch(source)):
            raise SourceError(
                f"{source!r} is neither a folder nor the name of a hub model. Give a folder, or owner/name."
            )
        folder = self._inside(place if local else Path(self._fetch(source, weights=weights)))
        self._check_config(folder, source)
        return folder

    def _inside(self, folder: Path) -> Path:
        return folder / self.config.subfolder if self.config.subfolder else folder

    def _fetch(self, source: str, *, weights: bool) -> str:
        patterns = ["*.json", "*.txt", "*.model", "*.jinja"]  # configuration and vocabularies, never pickles
        patterns += ["model.safetensors", "model-*.safetensors"] if weights else []
        patterns += ["*.py"] if self.config.trust_remote_code else []
        prefix = f"{self.config.subfolder}/" if self.config.subfolder else ""
        try:
            return huggingface_hub.snapshot_download(
                source,
                revision=self.config.revision,
                allow_patterns=[prefix + pattern for pattern in patterns],
                ignore_patterns=[f"{prefix}[!1]*/*"],  # `*` matches across folders; 1_Pooling says how to pool
            )
        # The hub client raises its own, httpx's and the system's errors; all mean that the download failed.
        except Exception as error:
            why = next((why for cls, why in NOT_FETCHED.items() if isinstance(error, cls)), UNKNOWN_FAILURE)
            text = why.format(source=source, revision=self.config.revision, cause=cause(error))
            raise SourceError(f"there is no folder {source!r}, and {text}") from error

    def _check_config(self, folder: Path, source: str) -> None:
        refuse_adapter(folder, source)
        file = folder / "config.json"
        if not file.is_file():
            names = ", ".join(sorted(path.name for path in folder.glob("*"))[:8]) if folder.is_dir() else ""
            raise SourceError(
                f"{source!r} has no config.json{f' in {folder.name!r}' if self.config.subfolder else ''} "
                f"(found: {names or 'nothing'}). A model folder holds config.json, {WEIGHTS} and tokenizer files."
            )
        config = read_json(file, source)
        require_possible(config, source)
        kind = config.get("model_type")
        if kind is not None and not isinstance(kind, str):
            raise SourceError(f"config.json of {source!r} has model_type {shown(kind)}; it must be a text.")
        if kind is None and "pretrained_cfg" in config:
            raise SourceError(
                f"{source!r} is a model of timm. Give it as a folder, or write timm://{config.get('architecture')} "
                "with model.loader: {name: timm, weights: library}."
            )
        remote = "auto_map" in config
        types = transformers.CONFIG_MAPPING
        if kind is not None and kind not in types and not (remote and self.config.trust_remote_code):
            cure = did_you_mean(kind, types)
            if remote:
                cure = " It brings its own code; review that, then write `loader: {name: transformers, "
                cure += "trust_remote_code: true}` to run it."
            raise SourceError(f"{source!r} has model_type {kind!r}, unknown to this version of transformers.{cure}")
        named = config.get("transformers_weights")
        if named is not None and named not in (WEIGHTS, INDEX):
            raise SourceError(f"{source!r}: config.json names weights {named!r}; only {WEIGHTS} and {INDEX} are read.")


def check_weights(folder: Path, source: str) -> None:
    """Read the headers of a folder's safetensors weights (SourceError: missing, damaged or pickled)."""
    shards = sorted(_shards(folder, source))
    if not shards:
        pickles = sorted(path.name for pattern in PICKLES for path in folder.glob(pattern))
        if not pickles:
            raise SourceError(
                f"{source!r} has no weights in safetensors: neither {WEIGHTS} nor {INDEX}. Pickled weights "
                "(pytorch_model.bin, …) can run code when read, so they have to be converted first."
            )
        cls = (read_json(folder / "config.json", source).get("architectures") or ["AutoModel"])[0]
        raise SourceError(
            f"{source!r} holds weights only as {pickles[0]}, which can run code when read; only safetensors is read. "
            f"If you trust it, convert it: transformers.{cls}.from_pretrained({source!r}).save_pretrained('NEW'), and "
            "copy the tokenizer files."
        )
    if missing := [shard for shard in shards if not (folder / shard).is_file()]:
        raise SourceError(
            f"{source!r} lacks {len(missing)} of {len(shards)} weight files, {missing[0]!r} first. Fetch them again."
        )
    for shard in shards:
        stored_tensors(folder / shard, source)


def stored_shapes(folder: Path, source: str) -> dict[str, Shape | None] | None:
    """Return the shape of each tensor that a folder's weights hold, by reading their headers; None without weights.

    For a missing shard the names come from the index, with shape None (SourceError: a shard is damaged).
    """
    shards = _shards(folder, source)
    shapes: dict[str, Shape | None] = {name: None for names in shards.values() for name in names}
    for shard in shards:
        if (folder / shard).is_file():
            shapes |= stored_tensors(folder / shard, source)
    return shapes if shards else None


def _shards(folder: Path, source: str) -> dict[str, list[str]]:
    """Return a folder's weight files with the tensors that the index lists in each; {} if there are none."""
    if (folder / WEIGHTS).exists():
        return {WEIGHTS: []}
    if not (folder / INDEX).exists():
        return {}
    weight_map = read_json(folder / INDEX, source).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise SourceError(f"{INDEX} of {source!r} has no weight_map, so its shards are unknown.")
    shards: dict[str, list[str]] = {}
    for name, shard in weight_map.items():
        if not isinstance(shard, str) or Path(shard).name != shard or not shard.endswith(".safetensors"):
            raise SourceError(
                f"{INDEX} of {source!r} names {shown(shard)} for {name!r}; shards must be .safetensors files beside it."
            )
        shards.setdefault(shard, []).append(name)
    return shards


def _holds(folder: Path, patterns: tuple[str, ...]) -> bool:
    return any(next(folder.glob(pattern), None) is not None for pattern in patterns)


CARD = "README.md"
SNAPSHOT = re.compile(r"models--([\w.-]+?)--([\w.-]+)")
"""Name of a model's folder in the hub's cache."""


def of_folder(folder: Path) -> Provenance:
    """Return the licence of the card in a folder, and the name on the hub if the folder is in the hub's cache."""
    cached = next(filter(None, (SNAPSHOT.fullmatch(part) for part in folder.absolute().parts)), None)
    return Provenance("/".join(cached.groups()) if cached else "", _license(folder / CARD))


def of_hub(name: str) -> Provenance:
    """Return the licence of a hub model's card, if the card is in the local cache."""
    from huggingface_hub import try_to_load_from_cache

    file = try_to_load_from_cache(name, CARD)
    return Provenance(name, _license(Path(file)) if isinstance(file, str) else "")


def _license(file: Path) -> str:
    """Return the licence of a card, or its name if it is "other"; "" if the card states none."""
    if not file.is_file():
        return ""
    match = re.match(r"---\r?\n(.*?)\r?\n---", file.read_text(encoding="utf-8", errors="replace"), re.DOTALL)
    try:
        front: Any = yaml.safe_load(match[1]) if match else None
    except yaml.YAMLError:
        return ""
    if not isinstance(front, dict):
        return ""
    stated = front.get("license_name") if front.get("license") == "other" else front.get("license")
    return stated if isinstance(stated, str) else ""
