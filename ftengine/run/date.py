"""The day that a run begins on; runs that belong together, as folds do, have that of the first."""

from __future__ import annotations

import os
from datetime import date

DATE = "_FTENGINE_DATE"
"""The variable by which a command gives its day to the runs that it starts."""


def current_date() -> date:
    """Return the day on which a run that begins now begins."""
    given = os.environ.get(DATE)
    return date.fromisoformat(given) if given else date.today()
