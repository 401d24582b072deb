"""Whatever changes between two runs: with what is kept, the base's figures are those of a run with an empty cache."""

import importlib
import json
import os
import random
import shutil
import sys
from pathlib import Path

import pytest
import torch
from installed import registry_with
from rows import write_rows
from safetensors.torch import load_file, save_file

from ftengine import Recipe
from ftengine.api import SilentListener
from ftengine.engine.base_predictions import run_base
from ftengine.engine.evaluation_plan import evaluation_plan
from ftengine.engine.experiment import Experiment
from ftengine.engine.prepared_data import prepare_data
from ftengine.engine.prepared_model import load_base, place_base
from ftengine.evaluation.figures import estimates
from ftengine.evaluation.results import measure_all
from ftengine.parallel.device import Device

CODE = {
    "kept_a/__init__.py": """
import os
from pathlib import Path

import numpy as np

import kept_c
import kept_helper
from ftengine.api import Config, Evaluator, FileReader, Metric, Row, TextAugmenter
from ftengine_builtins.evaluators import Verifier
from ftengine_builtins.tasks import CausalLM


class Right(Verifier):
    "Asks a function of another package."
    name = "kept-right"
    own = "kept_b.score:right"


class Judge(Evaluator):
    "Keeps what a package, a module, the environment and a file make of an answer."
    name = "kept-judge"
    reads = frozenset({"completion"})
    metrics = {"judged": Metric("judged")}

    class Config(Config):
        factor: float = 1.0

    def keep(self, prediction):
        outside = float(os.environ["KEPT_JUDGE"]) + float(Path(os.environ["KEPT_FILE"]).read_text())
        return {"value": len(prediction["completion"]) * kept_c.FACTOR * kept_helper.FACTOR * outside}

    def score(self, rows, weights):
        return {"judged": self.config.factor * float(np.average(rows["value"], weights=weights))}


class Shout(TextAugmenter):
    "Adds what the environment says."
    name = "kept-shout"

    def change(self, text, rng):
        return text + os.environ["KEPT_SHOUT"]


class Lines(FileReader):
    "Reads questions, with an answer that the environment names."
    name = "kept-lines"
    suffixes = (".kept",)

    def read(self, source):
        for i, line in enumerate(Path(source).read_text().splitlines(), 1):
            turns = [{"role": "user", "content": line}, {"role": "assistant", "content": os.environ["KEPT_READER"]}]
            yield Row(i, {"messages": turns})


class Task(CausalLM):
    "Writes what another package names in front of a row's first turn."
    name = "kept-task"

    def encode(self, example, processor, *, max_length=None, part=None):
        first, *others = example["messages"] or [{}]
        if isinstance(first.get("content"), str):
            turns = [{**first, "content": kept_c.PREFIX + first["content"]}, *others]
            example = {**example, "messages": turns}
        return super().encode(example, processor, max_length=max_length, part=part)
""",
    "kept_b/__init__.py": "",
    "kept_b/score.py": "def right(answer): return len(answer) % 2 == 0\n",
    "kept_c/__init__.py": "FACTOR = 1\nPREFIX = ''\n",
    "kept_helper.py": "FACTOR = 1\n",
}


class Listening(SilentListener):
    def __init__(self):
        self.phases, self.reused = [], []

    def phase(self, name, total=None):
        self.phases += [name] if name.startswith("evaluate base") else []

    def message(self, text):
        self.reused += [text] if "from an earlier run" in text else []


def rows_of(count, word):
    for i in range(count):
        yield {
            "messages": [
                {"role": "user", "content": f"{word} question {i} " * (1 + i % 3)},
                {"role": "assistant", "content": f"the answer is {i % 7}"},
            ],
            "region": "ab"[i % 2],
        }


class World:
    """A model, data, plugins and settings, all of which may change."""

    def __init__(self, folder, model, monkeypatch):
        self.folder, self.patch, self.number = folder, monkeypatch, 0
        for name, text in CODE.items():
            self.write(name, text)
        self.model = Path(shutil.copytree(model, folder / "model"))
        (folder / "judge.txt").write_text("1")
        (folder / "questions.kept").write_text("\n".join(f"where is {i}?" for i in range(24)))
        write_rows(folder / "train.jsonl", rows_of(16, "old"))
        write_rows(folder / "test.jsonl", rows_of(8, "new"))
        self.env(_FTENGINE_DATE="2026-02-28")
        self.env(KEPT_JUDGE="1", KEPT_SHOUT="!", KEPT_READER="here", KEPT_FILE=str(folder / "judge.txt"))
        monkeypatch.setattr(sys, "dont_write_bytecode", True)
        monkeypatch.setenv("PYTHONDONTWRITEBYTECODE", "1")
        monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(folder), *filter(None, [os.environ.get("PYTHONPATH")])]))
        monkeypatch.syspath_prepend(folder)
        self.code = importlib.import_module("kept_a")
        self.content = {
            "model": {"source": str(self.model)},
            "task": "causal-lm",
            "data": {"train": str(folder / "train.jsonl"), "test": str(folder / "test.jsonl"), "near_duplicates": None},
            "strategy": "lora",
            "train": {"max_steps": 1, "batch_size": 4, "precision": "float32"},
            "evaluation": {
                "resamples": 100,
                "generate": {"max_new_tokens": 4},
                "robustness": [{"name": "kept-shout"}],
                "slices": ["region"],
            },
            "evaluate": ["generation", "kept-right", {"name": "kept-judge"}],
            "output": str(folder / "run"),
        }

    def write(self, name, text):
        file = self.folder / name
        file.parent.mkdir(exist_ok=True)
        file.write_text(text)
        module = name.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
        if module in sys.modules:
            importlib.reload(sys.modules[module])

    def env(self, **values):
        for name, value in values.items():
            self.patch.setenv(name, value)

    def set(self, **values):
        for key, value in values.items():
            *path, last = key.split("__")
            of = self.content
            for name in path:
                of = of[name]
            of[last] = value

    def json(self, name, change):
        """Change a JSON file of the model."""
        content = json.loads((self.model / name).read_text())
        change(content)
        (self.model / name).write_text(json.dumps(content))

    def measure(self, cache):
        """Return the base's tables and figures, and who listened."""

        self.env(FTENGINE_CACHE=str(cache))
        recipe, listener = Recipe.make(json.loads(json.dumps(self.content))), Listening()
        own = (self.code.Right, self.code.Judge, self.code.Shout, self.code.Lines, self.code.Task)
        registry = registry_with(*own, distribution="kept")
        data = prepare_data(Experiment.open(recipe, registry, listener))
        plan = evaluation_plan(data)
        plan.start_evaluators()
        device, loaded = Device.open(recipe), load_base(data.ready)
        place_base(device, data.ready, loaded)
        result = run_base(device, data.ready, loaded, plan)
        tables = {name: file.seek(0) or file.read() for name, file in result.files.items()}
        figures = {name: estimates(one.figures) for name, one in measure_all(plan, result).items()}
        return tables, figures, data.audit.model_dump(mode="json"), listener

    def check(self):
        """Compare with and without what is kept; return the figures and who listened to those with."""
        self.number += 1
        *kept, listener = self.measure(self.folder / "cache")
        *anew, _ = self.measure(self.folder / f"empty-{self.number}")
        shutil.rmtree(self.folder / f"empty-{self.number}")
        assert repr(kept[1]) == repr(anew[1])  # nan is no equal of itself
        assert kept[0] == anew[0]
        assert kept[2] == anew[2]
        return repr(kept[1]), listener


@pytest.fixture
def world(llama_folder, tmp_path, monkeypatch):
    yield World(tmp_path, llama_folder, monkeypatch)
    for name in [name for name in sys.modules if name.startswith("kept_")]:
        del sys.modules[name]


JUDGES = {
    "the verifier's function, of another package": lambda w: w.write(
        "kept_b/score.py", "def right(answer): return False\n"
    ),
    "a package that keep uses": lambda w: w.write("kept_c/__init__.py", "FACTOR = 2\nPREFIX = ''\n"),
    "a module that keep uses": lambda w: w.write("kept_helper.py", "FACTOR = 5\n"),
    "a variable that keep reads": lambda w: w.env(KEPT_JUDGE="3"),
    "a file that keep reads": lambda w: (w.folder / "judge.txt").write_text("7"),
    "an option of an evaluator": lambda w: w.set(
        evaluate=["generation", "kept-right", {"name": "kept-judge", "factor": 2}]
    ),
}
"""What judges the base's answers, which stay as they are."""


@pytest.mark.slow
def test_what_judges_kept_answers_runs_anew(world):
    before, first = world.check()
    assert len(first.phases) == 5
    for what, change in JUDGES.items():
        change(world)
        after, listener = world.check()
        assert after != before, what
        assert listener.phases == [], what
        assert "answers to 16 examples" in listener.reused[0]
        before = after


def flip(w):
    weights = load_file(w.model / "model.safetensors")
    name = sorted(weights)[-1]
    weights[name].view(-1)[0] += 1
    save_file(weights, w.model / "model.safetensors", {"format": "pt"})


def template(w):
    file = w.model / "chat_template.jinja"
    file.write_text(file.read_text().replace("<|im_start|>", "> <|im_start|>"))


def dated(w):
    file = w.model / "chat_template.jinja"
    file.write_text("{{ strftime_now('%d %b %Y') }} " + file.read_text())


OTHERS = {
    "a variable that an augmenter reads": lambda w: w.env(KEPT_SHOUT="?!"),
    "a bit of the weights": flip,
    "the chat template": template,
    "a template that writes the day": dated,
    "the day": lambda w: w.env(_FTENGINE_DATE="2026-03-01"),
    "a file of the tokenizer": lambda w: w.json("tokenizer.json", lambda x: x.update(normalizer={"type": "Lowercase"})),
    "a setting of the model": lambda w: w.json("config.json", lambda x: x.update(rms_norm_eps=0.1)),
    "settings of generation": lambda w: w.json("generation_config.json", lambda x: x.update(repetition_penalty=1.7)),
    "options of generation": lambda w: w.set(evaluation__generate={"max_new_tokens": 7}),
    "the seed of drawn answers": lambda w: w.set(evaluation__generate={"temperature": 1.0, "seed": 5}),
    "how many are answered": lambda w: w.set(evaluation__generate={"limit": 3}),
    "the batch size": lambda w: w.set(evaluation__batch_size=3),
    "the precision": lambda w: w.set(train__precision="bfloat16"),
    "a row": lambda w: write_rows(w.folder / "test.jsonl", rows_of(8, "other")),
    "more rows": lambda w: write_rows(w.folder / "test.jsonl", rows_of(9, "new")),
    "the order of rows": lambda w: write_rows(w.folder / "test.jsonl", [*rows_of(8, "new")][::-1]),
    "training rows": lambda w: write_rows(w.folder / "train.jsonl", rows_of(15, "older")),
    "the seed": lambda w: w.set(seed=3),
    "what is trained on": lambda w: w.set(task={"name": "causal-lm", "train_on": "last"}),
    "the longest input": lambda w: w.set(task={"name": "causal-lm", "max_length": 64}),
    "a task of another package": lambda w: w.set(task="kept-task"),
    "what such a task's encode uses": lambda w: w.write("kept_c/__init__.py", "FACTOR = 1\nPREFIX = 'so '\n"),
    "a reader of another package": lambda w: w.set(
        data__test=str(w.folder / "questions.kept"), evaluation__slices=[], evaluation__robustness=[]
    ),
    "a variable that the reader reads": lambda w: w.env(KEPT_READER="nowhere"),
    "a column of slices": lambda w: w.set(evaluation__slices=[]),
    "the sample of training": lambda w: w.set(evaluation__training_sample=5),
    "a word list": lambda w: (
        (w.folder / "words.tsv").write_text("question\tquery\n"),
        w.set(evaluation__robustness=[{"name": "synonyms", "file": str(w.folder / "words.tsv"), "rate": 1.0}]),
    ),
    "the word list's content": lambda w: (w.folder / "words.tsv").write_text("question\triddle\n"),
    "a variable of arithmetic": lambda w: w.env(OMP_PLACES="cores"),
}
"""What else a run reads: code, files, options and the environment."""


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1])
def test_changes_drawn_at_random_are_noticed(world, seed):
    """One to three changes at a time, in any order."""
    draw = random.Random(seed)
    changes = [*JUDGES.items(), *OTHERS.items()]
    draw.shuffle(changes)
    world.check()
    while changes:
        for _ in range(draw.choice([1, 2, 3])):
            if changes:
                changes.pop()[1](world)
        with torch.random.fork_rng():
            world.check()
