"""What a user can get wrong: each mistake is one line, early, with the documented status, and leaves no trace."""

import errno
import json
import resource
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from click.testing import CliRunner
from runs import save_anew

from ftengine.cli import main
from ftengine.errors import RefusedRows

ROWS = [
    {"messages": [{"role": "user", "content": f"What is {i} and {i}?"}, {"role": "assistant", "content": f"{2 * i}"}]}
    for i in range(20)
]
LABELLED = [{"text": f"text number {i}", "label": "odd" if i % 2 else "even"} for i in range(20)]


def lines(rows):
    return "".join(json.dumps(row) + "\n" for row in rows)


class Workplace:
    """A folder with a sound recipe, sound data and a sound model, to be spoilt."""

    def __init__(self, folder: Path, llama: Path, bert: Path) -> None:
        self.folder, self.llama, self.bert = folder, llama, bert
        (folder / "chat.jsonl").write_text(lines(ROWS))
        (folder / "labels.jsonl").write_text(lines(LABELLED))
        self.recipe(model={"source": str(llama)})

    def recipe(self, **sections):
        content = {
            "model": {"source": str(self.llama)},
            "task": "causal-lm",
            "data": {"train": "chat.jsonl", "validation": 0.2},
            "strategy": {"name": "lora", "rank": 2},
            "train": {"max_steps": 2, "batch_size": 4, "precision": "float32"},
            "evaluation": {"resamples": 100},
            "output": "run",
        }
        for key, value in sections.items():
            content[key] = content[key] | value if isinstance(content.get(key), dict) else value
        (self.folder / "recipe.yaml").write_text(yaml.safe_dump(content))

    def classification(self, **sections):
        self.recipe(
            **{"model": {"source": str(self.bert)}, "task": "text-classification", "data": {"train": "labels.jsonl"}}
            | sections
        )

    def data(self, content):
        (self.folder / "chat.jsonl").write_bytes(content if isinstance(content, bytes) else content.encode())

    def model(self, name="model"):
        copy = self.folder / name
        shutil.copytree(self.llama, copy)
        self.recipe(model={"source": name})
        return copy

    def files(self):
        """Return the sizes of all files, but for the lock that a run's records keep."""
        found = (path for path in self.folder.rglob("*") if path.name != ".records.lock")
        return {str(path.relative_to(self.folder)): path.stat().st_size for path in found}


def broken_json_line(w):
    w.data(lines(ROWS[:5]) + '{"messages": [\n' + lines(ROWS[5:]))


def wrong_encoding(w):
    w.data(lines(ROWS[:2]).encode() + '{"text": "café"}\n'.encode("latin-1"))


def wrong_role(w):
    w.data(lines([*ROWS, {"messages": [{"role": "bot", "content": "hi"}]}]))


def label_unseen_in_training(w):
    (w.folder / "test.jsonl").write_text(lines([{"text": "x", "label": "prime"}]))
    w.classification(data={"train": "labels.jsonl", "validation": 0.2, "test": "test.jsonl"})


def label_unseen_in_the_rest_of_its_file(w):
    (w.folder / "labels.jsonl").write_text(lines([row | {"label": f"l{i}"} for i, row in enumerate(LABELLED)]))
    w.classification()


def one_label_only(w):
    (w.folder / "labels.jsonl").write_text(lines([row | {"label": "same"} for row in LABELLED]))
    w.classification()


def label_missing_in_a_row(w):
    (w.folder / "labels.jsonl").write_text(lines([*LABELLED, {"text": "no label", "label": None}]))
    w.classification()


def every_weight_zero(w):
    chats = [[m | ({"weight": 0} if m["role"] == "assistant" else {}) for m in row["messages"]] for row in ROWS]
    w.data(lines([{"messages": chat} for chat in chats]))


def pickle_instead_of_safetensors(w):
    model = w.model()
    (model / "model.safetensors").unlink()
    torch.save({"weight": torch.ones(2)}, model / "pytorch_model.bin")


def truncated_weights(w):
    weights = w.model() / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])


def tokenizer_with_more_tokens_than_the_model(w):
    from transformers import AutoTokenizer

    model = w.model()
    tokenizer = AutoTokenizer.from_pretrained(model)
    tokenizer.add_tokens(["What is"])
    tokenizer.save_pretrained(model)


def tokenizer_that_panics(w):
    file = w.model() / "tokenizer.json"
    content = json.loads(file.read_text())
    missing = {"SpecialToken": {"id": "<missing>", "type_id": 0}}
    content["post_processor"] = {"type": "TemplateProcessing", "single": [missing], "pair": [], "special_tokens": {}}
    file.write_text(json.dumps(content))


def not_a_gguf(w):
    (w.folder / "model.gguf").write_bytes(b"not a model" * 100)
    w.recipe(model={"source": "model.gguf"})


def code_without_opting_in(w):
    (w.folder / "mine.py").write_text("open('executed', 'w')\ndef build(): ...\n")
    w.recipe(model={"source": "mine:build"})


def output_in_use(w):
    (w.folder / "run").mkdir()
    (w.folder / "run" / "thesis.txt").write_text("do not lose me")
    w.recipe(model={"source": "nowhere"})  # it is said first


def contradicting_precision(w):
    w.recipe(train={"precision": "float32"}, model={"dtype": "bfloat16"})


def recipe_with_code(w):
    (w.folder / "recipe.yaml").write_text("model: !!python/object/apply:os.system ['touch executed']\n")


@pytest.fixture
def workplace(tmp_path, monkeypatch, llama_folder, bert_folder):
    monkeypatch.chdir(tmp_path)
    return Workplace(tmp_path, llama_folder, bert_folder)


def assert_names(line, facts):
    assert [fact for fact in ((facts,) if isinstance(facts, str) else facts) if fact not in line] == [], line


def failure(result, code):
    assert result.exit_code == code, f"{result.stdout}{result.stderr}"
    found = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert len(found) == 1, result.stderr
    assert "Traceback" not in result.stderr
    assert result.stderr.rstrip().splitlines()[-1] == found[0]
    return found[0]


@pytest.mark.parametrize(
    ("spoil", "facts"),
    [
        (lambda w: w.recipe(train={"epoch": 3}), ("'train.epoch'", "'epochs'")),
        (lambda w: w.recipe(regularise=[]), "'regularize'"),
        (lambda w: w.recipe(strategy={"rank": 0}), "recipe.yaml: key 'strategy.rank"),
        (lambda w: w.recipe(strategy={"name": "lroa"}), ("recipe.yaml: ", "strategy.name", "'lora'")),
        (lambda w: w.recipe(evaluate=["calibration", {"name": "calibration"}]), "'calibration'"),
        (lambda w: w.recipe(strategy={"rnk": 4}), "'rank'"),
        (lambda w: w.recipe(strategy={"targets": ["q_proj", "qury_proj"]}), ("qury_proj", "q_proj")),
        (lambda w: w.recipe(data={"train": "chta.jsonl"}), "'chat.jsonl'"),
        (lambda w: w.recipe(data={"train": "nope.jsonl"}), "'nope.jsonl'"),
        (lambda w: w.data(""), "chat.jsonl"),
        (lambda w: w.data(lines([{"question": "a", "answer": "b"}] * 3)), ("chat.jsonl", "question", "messages")),
        (broken_json_line, ("chat.jsonl:6: ", "data.on_error=skip")),
        (wrong_encoding, ("chat.jsonl:3: ", "UTF-8")),
        (wrong_role, ("chat.jsonl:21: ", "'bot'")),
        (label_unseen_in_training, ("test.jsonl:1: ", "prime")),
        (label_unseen_in_the_rest_of_its_file, ("labels.jsonl:", "stratified")),
        (one_label_only, "'same'"),
        (label_missing_in_a_row, "labels.jsonl:21: "),
        (lambda w: w.recipe(task={"name": "causal-lm", "max_length": 4}), "4 tokens"),
        (every_weight_zero, "weight 0"),
        (lambda w: w.data(lines(ROWS[:1])), ("chat.jsonl", "1 row")),
        (lambda w: w.recipe(model={"source": "./no-such-model"}), "no-such-model"),
        (lambda w: w.recipe(model={"source": "package://no_such_package/model"}), "'no_such_package'"),
        (pickle_instead_of_safetensors, ("pytorch_model.bin", "safetensors")),
        (truncated_weights, "model.safetensors"),
        (tokenizer_with_more_tokens_than_the_model, ("chat.jsonl:", "'What is'", " embeddings")),
        (tokenizer_that_panics, "PanicException"),
        (not_a_gguf, "model.gguf"),
        (code_without_opting_in, "mine:build"),
        (output_in_use, "output 'run'"),
        (lambda w: (w.folder / "run").write_text("a file"), "is a file"),
        (lambda w: w.recipe(train={"precision": "float16"}), "float16"),
        (contradicting_precision, ("train.precision float32", "model.dtype bfloat16")),
        (lambda w: w.recipe(evaluate=["classification"]), "'classification'"),
        (lambda w: (w.folder / "recipe.yaml").write_text("- model\n"), "a mapping"),
        (recipe_with_code, "recipe.yaml:1: "),
    ],
)
def test_a_mistake_is_one_line_with_status_2_and_leaves_no_trace(workplace, spoil, facts):
    spoil(workplace)
    before = workplace.files()
    line = failure(CliRunner().invoke(main, ["train", "recipe.yaml"]), 2)
    assert_names(line, facts)
    assert workplace.files() == before


@pytest.fixture(scope="module")
def finished(tmp_path_factory, llama_folder, bert_folder):
    """A finished run in a folder of its own."""
    folder = tmp_path_factory.mktemp("finished")
    workplace = Workplace(folder, llama_folder, bert_folder)
    workplace.recipe(data={"train": str(folder / "chat.jsonl")}, output=str(folder / "run"))
    result = CliRunner().invoke(main, ["train", str(folder / "recipe.yaml")])
    assert result.exit_code == 0, result.stderr
    return folder / "run"


@pytest.fixture
def run(finished, workplace):
    shutil.copytree(finished, workplace.folder / "run")
    return workplace


def another_base(w):
    from tiny import tiny_llama

    other = tiny_llama(w.folder / "other", seed=1)
    recipe = w.folder / "run" / "recipe.yaml"
    recipe.write_text(yaml.safe_dump(yaml.safe_load(recipe.read_text()) | {"model": {"source": str(other)}}))


def another_chat_template(w):
    other = w.folder / "other"
    shutil.copytree(w.llama, other)
    for file in other.glob("chat_template.jinja"):
        file.write_text(file.read_text().replace("<|im_start|>", "<|im_end|>"))
    recipe = w.folder / "run" / "recipe.yaml"
    recipe.write_text(yaml.safe_dump(yaml.safe_load(recipe.read_text()) | {"model": {"source": str(other)}}))


def adapter_of_integers(w):
    from safetensors.torch import load_file, save_file

    file = w.folder / "run" / "adapter" / "adapter_model.safetensors"
    save_file({name: tensor.to(torch.int32) for name, tensor in load_file(file).items()}, file)
    save_anew(w.folder / "run")


@pytest.mark.parametrize(
    ("spoil", "facts"),
    [
        (another_base, "weights"),
        (another_chat_template, "tokenizer"),
        (adapter_of_integers, ("torch.int32", "torch.float32")),
        (lambda w: shutil.rmtree(w.folder / "run"), "run directory"),
        (lambda w: shutil.rmtree(w.folder / "run" / "adapter"), "not finished"),
    ],
)
def test_a_spoilt_run_is_refused_before_anything_is_written(run, spoil, facts):
    spoil(run)
    before = run.files()
    line = failure(CliRunner().invoke(main, ["merge", "run", "merged"]), 2)
    assert_names(line, facts)
    assert run.files() == before


@pytest.mark.parametrize(
    ("arguments", "facts"),
    [
        (["evaluate", "run", "--data", "absent.jsonl"], "absent.jsonl"),
        (["evaluate", "run", "--data", "labels.jsonl"], "labels.jsonl"),
        (["predict", "run", "--input", "absent.jsonl", "--output", "out.jsonl"], "absent.jsonl"),
        (["predict", "run", "--input", "chat.jsonl", "--output", "labels.jsonl"], ("labels.jsonl", "exists")),
        (["predict", "run", "--input", "bad.jsonl", "--output", "out.jsonl"], "bad.jsonl:2"),
        (
            ["predict", "run", "--input", "chat.jsonl", "--output", "out.jsonl", "--option", "max_tokens=3"],
            "max_tokens",
        ),
        (["evaluate", "run", "--evaluators", "generation"], "'run'"),
        (["evaluate", "run", "--evaluators", "calibration"], "'label', 'logits'"),
        (["evaluate", "run", "--evaluators", "accuracy"], "'accuracy'"),
        (["evaluate", "run", "--evaluators", "generation", "--own-answers", "4"], "--own-answers"),
        (["merge", "run", "run"], "not empty"),
        (["merge", "run", "out", "--dtype", "int3"], "int3"),
    ],
)
def test_wrong_use_of_a_run_is_refused(run, arguments, facts):
    (run.folder / "labels.jsonl").write_text(lines([{"sentence": "x", "label": 1}]))
    (run.folder / "bad.jsonl").write_text(lines([{"prompt": "a"}, {"prompt": 7}]))
    before = run.files()
    line = failure(CliRunner().invoke(main, arguments), 2)
    assert_names(line, facts)
    assert run.files() == before


@pytest.mark.slow
@pytest.mark.parametrize("where", ["checkpoints", "adapter"])
def test_a_full_disk_while_saving_keeps_what_was_complete(workplace, monkeypatch, where):
    """The n-th safetensors file of the run does not fit any more."""
    import ftengine.model.saving as parameters

    save_file = parameters.save_file

    def full(tensors, file, metadata=None):
        if where in str(file) and ("checkpoints" not in where or "step-000002" in str(file)):
            Path(file).write_bytes(b"half")
            raise OSError(errno.ENOSPC, "No space left on device")
        save_file(tensors, file, metadata=metadata)

    workplace.recipe(train={"checkpoint_every": 1})
    with monkeypatch.context() as patch:
        patch.setattr(parameters, "save_file", full)
        if where == "adapter":
            import ftengine_builtins.strategies.peft_format as peft_format

            if hasattr(peft_format, "save_file"):
                patch.setattr(peft_format, "save_file", full)
        line = failure(CliRunner().invoke(main, ["train", "recipe.yaml"]), 2)
    assert "cannot write" in line
    left = workplace.files()
    assert not [name for name in left if name.endswith(".partial")]
    assert "run/checkpoints/step-000001/trained.safetensors" in left
    assert "run/adapter" not in left
    resumed = CliRunner().invoke(main, ["train", "recipe.yaml", "--resume"])
    assert resumed.exit_code == 0, resumed.stderr


@pytest.mark.parametrize("most", [1 << 10, 200 << 10], ids=["rows", "temporary"])
def test_a_limit_on_file_sizes_is_one_error_and_leaves_nothing_half_written(workplace, monkeypatch, most):
    """The rows do not fit, or a temporary file of a library (the model by which languages are told)."""
    from ftengine_builtins.audits import languages

    type(languages._identifier).cache_clear(languages._identifier)  # conftest keeps it
    monkeypatch.setenv("FTENGINE_CACHE", str(workplace.folder / "cache"))
    words = "the cat sat on a mat while dogs ran far away from home"
    rows = [row | {"text": f"{words} {i}"} for i, row in enumerate(LABELLED * 3)]
    (workplace.folder / "labels.jsonl").write_text(lines(rows))
    workplace.classification()
    before = set(workplace.files())
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (most, hard))
    try:
        result = CliRunner().invoke(main, ["train", "recipe.yaml"])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert "unexpected" not in failure(result, 2)
    left = {name for name in workplace.files() if not name.startswith("cache")} - before
    assert not left
    assert not list((workplace.folder / "cache").rglob("*.tmp"))


@pytest.mark.parametrize(("rows", "of_some"), [(3, False), (40, True)])
def test_refused_rows_are_all_named_or_the_first(rows, of_some):
    refused = RefusedRows()
    for i in range(rows):
        refused.add(f"a:{i + 1}", "`text` is empty.")
    text = str(refused.error())
    assert f" {rows} rows cannot be used" in text
    assert text.endswith(f"{', '.join(refused.places)}.")
    assert ("first" in text) == of_some
