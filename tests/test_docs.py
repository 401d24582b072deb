"""README and docs/ say what is true: commands and snippets run, and whatever is named exists and is named."""

import ast
import json
import re
import sys
from typing import get_args

import click
import docs_contract
import pytest
import yaml
from click.testing import CliRunner
from docs_commands import (
    DOCS,
    README,
    ROOT,
    blocks,
    code,
    commands,
    headings,
    pretend_installed,
    prose,
    run_block,
    run_command,
    table,
    tables,
)
from pydantic import BaseModel

from ftengine import Recipe
from ftengine.cli import main
from ftengine.data.readers import suffixes
from ftengine.plugins.registry import KINDS, Registry
from ftengine.run.cross_validation import CrossValidation
from ftengine.run.recipe import DataSection, SplitSection
from ftengine.text import PERSONAL
from ftengine_bench import machine
from ftengine_builtins.audits.texts import ODDITIES

tomllib = pytest.importorskip("tomllib" if sys.version_info >= (3, 11) else "tomli")  # pytest brings the latter

(
    RECIPE,
    DATA,
    AUGMENTERS,
    REGULARIZERS,
    EVALUATION,
    REPORT,
    RUNS,
    COMMANDS_PAGE,
    COMPARING,
    INSTALLATION,
    LAUNCHERS,
    SERVING,
) = (
    ROOT / "docs" / f"{name}.md"
    for name in (
        *("recipe", "data", "augmenters", "regularizers", "evaluation", "report", "runs", "commands", "comparing"),
        *("installation", "launchers", "serving"),
    )
)
PLUGINS, TUTORIAL = (ROOT / "docs" / "plugins" / f"{name}.md" for name in ("README", "tutorial"))
TEXTS = {document: document.read_text(encoding="utf-8") for document in (README, *DOCS)}
BASE = "FOLDER-OF-THE-BASE"
"""Stands in a snippet for a transformers folder that the reader has."""

WORDS = {"sport": "goal match team", "money": "profit shares bank", "film": "actor scene music"}
LABELLED = [
    {"text": " ".join([*words.split()[i % 3 :], str(i)]), "label": label}
    for i in range(20)
    for label, words in WORDS.items()
]


# What the documents type


@pytest.fixture(scope="module")
def desk(llama_folder, bert_folder, tmp_path_factory):
    """Where the reader of docs/ sits, tiny: the README's support.yaml and finished run, and some other recipe."""
    folder = tmp_path_factory.mktemp("desk")
    (folder / "examples").symlink_to(ROOT / "examples")
    (folder / "labelled.jsonl").write_text("".join(json.dumps(row) + "\n" for row in LABELLED))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for command in (
            "python examples/chat/prepare.py --distinct --output support.jsonl",
            f"ftengine init support.yaml --data support.jsonl --model {llama_folder}",
            "ftengine train support.yaml --set output=runs/support",
            f"ftengine init recipe.yaml --task text-classification --data labelled.jsonl --model {bert_folder}",
        ):
            run_command(command, folder)
    return folder


def named(document):
    return str(document.relative_to(ROOT / "docs")) if document != README else document.name


@pytest.mark.slow
@pytest.mark.parametrize("document", [one for one in DOCS if one != TUTORIAL], ids=named)
def test_what_a_document_types_works(desk, document, monkeypatch, tmp_path):
    """The tutorial's have a desk of their own: tests/test_docs_plugins.py."""
    monkeypatch.chdir(desk)
    monkeypatch.setitem(machine.COPIED_BYTES, "cpu", 1 << 16)  # a peak that nobody reads, in seconds
    monkeypatch.setitem(machine.PRODUCT_SIZE, "cpu", 32)
    if document == PLUGINS:
        monkeypatch.setattr(main, "_external", None)
        entry_points = [tomllib.loads(block.text)["project"]["entry-points"] for block in blocks(document, "toml")]
        pretend_installed("ftengine-curve", entry_points, tmp_path, monkeypatch)
    for block in blocks(document, "console", "python"):
        run_block(block, tmp_path if block.file else desk)


@pytest.mark.slow
def test_what_the_readme_types_works(smollm2_gguf, tmp_path, monkeypatch):
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    monkeypatch.chdir(tmp_path)
    for block in blocks(README, "console", "python"):
        if BASE not in block.text:
            run_block(block, tmp_path)


@pytest.mark.slow
def test_the_demos_plan_is_what_plan_prints(smollm2_gguf, tmp_path, monkeypatch):
    """Precision aside, which is of the machine that it was made on, and what is measured."""
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    monkeypatch.chdir(tmp_path)
    run_command("python examples/chat/prepare.py --distinct", tmp_path)
    printed = CliRunner().invoke(main, ["plan", "examples/chat/demo.yaml", "--no-measure"]).stdout
    text = (ROOT / "examples" / "chat" / "README.md").read_text(encoding="utf-8")
    shown = text.partition("$ ftengine plan examples/chat/demo.yaml\n")[2].partition("\n$ ")[0]

    def words(text):
        text = re.sub(r" [\d.]+ % are computed, as rows share prefixes;", "", text)
        text = re.sub(r"\nprecision .*", "", text)
        return re.sub(r"\nestimate .*?\noutput ", "\noutput ", text, flags=re.DOTALL).split()

    assert words(shown) == words(printed)


def test_the_adapter_opens_in_peft_as_the_readme_says(desk, llama_folder, monkeypatch):
    monkeypatch.chdir(desk)
    (block,) = [block for block in blocks(README, "python") if BASE in block.text]
    names = {}
    exec(compile(block.text.replace(BASE, str(llama_folder)), block.place, "exec"), names)
    tuned = names["model"]
    assert any(parameter.abs().max() > 0 for name, parameter in tuned.named_parameters() if "lora_B" in name)


# Recipes and data


def sections(model=Recipe, path=()):
    """Yield the heading and the model of the recipe and of every section in it."""
    yield f"`{'.'.join(path)}`" if path else "The recipe", model
    for name, field in model.model_fields.items():
        for kind in (field.annotation, *get_args(field.annotation)):
            if isinstance(kind, type) and issubclass(kind, BaseModel):
                yield from sections(kind, (*path, name))


LONGEST_DEFAULT = 8
"""Items of a list that a table still holds."""


def defaults(model):
    """Return what a table has to say of each key: its default, "required", or "below" for sections and long lists."""
    shown = {}
    for name, field in model.model_fields.items():
        value = field.default
        if field.is_required():
            shown[name] = "required"
        elif isinstance(value, BaseModel) or (isinstance(value, list) and len(value) > LONGEST_DEFAULT):
            shown[name] = "below"
        else:
            shown[name] = value["name"] if isinstance(value, dict) and value.keys() == {"name"} else value
    return shown


def told(found):
    """Return what a table says of each key."""
    return {
        name: yaml.safe_load(row[1].strip("`")) if row[1].startswith("`") else row[1]
        for row in found.rows
        for name in code(row[0])
    }


@pytest.mark.parametrize(("heading", "model"), list(sections()), ids=lambda value: str(value))
def test_every_key_of_the_recipe_is_documented_with_its_default(heading, model):
    assert told(table(RECIPE, heading)) == defaults(model)


HOMES = {"augmenter": AUGMENTERS, "regularizer": REGULARIZERS, "evaluator": EVALUATION}
"""Documents of kinds that have one of their own."""

LISTED = {
    "audit": (DATA, "What the audits find"),
    "task": (RECIPE, "Tasks"),
    "strategy": (RECIPE, "Strategies"),
    "loader": (RECIPE, "Loaders"),
    "reader": (RECIPE, "Readers"),
    "optimizer": (RECIPE, "Optimizers"),
    "schedule": (RECIPE, "Schedules"),
    "fast-path": (RECIPE, "Fast paths"),
    "exporter": (SERVING, "Formats"),
    **{kind: (document, f"{kind.capitalize()}s") for kind, document in HOMES.items()},
}
"""Kinds whose components stand in a table of a document's section."""


def of_kind(kind):
    """Return the names of the components in the box of a kind."""
    return [entry.name for entry in Registry().entries(kind) if entry.origin.distribution == "ftengine"]


def choices(section, key):
    return get_args(section.model_fields[key].annotation)


TABLES = [
    *((*place, of_kind(kind)) for kind, place in LISTED.items() if of_kind(kind)),
    (DATA, "Oddities", ODDITIES),
    (DATA, "Likely personal data", PERSONAL),
    (DATA, "Splits and duplicates", choices(SplitSection, "by")),
    (DATA, "Leaks", choices(DataSection, "leaks")),
    (DATA, "Files", suffixes(Registry())),
    (COMPARING, "Cross-validation", CrossValidation.model_fields),
]


@pytest.mark.parametrize(
    ("document", "heading", "names"), TABLES, ids=lambda value: value if isinstance(value, str) else ""
)
def test_a_table_has_all_of_its_sort_and_nothing_else(document, heading, names):
    assert sorted(table(document, heading).names()) == sorted(names)


def test_every_callback_is_documented():
    section = TEXTS[RECIPE].partition("### Callbacks\n")[2].partition("\n#")[0]
    assert set(of_kind("callback")) <= set(code(section))


def test_the_page_of_components_has_every_option_with_what_it_does(tmp_path):
    page = tmp_path / "components.md"
    page.write_text(docs_contract.components_page(), encoding="utf-8")
    entries = {f"{kind} `{name}`": Registry().get(kind, name).cls.Config for kind in KINDS for name in of_kind(kind)}
    assert headings(page)[1:] == list(entries)
    made = {found.heading: found for found in reversed(tables(page))}  # options stand before metrics
    for heading, config in entries.items():
        if config.model_fields:
            assert made[heading].names() == list(config.model_fields)
            assert [row for row in made[heading].rows if not row[-1]] == []


def test_every_task_is_documented_with_its_evaluators():
    kinds = {"one label": "single", "several labels": "multi", "numbers": "regression"}
    from ftengine_builtins.tasks.labelled import EVALUATORS

    by_name = {code(name)[0]: of for name, of, _ in table(EVALUATION, "Evaluators").rows}
    for words, kind in kinds.items():
        assert [name for name, of in by_name.items() if words in of] == list(EVALUATORS[kind])
    for name, _, evaluators, _ in table(RECIPE, "Tasks").rows:
        entry = Registry().get("task", *code(name))
        task = entry.cls if entry.needs_options else entry.cls()
        assert set(task.evaluators) <= set(code(evaluators)), name


def test_every_kind_of_finding_is_documented():
    folders = [ROOT / "plugins" / "ftengine_builtins" / kind for kind in ("rules", "audits")]
    sources = [file.read_text("utf-8") for folder in folders for file in folder.glob("*.py")]
    calls = [node for source in sources for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call)]
    made = [call for call in calls if isinstance(call.func, ast.Name) and call.func.id == "Finding"]
    named = [key.value for call in made for key in call.keywords if key.arg == "kind"]
    kinds = {value.value for value in named if isinstance(value, ast.Constant)}
    assert set(table(REPORT, "What the verdict looks for").names()) == kinds


def test_every_option_of_a_prediction_is_documented_with_its_default():
    from ftengine.generation import GenerationOptions

    assert told(table(COMMANDS_PAGE, "Predicting")) == defaults(GenerationOptions)


def test_recipes_in_the_documents_are_recipes():
    whole = yaml.safe_load(next(iter(blocks(RECIPE, "yaml"))).text)  # the others are parts of one
    for document in TEXTS.keys() - {LAUNCHERS}:  # whose YAML is for what launches
        for block in blocks(document, "yaml"):
            Recipe.make({**whole, **yaml.safe_load(block.text)}, origin=block.place)


def test_rows_in_the_documents_can_be_learnt_from(llama_folder, bert_folder):
    from transformers import AutoTokenizer

    for document in TEXTS:
        for block in blocks(document, "json"):
            name = next(iter(code(block.heading)), "") if "task `" in block.heading else "causal-lm"
            task = Registry().build("task", name, "task")
            tokenizer = AutoTokenizer.from_pretrained(bert_folder if "classification" in name else llama_folder)
            rows = [json.loads(line) for line in block.text.splitlines()]
            task.labels = task.learn_labels({"train": rows})
            for row in rows:
                task.check_columns(list(row))
                assert task.encode(row, tokenizer).weight > 0, block.place


# A run's folder


SOMETIMES = {
    "learning_rates",
    "penalty",
    "validation_reward",
    "loss/SOURCE",
    "training_loss/SOURCE",
    "validation_loss/SOURCE",
}
"""Fields of files that only some runs have."""


def test_every_file_of_a_run_is_documented(desk):
    found = {f"{path.name}/" if path.is_dir() else path.name for path in (desk / "runs" / "support").iterdir()}
    assert set(table(RUNS, "The folder of a run").names()) == found


@pytest.mark.parametrize(
    ("document", "heading", "file"),
    [
        (DATA, "`audit.json`", "audit.json"),
        (RUNS, "`environment.json`", "environment.json"),
        (RUNS, "`metrics.jsonl`", "metrics.jsonl"),
        (RUNS, "`training.json`", "training.json"),
        (RUNS, "`evaluation.json`", "evaluation.json"),
        (RUNS, "`verdict.json`", "verdict.json"),
        (RUNS, "`adapter/`", "adapter/ftengine.json"),
    ],
)
def test_every_field_of_a_file_is_documented(desk, document, heading, file):
    text = (desk / "runs" / "support" / file).read_text()
    values = [json.loads(line) for line in text.splitlines()] if file.endswith("l") else [json.loads(text)]
    assert set(table(document, heading).names()) - SOMETIMES == {key for value in values for key in value}


@pytest.mark.parametrize(
    ("document", "heading", "name", "file"),
    [
        (DATA, "`audit.json`", "splits", "audit.json"),
        (DATA, "`audit.json`", "split", "audit.json"),
        (DATA, "`audit.json`", "findings", "audit.json"),
        (DATA, "`audit.json`", "encoded", "audit.json"),
        (RUNS, "`environment.json`", "plugins", "environment.json"),
        (RUNS, "`environment.json`", "hardware", "environment.json"),
        (RUNS, "`environment.json`", "precision", "environment.json"),
        (RUNS, "`evaluation.json`", "tuned", "evaluation.json"),
        (RUNS, "`evaluation.json`", "difference", "evaluation.json"),
        (RUNS, "`evaluation.json`", "training", "evaluation.json"),
        (RUNS, "`verdict.json`", "findings", "verdict.json"),
    ],
)
def test_fields_inside_are_documented_too(desk, document, heading, name, file):
    (row,) = [row for row in table(document, heading).rows if name in code(row[0])]
    value = json.loads((desk / "runs" / "support" / file).read_text())[name]
    if name in ("splits", "lengths", "encoded", "tuned", "difference"):  # by split, by metric
        value = next(iter(value.values()))
    elif isinstance(value, list):
        value = value[0]
    assert set(value) <= set(code(row[1]))


def test_every_file_of_a_checkpoint_is_documented(desk):
    text = TEXTS[RUNS].partition("## `checkpoints/`")[2].partition("\n#")[0]
    places = [path for path in (desk / "runs" / "support" / "checkpoints").rglob("*") if path.is_file()]
    assert {path.name for path in places} == {name for name in code(text) if "." in name and "/" not in name} - {
        "train.keep_checkpoints",
        "regularizers.safetensors",  # where a regularizer keeps something
    }


# The command line


def every_command(group=main, path=("ftengine",)):
    """Yield the words and the object of every command that is no group."""
    with click.Context(group) as ctx:
        for name in group.list_commands(ctx):
            command = group.get_command(ctx, name)
            if isinstance(command, click.Group):
                yield from every_command(command, (*path, name))
            else:
                yield " ".join((*path, name)), command


COMMANDS = dict(every_command())
EVERYWHERE = {"--help", "--debug"}


def long_options(command):
    flags = [flag for p in command.params if isinstance(p, click.Option) for flag in (*p.opts, *p.secondary_opts)]
    return {flag for flag in flags if flag.startswith("--")}


def test_every_command_and_option_is_documented():
    told_options = {code(row[0])[0]: set(code(row[1])) for row in table(COMMANDS_PAGE, "Commands").rows}
    assert told_options == {name: long_options(command) - EVERYWHERE for name, command in COMMANDS.items()}


def mentioned(document):
    """Return the calls of ftengine that a document shows, in blocks and in running text."""
    typed = [line for block in blocks(document, "console", "sh") for line in commands(block)]
    shown = typed + code(prose(TEXTS[document]))
    return [found[0] for text in shown if (found := re.search(r"(?<![\w/.-])ftengine [a-z].*", text))]


@pytest.mark.parametrize("document", TEXTS, ids=named)
def test_commands_and_options_that_a_document_names_exist(document):
    own = {"ftengine curve": click.Command("curve")} if document == PLUGINS else {}  # the plugin of that page
    for call in mentioned(document):
        known = {**COMMANDS, **own}
        words = call.split()
        name = next((" ".join(words[:n]) for n in (2, 3) if " ".join(words[:n]) in known), None)
        assert name, f"no such command: {call}"
        options = {word.partition("=")[0] for word in words if word.startswith("--")}
        assert options <= long_options(known[name]) | EVERYWHERE, call
    alone = {text.split()[0].partition("=")[0] for text in code(prose(TEXTS[document])) if text.startswith("--")}
    assert alone <= EVERYWHERE.union(*map(long_options, COMMANDS.values()))


# Everything else


def test_every_environment_variable_is_documented_and_exists():
    variable = r"(?<![A-Z_])FTENGINE_[A-Z_]+"

    def read(*folders):
        sources = [file.read_text("utf-8") for folder in folders for file in (ROOT / folder).rglob("*.py")]
        return {name for source in sources for name in re.findall(variable, source)}

    def told(document, heading):
        return {name for name in table(document, heading).names() if name.startswith("FTENGINE")}

    run, build = read("ftengine", "plugins"), read("csrc")
    assert {name for text in TEXTS.values() for name in re.findall(variable, text)} == run | build
    assert told(COMMANDS_PAGE, "Environment variables") == run
    assert told(INSTALLATION, "Choosing what is compiled") == build


BESIDE = ("*", "plugins/*", "examples/*")
LINKING = [*TEXTS, ROOT / "CONTRIBUTING.md", *(one for at in BESIDE for one in ROOT.glob(f"{at}/README.md"))]


@pytest.mark.parametrize("document", LINKING, ids=lambda document: str(document.relative_to(ROOT)))
def test_every_link_leads_somewhere(document):
    for link in re.findall(r"\]\(([^)\s]+)\)", prose(document.read_text(encoding="utf-8"))):
        if link.startswith(("http:", "https:")):
            continue
        path, _, anchor = link.partition("#")
        target = (document.parent / path).resolve() if path else document
        assert target.exists(), link
        anchors = (
            [re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings(target)]
            if anchor
            else [""]
        )
        assert anchor in anchors, link
