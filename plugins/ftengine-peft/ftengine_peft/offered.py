"""A strategy for every method of PEFT, made from PEFT's own list."""

from __future__ import annotations

from typing import Any

from peft import PEFT_TYPE_TO_CONFIG_MAPPING

from ftengine import api
from ftengine_peft.adalora import AdaLoraOptions, AdaLoraStrategy
from ftengine_peft.methods import ABOUT, LEFT_OUT, citation_of, name_of
from ftengine_peft.options import PeftOptions, options_of
from ftengine_peft.strategy import PeftStrategy


def strategies() -> list[type[api.Strategy]]:
    """Return a strategy for every method of the installed PEFT, except those in `LEFT_OUT`."""
    classes: list[type[api.Strategy]] = []
    for kind, made_from in PEFT_TYPE_TO_CONFIG_MAPPING.items():
        peft_type = str(kind.value)
        if peft_type in ABOUT and peft_type not in LEFT_OUT:
            text, paper = ABOUT[peft_type]
            acts = peft_type == "ADALORA"
            members: dict[str, Any] = {
                "__doc__": f"Train {text} (PEFT's {peft_type}).",
                "__module__": __name__,
                "name": name_of(peft_type),
                "peft_type": peft_type,
                "Config": options_of(peft_type, made_from, AdaLoraOptions if acts else PeftOptions),
                **({"paper": citation_of(paper)} if paper else {}),
            }
            base = AdaLoraStrategy if acts else PeftStrategy
            classes.append(type(made_from.__name__.removesuffix("Config"), (base,), members))
    return classes
