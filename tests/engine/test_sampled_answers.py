"""Answers that are drawn, judged by a function, and made into rows to train on."""

import json
import os
from types import SimpleNamespace

import pytest
from click.testing import CliRunner
from expected import raises

from ftengine import fine_tune, load_run
from ftengine.cli import main
from ftengine.errors import DataError, InputError, RunError
from ftengine.evaluation.table import Predictions
from ftengine_builtins.evaluators import Verifier
from ftengine_builtins.pairs import judge_of, pairs, read_samples, rows_of, write_pairs

SCORE = "def right(answer, least=4):\n    return sum(map(str.isalpha, answer)) % 2 == 0\n"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    made = tmp_path_factory.mktemp("sampled")
    (made / "score.py").write_text(SCORE)
    rows = [{"prompt": f"the printer {i} does not start", "completion": "Restart it.", "id": i} for i in range(12)]
    (made / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return made


@pytest.fixture(scope="module")
def run(build_chat_recipe, folder):
    """A run whose answers a function judges, three to a prompt."""
    judge = {"name": "verifier", "function": str(folder / "score.py") + ":right", "samples": 3, "k": [1, 3]}
    made = build_chat_recipe(
        output=str(folder / "run"),
        train__max_steps=1,
        data__validation=0.4,
        evaluate=[judge | {"max_new_tokens": 6}, "perplexity"],
    )
    return fine_tune(made)


@pytest.fixture
def predict(run, folder, tmp_path):
    def call(name, *asked, code=0):
        output = tmp_path / name
        args = ["predict", run.path, "--input", folder / "rows.jsonl", "--output", output, "--samples", 3, *asked]
        result = CliRunner().invoke(main, [*map(str, args), "--option", "max_new_tokens=5"])
        assert result.exit_code == code, result.output
        return output if code == 0 else result.output

    return call


def drawn(output):
    return [
        [one["completion"] for one in json.loads(line)["prediction"]["samples"]]
        for line in output.read_text().splitlines()
    ]


@pytest.mark.slow
def test_base_and_tuned_are_judged_by_answers_drawn_alike(run):
    metrics = run.evaluation["metrics"]
    assert {"pass_at_1", "pass_at_3"} <= metrics.keys()
    assert run.evaluation["difference"]["pass_at_1"]["low"] is not None
    for side in ("base", "tuned"):
        table = Predictions.read(run.path / "predictions" / f"validation-{side}.parquet")
        answers, outcomes = table.columns["samples"], table.columns["verifier.outcomes"]
        assert {len(one) for one in answers} == {3}
        assert all(len(set(one)) > 1 for one in answers)
        expected = [[sum(map(str.isalpha, text)) % 2 == 0 for text in one] for one in answers]
        assert outcomes.tolist() == expected
        assert run.evaluation[side]["pass_at_3"]["value"] == pytest.approx(sum(map(any, expected)) / len(expected))
    assert run.evaluation["details"]["tuned"]["verifier"]["errors"] == 0


@pytest.mark.slow
def test_somebody_elses_function_is_not_called_unless_it_is_trusted(run):
    other = load_run(run.path)
    with raises(InputError, "score.py:right", "--trust-code"):
        other.evaluate()
    with raises(InputError, "--trust-code"):
        other.evaluate(evaluators=["verifier"])
    with raises(InputError, "--trust-code"):
        judge_of(other, None, {})
    assert other.evaluate(evaluators=["perplexity"])["tuned"]  # judges again without it
    assert "pass_at_1" in load_run(run.path, trust_code=True).evaluate(evaluators=["verifier"])["tuned"]


@pytest.mark.slow
def test_drawn_answers_do_not_depend_on_batches_or_interruption(predict):
    whole = predict("whole.jsonl")
    assert all(len(set(one)) > 1 for one in drawn(whole))
    lines = [json.loads(line) for line in whole.read_text().splitlines()]
    assert {one["ended"] for line in lines for one in line["prediction"]["samples"]} <= {True, False}
    assert drawn(predict("one.jsonl", "--batch-size", "1")) == drawn(whole)
    assert drawn(predict("seed.jsonl", "--option", "seed=1")) != drawn(whole)
    lines = whole.read_bytes().splitlines(keepends=True)
    text = whole.read_bytes()
    whole.write_bytes(b"".join(lines[:5]) + lines[5][:20])  # as a kill leaves it
    assert predict("whole.jsonl", "--resume").read_bytes() == text
    assert "temperature" in predict("cold.jsonl", "--option", "temperature=0", code=2)


def test_rows_are_made_of_the_best_answers_and_pairs_of_the_best_and_the_worst():
    answers = [{"completion": text} for text in ("bad", "good", " ", "better", "good", "worse", "broken")]
    scores, outcomes = [0.2, 0.6, 1.0, 0.9, 0.6, 0.1, None], [0, 1, 1, 1, 1, 0, 2]
    row = {"prompt": "ask", "completion": "old", "id": 7}

    def made(kind, each, row=row):
        return rows_of(row, answers, scores, outcomes, kind, each)

    assert made("sft", 1) == [{"id": 7, "prompt": "ask", "completion": "better"}]
    assert [one["completion"] for one in made("sft", 9)] == ["better", "good"]
    assert made("preference", 1) == [{"id": 7, "prompt": "ask", "chosen": "better", "rejected": "worse"}]
    assert [(one["chosen"], one["rejected"]) for one in made("preference", 9)] == [("better", "worse"), ("good", "bad")]
    answers[3]["ended"] = False  # it was cut off
    assert [one["completion"] for one in made("sft", 9)] == ["good"]
    answers[3]["ended"] = True
    talk = [{"role": "user", "content": "ask"}, {"role": "assistant", "content": "old"}]
    (said,) = made("sft", 1, {"messages": talk})
    assert said["messages"] == [talk[0], {"role": "assistant", "content": "better"}]
    (pair,) = made("preference", 1, {"conversations": [{"from": "human", "value": "ask"}]})
    assert pair == {
        "prompt": [talk[0]],
        "chosen": [{"role": "assistant", "content": "better"}],
        "rejected": [{"role": "assistant", "content": "worse"}],
    }
    with raises(DataError, "`prompt`"):
        made("sft", 1, {"id": 3})


@pytest.mark.slow
def test_a_round_is_written_whole_goes_on_where_it_ended_and_trains(run, predict, tmp_path, chat_recipe, folder):
    answers, output = predict("answers.jsonl"), tmp_path / "round.jsonl"
    answers.write_text(answers.read_text().replace('"ended": false', '"ended": true'))  # so tiny a model hardly ends
    asked = [str(run.path), "--input", str(answers), "--output", str(output), "--json"]
    first = CliRunner().invoke(pairs, [*asked, "--trust-code"], catch_exceptions=False)
    report = json.loads(first.stdout)
    rows = [json.loads(line) for line in output.read_text().splitlines()]
    assert (report["rows"], report["prompts"], report["answers"]) == (len(rows), 12, 36)
    texts = {json.loads(line)["prompt"]: line for line in answers.read_text().splitlines()}
    for row in rows:
        assert sum(map(str.isalpha, row["completion"])) % 2 == 0
        assert json.dumps(row["completion"], ensure_ascii=False)[1:-1] in texts[row["prompt"]]
    trained = fine_tune(chat_recipe(data__train=str(output), data__validation=None, train__max_steps=1))
    assert trained.metrics

    whole = output.read_bytes()
    with raises(RunError, "exists"):
        CliRunner().invoke(pairs, [*asked, "--trust-code"], catch_exceptions=False)
    output.unlink()
    scores = output.with_name("round.jsonl.scores.jsonl")
    lines = scores.read_bytes().splitlines(keepends=True)
    scores.write_bytes(b"".join(lines[:6]) + b'{"sco')
    judge = judge_of(run, None, {})
    judged = []
    judge.score_answers = lambda texts, row, real=judge.score_answers: judged.append(row) or real(texts, row)
    write_pairs(run, judge, answers, output, resume=True)
    assert len(judged) == 12 - 5
    assert (output.read_bytes(), scores.read_bytes()) == (whole, b"".join(lines))
    output.unlink()
    with raises(RunError, "begun with"):
        write_pairs(run, judge_of(run, None, {"passes_at": 0.5}), answers, output, resume=True)
    assert not output.exists()


@pytest.mark.slow
def test_a_function_that_always_fails_makes_no_rows_and_says_why(run, predict, tmp_path):
    (tmp_path / "bad.py").write_text("def right(answer):\n    return answer.nothing\n")
    output = tmp_path / "round.jsonl"
    args = [run.path, "--input", predict("answers.jsonl"), "--output", output, "--function", f"{tmp_path}/bad.py:right"]
    with raises(InputError, "36", "AttributeError", "bad.py:2"):
        CliRunner().invoke(pairs, [*map(str, args)], catch_exceptions=False)
    assert not output.exists()
    with raises(InputError, "rows.jsonl:1", "--samples"):
        args[2] = os.path.join(os.path.dirname(run.path), "rows.jsonl")
        CliRunner().invoke(pairs, [*map(str, args)], catch_exceptions=False)


COMPLETION = "def right(answer, completion):\n    return answer == completion\n"


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "ask", "completion": "4"},
        {"prompt": [{"role": "user", "content": "ask"}], "completion": [{"role": "assistant", "content": "4"}]},
        {"messages": [{"role": "user", "content": "ask"}, {"role": "assistant", "content": "4"}]},
    ],
)
def test_the_rows_own_answer_is_the_same_text_in_every_layout(tmp_path, row):
    (tmp_path / "score.py").write_text(COMPLETION)
    judge = Verifier(Verifier.Config(function=f"{tmp_path}/score.py:right"))
    judge.check_row(row)
    answers = tmp_path / "answers.jsonl"
    drawn = [{"completion": text, "ended": text != "cut"} for text in ("4", "5", "cut")]
    answers.write_text(json.dumps({**row, "prediction": {"samples": drawn}}) + "\n")
    run = SimpleNamespace(recipe=SimpleNamespace(data=SimpleNamespace(columns={})))
    report = write_pairs(run, judge, answers, tmp_path / "round.jsonl", kind="preference")
    assert (report.passed, report.rows, report.cut, report.errors) == (1, 1, 1, 0)
    with raises(DataError, "`completion`"):
        judge.check_row({"messages": row.get("messages", [])[:1] or [{"role": "user", "content": "ask"}]})


def test_a_function_that_takes_too_long_makes_no_rows_and_its_time_limit_is_named(tmp_path):
    (tmp_path / "slow.py").write_text("import time\n\n\ndef right(answer):\n    time.sleep(60)\n")
    judge = Verifier(Verifier.Config(function=f"{tmp_path}/slow.py:right", timeout=0.1))
    drawn = [{"completion": text, "ended": False} for text in "ab"]
    (tmp_path / "answers.jsonl").write_text(json.dumps({"prompt": "ask", "prediction": {"samples": drawn}}) + "\n")
    run = SimpleNamespace(recipe=SimpleNamespace(data=SimpleNamespace(columns={})))
    with raises(InputError, "0.1 s for 2", "timeout=") as caught:
        write_pairs(run, judge, tmp_path / "answers.jsonl", tmp_path / "round.jsonl")
    assert "max_new_tokens" not in str(caught.value)


def test_a_base_model_samples_and_its_answers_are_judged_without_a_run(llama_folder, folder, tmp_path):
    answers, rows = tmp_path / "answers.jsonl", tmp_path / "round.jsonl"
    sampled = ["--samples", "3", "--input", str(folder / "rows.jsonl"), "--output", str(answers)]
    asked = ["predict", str(llama_folder), *sampled, "--option", "max_new_tokens=6"]
    result = CliRunner().invoke(main, asked)
    assert result.exit_code == 0, result.output
    scored = [str(llama_folder), "--input", str(answers), "--output", str(rows)]
    refused = CliRunner().invoke(pairs, scored)
    assert isinstance(refused.exception, InputError)
    lines = [json.loads(line) for line in answers.read_text().splitlines()]
    for line in lines:
        line["prediction"]["samples"][0] = {"completion": "four", "ended": True}
    answers.write_text("".join(json.dumps(line) + "\n" for line in lines))
    result = CliRunner().invoke(pairs, [*scored, "--function", f"{folder / 'score.py'}:right"])
    assert result.exit_code == 0, result.output
    assert len(rows.read_text().splitlines()) == len(lines) == 12


@pytest.mark.parametrize("said", ["text", {"samples": "4"}, {"samples": [{"text": "4"}]}])
def test_what_is_no_sampled_answer_is_refused(tmp_path, said):
    (tmp_path / "answers.jsonl").write_text(json.dumps({"prompt": "ask", "prediction": said}) + "\n")
    with raises(DataError, "answers.jsonl:1", "--samples"):
        list(read_samples(tmp_path / "answers.jsonl", {}))
