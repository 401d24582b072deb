"""`verify` tells which model an endpoint serves, from its answers alone; the endpoint is a stub in this process."""

import json
from contextlib import contextmanager
from dataclasses import replace
from types import SimpleNamespace

import pytest
from click.testing import CliRunner
from stub_server import served

from ftengine import load_run
from ftengine.chat import endpoint as endpoints
from ftengine.chat import stop_tokens
from ftengine.cli import main
from ftengine.engine import served_faults
from ftengine.engine.evaluate import held_out_rows
from ftengine.engine.informative_rows import informative_prompts
from ftengine.engine.proof import exact_run
from ftengine.engine.variants import find_fault
from ftengine.evaluation.questions import questions
from ftengine.generation import log_probabilities


@pytest.fixture(scope="module")
def run(talking_run):
    return load_run(talking_run)


@pytest.fixture(scope="module")
def answers(run):
    """What the tuned model and its base answer greedily, and the tuned one with a second BOS, by the last message."""
    ready, exact, found = run.ready(), exact_run(run), {}
    _, rows = held_out_rows(ready, run.directory, None)
    for name in ("tuned", "base", "two-beginnings"):
        with exact.model(base=name == "base") as loaded:
            by_row, longest = informative_prompts(ready, rows, loaded, 32, run)
            prompts = list(by_row.values())
            found["ids"] = {one.messages[-1]["content"]: list(one.ids) for one in prompts}
            if name == "two-beginnings":
                begin = loaded.processor.bos_token_id
                prompts = [replace(one, ids=[begin, *one.ids]) for one in prompts]
            asked = questions(loaded, prompts, longest, stop_tokens(loaded))
            found[f"logprobs of {name}"] = {
                one.prompt.messages[-1]["content"]: log_probabilities(loaded, one.prompt.ids, one.answer)
                for one in asked
            }
        found[name] = {one.prompt.messages[-1]["content"]: one.text for one in asked}
    assert found["tuned"] != found["base"]
    return found


@pytest.fixture(autouse=True)
def _no_pause(monkeypatch):
    monkeypatch.setattr(endpoints, "PAUSE", 0.0)


@pytest.mark.parametrize(("model", "status"), [("tuned", 0), ("base", 3), ("other", 4)])
def test_the_exit_status_says_which_model_is_served(run, answers, model, status, monkeypatch):
    monkeypatch.setenv("STUB_KEY", "secret")
    reply = (lambda text: "42 zebras!") if model == "other" else answers[model].__getitem__
    with served(reply) as (server, url):
        result = CliRunner().invoke(
            main, ["verify", str(run.path), "--url", url, "--key-variable", "STUB_KEY", "--json"]
        )
    assert result.exit_code == status, result.output
    found = json.loads(result.stdout)
    assert found["served"] == model
    asked = [one for one in server.seen if one[0].startswith("/v1/")]
    again = served_faults.AGAIN if model == "other" else 0  # is it sampled?
    assert found["rows"] + again == len(asked) == len(answers["tuned"]) + again
    assert len(server.seen) <= len(asked) + 2  # how it reads the first one
    same = sum(answers["tuned"][text] == answers["base"][text] for text in answers["tuned"])
    assert found["same_as_tuned"] == {"tuned": found["rows"], "base": same, "other": 0}[model]
    assert bool(found["cause"]) is (model == "other")
    assert all(headers["Authorization"] == "Bearer secret" for _, headers, _ in server.seen)
    for path, _, body in asked:
        assert path == "/v1/chat/completions"
        assert body.keys() == {"model", "temperature", "max_tokens", "messages", "logprobs"}
        assert (body["model"], body["temperature"]) == ("support", 0)
    assert "secret" not in result.output


def verified(run, url):
    result = CliRunner().invoke(main, ["verify", str(run.path), "--url", url, "--json"])
    return result.exit_code, json.loads(result.stdout)


def test_a_prompt_that_is_longer_by_a_known_fault_is_named_with_it(run, answers):
    with served(answers["two-beginnings"].__getitem__, count=lambda text: len(answers["ids"][text]) + 1) as (_, url):
        status, found = verified(run, url)
    assert status == 4
    assert "token 2 begins" in found["cause"]
    assert "second BOS" in found["cause"]


@pytest.mark.parametrize("tells", [False, True])
def test_one_prompt_of_another_length_is_something_else(run, answers, tells):
    ids, last = answers["ids"], list(answers["ids"])[-1]
    told = {"/tokenize": lambda body: {"tokens": ids[body["messages"][-1]["content"]]}} if tells else None
    count = lambda text: 3 if text == last else len(ids[text])  # noqa: E731
    with served(answers["tuned"].__getitem__, count=count, told=told) as (_, url):
        status, found = verified(run, url)
    assert (status, "3 tokens" in found["cause"]) == (4, True)


@pytest.mark.parametrize("server", ["vllm", "llama.cpp"])
@pytest.mark.parametrize("broken", [False, True])
def test_a_server_that_tells_what_it_reads_is_asked(run, answers, server, broken):
    def tokens(body):
        text = body["content"] if server == "llama.cpp" else body["messages"][-1]["content"]
        ids = answers["ids"][text]
        return {"tokens": [*ids[:-1], 5] if broken else ids}

    told = {"/tokenize": tokens}
    if server == "llama.cpp":
        told["/apply-template"] = lambda body: {"prompt": body["messages"][-1]["content"]}
    with served(answers["tuned"].__getitem__, told=told) as (_, url):
        status, found = verified(run, url)
    assert status == (4 if broken else 0)
    first = len(answers["ids"][next(iter(answers["ids"]))])
    assert (f"token {first} begins" in found["cause"]) is broken


@pytest.mark.parametrize(
    ("further", "status", "told"),
    [
        (0.02, 0, ""),
        pytest.param(0.4, 4, " ", marks=pytest.mark.slow),
        pytest.param(None, 4, "1 of 8", marks=pytest.mark.slow),
    ],
)
def test_log_probabilities_tell_the_quantisation(run, answers, further, status, told):
    """`further`: what the endpoint's differ by; None: those of one row alone are far off."""
    own, first = answers["logprobs of tuned"], next(iter(answers["logprobs of tuned"]))

    def logprobs(text):
        return [x - (further or (2.0 if text == first else 0.0)) for x in own[text]]

    with served(answers["tuned"].__getitem__, logprobs=logprobs) as (_, url):
        code, found = verified(run, url)
    assert (code, found["same_as_tuned"]) == (status, found["rows"]), found
    assert found["from_tuned"] == pytest.approx(further or 2.0 / found["rows"], abs=1e-3)
    assert told in found["cause"]
    assert bool(found["cause"]) is bool(told)


@pytest.mark.parametrize("options", [None, {"name": "full"}])
def test_an_updates_scale_is_the_cause_only_where_there_is_alpha(run, monkeypatch, options):
    """`options` of the strategy; None: those of the run, which has one."""

    @contextmanager
    def multiples(run):
        yield SimpleNamespace(scaled=lambda scale: scale, parts=dict)

    monkeypatch.setattr("ftengine.engine.variants.variants", multiples)
    facts = SimpleNamespace(strategy=options or run.facts.strategy)
    fault = find_fault(SimpleNamespace(facts=facts), lambda scale: abs(scale - 0.5), 0.1, 0.5)
    assert "about 0.5 times what training changed" in fault.reason
    assert ("alpha" in fault.reason) is (options is None)


def test_without_log_probabilities_the_quantisation_is_not_reported(run, answers):
    with served(answers["tuned"].__getitem__, ["400"], logprobs=lambda text: [0.0] * 5) as (server, url):
        result = CliRunner().invoke(main, ["verify", str(run.path), "--url", url])
    assert (result.exit_code, "quantisation is unknown" in " ".join(result.stdout.split())) == (0, True)
    asked = [body for path, _, body in server.seen if path == "/v1/chat/completions"]
    assert ["logprobs" in body for body in asked] == [True] + [False] * (len(asked) - 1)


def test_nobody_at_an_address_is_an_input_error(run):
    with served(str.upper) as (_, url):
        pass
    result = CliRunner().invoke(main, ["verify", str(run.path), "--url", url, "--retries", "0", "--timeout", "1"])
    assert result.exit_code == 2
