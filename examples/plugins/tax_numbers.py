"""An audit: it looks at every run's data before anything trains."""

import re
from functools import reduce

from ftengine.api import Audit, Finding


class TaxNumbers(Audit):
    """Look for German tax numbers (11 digits, the last a check digit by ISO 7064 MOD 11,10)."""

    name = "german-tax-numbers"

    def examine(self, data):
        for rows in data.splits.values():
            found = [i for i, text in enumerate(rows.texts()) if any(map(valid, re.findall(r"\b[1-9]\d{10}\b", text)))]
            if found:
                text = f"{len(found)} rows of {rows.source} hold German tax numbers."
                yield Finding(kind="data", level="note", text=text, places=tuple(map(rows.where, found[:3])))


def valid(number):
    product = reduce(lambda product, digit: ((int(digit) + product) % 10 or 10) * 2 % 11, number[:10], 10)
    return (11 - product) % 10 == int(number[10])
