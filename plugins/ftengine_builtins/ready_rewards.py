"""Rewards of the box: 1 for an answer that is right, else 0. Each runs in the scoring process, as a user's would.

The file is opened there by itself, so it imports nothing of ftengine.
"""

from __future__ import annotations

import json
import re
from typing import Any


def exact_match(answer: str, wanted: Any) -> bool:
    """Say whether an answer is the text, or the number, that is wanted; blanks around it do not count."""
    return answer.strip() == str(wanted).strip()


def regex(answer: str, pattern: str) -> bool:
    """Say whether a regular expression matches a whole answer, but for blanks around it."""
    return re.fullmatch(pattern, answer.strip(), re.DOTALL) is not None


def json_schema(answer: str, schema: dict[str, Any]) -> bool:
    """Say whether an answer is JSON that a JSON Schema allows (`pip install jsonschema`)."""
    import jsonschema

    try:
        jsonschema.validate(json.loads(answer), schema)
    except (ValueError, RecursionError, jsonschema.ValidationError):
        return False
    return True
