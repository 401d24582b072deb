"""Whether an answer is right: the last number in it is the one that is wanted."""

import re


def right(answer: str, wanted: str) -> bool:
    numbers = re.findall(r"-?\d[\d,]*(?:\.\d+)?", answer)
    return bool(numbers) and numbers[-1].replace(",", "") == wanted
