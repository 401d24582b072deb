"""A reader of a format of text.

A place is a line's number, or text that goes behind the source's name (`[3]`). A broken row ends the command, or is
left out and counted under `data.on_error: skip`; raised instead of yielded, it says that nothing after it can be read.
`text_lines` reads UTF-8, and UTF-16 with a byte order mark, and says what cannot be decoded. A reader that goes by
more than the suffix derives from `Reader` and writes `accepts`.
"""

import re

from ftengine.api import BrokenRow, FileReader, Row
from ftengine.data import text_lines


class TicketLog(FileReader):
    """Logs of tickets: `[label] text` on each line."""

    name = "ticket-log"
    suffixes = (".log",)

    def read(self, source):
        for number, line, problem in text_lines(source):
            found = re.fullmatch(r"\[(\w+)\] (.+)", line.strip())
            if problem or not found:
                yield BrokenRow(number, problem or "no line of the form [label] text")
            else:
                yield Row(number, {"label": found[1], "text": found[2]})
