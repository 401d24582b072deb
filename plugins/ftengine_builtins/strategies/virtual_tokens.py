"""Shared by prompt tuning and prefix tuning: options, files, preparing, and initial virtual tokens."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from ftengine.api import Config, LoadedModel, Strategy, StrategyTraits
from ftengine.errors import RecipeError
from ftengine.model import copy_into
from ftengine.model.token_loss import is_encoder_decoder
from ftengine_builtins.strategies import peft_format
from ftengine_builtins.strategies.adapter_config import follow, require_base_of, require_same
from ftengine_builtins.strategies.peft_format import AdapterConfig
from ftengine_builtins.strategies.prompt_stack import VirtualTokens, require_fit
from ftengine_builtins.strategies.targets import freeze_base, input_embeddings, param_groups

EMBEDDINGS = "prompt_embeddings"
"""PEFT's key of the one tensor that both methods have."""

PREFIX = "base_model."
"""Before a module's path in the keys of modules trained whole; PEFT's adapters of layers have one step more."""

Count = Annotated[int, Field(ge=1)]
Ratio = Annotated[float, Field(gt=0, le=1e6, description="learning rate of virtual tokens over train.learning_rate")]


class VirtualTokensFile(AdapterConfig):
    """The content of an adapter_config.json for virtual tokens; subclasses name the method.

    Args:
        token_dim: width of a virtual token; of a prefix, of one layer's keys.
        num_layers, num_attention_heads: of the model; of a prefix, the heads of its keys.
        num_transformer_submodules: 1; PEFT's prompts for encoder-decoders may have 2, of which it uses the first.
    """

    advice = "Use that adapter with PEFT."
    # `prompt_embeddings` holds what training made of the initialisation, and what a prefix's projection came to.
    without_effect = AdapterConfig.without_effect | {
        *("prompt_tuning_init", "prompt_tuning_init_text", "tokenizer_name_or_path", "tokenizer_kwargs"),
        *("encoder_hidden_size", "prefix_projection", "init_weights"),
    }

    virtual_tokens: Count = Field(alias="num_virtual_tokens")
    token_dim: Count
    num_layers: Count
    num_attention_heads: Count
    num_transformer_submodules: Count

    @model_validator(mode="before")
    @classmethod
    def _submodules(cls, content: dict[str, Any]) -> dict[str, Any]:
        """Fill in PEFT's default, as PEFT does when it prepares a model."""
        return {"num_transformer_submodules": 2 if content.get("task_type") == "SEQ_2_SEQ_LM" else 1, **content}


class VirtualTokenOptions(Config):
    """Options that both have."""

    File: ClassVar[type[VirtualTokensFile]]
    """What PEFT's adapter_config.json says of the method."""
    meant: ClassVar[Mapping[str, str]] = dict.fromkeys(
        ("num_virtual_tokens", "prompt_length", "num_tokens", "tokens", "length"), "virtual_tokens"
    ) | {"prompt_tuning_init": "init", "prompt_tuning_init_text": "text"}

    virtual_tokens: int = Field(20, ge=1, description="number of virtual tokens before every input")
    init: Literal["vocabulary", "text", "random"] = Field(
        "vocabulary",
        description="initial virtual tokens: random tokens of the vocabulary, the tokens of a text (for a "
        "prefix, their keys and values), or normal random numbers of the same scale",
    )
    lr_ratio: Ratio
    text: str | None = Field(
        None, min_length=1, description="the text that init: text starts from, repeated or cut to virtual_tokens"
    )
    start_from: str | None = Field(
        None, description="folder of a PEFT adapter of the same kind to continue; it sets virtual_tokens"
    )

    @model_validator(mode="after")
    def _follow_start_from(self) -> VirtualTokenOptions:
        if (self.text is not None) != (self.init == "text"):
            raise RecipeError(
                f"strategy.init is {self.init!r} and strategy.text is {self.text!r}. Set both init: text "
                "and a text, or neither."
            )
        follow(self, self.File.read, ["virtual_tokens"])
        return self


class VirtualTokenStrategy(Strategy):
    """Inserts virtual tokens into a model's text stack, and freezes the rest."""

    traits = StrategyTraits(supports_sharding=True)

    def stack(self, loaded: LoadedModel) -> Any:
        """Return the module that virtual tokens enter: a decoder, or the encoder of an encoder-decoder.

        A model that reads no tokens is refused (RecipeError).
        """
        module: Any = loaded.module
        embeddings = input_embeddings(module)
        if not isinstance(embeddings, nn.Embedding):
            begins = f" (its input goes into a {type(embeddings).__name__})" if embeddings is not None else ""
            raise RecipeError(
                f"strategy {self.name} puts virtual tokens before those of a text, but {type(module).__name__} has no "
                f"token embeddings{begins}. Choose a strategy that adapts layers, such as lora, adapter or full."
            )
        return module.get_encoder() if is_encoder_decoder(module) else module.get_decoder()

    def enter(self, loaded: LoadedModel, stack: Any) -> None:
        """Put virtual tokens into a stack."""
        raise NotImplementedError

    def described(self, loaded: LoadedModel) -> tuple[VirtualTokensFile, Tensor, dict[str, Any]]:
        """Return PEFT's config, the virtual tokens in PEFT's form, and further keys that PEFT requires."""
        raise NotImplementedError

    def own(self, loaded: LoadedModel) -> bool:
        """Return whether only ftengine can run the result; mostly PEFT can."""
        return False

    def prepared(self, loaded: LoadedModel) -> Any:
        """Return the module that virtual tokens have entered."""
        return next(stack for stack in _stacks(loaded.module) if stack.virtual_parameters())

    def prepare(self, loaded: LoadedModel) -> None:
        count, limit = self.config.virtual_tokens, loaded.max_length
        stack = self.stack(loaded)
        require_fit(stack, self.name)
        if limit is not None and limit - count < 2:
            raise RecipeError(
                f"strategy.virtual_tokens {count} leave no room for a text: {loaded.source!r} reads {limit} tokens. "
                f"Allowed: 1 to {limit - 2}."
            )
        freeze_base(loaded)
        self.enter(loaded, stack)
        if self.config.start_from is not None:
            require_base_of(Path(self.config.start_from), loaded)
            self.load(loaded, Path(self.config.start_from))
        if limit is not None:
            loaded.max_length = limit - count

    def save(self, loaded: LoadedModel, directory: Path) -> None:
        """Write PEFT's files: adapter_config.json and adapter_model.safetensors; a projection is multiplied out.

        If PEFT cannot run the result, the same under ftengine's own file names.
        """
        file, embeddings, others = self.described(loaded)
        file, own = file.model_copy(update={"modules_to_save": peft_format.modules_to_save(loaded)}), self.own(loaded)
        file.write(directory, loaded, own, **others)
        peft_format.write_weights(directory, _tensors(loaded, embeddings), own)

    def load(self, loaded: LoadedModel, directory: Path) -> None:
        """Read virtual tokens of the same kind, trained here or by PEFT, into a prepared model.

        Refused are a folder without such an adapter (RunError), and another number, shape or keys (BaseMismatch).
        """
        file, tensors = self.config.File.read(directory), peft_format.read_weights(directory)
        expected, embeddings, _ = self.described(loaded)
        require_same(expected, file, ["virtual_tokens"], directory)
        if file.num_transformer_submodules == 2 and is_encoder_decoder(loaded.module) and EMBEDDINGS in tensors:
            # PEFT makes a second half for the decoder, and never uses it.
            tensors[EMBEDDINGS] = tensors[EMBEDDINGS][: len(embeddings)]
        copy_into(_tensors(loaded, embeddings), tensors, str(directory))

    @property
    def starts_from(self) -> str | None:
        return self.config.start_from

    def loading_options(self) -> dict[str, Any]:
        # The run's own adapter has the number of virtual tokens and all that came from start_from.
        return self.config.model_dump(mode="json") | {"start_from": None}

    def param_groups(self, model: nn.Module, learning_rate: float, weight_decay: float) -> list[dict[str, Any]]:
        """Group trainable parameters: virtual tokens at `lr_ratio` times the rate, a fresh head at the rate itself."""
        fast = {id(parameter) for stack in _stacks(model) for parameter in stack.virtual_parameters()}
        ratio = self.config.lr_ratio
        return param_groups(model, weight_decay, lambda _, p: learning_rate * (ratio if id(p) in fast else 1.0))


def _stacks(model: nn.Module) -> list[VirtualTokens]:
    return [module for module in model.modules() if isinstance(module, VirtualTokens)]


def _tensors(loaded: LoadedModel, embeddings: Tensor) -> dict[str, Tensor]:
    """Return the tensors by PEFT's keys: the virtual tokens, and modules that train whole."""
    return {EMBEDDINGS: embeddings, **peft_format.whole_tensors(loaded, PREFIX)}


def starting_tokens(loaded: LoadedModel, embedding: nn.Embedding, config: VirtualTokenOptions) -> Tensor:
    """Return (virtual tokens,) token ids: a text's, repeated or cut to length, or ordinary tokens drawn uniformly.

    A text without tokens is refused (RecipeError).
    """
    processor: Any = loaded.processor
    text, count = config.text, config.virtual_tokens
    if text is None:
        # The table may have more rows than the tokenizer has tokens, and special tokens are of another kind.
        known = min(len(processor), embedding.num_embeddings) if hasattr(processor, "get_vocab") else None
        usable = torch.ones(known or embedding.num_embeddings, dtype=torch.bool)
        usable[[token for token in getattr(processor, "all_special_ids", ()) if token < len(usable)]] = False
        candidates = usable.nonzero()[:, 0] if usable.any() else torch.arange(len(usable))
        return candidates[torch.randint(len(candidates), (count,))]
    if processor is None and embedding.weight.is_meta:
        return torch.zeros(count, dtype=torch.long)  # parameters are counted from a config alone, without a tokenizer
    if not callable(processor):
        raise RecipeError(
            f"strategy.init is text, but {loaded.source!r} has no tokenizer. Set strategy.init=vocabulary."
        )
    if not (ids := processor(text, add_special_tokens=False)["input_ids"]):
        raise RecipeError(f"strategy.text {text!r} has no tokens in this model's vocabulary. Give it some words.")
    return torch.tensor((ids * math.ceil(count / len(ids)))[:count])
