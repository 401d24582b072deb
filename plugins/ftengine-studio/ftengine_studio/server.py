"""The web application: the page, and its JSON endpoints."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, TypeVar

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import FileResponse, JSONResponse, Response, StreamingResponse
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles

from ftengine.errors import FtengineError, InputError, RunError
from ftengine_studio.data import DataView, number_of
from ftengine_studio.judging import Changed, NotThere, contests_of, name_of
from ftengine_studio.results import conclude, result_of
from ftengine_studio.runs import StudioRun
from ftengine_studio.security import Guard
from ftengine_studio.talk import Conversation, Stopped, Talk

PAGE = Path(__file__).parent / "page"

Item = TypeVar("Item")


class Studio:
    """The server's state of some runs, and its request handlers.

    Args:
        runs: the runs to show.
        seed: seed of the order of prompts and sides.
    """

    def __init__(self, runs: Sequence[StudioRun], seed: int = 0, *, trust_code: bool = False) -> None:
        self.runs, self.contests = runs, contests_of(runs, seed)
        self.data = [DataView(run, trust_code=trust_code) for run in runs]
        self.talks = [Talk(run, trust_code=trust_code) for run in runs]

    def app(self, token: str, host: str, port: int) -> Starlette:
        """Return the application, guarded by the token."""

        @asynccontextmanager
        async def lifespan(app: Starlette) -> AsyncIterator[None]:
            yield
            for talk in self.talks:
                talk.close()

        routes = [
            Route("/", self._page),
            Route("/api/overview", self._get(self._overview)),
            Route("/api/judge/{contest:int}", self._get(self._progress)),
            Route("/api/judge/{contest:int}/{number:int}", self._get(self._shown), methods=["GET"]),
            Route("/api/judge/{contest:int}/{number:int}", self._post(self._judge), methods=["POST"]),
            Route("/api/result/{contest:int}", self._get(self._result), methods=["GET"]),
            Route("/api/result/{contest:int}", self._post(self._conclude), methods=["POST"]),
            Route("/api/runs/{run:int}", self._get(self._run)),
            Route("/api/runs/{run:int}/metrics", self._get(self._metrics)),
            Route("/api/runs/{run:int}/stop", self._post(self._stop), methods=["POST"]),
            Route("/api/data/{run:int}", self._get(lambda r: self._view(r).state())),
            Route("/api/data/{run:int}/rows", self._get(self._rows)),
            Route("/api/data/{run:int}/marks", self._post(self._mark), methods=["POST"]),
            Route("/api/talk/{run:int}", self._talk, methods=["POST"]),
            Route("/api/talk/{run:int}/load", self._post(self._load_talk), methods=["POST"]),
            Route("/api/talk/{run:int}/judge", self._post(self._judge_talk), methods=["POST"]),
            Mount("/page", StaticFiles(directory=PAGE)),
        ]
        handlers: Any = {HTTPException: _http_error, FtengineError: _refused, Exception: _failed}
        guard = Middleware(Guard, token=token, host=host, port=port)
        return Starlette(routes=routes, middleware=[guard], exception_handlers=handlers, lifespan=lifespan)

    async def _page(self, request: Request) -> Response:
        return FileResponse(PAGE / "index.html")

    def _get(self, answer: Callable[[Request], Any]) -> Callable[[Request], Awaitable[Response]]:
        async def endpoint(request: Request) -> Response:
            return _json(await run_in_threadpool(answer, request))

        return endpoint

    def _post(self, answer: Callable[[Request, dict[str, Any]], Any]) -> Callable[[Request], Awaitable[Response]]:
        async def endpoint(request: Request) -> Response:
            return _json(await run_in_threadpool(answer, request, await _content(request)))

        return endpoint

    def _overview(self, request: Request) -> Any:
        contests = [
            {"title": contest.title, "pairs": _count(lambda contest=contest: len(contest.pairs))}  # type: ignore[misc]
            for contest in self.contests
        ]
        return {"runs": [run.summary() for run in self.runs], "contests": contests}

    def _progress(self, request: Request) -> Any:
        contest = _at(self.contests, request, "contest")
        return {"title": contest.title, **contest.progress(name_of(request.query_params.get("name")))}

    def _shown(self, request: Request) -> Any:
        name = name_of(request.query_params.get("name"))
        return _at(self.contests, request, "contest").shown(name, request.path_params["number"])

    def _judge(self, request: Request, content: dict[str, Any]) -> Any:
        contest = _at(self.contests, request, "contest")
        return contest.judge(name_of(content.get("name")), request.path_params["number"], content)

    def _result(self, request: Request) -> Any:
        return result_of(_at(self.contests, request, "contest"))

    def _conclude(self, request: Request, content: dict[str, Any]) -> Any:
        return conclude(_at(self.contests, request, "contest"))

    def _run(self, request: Request) -> Any:
        return _at(self.runs, request, "run").details()

    def _metrics(self, request: Request) -> Any:
        after = number_of(request.query_params.get("after"), "after") or 0
        run = _at(self.runs, request, "run")
        lines = run.metrics(after, request.query_params.get("file", ""))
        return {"state": run.state, "trained": run.is_trained, **lines}

    def _stop(self, request: Request, content: dict[str, Any]) -> Any:
        run = _at(self.runs, request, "run")
        run.ask_to_stop()
        return {"state": run.state}

    def _view(self, request: Request) -> DataView:
        return _at(self.data, request, "run")

    def _rows(self, request: Request) -> Any:
        given = request.query_params
        return self._view(request).page(
            split=given.get("split") or None,
            least=number_of(given.get("least"), "least"),
            most=number_of(given.get("most"), "most"),
            finding=given.get("finding") or None,
            offset=number_of(given.get("offset"), "offset") or 0,
            limit=number_of(given.get("limit"), "limit") or 50,
        )

    def _mark(self, request: Request, content: dict[str, Any]) -> Any:
        row, marked = content.get("row"), content.get("marked")
        if not isinstance(row, int) or isinstance(row, bool) or not isinstance(marked, bool):
            raise InputError("a mark has a row, a number, and marked, true or false.")
        return self._view(request).mark(row, marked, name_of(content.get("name")))

    def _load_talk(self, request: Request, content: dict[str, Any]) -> Any:
        _at(self.talks, request, "run").load(content.get("models") is True)
        return {"state": "loading"}

    def _judge_talk(self, request: Request, content: dict[str, Any]) -> Any:
        talk = _at(self.talks, request, "run")
        conversation = talk.conversation(str(content.get("conversation")))
        return {"names": talk.judge(conversation, name_of(content.get("name")), content)}

    async def _talk(self, request: Request) -> Response:
        """Stream the answers of both models as lines of JSON."""
        talk, content = _at(self.talks, request, "run"), await _content(request)
        if content.get("conversation"):
            key, conversation = str(content["conversation"]), talk.conversation(str(content["conversation"]))
        else:
            key, conversation = talk.begin(content.get("blind") is True)
        lines = _streamed(talk, conversation, content.get("message"))
        first = {"conversation": key, "names": conversation.names()}
        return StreamingResponse(_encoded(first, lines), media_type="application/x-ndjson")


async def _encoded(first: dict[str, Any], lines: AsyncIterator[dict[str, Any]]) -> AsyncIterator[bytes]:
    yield json.dumps(first).encode() + b"\n"
    async for line in lines:
        yield json.dumps(line).encode() + b"\n"


async def _streamed(talk: Talk, conversation: Conversation, message: Any) -> AsyncIterator[dict[str, Any]]:
    """Yield what `Talk.answer` writes in a thread; the answer ends where nobody reads it any more."""
    loop, queue, gone = asyncio.get_running_loop(), asyncio.Queue[Any](), threading.Event()

    def write(line: dict[str, Any]) -> None:
        if gone.is_set():
            raise Stopped
        loop.call_soon_threadsafe(queue.put_nowait, line)

    def answer() -> None:
        try:
            talk.answer(conversation, message, write)
        except Stopped:
            return
        except FtengineError as error:
            last: dict[str, Any] | None = {"error": str(error)}
        # Whatever a third-party task or model raises: the page says so, and the server goes on.
        except Exception as error:
            last = {"error": f"{type(error).__name__}: {error}"}
        else:
            last = None
        if not gone.is_set():
            for line in (last, None) if last else (None,):
                loop.call_soon_threadsafe(queue.put_nowait, line)

    thread = threading.Thread(target=answer, name="ftengine-studio-talk", daemon=True)
    thread.start()
    try:
        while (line := await queue.get()) is not None:
            yield line
    finally:
        gone.set()


def _at(items: Sequence[Item], request: Request, key: str) -> Item:
    number = request.path_params[key]
    if not 0 <= number < len(items):
        raise NotThere(f"there is no {key} {number}.")
    return items[number]


def _count(count: Callable[[], int]) -> int:
    """Return a number of pairs; 0 where a run's files are damaged, which the view of its own reports."""
    try:
        return count()
    except FtengineError:
        return 0


async def _content(request: Request) -> dict[str, Any]:
    """Return the body, a JSON object (InputError: it is none)."""
    if request.headers.get("content-type", "").partition(";")[0].strip() != "application/json":
        raise InputError("send JSON, with its content type.")
    try:
        content = json.loads(await request.body())
    except (ValueError, RecursionError, ClientDisconnect):
        content = None
    if not isinstance(content, dict):
        raise InputError("send one JSON object.")
    return content


def _json(content: Mapping[str, Any]) -> Response:
    return JSONResponse(_plain(content))


def _plain(value: Any) -> Any:
    """Return JSON values that every browser reads: nan becomes null, halves of surrogate pairs the replacement."""
    if isinstance(value, Mapping):
        return {key: _plain(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(inner) for inner in value]
    if isinstance(value, str):
        return value.encode("utf-8", "surrogatepass").decode("utf-8", "replace")
    return None if isinstance(value, float) and value - value != 0 else value


async def _http_error(request: Request, error: HTTPException) -> Response:
    return JSONResponse({"error": error.detail}, error.status_code)


async def _refused(request: Request, error: FtengineError) -> Response:
    status = 404 if isinstance(error, NotThere) else 409 if isinstance(error, Changed) else 400
    return JSONResponse(_plain({"error": str(error)}), 500 if isinstance(error, RunError) else status)


async def _failed(request: Request, error: Exception) -> Response:
    return JSONResponse(_plain({"error": f"{type(error).__name__}: {error}"}), 500)
