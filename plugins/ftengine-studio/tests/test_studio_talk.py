"""Conversations: both models answer one message in their own histories, and a blind one tells nothing beforehand."""

from __future__ import annotations

import json
import threading

import pytest
from studio_runs import Echo, echo, open_studio, write_run

from ftengine_studio import talk as talks
from ftengine_studio.runs import find_runs
from ftengine_studio.talk import TALKS, Talk

pytest.importorskip("starlette")
pytest.importorskip("httpx2")
TOKEN, PORT = "right", 4712


@pytest.fixture
def run(tmp_path, monkeypatch):
    echo(monkeypatch)
    return write_run(tmp_path / "run", 1)


@pytest.fixture
def client(run):
    from starlette.testclient import TestClient

    app = open_studio([run], TOKEN, PORT)
    with TestClient(app, base_url=f"http://127.0.0.1:{PORT}", cookies={f"ftengine-studio-{PORT}": TOKEN}) as client:
        yield client


def say(client, message, **content):
    """Return the conversation's id, the names, and the answers by side."""
    response = client.post("/api/talk/0", json={"message": message, **content})
    first, *lines = [json.loads(line) for line in response.text.splitlines()]
    answers = {"left": "", "right": ""}
    for line in lines:
        assert "error" not in line, line
        if "side" in line:
            answers[line["side"]] += line.get("piece", "")
    return first["conversation"], first["names"], answers


def test_both_answer_each_with_its_own_turns(client):
    key, names, answers = say(client, "Hello")
    assert names == {"left": "base", "right": "tuned"}
    assert answers == {"left": "base 0 <b>", "right": "tuned 0 <b>"}
    assert say(client, "Again", conversation=key)[2] == {"left": "base 2 <b>", "right": "tuned 2 <b>"}


def test_a_blind_conversation_tells_who_answered_once_it_is_judged(client, run):
    drawn = set()
    for _ in range(40):
        key, names, answers = say(client, "Hello", blind=True)
        assert names is None
        drawn.add(answers["left"])
    assert len(drawn) == 2  # the fake models give themselves away, the server does not
    content = {"conversation": key, "verdict": "left", "name": "Ada", "note": "short"}
    told = client.post("/api/talk/0/judge", json=content).json()["names"]
    assert answers["left"].startswith(told["left"])
    (line,) = map(json.loads, (run / TALKS).read_text().splitlines())
    assert (line["verdict"], line["judge"], line["left"], line["blind"]) == ("left", "Ada", told["left"], True)
    assert line["turns"]["right"][-1]["content"] == answers["right"]


@pytest.mark.parametrize("message", ["", "  ", None, 3, "x" * 30_000, "too long"], ids=str)
def test_a_message_that_cannot_be_answered_is_reported(client, message):
    response = client.post("/api/talk/0", json={"message": message})
    assert "error" in json.loads(response.text.splitlines()[-1])


def test_where_one_model_cannot_answer_neither_history_has_the_message(client):
    key, *_ = say(client, "Hello")
    response = client.post("/api/talk/0", json={"message": "too long for the tuned model", "conversation": key})
    assert "error" in json.loads(response.text.splitlines()[-1])
    assert say(client, "Again", conversation=key)[2] == {"left": "base 2 <b>", "right": "tuned 2 <b>"}


def test_a_conversation_of_an_earlier_server_is_reported(client):
    assert client.post("/api/talk/0", json={"message": "Hello", "conversation": "gone"}).status_code == 404
    content = {"conversation": "gone", "verdict": "left", "name": "Ada"}
    assert client.post("/api/talk/0/judge", json=content).status_code == 404


def test_an_answer_that_nobody_reads_ends_and_the_next_begins(run):
    talk = Talk(find_runs([run])[0])
    _, conversation = talk.begin(False)

    def gone(line):
        if "piece" in line:
            raise BrokenPipeError

    with pytest.raises(BrokenPipeError):
        talk.answer(conversation, "Hello", gone)
    lines = []
    thread = threading.Thread(target=talk.answer, args=(conversation, "Hello", lines.append))
    thread.start()
    thread.join(10)
    assert {"side": "right", "state": "ends"} in lines


def test_models_are_loaded_once_in_advance_with_progress(tmp_path, monkeypatch):
    begun, go, loaded = threading.Event(), threading.Event(), []

    class Slow(Echo):
        def converses(self, side):
            if side not in loaded:
                begun.set()
                assert go.wait(10)
                loaded.append(side)
            return True

    echo(monkeypatch, Slow)
    monkeypatch.setattr(talks, "REPORTED", 0.01)
    talk = Talk(find_runs([write_run(tmp_path / "run", 1)])[0])
    talk.load(True)
    assert begun.wait(10)
    talk.load(True)  # which is under way
    lines = []

    def write(line):
        lines.append(line)
        go.set()

    _, conversation = talk.begin(True)
    talk.answer(conversation, "Hello", write)
    assert loaded == ["base", "tuned"]
    assert lines[0] == {"state": "loading", "model": 1, "models": 2}
    first = lines.index({"side": "left", "state": "begins"})
    assert {line["state"] for line in lines[:first]} == {"loading"}
    lines.clear()
    talk.answer(conversation, "Again", write)
    assert lines[0] == {"side": "left", "state": "begins"}


def test_what_fails_in_loading_is_reported_where_a_message_is_answered(run, client, monkeypatch):
    def fail(*arguments, **options):
        raise OSError("the base is gone")

    monkeypatch.setattr("ftengine.load_run", fail, raising=False)
    assert client.post("/api/talk/0/load", json={"models": True}).status_code == 200
    assert (
        "the base is gone"
        in json.loads(client.post("/api/talk/0", json={"message": "Hi"}).text.splitlines()[-1])["error"]
    )
    (run / "evaluation.json").unlink()
    assert client.post("/api/talk/0/load", json={}).status_code == 400
