"""The built-in rewards: 1 for a right answer, else 0. They run in the scoring process, like a user's functions.

The scoring process imports only this file, so it must not import ftengine.
"""

from __future__ import annotations

import json
import re
from typing import Any


def exact_match(answer: str, wanted: Any) -> bool:
    """Return whether an answer equals the expected text or number, apart from surrounding white space."""
    return answer.strip() == str(wanted).strip()


def regex(answer: str, pattern: str) -> bool:
    """Return whether a regular expression matches a whole answer, apart from surrounding white space."""
    return re.fullmatch(pattern, answer.strip(), re.DOTALL) is not None


def json_schema(answer: str, schema: dict[str, Any]) -> bool:
    """Return whether an answer is JSON that is valid under a JSON Schema (`pip install jsonschema`)."""
    import jsonschema

    try:
        jsonschema.validate(json.loads(answer), schema)
    except (ValueError, RecursionError, jsonschema.ValidationError):
        return False
    return True
