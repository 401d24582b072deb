"""Fixing the date that a chat template writes to the run's date.

transformers gives templates `strftime_now`, which reads the clock: a model would be trained, measured and served with
prompts of different dates, and cached results of one date would not fit another.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import date, datetime, time
from typing import Any
from weakref import WeakKeyDictionary

VARIABLE = "strftime_now"
"""What templates call to write the day."""

_dates: WeakKeyDictionary[Any, date] = WeakKeyDictionary()


def fix_date(processor: Any, day: date) -> None:
    """Fix the date (at midnight) that a processor's chat template writes wherever ftengine applies it."""
    if getattr(processor, "chat_template", None):
        _dates[processor] = day


def template_date(processor: Any) -> date | None:
    """Return the date that a processor's chat template writes (today if none is fixed); None if it writes none."""
    if VARIABLE not in str(getattr(processor, "chat_template", None)):
        return None
    return _dates.get(processor) or date.today()


@contextmanager
def writing_date(processor: Any, template: str) -> Iterator[None]:
    """Within the block, let a chat template of a processor write the processor's date.

    transformers turns all template arguments into text, functions included, so `strftime_now` is replaced in the
    template that transformers has compiled.
    """
    from transformers.utils.chat_template_utils import _compile_jinja_template

    if VARIABLE not in template:
        yield
        return
    _compile_jinja_template(template).globals[VARIABLE] = _strftime_now
    token = _written.set(template_date(processor))
    try:
        yield
    finally:
        _written.reset(token)


_written: ContextVar[date | None] = ContextVar("written", default=None)


def _strftime_now(format: str) -> str:
    day = _written.get()
    return (datetime.now() if day is None else datetime.combine(day, time())).strftime(format)
