"""`init` writes a recipe that is valid, complete and says what each key means."""

import json
from pathlib import Path

import pytest
import yaml
from cli_samples import ENTRY, strategy

from ftengine import Recipe
from ftengine.data.read import read_rows
from ftengine.plugins.registry import Registry
from ftengine_builtins.tasks.recognising import recognise_text


def keys(content, prefix=""):
    for key, value in content.items():
        yield prefix + key
        if isinstance(value, dict):
            yield from keys(value, f"{prefix}{key}.")


def test_the_recipe_is_valid_and_holds_every_key_with_its_default(ftengine, tmp_path):
    file = tmp_path / "recipe.yaml"
    model, data = f"some/{'long-' * 20}model", "owner/a-data-set:train"
    ftengine("init", file, "--model", model, "--data", data, "--all-keys")
    recipe = Recipe.read(file)
    assert (recipe.model.source, recipe.data.train) == (model, data)
    smallest = {"model": {"source": model}, "data": {"train": data}}
    defaults = Recipe.make({**smallest, "task": recipe.task, "strategy": recipe.strategy})
    defaults.train.learning_rate = Registry().get("strategy", recipe.strategy["name"]).cls.traits.learning_rate
    assert recipe.resolved() == defaults.resolved()
    written = yaml.safe_load(file.read_text())
    assert list(written) == list(Recipe.model_fields)
    assert list(written["train"]) == list(type(recipe.train).model_fields)


@pytest.mark.parametrize("kind", ["task", "strategy"])
def test_a_chosen_component_comes_with_its_options(ftengine, tmp_path, kind):
    for entry in Registry().entries(kind):
        if entry.name == "distillation":  # a teacher has to be named
            continue
        file = tmp_path / f"{entry.name}.yaml"
        ftengine("init", file, f"--{kind}", entry.name, "--all-keys")
        written = getattr(Recipe.read(file), kind)
        assert written["name"] == entry.name
        assert entry.cls.Config(**{k: v for k, v in written.items() if k != "name"}) == entry.cls.Config()
        assert [option for option in entry.cls.Config.model_fields if option not in written] == []


def test_the_rows_of_a_query_are_proposed_to_stay_together(ftengine, tmp_path):
    rows = [{"query": f"what is {i}", "document": f"it is {j}", "label": int(i == j)} for i in range(4) for j in (i, 9)]
    (tmp_path / "judged.jsonl").write_text("\n".join(map(json.dumps, rows)))
    ftengine("init", tmp_path / "recipe.yaml", "--data", tmp_path / "judged.jsonl")
    data = Recipe.read(tmp_path / "recipe.yaml").data
    assert (data.split.by, data.split.column, data.columns["text"]) == ("group", "text", "query")


@pytest.mark.parametrize(
    ("rows", "task"),
    [
        ({"query": "a", "positive": "b", "negative": "c"}, "embedding"),
        ({"query": "a", "positive": "b", "negative": ["c", "d"]}, "reranking"),
        ({"query": "a", "positive": "b", "negatives": ["c", "d"]}, "reranking"),
        ({"query": "a", "positive": "b", "negative_1": "c", "negative_2": "d"}, "reranking"),
        ({"query": "a", "positive": "b", "negative": "c", "negative_2": "d"}, "reranking"),
        ({"query": "a", "positive": "b", "negative": '["c", "d"]'}, "reranking"),
    ],
)
def test_rows_of_several_negatives_are_proposed_to_the_task_that_reads_them(ftengine, tmp_path, rows, task):
    (tmp_path / "rows.jsonl").write_text("\n".join(json.dumps({**rows, "query": f"q{i}"}) for i in range(9)))
    recipe = tmp_path / "recipe.yaml"
    ftengine("init", recipe, "--data", tmp_path / "rows.jsonl")
    assert Recipe.read(recipe).task["name"] == task
    ftengine("init", recipe, "--data", tmp_path / "rows.jsonl", "--task", "embedding", "--force")
    assert ("lists, and further columns of negatives, are not read" in recipe.read_text()) == (task == "reranking")


def test_an_existing_file_stays_unless_forced(ftengine, tmp_path):
    file = tmp_path / "recipe.yaml"
    file.write_text("mine")
    assert "--force" in ftengine("init", file, code=2).stderr
    assert file.read_text() == "mine"
    ftengine("init", file, "--force")
    Recipe.read(file)


def test_the_default_name_is_recipe_yaml(ftengine, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert "ftengine plan recipe.yaml" in ftengine("init").stdout
    Recipe.read("recipe.yaml")


@pytest.mark.parametrize(
    ("file", "args", "facts"),
    [
        ("recipe.yaml", ["--strategy", "lroa"], ["--strategy", "'lora'"]),
        ("recipe.yaml", ["--task", "causal"], ["--task", "'causal'"]),
        ("no/recipe.yaml", [], ["cannot write", "no/recipe.yaml"]),
    ],
)
def test_wrong_options_write_nothing(ftengine, tmp_path, file, args, facts):
    line = ftengine("init", tmp_path / file, *args, code=2).stderr
    assert [fact for fact in facts if fact not in line] == []
    assert not (tmp_path / file).exists()


def test_a_plugin_may_propose_its_component_to_beginners(ftengine, distribution, tmp_path):
    distribution(
        strategy().replace('name = "thing"', 'name = "a-thing"\n    traits = StrategyTraits(is_default=True)'), ENTRY
    )
    ftengine("init", tmp_path / "recipe.yaml")
    assert Recipe.read(tmp_path / "recipe.yaml").strategy["name"] == "a-thing"  # the first of those proposed


def write(folder, name, rows):
    (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    return name


CHAT = [{"role": "user", "content": "Who?"}, {"role": "assistant", "content": "Me."}]
SHAREGPT = [{"from": "human", "value": "Who?"}, {"from": "gpt", "value": "Me."}]


@pytest.mark.parametrize(
    ("row", "task", "columns"),
    [
        ({"text": "a b", "label": "x"}, "text-classification", {}),
        (
            {"Description": "a b", "category": 1, "id": 3},
            "text-classification",
            {"text": "Description", "label": "category"},
        ),
        ({"note": "a b", "class": "x"}, "text-classification", {"text": "note", "label": "class"}),
        ({"messages": CHAT}, "causal-lm", {}),
        ({"conversations": CHAT, "id": "1"}, "causal-lm", {}),
        ({"conversations": SHAREGPT}, "causal-lm", {}),
        ({"dialogue": CHAT}, "causal-lm", {"messages": "dialogue"}),
        ({"instruction": "a", "input": "b", "output": "c"}, "causal-lm", {}),
        ({"prompt": "a", "completion": "b"}, "causal-lm", {}),
        ({"question": "a", "answer": "b"}, "causal-lm", {"prompt": "question", "completion": "answer"}),
        ({"Frage": "a", "Antwort": "b"}, "causal-lm", {"prompt": "Frage", "completion": "Antwort"}),
        ({"text": "a"}, "causal-lm", {}),
        ({"source": "a", "target": "b"}, "seq2seq-lm", {"prompt": "source", "completion": "target"}),
        ({"English": "a", "Spanish": "b"}, "seq2seq-lm", {"prompt": "English", "completion": "Spanish"}),
        ({"prompt": "a", "chosen": "b", "rejected": "c"}, "preference", {}),
        ({"query": "a", "passage": "b"}, "embedding", {"anchor": "query", "positive": "passage"}),
        ({"sentence1": "a", "sentence2": "b", "score": 2.5}, "embedding", {}),
        ({"prompt": "a", "completion": "b", "label": True}, "unpaired-preference", {}),
        ({"messages": CHAT, "label": True}, "unpaired-preference", {}),
        ({"instruction": "a", "output": "b", "kto_tag": False}, "unpaired-preference", {}),
        ({"tokens": ["a"], "ner_tags": [1]}, "token-classification", {"tags": "ner_tags"}),
        (
            {"text": "Ada", "entities": [{"start": 0, "end": 3, "label": "P"}]},
            "token-classification",
            {"spans": "entities"},
        ),
        ({"file_name": "a.png", "label": "cat"}, "image-classification", {"image": "file_name"}),
    ],
)
def test_the_data_decides_on_task_and_columns(ftengine, tmp_path, monkeypatch, row, task, columns):
    monkeypatch.chdir(tmp_path)
    notes = ftengine("init", "--data", write(tmp_path, "rows.jsonl", [row] * 3)).stderr
    recipe = Recipe.read("recipe.yaml")
    assert (recipe.task["name"], recipe.data.columns) == (task, columns)
    assert len([line for line in Path("recipe.yaml").read_text().splitlines() if "# " not in line]) <= 12
    assert ("sharegpt" in notes) == (row.get("conversations") is SHAREGPT)


@pytest.mark.parametrize(
    ("row", "said"),
    [
        (
            {"instruction": "a", "context": "b", "response": "c"},
            "'context' is not read: write all parts of the prompt ",
        ),
        ({"query": "a", "response": "b", "label": 1}, "label is read as whether the response is a desirable answer."),
        ({"sentence1": "a", "sentence2": "b", "score": 2.5}, "The cosine of two vectors is to follow the score. "),
    ],
)
def test_a_column_that_is_not_read_or_may_mean_something_else_is_reported(ftengine, tmp_path, monkeypatch, row, said):
    monkeypatch.chdir(tmp_path)
    assert f"note: {said}" in ftengine("init", write(tmp_path, "rows.jsonl", [row] * 3)).stderr
    assert f"  # {said}" in (tmp_path / "recipe.yaml").read_text()
    Recipe.read("recipe.yaml")


def labelled_by(ftengine, tmp_path, monkeypatch, rows):
    """Return the columns of the recipe for some rows, and what was said."""
    monkeypatch.chdir(tmp_path)
    said = ftengine("init", write(tmp_path, "rows.jsonl", rows), "--task", "text-classification").stderr
    return Recipe.read("recipe.yaml").data.columns, said


@pytest.mark.parametrize("identifier", [lambda i: i // 6, lambda i: str(2000 + i // 6)])
def test_the_number_of_a_document_is_no_label_and_a_guess_says_so(ftengine, tmp_path, monkeypatch, identifier):
    rows = [
        {"pmid": identifier(i), "sentence": f"We saw {i} cases.", "section": ("AIM", "RESULTS")[i % 2]}
        for i in range(60)
    ]
    columns, said = labelled_by(ftengine, tmp_path, monkeypatch, rows)
    assert columns == {"text": "sentence", "label": "section"}
    assert "note: 'section' is taken for the label, as its values repeat." in said


CLASSES = {
    "ward": lambda i: ("A1", "B2", "C3")[i % 3],
    "days": lambda i: i * 0.37,
    "mood": lambda i: ("happy", "sad")[i % 2],
    "place": lambda i: ("London, UK", "Leeds, UK", "UK", "Rome, Italy")[i % 4],
    "author": lambda i: ("Smith, John", "Smith, Jane", "Roe, Ann")[i % 3],
    "date": lambda i: ("May 1, 2020", "May 2, 2020", "2020")[i % 3],
    "codes": lambda i: ("us;money", "us", "tech;money", "tech;us")[i % 4],
}


@pytest.mark.parametrize("names", ["ward days", "place mood", "date mood", "codes mood", "codes days"])
def test_of_several_columns_that_may_be_the_label_none_is_taken(names):
    first, second = names.split()
    rows = [{"text": f"A report of day {i}.", **{n: CLASSES[n](i) for n in (first, second)}} for i in range(60)]
    found = recognise_text(list(rows[0]), rows)
    assert (found.certainty, found.columns, found.options) == (0, {}, {})
    assert repr(first) in found.note
    assert repr(second) in found.note


def test_columns_that_may_each_be_the_label_are_named(ftengine, tmp_path, monkeypatch):
    rows = [{"ward": CLASSES["ward"](i), "summary": f"Admitted, bed {i}.", "days": i * 0.37} for i in range(60)]
    columns, said = labelled_by(ftengine, tmp_path, monkeypatch, rows)
    assert columns == {"text": "summary"}
    refused = ftengine("init", "rows.jsonl", "--force", code=2).stderr
    write(tmp_path, "texts.jsonl", [{"text": row.pop("summary"), **row} for row in rows])
    taken = ftengine("init", "texts.jsonl", "--force").stderr  # texts alone may be continued
    assert all("'ward' and 'days'" in text for text in (said, refused, taken))


def test_a_column_of_lists_of_labels_is_taken_for_them(ftengine, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    lists = ("us;money", "us", "tech;money", "tech;us")
    data = write(
        tmp_path, "rows.jsonl", [{"text": f"It rose by {i} points.", "codes": lists[i % 4]} for i in range(60)]
    )
    said = ftengine("init", "--data", data).stderr
    recipe = Recipe.read("recipe.yaml")
    assert recipe.data.columns == {"label": "codes"}
    assert (recipe.task["name"], recipe.task["kind"], recipe.task["separator"]) == ("text-classification", "multi", ";")
    assert "'codes' is taken for lists of labels" in said


@pytest.mark.parametrize(("name", "content", "advice"), [
    ("rows.csv", "text,label\nso,so\nschön,gut\nschlimm,übel\n".encode("latin-1"), "iconv"),
    ("rows.csv", b"text|label\ngood|a\n", "text|label"), ("rows.xlsx", b"PK", "CSV"),
])  # fmt: skip
def test_a_file_that_has_to_be_saved_otherwise_is_refused_with_how(
    ftengine, tmp_path, monkeypatch, name, content, advice
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / name).write_bytes(content)
    done = ftengine("init", "--data", name, code=2)
    assert advice in done.stderr
    assert not (tmp_path / "recipe.yaml").exists()


def test_several_sources_are_listed_with_weights_to_uncomment(ftengine, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    talks = write(tmp_path, "talks.jsonl", [{"messages": CHAT}] * 3)
    faq = write(tmp_path, "faq.jsonl", [{"question": f"a{n}", "answer": "b"} for n in range(4)])
    said = ftengine("init", "--data", talks, "--data", faq).stderr
    assert all(f"{name}: columns" in said for name in (talks, faq))
    recipe = Recipe.read("recipe.yaml")
    assert [(one.source, one.weight, one.columns) for one in recipe.data.train] == [
        (talks, None, None),
        (faq, None, {"prompt": "question", "completion": "answer"}),
    ]
    assert (recipe.task["name"], recipe.data.columns) == ("causal-lm", {})
    weighted = (tmp_path / "recipe.yaml").read_text().replace("# weight: 1", "weight: 1")
    (tmp_path / "recipe.yaml").write_text(weighted)
    assert [one.weight for one in Recipe.read("recipe.yaml").data.train] == [1, 1]
    labelled = write(tmp_path, "labelled.jsonl", [{"text": "a b", "label": "x"}] * 3)
    refused = ftengine("init", "other.yaml", "--data", talks, "--data", labelled, code=2).stderr
    assert all(one in refused for one in (talks, labelled, "causal-lm", "text-classification", "--task"))
    pairs = write(tmp_path, "pairs.jsonl", [{"anchor": f"a{n}", "positive": "b"} for n in range(3)])
    triplets = write(tmp_path, "three.jsonl", [{"anchor": f"a{n}", "positive": "b", "negative": "c"} for n in range(3)])
    refused = ftengine("init", "other.yaml", "--data", pairs, "--data", triplets, code=2).stderr
    assert all(one in refused for one in (pairs, triplets, "rows: triplets"))


@pytest.mark.parametrize(
    ("values", "kind"),
    [
        ([f"{i / 7:.3f}" for i in range(20)], "regression"),
        ([i / 7 for i in range(20)], "regression"),
        ([f"{i},481" for i in range(20)], "regression"),
        ([f"{i * 13}" for i in range(20)], "regression"),
        ([f"{i % 3}" for i in range(20)], "auto"),
        ([i % 3 for i in range(20)], "auto"),
    ],
)
def test_numbers_as_labels_are_recognised(ftengine, tmp_path, monkeypatch, values, kind):
    monkeypatch.chdir(tmp_path)
    rows = [{"text": f"a text {i}", "label": value} for i, value in enumerate(values)]
    ftengine("init", "--data", write(tmp_path, "a.jsonl", rows), "--model", "some/encoder", "--all-keys")
    task = Recipe.read("recipe.yaml").task
    assert (task["name"], task["kind"]) == ("text-classification", kind)


def test_a_folder_of_images_gives_a_recipe_with_their_augmenters_alone(ftengine, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("cat", "dog"):
        (tmp_path / "photos" / name).mkdir(parents=True)
        (tmp_path / "photos" / name / "1.png").touch()
    ftengine("init", "photos", "--all-keys")
    assert Recipe.read("recipe.yaml").task["name"] == "image-classification"
    held = [line for line in (tmp_path / "recipe.yaml").read_text().splitlines() if line.startswith("# may hold ")]
    augmenters = {entry.name: entry.cls.modality for entry in Registry().entries("augmenter")}
    proposed = {name for line in held if (name := line.split()[3].rstrip(":")) in augmenters}
    assert proposed == {name for name, modality in augmenters.items() if modality in (None, "image")}


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ("12345", "'stars' holds whole numbers"),
        (["0", "10", "4"], "'stars' holds whole numbers"),
        ("01", ""),  # no and yes
        (["101", "205", "330"], ""),  # numbers of something
        ("abc", ""),
        (["1.5", "2", "3"], ""),  # is proposed as regression
    ],
)
def test_labels_that_may_be_grades_are_hinted_at(ftengine, tmp_path, monkeypatch, values, said):
    monkeypatch.chdir(tmp_path)
    rows = [{"sentence": f"text {i}", "stars": values[i % len(values)]} for i in range(20)]
    stderr = ftengine("init", write(tmp_path, "a.jsonl", rows)).stderr
    recipe = (tmp_path / "recipe.yaml").read_text()
    assert ("set task.kind to regression" in stderr) == bool(said) == ("set task.kind to regression" in recipe)
    assert said in stderr
    assert said in recipe


def test_numbers_beside_a_text_are_proposed_as_regression(ftengine, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rows = [{"text": f"flat number {i} by the sea", "price": i * 7.3 + 0.1} for i in range(40)]
    ftengine("init", "--data", write(tmp_path, "a.jsonl", rows), "--task", "text-classification")
    recipe = Recipe.read("recipe.yaml")
    assert (recipe.task["kind"], recipe.data.columns) == ("regression", {"label": "price"})


def test_data_that_no_task_knows_is_refused_and_nothing_is_written(ftengine, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    data = write(tmp_path, "a.jsonl", [{"x": 1, "y": 2}])
    result = ftengine("init", data, code=2)
    assert "columns x, y" in result.stderr
    assert not Path("recipe.yaml").exists()
    ftengine("init", data, "--task", "causal-lm")
    assert Recipe.read("recipe.yaml").data.columns == {}


def test_a_data_file_that_is_not_there_does_not_become_a_recipe(ftengine, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "review.csv").write_text("text,label\ngood,a\n")
    for args in (["reviews.csv"], ["--data", "reviews.csv"], ["recipe.yaml", "--data", "no-folder/reviews.csv"]):
        assert "no data file" in ftengine("init", *args, code=2).stderr
    assert "Did you mean 'review.csv'?" in ftengine("init", "reviews.csv", code=2).stderr
    assert [file.name for file in tmp_path.iterdir()] == ["review.csv"]


@pytest.mark.parametrize(("rows", "epochs"), [(5, 20), (400, 20), (1080, 9), (3000, 3)])
def test_few_rows_are_passed_over_more_often(ftengine, tmp_path, rows, epochs):
    """Some 1,000 steps, at most 20 epochs; the default of 3 where there are rows enough."""
    data, file = tmp_path / "rows.jsonl", tmp_path / "recipe.yaml"
    data.write_text("".join(json.dumps({"text": f"text {i}", "label": "ab"[i % 2]}) + "\n" for i in range(rows)))
    said = ftengine("init", file, "--data", data, "--all-keys").stderr
    assert Recipe.read(file).train.epochs == epochs
    assert (f"train.epochs is set to {epochs}, as there are {rows:,} rows;" in said) == (epochs > 3)
    assert ("default: 3" in file.read_text()) == (epochs > 3)


def test_a_text_file_whose_lines_have_tabs_may_be_a_table(ftengine, tmp_path, monkeypatch):
    """As Excel saves "Unicode Text"."""
    monkeypatch.chdir(tmp_path)
    Path("rows.txt").write_bytes("prompt\tcompletion\r\nHello\tHi\r\n".encode("utf-16"))
    assert "If it is a table" in ftengine("init", "--data", "rows.txt").stderr
    (row,) = read_rows("rows.txt", reader={"name": "csv", "separator": "\t"})
    assert row == {"prompt": "Hello", "completion": "Hi"}


@pytest.mark.parametrize(
    ("columns", "task", "chosen", "renamed"),
    [
        (("anchor", "positive", "topic"), None, "embedding", {}),
        (("question", "better", "worse"), None, "preference", {"prompt": "question", "chosen": "better"}),
        (("prompt", "chosen", "rejected"), "reward", "reward", {}),
    ],
)
def test_columns_of_pairs_are_recognised(ftengine, tmp_path, monkeypatch, columns, task, chosen, renamed):
    """Also beside a column that could be a label, and of messages; preferences are passed over three times at most."""
    monkeypatch.chdir(tmp_path)
    rows = [{name: f"{name} {i} and more" for name in columns} for i in range(60)]
    if "topic" in columns:
        rows = [{**row, "topic": "abc"[i % 3]} for i, row in enumerate(rows)]
    if task == "reward":
        role = {"prompt": "user", "chosen": "assistant", "rejected": "assistant"}
        rows = [{name: [{"role": role[name], "content": text}] for name, text in row.items()} for row in rows]
    ftengine("init", "--data", write(tmp_path, "rows.jsonl", rows), *(["--task", task] if task else []))
    recipe = Recipe.read("recipe.yaml")
    assert recipe.task["name"] == chosen
    assert recipe.data.columns.items() >= renamed.items()
    assert recipe.train.epochs == (20 if chosen == "embedding" else 3)
