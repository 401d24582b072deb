"""An OpenAI-compatible endpoint, asked within bounds: time, retries, size; nothing is sent but what is asked."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from http.client import HTTPException, IncompleteRead
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.parse import urlsplit
from urllib.request import HTTPRedirectHandler, Request, build_opener

from ftengine.api import Prompt
from ftengine.errors import InputError, shown

ROOM = 1 << 22
"""Bytes of a reply that are read."""
PAUSE = 0.5
"""Seconds before the first retry; each further one waits twice as long."""
AGAIN = (408, 409, 425, 429, 500, 502, 503, 504)
"""Statuses of a server that may answer later."""


class _Refused(InputError):
    """A request holds what the endpoint does not take."""


class _NoRedirect(HTTPRedirectHandler):
    """Follow none: a key must not go to another host."""

    def redirect_request(self, *args: Any) -> None:
        return None


@dataclass(frozen=True)
class Reply:
    """An endpoint's answer.

    Args:
        ended: whether it ended by itself; None where the endpoint does not say.
        prompt_tokens: how many tokens it read; None where it does not say.
        log_probabilities: of the tokens that it wrote; none where it does not say.
    """

    text: str
    ended: bool | None
    prompt_tokens: int | None = None
    log_probabilities: tuple[float, ...] = ()


class Endpoint:
    """An endpoint of OpenAI's API.

    Args:
        url: of the API, such as http://localhost:8000/v1.
        model: its name there; "" takes the only one that there is.
        key: name of the environment variable that holds the key; the key is sent as a header and never written.
        timeout: seconds for one request.
        retries: of one request, where the connection fails or the server says that it is busy.

    Raises:
        InputError: it cannot be reached, or does not answer as such an endpoint does.
    """

    def __init__(self, url: str, model: str, *, key: str, timeout: float, retries: int) -> None:
        if urlsplit(url).scheme not in ("http", "https") or not urlsplit(url).netloc:
            raise InputError(f"--url {url!r}: write the API's address, such as http://localhost:8000/v1.")
        if "@" in urlsplit(url).netloc or urlsplit(url).query or urlsplit(url).fragment:
            raise InputError(
                "--url holds a user's name, a query or a fragment, which could be secret and would be shown. Write the "
                "address alone; a key goes into the environment variable that --key-variable names."
            )
        self.url, self.timeout, self.retries = url.rstrip("/"), timeout, retries
        secret = os.environ.get(key, "")
        if not (secret.isascii() and secret.isprintable()):
            raise InputError(
                f"environment variable {key} holds no key that a header can carry: it has a line end, or a character "
                "beyond ASCII. Set it anew."
            )
        self._headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {secret}"} if secret else {})
        self._open = build_opener(_NoRedirect()).open
        self._takes_logprobs = True
        self.model = model or self._only_model()

    def _only_model(self) -> str:
        listed = self._ask("models", None).get("data")
        names = (
            [one["id"] for one in listed if isinstance(one, Mapping) and isinstance(one.get("id"), str)]
            if (isinstance(listed, list))
            else []
        )
        if len(names) != 1:
            listed = f"{len(names)} models: {', '.join(names[:10])}" if names else "no model of its own"
            raise InputError(
                f"{self.url} lists {listed}. Name the one to ask with --model NAME, as the server calls it (of "
                "`transformers serve`, the folder)."
            )
        return names[0]

    def answer(self, prompt: Prompt, max_tokens: int) -> Reply:
        """Ask a conversation, or a plain text, at temperature 0."""
        asked = {"model": self.model, "temperature": 0, "max_tokens": max_tokens}
        if prompt.messages is None:
            answer = self._complete("completions", {**asked, "prompt": prompt.text}, {"logprobs": 1})
        else:
            asked["messages"] = list(prompt.messages)
            answer = self._complete("chat/completions", asked, {"logprobs": True})
        try:
            choice = answer["choices"][0]
            text = choice["text"] if prompt.messages is None else choice["message"]["content"]
            reason = choice.get("finish_reason")
        except (KeyError, IndexError, TypeError, AttributeError):
            raise InputError(f"{self.url} does not answer as OpenAI's API does: {shown(answer)}.") from None
        usage = answer.get("usage")
        count = usage.get("prompt_tokens") if isinstance(usage, Mapping) else None
        return Reply(
            text if isinstance(text, str) else "",
            {"stop": True, "length": False}.get(reason),
            count if isinstance(count, int) and count > 0 else None,
            _log_probabilities(choice),
        )

    def _complete(self, path: str, asked: Mapping[str, Any], logprobs: Mapping[str, Any]) -> dict[str, Any]:
        """Ask for an answer, with its log-probabilities unless the endpoint refused that once."""
        if self._takes_logprobs:
            try:
                return self._ask(path, {**asked, **logprobs})
            except _Refused:
                self._takes_logprobs = False
        return self._ask(path, asked)

    def tokens(self, prompt: Prompt) -> list[int] | None:
        """Ask what it reads in place of a prompt, as llama.cpp and vLLM tell; None where it does not."""
        text: Any = prompt.text
        if prompt.messages is not None:
            text = self._value_of("apply-template", {"messages": list(prompt.messages)}, "prompt")
        asked: dict[str, Any] = {"model": self.model, "messages": prompt.messages, "add_generation_prompt": True}
        if isinstance(text, str):
            asked = {"model": self.model, "prompt": text, "content": text, "add_special": True, "parse_special": True}
        told = self._value_of("tokenize", asked, "tokens")
        return told if isinstance(told, list) and told and all(isinstance(one, int) for one in told) else None

    def _value_of(self, path: str, content: Mapping[str, Any], key: str) -> Any:
        """Return what stands under a key of an answer beside OpenAI's API; None where there is no such thing."""
        with suppress(InputError):
            return self._ask(path, content, self.url.removesuffix("/v1")).get(key)
        return None

    def _read(self, request: Request) -> bytes:
        """Return what is answered within the timeout, of which each read alone is bounded by the socket."""
        end, content = time.monotonic() + self.timeout, bytearray()
        with self._open(request, timeout=self.timeout) as reply:
            while piece := reply.read1(ROOM):
                content += piece
                if len(content) > ROOM:
                    raise ValueError("it is longer than what is read")
                if time.monotonic() > end:
                    raise TimeoutError("the answer takes too long")
            if reply.length:  # what it said would come, and did not
                raise IncompleteRead(bytes(content), reply.length)
        return bytes(content)

    def _ask(self, path: str, content: Mapping[str, Any] | None, under: str = "") -> dict[str, Any]:
        data = None if content is None else json.dumps(content).encode()
        request = Request(f"{under or self.url}/{path}", data, self._headers)
        for attempt in range(self.retries + 1):
            try:
                answer = json.loads(self._read(request))
                if isinstance(answer, dict):
                    return answer
                raise InputError(f"{request.full_url} does not answer as OpenAI's API does: {shown(answer)}.")
            except HTTPError as error:
                failure = f"status {error.code} ({error.reason})"
                if error.code not in AGAIN:
                    kind = _Refused if error.code in (400, 422) else InputError
                    raise kind(f"{request.full_url} answers with {failure}. {_advice(error.code)}") from None
            except (ValueError, RecursionError):
                raise InputError(f"{request.full_url} answers with no JSON, or more than {ROOM >> 20} MiB.") from None
            except (URLError, OSError, HTTPException) as error:
                failure = str(getattr(error, "reason", error)) or type(error).__name__
            if attempt < self.retries:
                time.sleep(PAUSE * 2**attempt)
        raise InputError(
            f"{request.full_url} cannot be reached in {self.retries + 1} attempts of at most {self.timeout:g} s: "
            f"{failure}. Is the server running there?"
        )


def _log_probabilities(choice: Mapping[str, Any]) -> tuple[float, ...]:
    """Return what an answer tells of its tokens, as chat and as older completions have it; () where that is nothing.

    Zeros alone are those behind greedy sampling, which say nothing of the model.
    """
    told = choice.get("logprobs")
    if not isinstance(told, Mapping):
        return ()
    content = told.get("content")
    some = [one.get("logprob") for one in content if isinstance(one, Mapping)] if isinstance(content, list) else None
    some = told.get("token_logprobs") if some is None else some
    if not isinstance(some, list) or not all(isinstance(one, (int, float)) for one in some) or not any(some):
        return ()
    return tuple(float(one) for one in some)


def _advice(status: int) -> str:
    if status in (401, 403):
        return "It wants a key: put it into the environment variable that --key-variable names."
    if status == 404:
        return "Does --url end as the API's does, in /v1, and is there such a model?"
    return "Look at the server's log."
