"""Commands of other distributions: listed without loading, loaded when called, never in anyone's way."""

import sys

import pytest

GOOD = """
import click

@click.command()
@click.argument("word")
def command(word):
    '''Say a word.'''
    click.echo(f"said {word}")

@click.command()
@click.pass_context
def three(ctx):
    '''Exit with 3.'''
    ctx.exit(3)

@click.command()
def returns():
    '''Return a number, which is no exit status.'''
    return 5

something_else = 1
"""


def test_a_command_is_listed_with_its_distribution_without_being_loaded(ftengine, distribution):
    distribution("raise ValueError('loaded')\n", "[ftengine.commands]\nsay = ftengine_thing:command\n")
    text = ftengine("--help").stdout
    assert "say" in text
    assert "ftengine-thing 1.2" in text


def test_a_command_runs_and_answers_help(ftengine, distribution):
    distribution(GOOD, "[ftengine.commands]\nsay = ftengine_thing:command\nthree = ftengine_thing:three\n")
    assert ftengine("say", "hello").stdout == "said hello\n"
    assert "Say a word." in ftengine("say", "--help").stdout
    assert "'say'" in ftengine("sey", code=2).stderr
    assert "Traceback" in ftengine("say", "--debug", code=2).stderr
    ftengine("three", code=3)


@pytest.mark.parametrize(
    ("body", "cause"),
    [
        ("raise ValueError('torn')\n", "ValueError: torn"),
        ("import no_such_module\n", "no_such_module"),
        ("raise SystemExit(7)\n", "SystemExit"),
        (GOOD, "something_else"),
    ],
)
def test_a_broken_command_is_named_with_distribution_version_and_cause(ftengine, distribution, body, cause):
    distribution(body, "[ftengine.commands]\nsay = ftengine_thing:something_else\n")
    line = ftengine("say", code=1).stderr
    assert line.startswith("error: ")
    assert line.count("\n") == 1
    assert [text for text in ("'say'", "ftengine-thing 1.2", cause) if text not in line] == []
    ftengine("plugins", "list", "--help")  # the others go on


def test_a_name_that_is_taken_is_refused_rather_than_guessed(ftengine, distribution):
    distribution(GOOD, "[ftengine.commands]\nsay = ftengine_thing:command\ntrain = ftengine_thing:command\n")
    distribution(GOOD, "[ftengine.commands]\nsay = other_thing:command\n", "other-thing", "other_thing")
    assert "ftengine itself and by ftengine-thing 1.2" in ftengine("train", "recipe.yaml", code=1).stderr
    assert "ftengine-thing 1.2 and by other-thing 1.2" in ftengine("say", "hello", code=1).stderr


@pytest.mark.parametrize("spelling", ["ftengine-thing", "Ftengine_Thing"])
def test_a_blocked_distribution_offers_no_command(ftengine, distribution, monkeypatch, spelling):
    monkeypatch.setenv("FTENGINE_BLOCK_PLUGINS", f"another,{spelling}")
    distribution(GOOD, "[ftengine.commands]\ntrain = ftengine_thing:command\n")
    assert "RECIPE" in ftengine("train", "--help").stdout
    assert "ftengine_thing" not in sys.modules
