"""docs/plugins/ says what is true: what it shows passes the checks, and its tables are those of the code.

The order of calls has tests of its own: test_docs_lifecycle.py.
"""

import importlib
import inspect
import json
import re
import shlex
import subprocess
import sys
import types
import warnings
from pathlib import Path

import docs_contract
import pytest
import torch
import yaml
from docs_commands import DOCS, README, ROOT, blocks, code, pretend_installed, prose, run_block, table, tables
from test_imports import PUBLIC

import ftengine
from ftengine import Recipe, api, equivalence, fine_tune, hookimpl, load_run, registry_of, testing
from ftengine.cli.plugins_check import COMMAND, QUIET, RUN, SOUND, UNCHANGED
from ftengine.model import Criterion, read_tensors
from ftengine.plugins import hookspecs
from ftengine.plugins.registry import KINDS, RECIPE_KEYS, Registry
from ftengine.testing.checks import names_of_checks
from ftengine.testing.components import OF_ANY

tomllib = pytest.importorskip("tomllib" if sys.version_info >= (3, 11) else "tomli")  # pytest brings the latter

INDEX, TUTORIAL, PREDICTIONS, TESTING = (
    ROOT / "docs" / "plugins" / f"{name}.md" for name in ("README", "tutorial", "predictions", "testing")
)
SHOWN = ROOT / "examples" / "plugins"
TEXTS = {document: document.read_text(encoding="utf-8") for document in (README, *DOCS)}
SOURCES = "".join(file.read_text("utf-8") for file in (ROOT / "ftengine" / "testing").glob("*.py"))


# The tutorial


@pytest.fixture
def newcomer(bert_folder, tmp_path, monkeypatch):
    """Where the reader of the tutorial sits: a recipe of a small BERT in bfloat16, and no BitFit anywhere."""
    words = {"sport": "goal match team", "money": "profit shares bank", "film": "actor scene music"}
    rows = [{"text": f"{text} {i}", "label": label} for i in range(20) for label, text in words.items()]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    recipe = {
        "model": {"source": str(bert_folder)},
        "task": "text-classification",
        "data": {"train": "rows.jsonl", "validation": 0.2},
        "strategy": "lora",
        "train": {"epochs": 4, "learning_rate": 0.01, "precision": "bfloat16"},
        "output": "runs/lora",
    }
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    monkeypatch.setattr(sys, "path", [path for path in sys.path if "ftengine-" not in Path(path).name])
    for name in [name for name in sys.modules if name.partition(".")[0] == "ftengine_bitfit"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.slow
def test_the_tutorial_works_as_it_is_typed(newcomer, bert_folder, monkeypatch):
    package = newcomer / "ftengine-bitfit"
    for block in blocks(TUTORIAL, "console", "python"):
        run_block(block, newcomer)
        if package.is_dir() and str(package) not in sys.path:  # stands for `pip install -e`
            project = tomllib.loads((package / "pyproject.toml").read_text())["project"]
            (newcomer / "site").mkdir()
            pretend_installed(project["name"], [project["entry-points"]], newcomer / "site", monkeypatch)
            monkeypatch.syspath_prepend(package)

    run = load_run("runs/bitfit")
    trained, base = read_tensors(run.trained / "trained.safetensors"), read_tensors(bert_folder / "model.safetensors")
    known = {name.removeprefix("bert."): tensor for name, tensor in trained.items() if name.startswith("bert.")}
    assert known.keys() == {name for name in base if name.endswith("bias")}
    assert any((tensor != base[name]).any() for name, tensor in known.items())
    assert {name for name in trained if not name.startswith("bert.")} == {"classifier.weight", "classifier.bias"}
    assert run.evaluate() == run.evaluation  # the same weights on the same batches


@pytest.mark.slow
def test_the_tutorials_broken_strategy_fails_as_it_says():
    (block,) = [block for block in blocks(TUTORIAL, "python") if block.file]
    last = "parameter.requires_grad_(name.endswith(tuple(self.config.endings)))"
    assert last in block.text
    names = {"__name__": "example"}
    exec(compile(block.text.replace(last, "parameter.requires_grad_(False)"), block.place, "exec"), names)
    failed = [found.check for found in testing.check_results(names["BitfitStrategy"]) if found.outcome == "failed"]
    assert failed == ["something_trains"]


# Kinds


def hooks():
    return {name: function for name, function in vars(hookspecs).items() if hasattr(function, "ftengine_spec")}


def test_every_hook_is_documented_with_its_kind():
    told = {code(row[0])[0]: [code(row[1])[0], *row[2:4]] for row in table(INDEX, "Kinds").rows}
    assert told == {
        f"{hook}({', '.join(inspect.signature(hooks()[hook]).parameters)})": [
            base.__name__,
            f"`{RECIPE_KEYS[kind]}`" if kind in RECIPE_KEYS else "–",
            re.match(r"Return classes that (.*)\.", inspect.getdoc(hooks()[hook]))[1],
        ]
        for kind, (base, hook) in KINDS.items()
    }
    assert {hook for _, hook in KINDS.values()} == hooks().keys()


def test_hooks_that_documents_name_exist():
    modules = {block.file.removesuffix(".py") for block in blocks(INDEX, "python") if block.file}
    modules |= {path.parent.name for path in (ROOT / "plugins").glob("**/ftengine_*/__init__.py")}
    for document, text in TEXTS.items():
        assert set(re.findall(r"\bftengine_[a-z_]+", text)) <= hooks().keys() | modules, document


def examples():
    """Yield every component class of examples/plugins/ with its file."""
    for file in sorted(SHOWN.glob("*.py")):
        for cls in vars(importlib.import_module(file.stem)).values():
            if isinstance(cls, type) and issubclass(cls, api.Component) and cls.__module__ == file.stem:
                yield file.stem, cls


EXAMPLES = {cls.__name__: (kind, cls) for kind, cls in examples()}


def test_every_kind_has_an_example_to_which_the_table_of_kinds_leads():
    links = {
        code(row[1])[0]: re.findall(r"\((?:\.\./)+examples/plugins/(\w+)\.py\)", row[1])
        for row in table(INDEX, "Kinds").rows
    }
    for base, _ in KINDS.values():
        (linked,) = links[base.__name__]
        assert any(issubclass(cls, base) for file, cls in EXAMPLES.values() if file == linked), base


def test_every_example_is_listed():
    listed = set(re.findall(r"\]\((\w+)\.py\)", (SHOWN / "README.md").read_text("utf-8")))
    assert listed == {file.stem for file in SHOWN.glob("*.py")}


@pytest.mark.slow
@pytest.mark.parametrize("name", EXAMPLES)
def test_an_example_passes_the_checks(name):
    testing.check_component(EXAMPLES[name][1])


@pytest.mark.slow
def test_the_examples_train_together(bert_folder, tmp_path, capsys):
    """But for the task, with which tests/plugins/tasks/test_hinge.py trains."""
    text = "".join(
        f"[{label}] it {word} {i}\n" for i in range(20) for label, word in (("bug", "stops"), ("wish", "sings"))
    )
    (tmp_path / "tickets.log").write_text(text)
    plugin, offered = types.ModuleType("examples"), {}
    for _, cls in EXAMPLES.values():
        offered.setdefault(next(hook for base, hook in KINDS.values() if issubclass(cls, base)), []).append(cls)
    for hook, classes in offered.items():
        offer = lambda classes=classes: classes  # noqa: E731
        offer.__name__ = hook
        setattr(plugin, hook, hookimpl(offer))
    recipe = {
        "model": {
            "source": f"shared://{bert_folder.name}",
            "loader": {"name": "shared", "folder": str(bert_folder.parent)},
        },
        "task": "text-classification",
        "data": {"train": str(tmp_path / "tickets.log"), "validation": 0.25},
        "strategy": "full",
        "augment": ["shout"],
        "regularize": ["small-weights"],
        "evaluate": ["matthews", "apart"],
        "callbacks": ["log-lines", "log-gradients"],
        "train": {"optimizer": "nadam", "schedule": "inverse-root", "learning_rate": 0.01, "max_steps": 6},
        "evaluation": {"resamples": 100},
        "output": str(tmp_path / "run"),
    }
    run = fine_tune(Recipe.make(recipe), registry=registry_of({"examples": plugin}))
    assert {"mcc", "within_one"} <= run.evaluation["tuned"].keys()
    assert run.evaluation["tuned"]["within_one"]["value"] == 1.0  # of two labels none is further apart
    rates = [line["learning_rate"] for line in run.metrics if "loss" in line]
    assert rates[-1] == pytest.approx(rates[-4] * (2 / 5) ** 0.5)
    printed = capsys.readouterr().out
    assert "step 6: loss" in printed
    assert "has" in printed


def test_the_documented_details_are_a_table_a_chart_and_a_baseline():
    import numpy as np

    apart = EXAMPLES["Apart"][1]
    predictions = [{"label": i % 4, "predicted": i * i % 4} for i in range(12)]
    testing.check_evaluator(apart, predictions, api.Labels("single", tuple("abcd")))
    rows = testing.rows_of(apart(), predictions)
    table, chart, fact = apart().details(rows, None)
    assert sum(count for _, count in table.rows) == len(predictions)
    assert isinstance(chart, api.LineChart)
    assert api.Baseline.of(dict([fact])).figures["within_one"] == np.mean([abs(i % 4 - 1) <= 1 for i in range(12)])


def tables_of(text, tmp_path):
    """Return the tables of a page that `make docs` writes, by heading."""
    page = tmp_path / "page.md"
    page.write_text(text, encoding="utf-8")
    return {found.heading.strip("`"): found for found in tables(page)}


def test_the_page_on_kinds_has_all_members_of_each_with_their_texts(tmp_path):
    made = tables_of(docs_contract.kinds_page(), tmp_path)
    assert made.keys() == {thing.__name__ for thing in (*docs_contract.BASES, *docs_contract.OBJECTS)}
    assert [row for found in made.values() for row in found.rows if not row[-1]] == []
    for base in docs_contract.BASES:
        written = {name.partition("(")[0] for name in made[base.__name__].names()}
        assert base.__abstractmethods__ & vars(base).keys() <= written


@pytest.mark.parametrize("thing", docs_contract.OBJECTS)
def test_what_components_are_given_says_what_each_field_is(thing, tmp_path):
    told = {name for name, _ in docs_contract.fields(thing)}
    own = vars(thing).get("__annotations__", {})
    assert {name for name in own if name[0] != "_" and "ClassVar" not in str(own[name])} - {"model_config"} <= told


def test_the_page_on_names_has_every_public_name_with_what_it_is(tmp_path):
    made = tables_of(docs_contract.names_page(), tmp_path)
    for module in docs_contract.PUBLIC:
        names = [name.partition("(")[0] for name in made[module].names()]
        assert names == list(importlib.import_module(module).__all__)
    silent = {row[0] for found in made.values() for row in found.rows if not row[1]}
    assert silent <= {"`__version__`", "`PERSONAL`"}


def test_the_index_lists_what_a_plugin_may_import():
    (listed,) = re.findall(r"^`ftengine` \(([^)]*)\), (.*?) \(\[", TEXTS[INDEX], re.MULTILINE)
    assert code(listed[0]) == sorted(set(ftengine.__all__) - {"__version__"})
    assert {"ftengine", "ftengine.testing", *code(listed[1])} == set(docs_contract.PUBLIC)


def test_the_page_of_tolerances_has_every_constant(tmp_path):
    constants = {name for name in vars(equivalence) if name.isupper() and name[0] != "_"}
    assert constants == set(tables_of(docs_contract.tolerances_page(), tmp_path)["Tolerances"].names())


def test_types_in_public_signatures_are_public():
    known = {name for module in docs_contract.PUBLIC for name in importlib.import_module(module).__all__}
    assert docs_contract.hidden_types(known) == {}


# Checks


def suites():
    """Return for each function that checks a kind the names of its checks, as they are documented."""
    (found,) = [found for found in tables(TESTING) if code(found.rows[0][0])[0].startswith("check_")]
    return {code(row[0])[0].partition("(")[0]: set(code(row[1])) for row in found.rows}


def test_every_function_that_checks_is_documented_with_its_arguments():
    def written(parameter):
        return f"{parameter.name}={{…}}" if parameter.kind is parameter.KEYWORD_ONLY else parameter.name

    given = {name: function for name, function in vars(testing).items() if name.startswith("check_")}
    called = {
        f"{name}({', '.join(map(written, list(inspect.signature(function).parameters.values())[:-1]))})"
        for name, function in given.items()
    }
    told = set(code(prose(TEXTS[TESTING])))
    assert called <= told
    assert suites().keys() == given.keys() - {"check_component", "check_results"}


def test_every_check_is_documented():
    checks = set(re.findall(r"^    def ([a-z]\w*)\(self\) -> None:", SOURCES, re.MULTILINE))
    assert set().union(*suites().values()) == checks
    assert set(re.findall(r'yield "([a-z_]+)", partial', SOURCES)) <= {*checks, *OF_ANY}
    of_none = {*OF_ANY, SOUND, QUIET, UNCHANGED, COMMAND, RUN}
    assert of_none - checks <= set(code(prose(TEXTS[TESTING])))
    assert names_of_checks() == checks


def test_what_testing_ships_is_documented():
    told = prose(TEXTS[TESTING])
    assert [name for name in testing.__all__ if f"`{name}" not in told] == []


# Predictions


def tasks():
    """Yield each task, bound to labels of each kind that it takes, with a model and rows."""
    for one in testing.fixtures():
        yield one.task, one.load(), one.rows
    for labels in ([["a", "b"], ["a"], ["c"]], [0.5, 1.5, 2.5]):
        task, one = Registry().build("task", "text-classification", "task"), testing.fixture("sequence-classification")
        rows = [{"text": f"text {i}", "label": label} for i, label in enumerate(labels)]
        task.labels = task.learn_labels({"train": rows})
        yield task, one.load(task.labels), rows


def calls_of(task, loaded, rows):
    """Return predictions, and what the model was called with in `loss` and `predict`, as text, with its logits."""
    batch, calls = task.collate([task.encode(row, loaded.processor) for row in rows], loaded.processor), []
    hook = loaded.module.register_forward_hook(lambda *call: calls.append(call[1:]), with_kwargs=True)
    task.loss(loaded.module, batch, Criterion())
    with torch.no_grad():
        predictions = task.predict(loaded.module, batch)
    hook.remove()
    return predictions, calls


def test_what_tasks_predict_and_call_models_with_is_documented():
    for task, loaded, rows in tasks():
        require_told(task, loaded, rows)


def require_told(task, loaded, rows):
    predictions, calls = calls_of(task, loaded, rows)
    keys, _, answers, heads = tables(PREDICTIONS)
    kind = getattr(task, "kind", None) if task.labels and task.labels.kind != "tags" else None
    (told,) = [set(code(row[1])) for row in keys.rows if task.name in code(row[0]) and kind_of(row[0]) in (None, kind)]
    assert told == task.predicts
    assert {frozenset(prediction) for prediction in predictions} == {frozenset(told)}
    if isinstance(task, api.GenerativeTask):
        (told,) = [set(code(row[1])) for row in answers.rows if task.name in code(row[0])]
        assert told == task.generates
    (arguments,) = [set(code(row[1])) for row in heads.rows if task.head in code(row[0])]
    for positional, keywords, output in calls:
        assert not positional
        assert keywords.keys() == arguments
        assert hasattr(output, "logits")


def kind_of(cell):
    found = re.search(r"`kind: (\w+)`", cell)
    return found and found[1]


def test_every_key_of_a_prediction_is_documented():
    keys, meanings, _, _ = tables(PREDICTIONS)
    assert set(meanings.names()) == {key for row in keys.rows for key in code(row[1])}
    shipped = {key for one in testing.predictions() for key in one.keys}
    assert shipped == set(meanings.names()) | {"prompt", "completion", "reference"}


# The reference


@pytest.mark.slow
def test_the_reference_is_made_without_a_warning(tmp_path, capsys, monkeypatch):
    pytest.importorskip("pdoc")
    found = re.search(r"^## What a plugin may import\n+(.*)", TEXTS[INDEX], re.MULTILINE)
    importable = {name for name in code(found[1]) if re.fullmatch(r"ftengine[.a-z]*", name)}
    assert importable > set(PUBLIC)
    make = [
        "make",
        "--no-print-directory",
        "-n",
        "-o",
        ".venv/.installed",
        "docs",
        f"BIN={Path(sys.executable).parent}",
    ]
    printed = subprocess.run(make, cwd=ROOT, capture_output=True, text=True, check=True).stdout.replace("\\\n", "")
    program, options = re.fullmatch(r"[^']*-W error::UserWarning -c ('[^']+')(.*)", printed, re.DOTALL).groups()
    monkeypatch.setattr(sys, "argv", ["-c", *shlex.split(options.replace("build/docs", str(tmp_path)))])
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        exec(shlex.split(program)[0], {})
    assert capsys.readouterr().err == ""
    pages = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*.html")}
    assert pages == {"index.html", "ftengine/plugins/hookspecs.html"} | {
        f"{module.replace('.', '/')}.html" for module in importable
    }
    for page, names in (
        ("ftengine", ftengine.__all__),
        ("ftengine/api", [base.__name__ for base, _ in KINDS.values()]),
    ):
        text = (tmp_path / f"{page}.html").read_text("utf-8")
        assert [name for name in names if f'id="{name}' not in text] == []
