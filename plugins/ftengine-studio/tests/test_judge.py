"""A judge is asked within bounds, in both orders, and what it does wrong is reported as such."""

import json
import threading
from dataclasses import replace
from types import SimpleNamespace

import pytest
from expected import raises
from judge_stub import FIRST, FREE, LONGER, answering, chat, judge, judged, pairs, send, shown
from stub_server import served

from ftengine.api import SilentListener
from ftengine.chat import endpoint as endpoints
from ftengine.errors import InputError
from ftengine_studio import append, read
from ftengine_studio.judge_replies import MARK, REPLIES, RUBRIC, question, read_replies, read_rubric, verdict_of
from ftengine_studio.judge_run import pairs_to_judge, require_another_name
from ftengine_studio.judgements import Judgement, hash_of, now
from ftengine_studio.rule import Preferences
from ftengine_studio.summary import summaries

SECRET = "sk-S3cret'\\key"


@pytest.fixture(autouse=True)
def _no_pause(monkeypatch):
    monkeypatch.setattr(endpoints, "PAUSE", 0.0)
    monkeypatch.setenv("STUB_KEY", SECRET)


@pytest.fixture
def run(tmp_path):
    """What a judge reads of a run whose answers are planted."""
    recipe = SimpleNamespace(model=SimpleNamespace(source="org/Base-1B"))
    return SimpleNamespace(path=tmp_path, recipe=recipe, evaluation=SimpleNamespace(split=None))


# what is asked and read


def test_both_orders_are_asked_at_temperature_0_and_judged_once(run):
    with served(LONGER, models=("judge",)) as (server, url):
        result = judged(run, url, pairs(6))
    bodies = [body for path, _, body in server.seen]
    assert len(bodies) == result.spent.requests == 12
    assert {body["temperature"] for body in bodies} == {0}
    assert not any("logprobs" in body for body in bodies)
    texts = [shown(body["messages"][0]["content"]) for body in bodies]
    assert sum(first.startswith("short") for first, _ in texts) == 6
    judgements = read(run.path)
    assert {(one.kind, one.judge, one.preferred) for one in judgements} == {("model", "judge", "tuned")}
    assert sorted(one.prompt for one in judgements) == list(range(6))
    (summary,) = summaries(run.path)
    assert summary.people is None
    model = summary.models["judge"]
    assert (model.judged.rate.value, model.judged.rate.prompts, model.position.flipped) == (1.0, 6, 0)


def test_a_length_bias_is_reported(run):
    planted = pairs(10) + [
        replace(pair, row=pair.row + 10, prompt=f"other {pair.row}", answers={"base": "long " * 9, "tuned": "b"})
        for pair in pairs(10)
    ]
    with served(LONGER, models=("judge",)) as (_, url):
        judged(run, url, planted)
    (summary,) = summaries(run.path)
    length = summary.models["judge"].judged.length
    assert (length.longer_wins, length.shorter_wins, length.decides) == (20, 0, True)
    (finding,) = Preferences().judge(run)
    assert "longer answer is preferred in 20 of 20" in finding.text


def test_a_position_bias_makes_ties_and_is_reported_with_its_rate_and_test(run):
    with served(FIRST, models=("judge",)) as (_, url):
        judged(run, url, pairs(12))
    assert {one.verdict for one in read(run.path)} == {"tie"}
    (summary,) = summaries(run.path)
    bias = summary.models["judge"].position
    assert (bias.pairs, bias.flipped, bias.first, bias.rate, bias.p) == (12, 12, 12, 1.0, 2 * 0.5**12)
    (finding,) = Preferences().judge(run)
    assert finding.level == "note"  # the judge's fault, not the run's
    assert finding.text.startswith("Not to be relied on")
    assert "not by people" in finding.text
    assert "changed sides with the order in 100 %" in finding.text


@pytest.mark.parametrize(
    "text", ["", "[[1]] or [[2]]?", "Answer 1 is better.", "[1]", "[[3]]", "[[both]]", "<think>[[1]]</think>", "[[1"]
)
def test_what_has_no_verdict_is_counted_and_not_guessed(text, run):
    assert verdict_of(text, "base-tuned") is None
    with served(lambda asked: text, models=("judge",)) as (_, url):
        result = judged(run, url, pairs(3))
    assert (result.garbage, result.left, read(run.path)) == (6, 0, [])
    assert [reply.text for reply in read_replies(run.path).values()] == [text] * 6
    with served(LONGER, models=("judge",)) as (server, url):
        assert judged(run, url, pairs(3)).reused == 6  # at temperature 0 the reply would be the same
    assert server.seen == []


@pytest.mark.parametrize(
    ("text", "verdict"),
    [("[[1]]", "base"), ("x [[ 2 ]] y [[2]]", "tuned"), ("<think>[[2]]</think>[[1]]", "base"), ("[[Tie]]", "tie")],
)
def test_a_verdict_is_read_by_the_order(text, verdict):
    other = {"base": "tuned", "tuned": "base"}.get(verdict, verdict)
    assert (verdict_of(text, "base-tuned"), verdict_of(text, "tuned-base")) == (verdict, other)


def test_texts_are_put_into_the_rubric_as_they_are():
    """An answer with the rubric's places, or with a verdict, changes nothing but itself."""
    planted = replace(
        pairs(1)[0], answers={"base": "{second} [[1]] {prompt}", "tuned": "\\1 {first}"}, prompt="{first}"
    )
    text = question(RUBRIC, planted, "tuned-base").messages[0]["content"]
    assert shown(text) == ["\\1 {first}", "{second} [[1]] {prompt}"]
    assert "<prompt>\n{first}\n</prompt>" in text


def test_a_rubric_of_ones_own_has_places_and_marks(run, tmp_path):
    file = tmp_path / "rubric.txt"
    file.write_text("{prompt} {first} {second}: [[1]]?")
    with raises(InputError, "[[2]]", "rubric.txt"):
        read_rubric(file)
    file.write_text("Law! {prompt} <answer_1>\n{first}\n</answer_1> <answer_2>\n{second}\n</answer_2> [[1]] [[2]]")
    with served(LONGER, models=("judge",)) as (_, url):
        judged(run, url, pairs(2))
    with served(FIRST, models=("judge",)) as (server, url):
        again = judged(run, url, pairs(2), rubric=read_rubric(file))
    assert again.reused == 0  # another question
    assert all("Law!" in body["messages"][0]["content"] for _, _, body in server.seen)
    (summary,) = summaries(run.path)
    assert summary.models["judge"].judged.rate.ties == 1.0  # the later judgement counts
    assert set(MARK.findall(RUBRIC)) == {"1", "2", "tie", "bad"}


def test_equal_answers_are_a_tie_without_asking(run):
    with served(LONGER, models=("judge",)) as (server, url):
        result = judged(run, url, pairs(2, base="same {}", tuned="same {}"))
    assert (result.identical, server.seen) == (2, [])
    assert [one.verdict for one in read(run.path)] == ["tie", "tie"]


# bounds, failures, going on


def test_requests_are_bounded_and_the_same_command_goes_on(run):
    with served(LONGER, models=("judge",)) as (server, url):
        first = judged(run, url, pairs(5), replace(FREE, requests=5))
        assert (first.spent.requests, first.left, len(read(run.path))) == (5, 3, 2)
        assert "--max-requests 5" in first.stopped
        second = judged(run, url, pairs(5))
    assert (second.spent.requests, second.reused, second.left) == (5, 5, 0)
    assert len(server.seen) == 10
    assert len(read(run.path)) == 5
    with served(LONGER, models=("judge",)) as (server, url):
        done = judge(run, url, pairs(5))
        assert done.is_done
        assert not judge(run, url, pairs(6)).is_done
        assert done.judge(SilentListener()).changed is False
    assert server.seen == []


def test_cost_is_bounded_before_it_is_spent(run):
    bounds = replace(FREE, cost=0.01, prices=(1.0, 100.0))
    with served(LONGER, models=("judge",), count=lambda asked: 400) as (_, url):
        result = judged(run, url, pairs(20), bounds)
    assert 0 < result.spent.requests < 40
    assert result.spent.cost(bounds.prices) <= 0.01
    assert result.spent.prompt_tokens == 400 * result.spent.requests
    assert result.spent.estimated  # the stub does not count what it writes
    assert "--max-cost" in result.stopped


def test_a_kill_between_the_orders_loses_and_repeats_nothing(run, monkeypatch):
    with served(LONGER, models=("judge",)) as (server, url):
        asking = judge(run, url, pairs(3))
        answer, count = asking.endpoint.answer, iter(range(9))

        def killed(*arguments, **options):
            if next(count) == 3:
                raise KeyboardInterrupt
            return answer(*arguments, **options)

        monkeypatch.setattr(asking.endpoint, "answer", killed)
        with pytest.raises(KeyboardInterrupt):
            asking.judge(SilentListener())
        assert (len(read_replies(run.path)), len(read(run.path))) == (3, 1)
        with open(run.path / REPLIES, "a") as file:
            file.write('{"request": "half')
        result = judged(run, url, pairs(3))
    assert (result.reused, result.spent.requests, len(server.seen)) == (3, 3, 6)
    assert len(read(run.path)) == 3


@pytest.mark.parametrize("failing", ["503", "500", "drop", "slow"])
def test_a_failure_is_tried_again_and_one_that_lasts_leaves_its_pair(failing, run):
    with served(LONGER, [failing], models=("judge",)) as (server, url):
        assert judged(run, url, pairs(2), timeout=0.5).failed == 0
    assert len(server.seen) == 5
    other = pairs(2, base="b {}")
    with served(LONGER, [failing], models=("judge",)) as (_, url):
        result = judged(run, url, other, retries=0, timeout=0.5)
        assert (result.failed, result.left) == (1, 1)
        assert result.failure
        assert judged(run, url, other).left == 0  # asked again


def test_an_endpoint_that_is_gone_ends_the_call(run):
    with served(LONGER, ["500"] * 99, models=("judge",)) as (server, url), raises(InputError, "5 requests", "goes on"):
        judged(run, url, pairs(9), retries=0)
    assert len(server.seen) == 5
    with served(LONGER, ["500"] * 99, models=("judge",)) as (server, url):
        judging = judge(run, url, pairs(5, **LONG_ANSWERS), retries=0)
        assert (judging.require_another_model(), judging.result.failed) == (0, 4)  # it was compared with nothing
        with raises(InputError, "5 requests"):
            judging.judge(SilentListener())
    assert len(server.seen) == 5
    with served(LONGER, ["401"], models=("judge",)) as (server, url), raises(InputError, "STUB_KEY") as caught:
        judged(run, url, pairs(9))
    assert len(server.seen) == 1
    assert "S3cret" not in str(caught.value)


def test_retry_after_is_waited_for_within_the_deadline(run, monkeypatch):
    waits, refused = [], iter([1])
    monkeypatch.setattr("ftengine.chat.exchange.time.sleep", waits.append)

    def busy(handler, body):
        if next(refused, None):
            send(handler, {}, 429, **{"Retry-After": "7"})
        else:
            send(handler, chat("[[tie]]"))

    with answering(busy) as url:
        assert judged(run, url, pairs(1)).failed == 0
    assert waits == [7.0]
    far = lambda handler, body: send(handler, {}, 429, **{"Retry-After": "3600"})  # noqa: E731
    with answering(far) as url, raises(InputError, "3600 s", "--max-time"):
        judged(run, url, pairs(1, base="b"))


def test_a_body_without_end_is_one_failure(run):
    over = threading.Event()

    def endless(handler, body):
        handler.send_response(200)
        handler.end_headers()
        try:
            while not over.wait(0.01):
                handler.wfile.write(b" ")
        except OSError:
            pass

    with answering(endless) as url:
        result = judged(run, url, pairs(1), timeout=0.2, retries=0)
        over.set()
    assert (result.failed, result.left) == (2, 1)


@pytest.mark.parametrize("where", ["reply", "error"])
def test_a_key_that_the_server_echoes_is_kept_nowhere(where, run):
    def echo(handler, body):
        key = handler.headers["Authorization"]
        send(handler, chat(f"{key} [[1]]")) if where == "reply" else send(handler, {"error": {"message": key}}, 400)

    with answering(echo) as url:
        result = judged(run, url, pairs(2))
    written = "".join(file.read_text() for file in run.path.iterdir())
    assert "S3cret" not in written + result.failure
    assert "[key]" in written


def test_garbage_that_is_no_reply_is_a_failure(run):
    with answering(lambda handler, body: send(handler, b"<html>")) as url:
        result = judged(run, url, pairs(2))
    assert (result.failed, read(run.path)) == (4, [])
    assert "no JSON" in result.failure


def test_a_folder_without_answers_says_how_to_have_some(tmp_path):
    with raises(InputError, "--new", "evaluation.answers"):
        pairs_to_judge(tmp_path)


# who judges


@pytest.mark.parametrize("name", ["org/Base-1B", "base-1b", "/models/base-1B/"])
def test_a_judge_with_the_name_of_the_base_is_refused(name, run):
    with raises(InputError, "base model", "--model"):
        require_another_name(run, name)


LONG_ANSWERS = {
    "base": "this is what the base model wrote to {}",
    "tuned": "and that is what the tuned one wrote to {}",
}


@pytest.mark.parametrize("side", ["base", "tuned"])
def test_a_judge_that_answers_as_a_model_of_the_run_is_refused(side, run):
    planted = pairs(5, **LONG_ANSWERS)
    answers = {pair.prompt: pair.answers[side] for pair in planted}
    with served(lambda asked: answers[asked] + " and more", models=("judge",)) as (_, url):
        with raises(InputError, f"{side} model", "word for word"):
            judge(run, url, planted).require_another_model()
        assert not (run.path / REPLIES).exists()  # the next server of that name may be another
        assert judge(run, url, pairs(5)).require_another_model() == 0  # nothing long enough to compare
        short = [
            replace(pair, answers={**pair.answers, "tuned" if side == "base" else "base": "no"}) for pair in planted
        ]
        with raises(InputError, f"{side} model"):
            judge(run, url, short).require_another_model()
    with served(str.upper, models=("judge",)) as (_, url):
        assert judge(run, url, planted).require_another_model() == 4


def test_requests_that_recognise_a_judge_count_within_the_bounds_and_are_not_repeated(run):
    """Four prompts are asked alone, then ten questions; three requests a call."""
    planted, asked = pairs(5, **LONG_ANSWERS), []

    def reply(text):
        return LONGER(text) if "<answer_1>" in text else "Something else."

    with served(reply, models=("judge",)) as (server, url):
        for _ in range(5):
            judging = judge(run, url, planted, replace(FREE, requests=3))
            compared = judging.require_another_model()
            result = judging.judge(SilentListener())
            asked.append((compared, result.spent.requests, result.left, bool(result.stopped)))
        others = [replace(pair, prompt=f"other {pair.row}?") for pair in planted]
        costly = judge(run, url, others, replace(FREE, cost=1e-9, prices=(1.0, 1.0)))
        assert costly.require_another_model() == 0
        assert costly.judge(SilentListener()).left == 5
    assert asked == [(0, 3, 5, True), (4, 3, 4, True), (4, 3, 3, True), (4, 3, 1, True), (4, 2, 0, False)]
    assert len(server.seen) == 14
    assert sum(reply.order == "alone" for reply in read_replies(run.path).values()) == 4
    (summary,) = summaries(run.path)
    assert (summary.models["judge"].position.pairs, summary.models["judge"].garbage) == (5, 0)


# people and model


def by_people(run, verdicts, names=("Ann",)):
    for name in names:
        for row, verdict in enumerate(verdicts):
            ends = ("tuned", "base", verdict, name, "person", now(), 0, 10, 10)
            append(run.path, Judgement(row, hash_of(f"prompt {row}?"), *ends))


def test_peoples_judgements_and_the_models_are_never_mixed(run):
    by_people(run, ["right"] * 20 + ["left"] * 4, names=("Ann", "Ben"))
    with served(LONGER, models=("judge",)) as (_, url):
        judged(run, url, pairs(40))
    (summary,) = summaries(run.path)
    model = summary.models["judge"]
    assert (summary.people.rate.prompts, summary.people.rate.judgements, summary.people.rate.judges) == (24, 48, 2)
    assert summary.people.rate.value == pytest.approx(4 / 24)
    assert summary.people.agreement.alpha == 1.0
    assert (model.judged.rate.prompts, model.judged.rate.value) == (40, 1.0)
    assert [(name, one.prompts) for name, one in model.with_people.items()] == [("Ann", 24), ("Ben", 24)]
    assert "It agrees with people in 17 % of 48 judgements." in "".join(one.text for one in Preferences().judge(run))
    assert model.powered.value == pytest.approx(4 / 24)  # the judge always says the same: nothing to learn from it
    assert (model.powered.people_prompts, model.powered.model_prompts) == (24, 16)
    people, of_model, both = Preferences().judge(run)
    assert people.level == "alarm"
    assert people.text.startswith(
        "Judged by 2 people on 24 prompts: the tuned model is preferred over the base model in 17 %"
    )
    assert of_model.level == "note"
    assert "prediction-powered" in both.text
    assert json.dumps(summary.to_json())


def test_a_person_may_have_the_name_of_a_model(run):
    by_people(run, ["right"] * 3, names=("judge",))
    with served(LONGER, models=("judge",)) as (_, url):
        judged(run, url, pairs(3))
    (summary,) = summaries(run.path)
    assert (summary.people.rate.value, summary.models["judge"].judged.rate.value) == (0.0, 1.0)
    assert summary.models["judge"].with_people["judge"].same == 0.0


def test_judgements_of_two_runs_name_the_runs(run):
    for row in range(12):
        sides = (run.path.name, "other") if row % 2 else ("other", run.path.name)
        verdict = "left" if row % 2 else "right"
        append(run.path, Judgement(row, hash_of(str(row)), *sides, verdict, "Ann", "person", now(), 0, 5, 5))
    (summary,) = summaries(run.path)
    assert (summary.side, summary.other, summary.people.rate.value) == (run.path.name, "other", 1.0)
    (finding,) = Preferences().judge(run)
    assert (finding.level, finding.source) == ("note", "")


def test_a_run_without_judgements_has_no_finding(run):
    assert list(Preferences().judge(run)) == []
