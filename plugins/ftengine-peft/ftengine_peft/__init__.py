"""The tuning methods of PEFT as strategies: `peft-ia3`, `peft-oft`, `peft-vera`, ….

Beside the strategies, `LEFT_OUT` says why a method of PEFT is none of them.
"""

from __future__ import annotations

from ftengine import api, hookimpl
from ftengine_peft.methods import LEFT_OUT

__all__ = ["LEFT_OUT", "ftengine_strategies"]


@hookimpl
def ftengine_strategies() -> list[type[api.Strategy]]:
    from ftengine_peft.offered import strategies

    return strategies()
