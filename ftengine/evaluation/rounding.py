"""The distance of log-probabilities that rounded weights cause, for each quantisation type."""

from __future__ import annotations

import re

NOISE = {"f32": 0.005, "f16": 0.01, "bf16": 0.08, "q8_0": 0.1}
"""The largest distance of a token's log-probability that weights of a type explain, in the mean, where activations
are of 16 or 8 bits too; docs/serving.md has what was measured."""
USUAL = "q8_0"
"""What is taken to be served where nothing is claimed: it explains 16 bits too."""

LIKE = {
    "fp8": "q5_1",
    "q6_k": "q5_1",
    "q5_1": "q5_1",
    "q5_k": "q5_0",
    "q5_0": "q5_0",
    "q4_1": "q4_1",
    "q4_k": "q4_0",
    "q4_0": "q4_0",
    "int4": "q4_0",
}
"""Coarser types, and those as coarse to which the tuned model is rounded to see how far that brings it."""
ROOM = 1.5
"""So many times that distance is explained by a coarser type: programs round activations too."""

TYPES = (*NOISE, *LIKE)
"""From fine to coarse."""

_NAMES = {
    "f32": "f32|fp32|float32",
    "f16": "f16|fp16|float16",
    "bf16": "bf16|bfloat16",
    "q8_0": "q8_0|int8|w8a8|w8a16|8-?bit",
    "fp8": "fp8(?:-dynamic)?",
    "q6_k": "q6_k",
    "q5_1": "q5_1",
    "q5_k": "q5_k(?:_[sml])?",
    "q5_0": "q5_0",
    "q4_1": "q4_1",
    "q4_k": "q4_k(?:_[sml])?",
    "q4_0": "q4_0",
    "int4": "int4|w4a16|4-?bit|awq|gptq|nf4|mxfp4|iq4_(?:nl|xs)",
}


def claimed_type(name: str) -> str:
    """Return the type of `TYPES` that a served model's name contains; "" if it contains none or several."""
    claims = [
        kind for kind, words in _NAMES.items() if re.search(rf"(?<![a-z0-9])(?:{words})(?![a-z0-9])", name.lower())
    ]
    return claims[0] if len(claims) == 1 else ""


def coarser(some: str, other: str) -> bool:
    """Return whether a type is coarser than another one."""
    return TYPES.index(some) > TYPES.index(other)
