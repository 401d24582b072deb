"""The date of a run; runs of one command, such as folds, share the date of the first."""

from __future__ import annotations

import os
from datetime import date

DATE = "_FTENGINE_DATE"
"""Environment variable with which a command passes its date to the runs that it starts."""


def current_date() -> date:
    """Return the date of a run that begins now."""
    value = os.environ.get(DATE)
    return date.fromisoformat(value) if value else date.today()
