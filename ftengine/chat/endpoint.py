"""A client for OpenAI-compatible endpoints, with limits on time, attempts and size."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from contextlib import suppress
from typing import Any
from urllib.parse import urlsplit

from ftengine.api import Prompt
from ftengine.chat.exchange import MOST_BYTES, HttpClient, Response, Unanswered
from ftengine.chat.reply import Malformed, Reply, read_reason, read_reply, read_tokens
from ftengine.errors import InputError

PAUSE = 0.5
"""Seconds before the first retry; each further one waits twice as long."""
AGAIN = (408, 409, 425, 429, 500, 502, 503, 504)
"""Statuses of a server that may answer later."""
MODELS_SHOWN = 10


class NoAnswer(InputError):
    """The endpoint gives no usable answer to this request; to another one it may."""


class _Refused(NoAnswer):
    """The endpoint rejected a request; `reason` is its message."""

    def __init__(self, message: str, reason: str) -> None:
        super().__init__(message)
        self.reason = reason


class Endpoint:
    """An endpoint of OpenAI's API.

    Args:
        url: of the API, such as http://localhost:8000/v1.
        model: its name at the endpoint; "" takes the only model there.
        key: name of the environment variable that holds the key; the key is sent as a header and never written.
        timeout: seconds for one request.
        max_time: seconds for all requests together, with the pauses between them.
        retries: attempts after a failed connection or a busy server, per request.

    Raises:
        InputError: the endpoint cannot be reached, or does not follow OpenAI's API.
    """

    def __init__(
        self, url: str, model: str, *, key: str, timeout: float, retries: int, max_time: float = 1800.0
    ) -> None:
        if urlsplit(url).scheme not in ("http", "https") or not urlsplit(url).netloc:
            raise InputError(f"address {url!r}: write that of the API, such as http://localhost:8000/v1.")
        if "@" in urlsplit(url).netloc or urlsplit(url).query or urlsplit(url).fragment:
            raise InputError(
                "the address holds a user's name, a query or a fragment, which could be secret and would be shown. "
                "Write the address alone; a key goes into the environment variable that --key-variable names."
            )
        self.url, self.retries, self._key_variable = url.rstrip("/"), retries, key
        secret = os.environ.get(key, "")
        if not (secret.isascii() and secret.isprintable()):
            raise InputError(
                f"environment variable {key} holds no key that a header can carry: it has a line end, or a character "
                "beyond ASCII. Set it anew."
            )
        self._has_key = bool(secret)
        self._client = HttpClient(secret, timeout, max_time)
        self._takes_logprobs, self._limit = True, "max_tokens"
        self._model = model or self._only_model()

    @property
    def model(self) -> str:
        """The model's name at the endpoint, with the key removed if the server echoes it."""
        return self.without_key(self._model)

    def without_key(self, text: str) -> str:
        """Return text with the key removed."""
        return self._client.without_key(text)

    def _only_model(self) -> str:
        listed = self._ask("models", None).get("data")
        some = [model.get("id") for model in listed if isinstance(model, Mapping)] if isinstance(listed, list) else []
        names = [name for name in some if isinstance(name, str) and name.isprintable()]
        if len(names) != 1:
            few = ", ".join(map(self._client.shown, names[:MODELS_SHOWN]))
            raise InputError(
                f"{self.url} lists {f'{len(names)} models: {few}' if names else 'no model of its own'}. Choose one "
                "with --model NAME, by the server's name for it (for `transformers serve`, its folder)."
            )
        return names[0]

    def answer(self, prompt: Prompt, max_tokens: int, *, scores: bool = True) -> Reply:
        """Request the answer to a conversation or a plain text, at temperature 0.

        Args:
            scores: whether to request its log-probabilities too.

        Raises:
            NoAnswer: there is none to this request, after all attempts.
            InputError: there will be none to others either: the address or the key is wrong, or the time is used up.
        """
        chat = prompt.messages is not None
        request: dict[str, Any] = {"model": self._model, "temperature": 0}
        request |= {"messages": list(prompt.messages or ())} if chat else {"prompt": prompt.text}
        path = "chat/completions" if chat else "completions"
        answer = self._complete(path, request, max_tokens, {"logprobs": True if chat else 1} if scores else {})
        try:
            return read_reply(answer, chat=chat)
        except Malformed as error:
            reason = read_reason(answer) or str(error)
            raise self._no_such_api(f"{self.url}/{path}", reason) from None

    def _complete(
        self, path: str, request: Mapping[str, Any], max_tokens: int, logprobs: Mapping[str, Any]
    ) -> dict[str, Any]:
        """Request an answer; if the endpoint rejects log-probabilities or the limit's name, adapt later ones."""
        while True:
            content = {**request, self._limit: max_tokens, **(logprobs if self._takes_logprobs else {})}
            try:
                return self._ask(path, content)
            except _Refused as error:
                if self._limit == "max_tokens" and "max_completion_tokens" in error.reason:
                    self._limit = "max_completion_tokens"
                elif self._takes_logprobs and logprobs:
                    self._takes_logprobs = False
                else:
                    raise

    def tokens(self, prompt: Prompt) -> list[int] | None:
        """Request the token ids of a prompt, as llama.cpp and vLLM report them; None if the endpoint does not."""
        text: Any = prompt.text
        if prompt.messages is not None:
            text = self._value_of("apply-template", {"messages": list(prompt.messages)}, "prompt")
        request: dict[str, Any] = {"model": self._model, "messages": prompt.messages, "add_generation_prompt": True}
        if isinstance(text, str):
            request = {
                "model": self._model,
                "prompt": text,
                "content": text,
                "add_special": True,
                "parse_special": True,
            }
        return read_tokens(self._value_of("tokenize", request, "tokens"))

    def _value_of(self, path: str, content: Mapping[str, Any], key: str) -> Any:
        """Return a key of an answer outside of OpenAI's API; None if the endpoint lacks it."""
        with suppress(InputError):
            return self._ask(path, content, self.url.removesuffix("/v1")).get(key)
        return None

    def _ask(self, path: str, content: Mapping[str, Any] | None, under: str = "") -> dict[str, Any]:
        address, failure = f"{under or self.url}/{path}", ""
        for attempt in range(self.retries + 1):
            wait = PAUSE * 2**attempt
            try:
                response = self._client.send(address, content)
            except Unanswered as error:
                failure = str(error)
            else:
                if 200 <= response.status < 300:
                    return self._read(address, response)
                failure = f"status {response.status}{self._reason_of(response)}"
                if response.status not in AGAIN:
                    raise self._refusal(address, response, failure)
                wait = wait if response.wait is None else response.wait
            if attempt < self.retries:
                self._client.pause(wait)
        raise NoAnswer(
            f"{address} cannot be reached in {self.retries + 1} attempts of at most {self._client.timeout:g} s: "
            f"{failure}. Is the server running there?"
        )

    def _read(self, address: str, response: Response) -> dict[str, Any]:
        if len(response.body) > MOST_BYTES:
            raise NoAnswer(f"{address} answers with more than {MOST_BYTES >> 20} MiB.")
        try:
            answer = json.loads(response.body, parse_constant=_refuse)
        except (ValueError, RecursionError):
            raise NoAnswer(f"{address} answers with no JSON.") from None
        if isinstance(answer, dict):
            return answer
        raise self._no_such_api(address, f"the answer is {answer!r}, where an object is allowed")

    def _no_such_api(self, address: str, reason: str) -> NoAnswer:
        return NoAnswer(f"{address} does not answer as OpenAI's API does: {self._client.shown(reason)}.")

    def _reason(self, response: Response) -> str:
        """Return the server's reason for rejecting a request; "" if the response is not JSON."""
        with suppress(ValueError, RecursionError):
            return read_reason(json.loads(response.body[:MOST_BYTES]))
        return ""

    def _reason_of(self, response: Response) -> str:
        """Return a response's text, in brackets."""
        words = self._client.shown(self._reason(response)) or self._client.shown(response.reason)
        return f" ({words})" if words else ""

    def _refusal(self, address: str, response: Response, failure: str) -> InputError:
        message = f"{address} answers with {failure}. {self._advice(response.status)}"
        return _Refused(message, self._reason(response)) if response.status in (400, 422) else InputError(message)

    def _advice(self, status: int) -> str:
        if status in (401, 403) and self._has_key:
            return f"It refuses the key in environment variable {self._key_variable}: is it for this server and model?"
        if status in (401, 403):
            return "It wants a key: put it into the environment variable that --key-variable names."
        if status == 404:
            return "Does the address end as the API's does, in /v1, and is there such a model?"
        return "Look at the server's log."


def _refuse(value: str) -> float:
    raise ValueError(f"{value} is no JSON")
