"""A trained reward model, a run of task `reward`, as a reward of answers; it is opened in the scoring process."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any


@cache
def _opened(run: str) -> Any:
    from ftengine import load_run

    return load_run(run)


def run_reward(answer: str, run: str, prompt: Any = None, messages: Sequence[Any] | None = None) -> float:
    """Return the score that a run of task `reward` gives to an answer to a row's prompt, or messages."""
    if messages is not None:
        asked = messages[:-1] if messages[-1].get("role") == "assistant" else messages
        row: dict[str, Any] = {"messages": [*asked, {"role": "assistant", "content": answer}]}
    elif isinstance(prompt, str):
        row = {"prompt": prompt, "completion": answer}
    else:
        row = {"messages": [*prompt, {"role": "assistant", "content": answer}]}
    (scored,) = _opened(run).predict([row])
    return float(scored["reward"])
