"""The server: who is answered, that nobody is told who wrote what, and what wrong requests come to."""

from __future__ import annotations

import errno
import json
import os
import shutil
from pathlib import Path
from types import SimpleNamespace

import filelock
import pytest
from studio_runs import HOSTILE, open_studio, write_run

from ftengine.errors import InputError
from ftengine_studio import latest, read
from ftengine_studio.judgements import FILE
from ftengine_studio.rule import Preferences
from ftengine_studio.runs import find_runs

pytest.importorskip("starlette")
pytest.importorskip("httpx2")
TOKEN, PORT = "right", 4711
ADDRESS = f"http://127.0.0.1:{PORT}"


@pytest.fixture
def run(tmp_path):
    return write_run(tmp_path / "support")


@pytest.fixture
def opened():
    """Open clients of applications for some runs."""

    def client(*runs: Path, seed: int = 0, host: str = "127.0.0.1"):
        from starlette.testclient import TestClient

        app = open_studio(runs, TOKEN, PORT, seed, host)
        return TestClient(
            app, base_url=ADDRESS, raise_server_exceptions=False, cookies={f"ftengine-studio-{PORT}": TOKEN}
        )

    return client


@pytest.fixture
def client(run, opened):
    return opened(run)


def judge(client, number, verdict="left", name="Ada", contest=0, **change):
    shown = client.get(f"/api/judge/{contest}/{number}", params={"name": name}).json()
    content = {"name": name, "verdict": verdict, "note": "", "shown": shown.get("shown")} | change
    return client.post(f"/api/judge/{contest}/{number}", json=content)


PATHS = ["/", "/page/app.js", "/api/overview", "/api/judge/0?name=Ada", "/nowhere"]


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize(
    "headers",
    [
        {"cookie": ""},
        {"cookie": f"ftengine-studio-{PORT}=wrong"},
        {"cookie": f"ftengine-studio-{PORT + 1}={TOKEN}"},
        {"host": "attacker.example"},
        {"host": f"attacker.example:{PORT}"},
        {"host": "127.0.0.1:1"},
        {"host": f"192.0.2.7:{PORT}"},
        {"origin": "http://attacker.example"},
        {"origin": "null"},
        {"origin": f"https://127.0.0.1:{PORT}"},
    ],
    ids=str,
)
def test_nothing_is_answered_without_the_token_or_for_another_page(client, path, headers):
    for method in ("GET", "POST", "OPTIONS"):
        response = client.request(method, path, headers=headers)
        assert (response.status_code, response.content) == (403, b"")


@pytest.mark.parametrize("path", PATHS[:-1])
def test_the_token_in_the_address_opens_the_page_and_becomes_a_cookie(client, path):
    client.cookies.clear()
    response = client.get(path, params={"token": TOKEN, "name": "Ada"}, headers={"origin": ADDRESS})
    assert response.status_code == 200
    cookie = response.headers["set-cookie"]
    assert "HttpOnly" in cookie and "SameSite=Strict" in cookie  # noqa: PT018
    assert "script-src 'self'" in response.headers["content-security-policy"]
    assert client.get("/api/overview").status_code == 200


def test_cookies_of_other_pages_of_this_machine_do_not_hide_the_token(client):
    client.cookies.clear()
    for other in ('settings={"theme": "dark"}', "a[b]=1; c=d e"):
        cookie = f"{other}; ftengine-studio-{PORT}={TOKEN}"
        assert client.get("/api/overview", headers={"cookie": cookie}).status_code == 200
    assert client.get("/", params={f"a{i}": "" for i in range(60)}).status_code == 403


def test_a_person_with_the_name_of_a_judging_model_judges_for_themself(run, client):
    judge(client, 0, name="Ada")
    lines = [json.loads(line) | {"kind": "model", "judge": "Grace"} for line in (run / FILE).read_text().splitlines()]
    with open(run / FILE, "a") as file:
        file.writelines(json.dumps(line) + "\n" for line in lines)
    assert client.get("/api/judge/0", params={"name": "Grace"}).json()["judged"] == 0
    assert client.get("/api/judge/0", params={"name": "Ada"}).json()["judged"] == 1


def test_all_interfaces_are_asked_by_number_and_never_by_a_foreign_name(run, opened):
    everywhere = opened(run, host="0.0.0.0")
    assert everywhere.get("/", headers={"host": f"192.0.2.7:{PORT}"}).status_code == 200
    assert everywhere.get("/", headers={"host": f"attacker.example:{PORT}"}).status_code == 403


def test_nothing_that_the_page_gets_tells_who_wrote_what(run, opened):
    """Two servers whose runs differ in nothing but whose answers are whose: what they send is the same set of facts."""
    other = write_run(run.parent / "other" / "support")
    for side, name in (("base", "tuned"), ("tuned", "base")):
        (run / "predictions" / f"test-{side}.parquet").replace(other / "predictions" / f"test-{name}.parquet")
    write_run(run.parent / "again" / "support")
    first, second = opened(run.parent / "again" / "support"), opened(other)
    for number in range(10):
        one, two = (c.get(f"/api/judge/0/{number}", params={"name": "Ada"}).json() for c in (first, second))
        assert {one["left"], one["right"]} == {two["left"], two["right"]}
        assert one["left"] == two["right"]  # the same side for the same maker, so the texts are swapped
        assert one.keys() == {"number", "prompt", "reference", "left", "right", "shown", "verdict", "note"}
        assert {**one, "left": "", "right": "", "shown": ""} == {**two, "left": "", "right": "", "shown": ""}


def test_order_and_sides_are_drawn_by_the_seed_and_kept(run, opened):
    def order_for(seed, name="Ada"):
        client = opened(run, seed=seed)
        shown = [client.get(f"/api/judge/0/{i}", params={"name": name}).json() for i in range(40)]
        return [one["prompt"] for one in shown], [one["left"].startswith("t") for one in shown]

    assert order_for(0) == order_for(0)
    prompts, sides = order_for(0)
    assert order_for(1)[0] != prompts
    assert sorted(prompts) == sorted(f"question {i}" for i in range(40))
    assert 8 <= sum(sides) <= 32
    others, other_sides = order_for(0, "Grace")
    assert others == prompts  # so that people judge the same
    assert other_sides != sides


def test_a_judgement_is_in_the_file_before_it_is_answered_and_goes_on_after_a_restart(run, opened):
    client = opened(run)
    assert judge(client, 0, "right", note=" fine ").json() == {"total": 40, "judged": 1, "next": 1}
    shown = client.get("/api/judge/0/0", params={"name": "Ada"}).json()
    (kept,) = read(run)
    assert (kept.verdict, kept.note, kept.judge, kept.kind) == ("right", "fine", "Ada", "person")
    assert kept.preferred == ("tuned" if shown["right"].startswith("t") else "base")
    assert (kept.left_length, kept.right_length) == (len(shown["left"]), len(shown["right"]))
    again = opened(run)
    assert again.get("/api/judge/0", params={"name": "Ada"}).json()["next"] == 1
    assert again.get("/api/judge/0", params={"name": "Grace"}).json()["judged"] == 0
    assert again.get("/api/judge/0/0", params={"name": "Ada"}).json()["verdict"] == "right"


def test_two_tabs_judge_one_pair_and_the_last_counts(run, client):
    judge(client, 3, "left")
    assert judge(client, 3, "tie").json()["judged"] == 1
    assert [one.verdict for one in latest(read(run))] == ["tie"]
    assert len(read(run)) == 2


@pytest.mark.parametrize(
    ("number", "change", "status"),
    [
        (40, {}, 404),
        (0, {"verdict": "both"}, 400),
        (0, {"verdict": None}, 400),
        (0, {"name": " "}, 400),
        (0, {"name": "A\u202eda"}, 400),
        (0, {"name": ["Ada"]}, 400),
        (0, {"note": "x" * 5000}, 400),
        (0, {"note": 3}, 400),
        (0, {"shown": "0"}, 409),
        (0, {"shown": None}, 409),
    ],
    ids=str,
)
def test_a_wrong_judgement_is_refused_and_not_kept(run, client, number, change, status):
    response = judge(client, number, **change)
    assert response.status_code == status
    assert response.json()["error"]
    assert read(run) == []


@pytest.mark.parametrize("body", [b"", b"[]", b"{", b"[" * 100_000, b'{"name": "Ada"}' + b" " * 300_000])
def test_a_body_that_is_no_object_is_refused(client, body):
    response = client.post("/api/judge/0/0", content=body, headers={"content-type": "application/json"})
    assert response.status_code in (400, 413)
    assert client.post("/api/judge/0/0", data={"verdict": "left"}).status_code == 400  # another site's form


def test_a_full_disk_is_reported_and_nothing_is_lost(run, client, monkeypatch):
    judge(client, 0)
    before = (run / FILE).read_bytes()

    def full(*arguments):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", full)
        response = judge(client, 1)
    assert response.status_code == 500
    assert FILE in response.json()["error"]
    assert (run / FILE).read_bytes() == before
    assert judge(client, 1).json()["judged"] == 2


def test_hostile_text_is_sent_as_it_is_in_json(tmp_path, opened):
    client = opened(write_run(tmp_path / "run", 1, [HOSTILE]))
    response = client.get("/api/judge/0/0", params={"name": "Ada"})
    assert response.headers["content-type"] == "application/json"
    assert HOSTILE in (response.json()["left"], response.json()["right"])


def test_a_run_without_answers_or_in_training_has_nothing_to_judge(tmp_path, opened):
    run = write_run(tmp_path / "run")
    for file in ("predictions/test-base.parquet", "evaluation.json"):
        (run / file).unlink()
    client = opened(run)
    overview = client.get("/api/overview").json()
    assert [contest["pairs"] for contest in overview["contests"]] == [0]
    assert overview["runs"][0]["state"] == "stopped"
    assert client.get("/api/judge/0", params={"name": "Ada"}).json() == {
        "title": "run: base and tuned",
        "total": 0,
        "judged": 0,
        "next": None,
    }
    assert client.get("/api/judge/0/0", params={"name": "Ada"}).status_code == 404
    write_run(tmp_path / "again" / "run")  # its training ends while the server runs
    (tmp_path / "again/run/predictions/test-base.parquet").replace(run / "predictions/test-base.parquet")
    assert client.get("/api/overview").json()["contests"][0]["pairs"] == 40
    assert client.post("/api/talk/0", json={"message": "Hello"}).status_code == 400


def test_two_runs_are_compared_on_the_prompts_of_both(tmp_path, opened):
    first, second = write_run(tmp_path / "lora"), write_run(tmp_path / "full", 30, ["other"])
    client = opened(first, second)
    titles = {one["title"]: one["pairs"] for one in client.get("/api/overview").json()["contests"]}
    assert titles == {"lora: base and tuned": 40, "full: base and tuned": 30, "full and lora": 30}
    assert judge(client, 0, contest=2).status_code == 200
    (kept,) = read(second)
    assert {kept.left, kept.right} == {"lora", "full"}
    result = client.get("/api/result/2").json()
    assert ({result["side"], result["other"]}, result["people"]["rate"]["prompts"]) == ({"lora", "full"}, 1)
    assert client.get("/api/result/0").json()["people"] is None


def test_two_runs_have_the_same_names_whatever_else_is_opened(tmp_path, opened):
    first, second = write_run(tmp_path / "a" / "tuned", 5), write_run(tmp_path / "a" / "full", 5)
    far = write_run(tmp_path / "b" / "full", 5)
    (home, *_) = sorted((first, second))
    assert judge(opened(first, second), 0, contest=2).status_code == 200
    (kept,) = read(home)
    assert {kept.left, kept.right} == {"full", "./tuned"}
    client = opened(second, first, far)
    progress = [client.get(f"/api/judge/{number}", params={"name": "Ada"}).json() for number in (3, 4)]
    assert [(one["title"], one["judged"]) for one in progress] == [("full and ./tuned", 1), ("full and ../b/full", 0)]
    assert judge(client, 0, contest=4).status_code == 200
    assert {read(home)[1].left, read(home)[1].right} == {"full", "../b/full"}


def test_judgements_of_answers_that_have_changed_are_kept_and_not_counted(tmp_path, run, opened):
    client = opened(run)
    for number in range(3):
        judge(client, number)
    before = (run / FILE).read_bytes()
    retrained = write_run(tmp_path / "again" / "support", answers=["another answer"] * 40)
    shutil.copytree(retrained / "predictions", run / "predictions", dirs_exist_ok=True)
    assert client.get("/api/judge/0", params={"name": "Ada"}).json()["judged"] == 0
    assert client.get("/api/judge/0/0", params={"name": "Ada"}).json()["verdict"] is None
    result = client.get("/api/result/0").json()
    assert (result["people"], result["stale"]) == (None, 3)
    records = SimpleNamespace(path=run, evaluation=SimpleNamespace(split=None))
    assert [(one.level, "3 judgements" in one.text) for one in Preferences().judge(records)] == [("note", True)]
    judge(client, 0)
    result = client.get("/api/result/0").json()
    assert (result["people"]["rate"]["judgements"], result["stale"]) == (1, 2)
    assert (run / FILE).read_bytes().startswith(before)


def test_answers_that_were_made_on_demand_are_judged_beside_the_others(run, opened):
    made = {"row": 99, "place": "rows.jsonl:100", "prompt": "new?", "reference": None, "base": "b", "tuned": "t"}
    (run / "answers.jsonl").write_text(json.dumps(made | {"slices": {"desk": "a"}}) + '\n{"row": 1')
    assert opened(run).get("/api/overview").json()["contests"][0]["pairs"] == 41


def test_metrics_follow_from_where_the_page_is_and_anew_after_a_resume(run, client):
    first = client.get("/api/runs/0/metrics").json()
    assert [line["step"] for line in first["lines"]] == [1, 2, 3, 4, 5]
    position = {"after": first["after"], "file": first["file"]}
    with open(run / "metrics.jsonl", "a") as file:
        file.write('{"step": 6, "loss": 0.1}\n{"step": 7, "lo')
    second = client.get("/api/runs/0/metrics", params=position).json()
    assert [line["step"] for line in second["lines"]] == [6]
    assert not second["anew"]
    (run / "metrics.partial").write_text('{"step": 1, "loss": 9}\n')  # as a resume writes it
    (run / "metrics.partial").replace(run / "metrics.jsonl")
    third = client.get("/api/runs/0/metrics", params={"after": second["after"], "file": second["file"]}).json()
    assert (third["anew"], [line["loss"] for line in third["lines"]]) == (True, [9])


def test_a_run_that_is_trained_can_be_asked_to_stop_and_no_other(run, client):
    assert client.post("/api/runs/0/stop", json={}).status_code == 500
    assert not (run / "stop").exists()
    with filelock.FileLock(run / ".lock"):
        assert client.get("/api/runs/0/metrics").json()["state"] == "running"
        assert client.post("/api/runs/0/stop", json={}).status_code == 200
        (run / "stop").unlink()
        (run / "training.json").write_text("{}")  # the last step is done: there is nothing to stop
        assert client.post("/api/runs/0/stop", json={}).status_code == 500
    assert not (run / "stop").exists()


def test_runs_are_found_in_folders_and_have_names_of_their_own(tmp_path, monkeypatch):
    for name in ("a/run", "b/run", "runs/new", "runs/tuned"):
        write_run(tmp_path / name, 1)
    assert [run.name for run in find_runs([tmp_path / "a", tmp_path / "b" / "run"])] == ["a/run", "b/run"]
    monkeypatch.chdir(tmp_path)
    assert {run.name for run in find_runs([])} == {"new", "tuned"}
    for missing in ("nowhere", str(tmp_path / "a" / "run" / "predictions")):
        with pytest.raises(InputError, match=r"nowhere|predictions"):
            find_runs([missing])


def test_further_prompts_do_not_change_the_order_of_the_others(run, opened):
    def prompts(count):
        client = opened(run)
        return [client.get(f"/api/judge/0/{i}", params={"name": "Ada"}).json()["prompt"] for i in range(count)]

    before = prompts(40)
    made = {"place": "", "prompt": "new?", "reference": None, "base": "b", "tuned": "t", "slices": {}}
    (run / "answers.jsonl").write_text("".join(json.dumps(made | {"row": 90 + i}) + "\n" for i in range(5)))
    assert [prompt for prompt in prompts(45) if prompt != "new?"] == before
