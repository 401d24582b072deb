"""Text for people, as `ftengine.text` makes it."""

from ftengine.text import cut, duration, number, one_line, printable, share, size

__all__ = ["cut", "duration", "number", "one_line", "printable", "share", "size"]
