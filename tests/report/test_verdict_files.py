"""A verdict is made from the files of a run and anybody's rules; its figures have the digits that they support."""

import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import pytest
from click.testing import CliRunner
from expected import raises
from report_samples import everything, sound, write_run

from ftengine import load_run
from ftengine.api import Estimate, Finding, Rule, SilentListener
from ftengine.cli import main
from ftengine.errors import PluginError, RunError
from ftengine.plugins.registry import Registry
from ftengine.report.verdict import judge, view_commands
from ftengine.report.write import conclude, conclude_again, verdict_of, write_report
from ftengine.run.directory import RunDirectory
from ftengine.run.records import RunRecords, Verdict
from ftengine.text import figures


class Always(Rule):
    """Finds something in every run."""

    name = "always"

    def judge(self, run):
        yield Finding(kind="own", level="alarm", text=f"{len(run.steps)} steps.")


def test_a_third_partys_rule_is_part_of_the_verdict(tmp_path):
    registry = Registry()
    entry = registry.get("rule", "better-than-base")
    registry._entries["rule"]["always"] = type(entry)("rule", Always, entry.origin)
    told = judge(RunRecords.read(write_run(tmp_path / "run", sound())), registry)
    assert [(f.kind, f.source, f.text) for f in told.lead[:-1]] == [("own", "always", "100 steps.")]
    assert told.headline == "Accuracy 93 %, base 65 %, but 100 steps."


class Breaks(Always):
    """Cannot name its command."""

    def view_command(self, run):
        raise ValueError("no command")


def test_a_rule_whose_command_fails_is_reported_and_the_run_is_complete(tmp_path):
    registry, messages = Registry(), []
    entry = registry.get("rule", "better-than-base")
    registry._entries["rule"]["always"] = type(entry)("rule", Breaks, entry.origin)
    listener = SilentListener()
    listener.message = messages.append
    assert view_commands(RunRecords.read(write_run(tmp_path / "run", sound())), registry, listener) == []
    (message,) = messages
    assert "'always'" in message
    assert "no command" in message


class Ends(Always):
    """Ends the process as if all was well."""

    def judge(self, run):
        raise SystemExit(0)


def test_a_rule_that_ends_the_process_is_an_error_that_names_it(tmp_path):
    registry = Registry()
    entry = registry.get("rule", "better-than-base")
    registry._entries["rule"]["always"] = type(entry)("rule", Ends, entry.origin)
    with raises(PluginError, "rule 'always' of ", "SystemExit: 0 (test_verdict_files.py:"):
        judge(RunRecords.read(write_run(tmp_path / "run", sound())), registry)


def test_the_verdict_is_judged_when_a_run_is_concluded_and_read_by_everything_after(tmp_path):
    run = RunDirectory(write_run(tmp_path / "run", everything()))
    written = conclude(run)
    assert (run.path / "report.html").is_file()
    marked = written.model_copy(update={"headline": "As it was judged."})
    marked.write(run)
    assert verdict_of(run.path) == marked
    assert "As it was judged." in write_report([run.path]).read_text(encoding="utf-8")
    for arguments in (["report", str(run.path)], ["report", str(run.path), "--json"]):
        assert "As it was judged." in CliRunner().invoke(main, arguments).stdout
    assert load_run(run.path).verdict == marked
    assert (run.path / Verdict.file).unlink() is None
    with raises(RunError, Verdict.file):
        verdict_of(run.path)


def test_two_who_judge_a_run_at_once_do_it_one_after_the_other(tmp_path, monkeypatch):
    """Each has a file lock of its own, as two processes have."""
    run, both, met = RunDirectory(write_run(tmp_path / "run", everything())), threading.Barrier(2), []

    def meeting(*arguments):
        with suppress(threading.BrokenBarrierError):
            both.wait(timeout=0.1)
            met.append(True)
        return judge(*arguments)

    monkeypatch.setattr("ftengine.report.write.judge", meeting)
    with ThreadPoolExecutor(2) as people:
        first, second = people.map(lambda _: conclude_again(run), range(2))
    assert (met, first) == ([], second)


def test_an_unfinished_run_and_a_folder_without_one_are_refused(tmp_path):
    unfinished = write_run(tmp_path / "run", sound() | {"evaluation": None})
    for read, named in ((RunRecords.read, "evaluation.json"), (verdict_of, Verdict.file)):
        with raises(RunError, named):
            read(unfinished)
        with pytest.raises(RunError):
            read(tmp_path / "nothing")


@pytest.mark.parametrize(
    ("name", "key", "value", "said"),
    [
        ("training", "steps", "many", "training.json': steps"),
        ("evaluation", "metrics", {"accuracy": {}}, "metrics.accuracy"),
        ("audit", "warnings", [], "audit.json': warnings"),
    ],
)
def test_a_damaged_or_older_file_is_one_error_that_names_file_and_field(tmp_path, name, key, value, said):
    files = sound()
    files[name][key] = value
    with raises(RunError, said):
        RunRecords.read(write_run(tmp_path / "run", files))


@pytest.mark.parametrize(
    ("value", "half", "text"),
    [
        (0.9384, 0.0245, "0.938 (95 % interval 0.914 to 0.963)"),
        (1234.5, 100.0, "1,234 (95 % interval 1,134 to 1,334)"),
        (-0.05, 0.2, "−0.05 (95 % interval −0.25 to 0.15)"),
        (0.0012, 0.00115, "0.00120 (95 % interval 0.00005 to 0.00235)"),
    ],
)
def test_figures_have_the_digits_that_their_interval_supports(value, half, text):
    assert figures.with_interval(Estimate(value, value - half, value + half, 100)) == text


class Cause(Rule):
    """Finds why the run is what it is."""

    name = "cause"
    level = "alarm"

    def judge(self, run):
        text = "Do this: it is wrong."
        yield Finding(kind="own", level=self.level, text=text, explains=("quality", "effect", "strange"))
        yield Finding(kind="effect", level="note", text="An effect.", explains=("strange",))
        yield Finding(kind="strange", level="alarm", text="An alarm that explains its cause.", explains=("own",))


@pytest.mark.parametrize(
    ("level", "lead", "following"),
    [
        ("alarm", ["cause", "better-than-base"], {"effect": "cause"}),
        ("note", ["cause", "better-than-base"], {"effect": "cause"}),
    ],
)
def test_anybodys_rule_names_what_its_findings_explain(tmp_path, level, lead, following):
    registry = Registry()
    entry = registry.get("rule", "better-than-base")
    rule = type("Rule", (Cause,), {"level": level})
    registry._entries["rule"]["cause"] = type(entry)("rule", rule, entry.origin)
    run = RunDirectory(write_run(tmp_path / "run", sound()))
    told = conclude(run, registry=registry)
    assert [one.source for one in told.lead] == lead
    assert {one.kind: one.explained_by for one in told.rest if one.explained_by} == following
    first = {"alarm": "Do this: it is wrong; accuracy 93 %", "note": "Accuracy 93 %, base 65 %, but an alarm that "}
    assert told.headline.startswith(first[level])
    page = (run.path / "report.html").read_text(encoding="utf-8")
    assert page.index("These follow from what is above") < page.index("An effect.")
    assert "An effect." not in CliRunner().invoke(main, ["report", str(run.path)]).stdout
