"""Files that somebody else made, or a disk damaged: one line with status 2, no traceback, no hang."""

import json
import os
import re
import resource
import shutil

import pytest
import yaml
from click.testing import CliRunner
from rows import write_rows

from ftengine.cli import main

CHATS = [
    {"messages": [{"role": "user", "content": f"What is {i} and {i}?"}, {"role": "assistant", "content": f"{2 * i}"}]}
    for i in range(20)
]
DEEP = 5_000


@pytest.fixture(scope="module")
def place(tmp_path_factory, llama_folder):
    """A folder with a model, data, a recipe and a finished run."""
    folder = tmp_path_factory.mktemp("malformed")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        shutil.copytree(llama_folder, "llama")
        write_rows(folder / "chat.jsonl", CHATS)
        content = {
            "model": {"source": "llama"},
            "task": "causal-lm",
            "data": {"train": "chat.jsonl", "validation": 0.2},
            "strategy": {"name": "lora", "rank": 2},
            "train": {"max_steps": 2, "batch_size": 4, "precision": "float32", "checkpoint_every": 1},
            "evaluation": {"resamples": 100, "answers": None},
            "output": "run",
        }
        (folder / "recipe.yaml").write_text(yaml.safe_dump(content))
        result = CliRunner().invoke(main, ["train", "recipe.yaml"])
        assert result.exit_code == 0, result.stderr
    return folder


@pytest.fixture
def here(place, monkeypatch):
    monkeypatch.chdir(place)
    yield place
    for name in ("spoilt", "out"):
        shutil.rmtree(place / name, ignore_errors=True)


def refusal(*arguments):
    result = CliRunner().invoke(main, list(arguments))
    lines = result.stderr.splitlines()
    errors = [line for line in lines if line.startswith("error: ")]
    assert (result.exit_code, len(errors)) == (2, 1), f"{arguments}: {result.stderr[-2000:]}{result.exception!r}"
    assert lines[-1] == errors[0]
    assert len(errors[0]) < 1000
    return errors[0]


COMMANDS = {
    "report": ("report", "spoilt", "--output", "out.html"),
    "predict": ("predict", "spoilt", "--input", "chat.jsonl"),
    "plan": ("plan", "recipe.yaml", "--set", "model.source=spoilt", "--set", "output=out"),
    "resume": ("train", "recipe.yaml", "--set", "output=spoilt", "--resume"),
}
CONTENTS = {
    "nothing": b"",
    "list": b"[]",
    "null": b"null",
    "number": b"1e400",
    "no UTF-8": b"\xff\xfe\x00",
    "deep list": b"[" * DEEP,
    "deep mapping": b'{"a":' * DEEP,
    "folder": None,
}
RUN, LLAMA = ("run", "report"), ("llama", "plan")
FILES = {
    "adapter/ftengine.json": RUN,
    "environment.json": RUN,
    "audit.json": RUN,
    "training.json": RUN,
    "evaluation.json": RUN,
    "recipe.yaml": RUN,
    "adapter/adapter_config.json": ("run", "predict"),
    "adapter/adapter_model.safetensors": ("run", "predict"),
    "config.json": LLAMA,
    "model.safetensors": LLAMA,
    "tokenizer.json": LLAMA,
}


def spoil(folder, file, content):
    shutil.rmtree("spoilt", ignore_errors=True)
    shutil.copytree(folder, "spoilt")
    path = os.path.join("spoilt", file)
    os.unlink(path)
    if content is None:
        os.mkdir(path)
    else:
        with open(path, "wb") as opened:
            opened.write(content)


@pytest.mark.parametrize("file", FILES)
def test_a_file_of_any_other_content_is_one_line(here, file):
    folder, command = FILES[file]
    original = (here / folder / file).read_bytes()
    for name, content in {**CONTENTS, "empty mapping": b"{}", "half": original[: len(original) // 2]}.items():
        if (file, name) == ("recipe.yaml", "half"):  # which is one, of fewer keys
            continue
        spoil(folder, file, content)
        refusal(*COMMANDS[command])


INFINITE = float("inf")
VALUES = [
    ("audit.json", {"splits": {}}, RUN),
    ("audit.json", {"encoded": {}}, RUN),
    ("training.json", {"seconds": INFINITE}, RUN),
    ("training.json", {"best_step": -1}, RUN),
    ("evaluation.json", {"metrics": {}}, RUN),
    ("evaluation.json", {"tuned": {}}, RUN),
    ("adapter/adapter_config.json", {"r": INFINITE}, ("run", "predict")),
    ("adapter/adapter_config.json", {"r": "16"}, ("run", "predict")),
    ("adapter/adapter_config.json", {"r": None}, ("run", "predict")),
    ("adapter/adapter_config.json", {"rank_pattern": {"((": 3}}, ("run", "predict")),
    ("adapter/adapter_config.json", {"rank_pattern": {r"(\w+\.?)+!": 3}}, ("run", "predict")),
    ("config.json", {"model_type": []}, LLAMA),
    ("config.json", {"num_hidden_layers": 10**9}, LLAMA),
    ("config.json", {"hidden_size": 10**9}, LLAMA),
    ("config.json", {"attention_dropout": INFINITE}, LLAMA),
    ("config.json", {"attention_dropout": "x"}, LLAMA),
    ("config.json", {"attention_dropout": -3}, LLAMA),
    ("config.json", {"attention_dropout": None}, LLAMA),
]


@pytest.mark.parametrize(("file", "values", "where"), VALUES, ids=lambda value: str(value)[:40])
def test_a_value_that_no_library_wrote_is_one_line(here, file, values, where):
    folder, command = where
    spoil(folder, file, json.dumps(json.loads((here / folder / file).read_text()) | values).encode())
    refusal(*COMMANDS[command])


def recipe(text):
    with open("other.yaml", "w", encoding="utf-8") as file:
        file.write(text)


ALIASES = "a: &a [x]\n" + "".join(
    f"{b}: &{b} [{', '.join(['*' + a] * 9)}]\n" for a, b in zip("abcdefghij", "bcdefghijk", strict=True)
)
SOUND = "model: {source: llama}\ntask: causal-lm\ndata: {train: chat.jsonl}\n"
RECIPES = {
    "aliases of aliases": (ALIASES, "100,000 values"),
    "an alias of itself": ("a: &a [*a]\n", "100,000 values"),
    "deep nesting": ("a: " + "[" * DEEP, "nest"),
    "a date that is none": ("a: 2026-13-01\n", "month must be in 1..12"),
    "a time that is none": ("a: !!timestamp later\n", "not valid YAML"),
    "a path too long": (SOUND.replace("llama", "a" * 500) + "strategy: lora\n", "a name of 500 bytes"),
    "a null in a path": (SOUND + 'strategy: lora\noutput: "a\\0b"\n', "null character"),
    "a pattern that never ends": (
        SOUND + r"strategy: {name: lora, targets: '(?:.|..|...)+(?<!j)'}",
        "takes too long to match",
    ),
    "no pattern": (SOUND + "strategy: {name: lora, targets: '(('}", "not a regular expression"),
}


@pytest.mark.parametrize("case", RECIPES)
def test_a_recipe_is_bounded(here, case, monkeypatch):
    monkeypatch.setattr("ftengine.model.patterns.PATIENCE", 0.2)
    text, message = RECIPES[case]
    recipe(text)
    assert message in refusal("train", "other.yaml")


@pytest.mark.parametrize("what", ["recipe", "data", "model"])
def test_a_pipe_is_no_file(here, what):
    os.makedirs("out")
    os.mkfifo("out/pipe.yaml")
    os.mkfifo("out/pipe.jsonl")
    arguments = {
        "recipe": ("plan", "out/pipe.yaml"),
        "data": ("plan", "recipe.yaml", "--set", "data.train=out/pipe.jsonl"),
    }
    if what == "model":
        spoil("llama", "config.json", b"")
        os.unlink("spoilt/config.json")
        os.mkfifo("spoilt/config.json")
    assert re.search("a pipe or a device|no config.json", refusal(*arguments.get(what, COMMANDS["plan"])))


LOOPS = {
    "loops": "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
    "random text": "{{ lipsum(n=99999999) }}",
}


@pytest.mark.slow
@pytest.mark.parametrize("case", ["loops", pytest.param("random text", marks=pytest.mark.slow)])
def test_a_chat_template_that_loops_is_ended(here, case, monkeypatch):
    monkeypatch.setattr("ftengine.chat.bounded.PATIENCE", 0.2)
    monkeypatch.setattr("ftengine.chat.template.PATIENCE", 0.2)
    spoil("llama", "chat_template.jinja", LOOPS[case].encode())
    assert "the model's chat template takes more than " in refusal(*COMMANDS["plan"])


def test_a_chat_template_that_computes_powers_is_refused(here):
    spoil("llama", "chat_template.jinja", b"{{ 10**10**9 }}")
    assert "the model's chat template raises numbers to powers" in refusal(*COMMANDS["plan"])
    spoil("llama", "chat_template.jinja", b"**{{ '**' }}{{ unclosed")
    assert "refuses a conversation of" in refusal(*COMMANDS["plan"])  # text in bold is no power


@pytest.mark.slow
@pytest.mark.parametrize(
    "template",
    [
        "{{ 'a' * 4000000000 }}",
        "{{ ('a' * 4000000000) | length }}{{ messages }}",
        "{% set ns = namespace(x='ab') %}{% for i in range(40) %}{% set ns.x = ns.x ~ ns.x %}{% endfor %}",
        "{{ '%4000000000d' % 1 }}",
        "{{ ['a'] * 1000000000 }}",
    ],
)
def test_a_chat_template_that_takes_memory_is_ended(here, template):
    limit = resource.getrlimit(resource.RLIMIT_AS)
    spoil("llama", "chat_template.jinja", template.encode())
    assert "512 MiB" in refusal(*COMMANDS["plan"])
    assert resource.getrlimit(resource.RLIMIT_AS) == limit


@pytest.mark.parametrize("shard", ["../llama/model.safetensors", "/etc/model.safetensors", "model.bin", 7])
def test_a_shard_lies_beside_its_index(here, shard):
    spoil("llama", "model.safetensors", b"")
    os.unlink("spoilt/model.safetensors")
    with open("spoilt/model.safetensors.index.json", "w", encoding="utf-8") as file:
        json.dump({"weight_map": {"lm_head.weight": shard}}, file)
    assert "shards must be .safetensors files beside it" in refusal(*COMMANDS["plan"])
