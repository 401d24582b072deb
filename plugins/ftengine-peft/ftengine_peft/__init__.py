"""The tuning methods of PEFT as strategies: `peft-ia3`, `peft-oft`, `peft-vera`, ….

`LEFT_OUT` has PEFT's other methods, with the reasons why they are no strategies.
"""

from __future__ import annotations

from ftengine import api, hookimpl
from ftengine_peft.methods import LEFT_OUT

__all__ = ["LEFT_OUT", "ftengine_strategies"]


@hookimpl
def ftengine_strategies() -> list[type[api.Strategy]]:
    from ftengine_peft.offered import strategies

    return strategies()
