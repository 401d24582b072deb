"""`ftengine judge` on whole runs: what a judge said stands in verdict, report and figures; a real model judges."""

import json
import re
import shutil
from collections import Counter

import pytest
from click.testing import CliRunner
from stub_server import served
from tiny import tiny_llama

from ftengine import Recipe, fine_tune, load_run
from ftengine.cli import main

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("installed")]

ROWS = [
    {"prompt": f"What is {a} + {b}?", "completion": f"It is {a + b}.", "kind": "even" if (a + b) % 2 else "odd"}
    for a in range(6)
    for b in range(6)
]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run of a tiny Llama that answered its 18 test prompts."""
    folder = tmp_path_factory.mktemp("judged")
    (folder / "sums.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in ROWS), encoding="utf-8")
    content = {
        "model": {"source": str(tiny_llama(folder / "llama", initializer_range=0.2))},
        "task": "causal-lm",
        "data": {"train": str(folder / "sums.jsonl"), "test": 0.5, "validation": None},
        "strategy": {"name": "lora", "rank": 4},
        "train": {"epochs": 2, "batch_size": 4, "learning_rate": 0.01, "precision": "float32"},
        "evaluate": ["generation"],
        "evaluation": {"resamples": 100, "slices": ["kind"], "generate": {"max_new_tokens": 32}},
        "output": str(folder / "run"),
    }
    return fine_tune(Recipe.make(content)).path


@pytest.fixture
def run(trained, tmp_path):
    return shutil.copytree(trained, tmp_path / "run")


def judge(run, url, *options, code=0):
    arguments = ["judge", str(run), "--endpoint", url, "--model", "judge", "--json", *options]
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == code, result.output
    return json.loads(result.stdout) if code == 0 else result.stderr


def sums(asked):
    """Prefer the answer that says "It is"."""
    first = re.search(r"<answer_1>\n(.*?)\n</answer_1>", asked, re.DOTALL)
    return f"[[{1 if first and first[1].startswith('It is') else 2}]]"


def test_what_a_model_judged_stands_in_verdict_and_report(run):
    with served(sums, models=("judge",)) as (server, url):
        first = judge(run, url, "--max-requests", "20", "--price-per-1m", "1,2", "--max-cost", "100")
        found = judge(run, url)
    alone = first["compared_with_run"]  # prompts that recognise the judge, which count
    assert (first["left"], first["spent"]["requests"]) == (18 - (20 - alone) // 2, 20)
    asked = [body for _, _, body in server.seen if "<answer_1>" in body["messages"][0]["content"]]
    assert (found["pairs"], found["left"], found["reused"], len(asked)) == (18, 0, 20 - alone, 36)
    assert len(server.seen) - len(asked) == found["compared_with_run"] == alone > 3
    rate = found["figures"]["judged"]["rate"]
    assert (rate["value"], rate["prompts"]) == (1.0, 18)
    assert found["figures"]["judged"]["slices"]["kind"].keys() == {"even", "odd"}
    (finding,) = [one for one in load_run(run).verdict.findings if one.source == "preferences"]
    assert (finding.kind, finding.level) == ("judges", "note")
    assert finding.figures["model judge"]["value"] == 1.0
    assert "not by people" in (run / "report.html").read_text(encoding="utf-8")
    assert load_run(run).evaluate()["split"] == "test"  # the run's seal holds
    with served(sums, models=("judge",)) as (server, url):
        text = CliRunner().invoke(main, ["judge", str(run), "--endpoint", url, "--model", "judge"]).stdout
    assert server.seen == []
    assert finding.text in text
    assert "36 replies of earlier calls" in text


def test_peoples_judgements_come_into_the_verdict_when_it_is_renewed(run):
    from ftengine_studio import Judgement, append
    from ftengine_studio.judge_run import pairs_to_judge
    from ftengine_studio.judgements import now

    for pair in pairs_to_judge(run):
        ends = ("base", "tuned", "right", "Ann", "person", now(), 0, 9, 9)
        append(run, Judgement(pair.row, pair.prompt_hash, *ends, answers_hash=pair.answers_hash))
    opened = load_run(run)
    assert not [one for one in opened.verdict.findings if one.source == "preferences"]
    assert f"ftengine studio {run}" in opened.view_commands
    before = CliRunner().invoke(main, ["report", str(run), "--json"])
    assert "preferences" in before.stderr
    assert f"ftengine report {run} --renew" in before.stderr
    result = CliRunner().invoke(main, ["report", str(run), "--renew", "--json"])
    assert "--renew" not in CliRunner().invoke(main, ["report", str(run)]).stderr
    (finding,) = [one for one in json.loads(result.stdout)["findings"] if one["source"] == "preferences"]
    assert (finding["level"], finding["figures"]["people"]["prompts"]) == ("good", 18)


def test_a_judge_without_a_run_or_with_wrong_options_is_refused(run, tmp_path):
    with served(sums, models=("judge",)) as (server, url):
        assert "--price-per-1m" in judge(run, url, "--max-cost", "1", code=2)
        assert "'much'" in judge(run, url, "--price-per-1m", "much", code=2)
        assert "not a run" in judge(tmp_path, url, code=2)
    assert server.seen == []


def test_the_runs_own_base_is_no_judge_under_another_name(run):
    """The base that transformers serves answers the run's prompts as it did in the evaluation."""
    opened = load_run(run)

    def reply(asked):
        (answer,) = opened.predict([{"prompt": asked}], base=True, options={"max_new_tokens": 32})
        return answer["completion"]

    with served(reply, models=("judge",)) as (_, url):
        assert "answers as the base model" in judge(run, url, code=2)
    assert not (run / "judge_replies.jsonl").exists()


def test_a_real_model_judges(run, smollm2_gguf):
    """SmolLM2, which is too small to judge: whatever it replies is a verdict or counted as none, and kept."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    names = {"gguf_file": smollm2_gguf.name}
    tokenizer = AutoTokenizer.from_pretrained(smollm2_gguf.parent, **names)
    model = AutoModelForCausalLM.from_pretrained(smollm2_gguf.parent, **names).eval()

    def reply(asked):
        turns = [{"role": "user", "content": asked}]
        inputs = tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_dict=True, return_tensors="pt")
        ids = model.generate(**inputs, max_new_tokens=24, do_sample=False)
        return tokenizer.decode(ids[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)

    with served(reply, models=("judge",)) as (_, url):
        found = judge(run, url, "--max-requests", "12", "--max-tokens", "24")
    replies = [json.loads(line) for line in (run / "judge_replies.jsonl").read_text("utf-8").splitlines()]
    assert len(replies) == found["spent"]["requests"] == 12
    assert all(reply["text"] for reply in replies)
    # The others ask whether it is the tuned model; the last pair may have been asked in one order alone.
    times = Counter(reply["prompt"] for reply in replies if reply["order"] != "alone")
    about = [reply for reply in replies if reply["order"] != "alone" and times[reply["prompt"]] == 2]
    assert about
    assert (found["failed"], found["left"]) == (0, 18 - len(about) // 2)
    assert found["garbage"] == sum(reply["verdict"] is None for reply in about)
    judged = 0 if found["figures"] is None else found["figures"]["judged"]["rate"]["prompts"]
    assert judged == len(about) // 2 - len({reply["prompt"] for reply in about if reply["verdict"] is None})
