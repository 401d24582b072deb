"""Options of a method, made from the fields of PEFT's configuration class."""

from __future__ import annotations

import copy
import dataclasses
import re
import typing
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Annotated, Any, ClassVar, cast

from peft import PeftConfig
from pydantic import AfterValidator, Field, create_model, model_validator

from ftengine import api
from ftengine.model import regex
from ftengine_peft.methods import IGNORED, LORA_INITS, PEFT_CHOOSES

ALL_LINEAR = "all-linear"

OWNED = frozenset(
    {
        *("auto_mapping", "base_model_name_or_path", "inference_mode", "modules_to_save", "peft_type", "peft_version"),
        *("revision", "task_type"),
        "fan_in_fan_out",  # PEFT sets it by the layer's class
        "progressbar",
    }
)
"""Fields that ftengine or PEFT itself sets."""

UNUSABLE = frozenset(
    {
        "alora_invocation_tokens",  # needs a forward pass of PEFT's own
        *("layer_replication", "target_parameters", "trainable_token_indices"),  # change more than the chosen modules
        *("megatron_config", "megatron_core"),
        *("qalora_group_size", "use_qalora"),  # for bases quantised by GPTQ
        *("runtime_offload_base_weight", "save_only_topk_weights"),
    }
)
"""Fields that do not work within a strategy. So are all that hold settings of their own, such as `corda_config`."""


NOT_FOLLOWED = (
    "Invalid `",
    "Setting boft_n_butterfly_factor to 1",
    r"The following \w+ keys did not match",
    "You have passed exclude_modules",
    r"`\w+` is only used when",
)
"""How warnings of PEFT begin where it goes on with other options than it was given."""


@contextmanager
def strictly(config: Any = None) -> Iterator[None]:
    """Within the block, turn PEFT's warnings about ignored options into errors (UserWarning).

    Args:
        config: PEFT's configuration, if it exists already.
    """
    with warnings.catch_warnings():
        for message in NOT_FOLLOWED:
            warnings.filterwarnings("error", message=message)
        if getattr(config, "boft_n_butterfly_factor", 1) == 1:  # PEFT says so even then, where it has no CUDA kernel
            warnings.filterwarnings("ignore", message=NOT_FOLLOWED[1])
        yield


class PeftOptions(api.Config):
    """Options of a PEFT method, which PEFT's own class checks too."""

    made_from: ClassVar[type[PeftConfig]]
    meant: ClassVar[Mapping[str, str]] = {
        "modules_to_save": "There is no such option: a fresh head trains and is saved always.",
        "task_type": "There is no such option: the recipe's task says what the model is for.",
    }

    def peft_config(self, **further: Any) -> PeftConfig:
        """Return a new PEFT configuration with these options and further fields.

        Raises:
            ValueError, TypeError, NotImplementedError: PEFT refuses the options.
        """
        own = {name: copy.deepcopy(getattr(self, name)) for name in type(self).model_fields}
        return self.made_from(**own, **further)

    @model_validator(mode="after")
    def _suits_peft(self) -> PeftOptions:
        try:
            with strictly():
                self.peft_config()
        except (NotImplementedError, TypeError, Warning) as error:
            raise ValueError(f"PEFT refuses these options: {error}") from None
        return self


def options_of(peft_type: str, made_from: type[PeftConfig], base: type[PeftOptions] = PeftOptions) -> type[PeftOptions]:
    """Return the class of a method's options."""
    fields: dict[str, Any] = dict(_fields(peft_type, made_from))
    options = create_model(f"{made_from.__name__}Options", __base__=base, __module__=__name__, **fields)
    options.made_from = made_from
    options.meant = {**PeftOptions.meant, **dict(_words(fields))}
    options.__doc__ = f"Options of PEFT's {made_from.__name__}."
    return options


def _fields(peft_type: str, made_from: type[PeftConfig]) -> Iterator[tuple[str, tuple[Any, Any]]]:
    types = typing.get_type_hints(made_from)
    for field in dataclasses.fields(made_from):
        kind, default = types[field.name], cast(Any, field.default)
        if field.name in OWNED | UNUSABLE | IGNORED.get(peft_type, frozenset()) or _holds_settings(kind):
            continue
        description = _first_sentence(field.metadata.get("help", ""))
        if field.name == "target_modules":
            yield field.name, _targets(peft_type, kind)
        elif field.name == "init_lora_weights":
            yield field.name, (Annotated[bool | str, AfterValidator(_init)], Field(True, description=LORA_INITS))
        elif field.default_factory is not dataclasses.MISSING:
            yield field.name, (kind, Field(default_factory=field.default_factory, description=description))
        elif default is None and kind in (int, float):  # no number is None: PEFT needs one
            yield field.name, (kind, Field(description=description))
        elif kind in (int, float) and default >= 0:  # what PEFT makes of negative ranks is no error of its own
            yield field.name, (kind, Field(default, ge=0, description=description))
        else:
            yield field.name, (kind, Field(default, description=description))


def _words(fields: Iterable[str]) -> Iterator[tuple[str, str]]:
    """Pair what ftengine's own strategies call an option with PEFT's name of it, where the method has one."""
    for word, end in (("alpha", "_alpha"), ("dropout", "_dropout"), ("rank", "r"), ("targets", "target_modules")):
        names = [name for name in fields if name == end or (end.startswith("_") and name.endswith(end))]
        yield from [(word, names[0])] if names and word not in fields else []


def _targets(peft_type: str, kind: Any) -> tuple[Any, Any]:
    text = "a regular expression for whole module paths; or a list of module names or paths"
    if peft_type == "ADAPTION_PROMPT":
        return str | None, Field(None, description="name of the attention modules; by default PEFT's for the model")
    if peft_type in PEFT_CHOOSES:
        return Annotated[kind, AfterValidator(_pattern)], Field(None, description=f"{text}; null: PEFT's for the model")
    return Annotated[kind, AfterValidator(_pattern)], Field(
        ALL_LINEAR, description=f"{ALL_LINEAR}; {text}; null: PEFT's for the model"
    )


def _pattern(targets: Any) -> Any:
    if isinstance(targets, str):
        regex(targets)
    if targets == "" or (isinstance(targets, list) and not all(targets)) or targets == []:
        raise ValueError("name modules, or leave it out")
    return targets


def _init(value: Any) -> Any:
    if isinstance(value, str) and not re.fullmatch(r"gaussian|orthogonal|olora|pissa|pissa_niter_[1-9]\d*", value):
        raise ValueError(f"allowed: {LORA_INITS}; others need data or a quantised base")
    return value


def _holds_settings(kind: Any) -> bool:
    """Return whether a field's type is a dataclass, or may be one."""
    return dataclasses.is_dataclass(kind) or any(map(_holds_settings, typing.get_args(kind)))


def _first_sentence(help_: str | tuple[str, ...]) -> str:
    """Return the first sentence of PEFT's help on one line; a stray comma makes a tuple of some."""
    text = " ".join("".join(help_).split())
    ends = (match.start() for match in re.finditer(r"\.(?= [A-Z`'\"(]|$)", text))
    end = next((end for end in ends if not text[:end].endswith(("e.g", "i.e"))), len(text))
    return text[:end]
