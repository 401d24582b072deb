"""HTTP requests with limits: total time, size, no redirects, and no key in messages."""

from __future__ import annotations

import re
import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timezone
from email.utils import parsedate_to_datetime
from json import dumps
from urllib.parse import quote

import anyio
import httpx2
from anyio.from_thread import start_blocking_portal

from ftengine.errors import InputError
from ftengine.text import cut, printable

MOST_BYTES = 1 << 22
"""Of an answer."""
MOST_CHARACTERS = 200
"""Of what a server writes, in a message."""
IN_PLACE = "[key]"
"""What a message has where a server echoes the key."""
SHORTEST_KEY = 6
"""Characters from which a key is a secret: servers without one are given "EMPTY", which is a word of messages too."""


class Unanswered(Exception):
    """A connection failed or timed out."""


@dataclass(frozen=True)
class Response:
    """A server's response.

    Args:
        wait: seconds to wait before the next request (`Retry-After`); None if not given.
    """

    status: int
    reason: str
    body: bytes
    wait: float | None


class HttpClient:
    """Sends requests with a key, within limits.

    Args:
        key: of the API, sent as a header; "" sends none. Messages leave it out, unless it is as short as "EMPTY".
        timeout: seconds for one exchange, from the connection's beginning to the answer's last byte.
        max_time: seconds for all exchanges and pauses together.
    """

    def __init__(self, key: str, timeout: float, max_time: float) -> None:
        self.timeout, self.max_time, self._left = timeout, max_time, max_time
        # An answer that is packed could be of any size once it is unpacked.
        self._headers = {"Content-Type": "application/json", "Accept-Encoding": "identity"}
        self._forms = None
        if key:
            self._headers["Authorization"] = f"Bearer {key}"
        if len(key) >= SHORTEST_KEY:
            # Programs that quote it put backslashes in, and some break lines.
            forms = [r"[\\\s]*".join(map(re.escape, key)), re.escape(quote(key)), re.escape(quote(key, safe=""))]
            self._forms = re.compile("|".join(forms), re.IGNORECASE)

    def without_key(self, text: str) -> str:
        """Return the text with the key removed."""
        return text if self._forms is None else self._forms.sub(IN_PLACE, text)

    def shown(self, text: str) -> str:
        """Return a server's text for a message: on one line, shortened, without the key."""
        visible = "".join(c if c.isprintable() or c.isspace() else "" for c in text)
        return printable(cut(" ".join(self.without_key(visible).split()), MOST_CHARACTERS), keep="")

    def send(self, address: str, content: Mapping[str, object] | None) -> Response:
        """Send JSON (POST), or fetch an address (GET) without content.

        Raises:
            Unanswered: there is no response in time.
            InputError: the address is invalid, or the total time is used up.
        """
        data = None if content is None else dumps(content).encode()
        began, seconds = time.monotonic(), min(self.timeout, self._remaining())
        try:
            with start_blocking_portal() as portal:
                return portal.call(self._exchange, address, data, seconds)
        except TimeoutError:
            raise Unanswered(f"the answer takes longer than {seconds:.3g} s") from None
        except (httpx2.InvalidURL, httpx2.UnsupportedProtocol, UnicodeError, ImportError, ValueError) as error:
            raise InputError(f"{address} cannot be asked: {self.shown(str(error))}.") from None
        except (httpx2.HTTPError, OSError) as error:
            raise Unanswered(self.shown(str(error)) or type(error).__name__) from None
        finally:
            self._left -= time.monotonic() - began

    def pause(self, seconds: float) -> None:
        """Wait before another attempt (InputError: not enough time is left)."""
        if seconds >= self._remaining():
            raise InputError(
                f"the server is to be asked again in {seconds:g} s, and of the {self.max_time:g} s of --max-time "
                f"{self._left:.1f} are left. Ask later, or allow more time."
            )
        time.sleep(seconds)
        self._left -= seconds

    def _remaining(self) -> float:
        if self._left <= 0:
            raise InputError(
                f"the endpoint took the {self.max_time:g} s of --max-time. Ask for less, or allow more time."
            )
        return self._left

    async def _exchange(self, address: str, data: bytes | None, seconds: float) -> Response:
        with anyio.fail_after(seconds):  # whatever comes meanwhile: httpx bounds each read alone
            async with (
                httpx2.AsyncClient(headers=self._headers, timeout=seconds) as client,
                client.stream("GET" if data is None else "POST", address, content=data) as reply,
            ):
                content = bytearray()
                async for piece in reply.aiter_raw():
                    content += piece
                    if len(content) > MOST_BYTES:
                        break
                return Response(reply.status_code, reply.reason_phrase, bytes(content), _seconds(reply.headers))


def _seconds(headers: Mapping[str, str]) -> float | None:
    """Return the seconds of a Retry-After header, which holds a number or a date; None if it holds neither."""
    value = headers.get("Retry-After", "").strip()
    if value.isascii() and value.isdigit():
        return float(value[:9])
    try:
        at = parsedate_to_datetime(value)
    except (TypeError, ValueError, IndexError, OverflowError):
        return None
    at = at if at.tzinfo else at.replace(tzinfo=timezone.utc)
    return max(0.0, (at - datetime.now(timezone.utc)).total_seconds())
