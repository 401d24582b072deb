"""`verify` asks servers that people run, started here: transformers serve, and llama.cpp's of xllamacpp.

`make test-export` runs these in an environment that has both.
"""

import importlib.util
import json
import os
import shlex
import shutil
import socket
import subprocess
import sys
import time
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from urllib.error import URLError
from urllib.request import urlopen

import pytest
from click.testing import CliRunner
from docs_commands import ROOT, blocks
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from ftengine import load_run
from ftengine.cli import main
from ftengine.engine.export import export_run
from ftengine_builtins.exporters import GgufExporter, TransformersExporter
from ftengine_builtins.exporters.llama_cpp import served

STATUS = {"tuned": 0, "base": 3, "blank": 4, "beginning": 4, "ending": 4, "half": 4}
"""What is served, and the exit status of `verify`."""

FAULTS = {"blank": "a blank more", "beginning": "BOS", "ending": "end turns are missing", "half": "about 0.5 times"}
"""The likely cause of each broken template, and of half of what training changed."""

TEMPLATE = "chat_template.jinja"


def broken(template, fault):
    """Return a chat template with a known fault."""
    if fault == "blank":
        return template.replace("assistant\n", "assistant \n")
    if fault == "beginning":
        return "{{ bos_token }}" + template
    return template.replace("<|im_end|>", "") if fault == "ending" else template


def halve(folder, base):
    """Write a merged model half of whose change is lost, as of an adapter that is served at half its scale."""
    file = folder / "model.safetensors"
    merged, before = load_file(file), AutoModelForCausalLM.from_pretrained(base).state_dict()
    save_file({name: (x + before[name].to(x)) / 2 for name, x in merged.items()}, file, {"format": "pt"})


def require(*modules):
    missing = [name for name in modules if importlib.util.find_spec(name) is None]
    if missing:
        pytest.skip(f"{', '.join(missing)} is not installed; make test-export has it")


def verified(run, url, *options):
    result = CliRunner().invoke(main, ["verify", str(run), "--url", url, *options, "--json"])
    return result.exit_code, json.loads(result.stdout)


# transformers serve


@contextmanager
def transformers_serve(log, *arguments):
    """Serve on this machine alone; give the port."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    line = [sys.executable, "-m", "transformers.cli.transformers", "serve", *arguments]
    line += ["--host", "127.0.0.1", "--port", str(port), "--device", "cpu"]
    variables = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_UPDATE_CHECK": "1"}
    with open(log, "w") as file, subprocess.Popen(line, stdout=file, stderr=file, env=variables) as process:
        try:
            for _ in range(600):
                if process.poll() is not None:
                    pytest.fail(f"transformers serve ended: {Path(log).read_text()[-2000:]}")
                try:
                    with urlopen(f"http://127.0.0.1:{port}/health", timeout=1):
                        break
                except (URLError, OSError):
                    time.sleep(0.5)
            yield port
        finally:
            process.terminate()


@pytest.fixture(scope="module")
def folders(talking_run, tmp_path_factory):
    """The tuned model, its base, and the tuned model with each broken template, as transformers folders."""
    place = tmp_path_factory.mktemp("folders")
    export_run(load_run(talking_run), TransformersExporter(), place / "tuned")
    base = load_run(talking_run).recipe.model.source
    AutoModelForCausalLM.from_pretrained(base).save_pretrained(place / "base")
    AutoTokenizer.from_pretrained(base).save_pretrained(place / "base")
    for fault in FAULTS:
        folder = Path(shutil.copytree(place / "tuned", place / fault))
        template = broken((folder / TEMPLATE).read_text(), fault)
        (folder / TEMPLATE).write_text(template)
        settings = json.loads((folder / "tokenizer_config.json").read_text())
        (folder / "tokenizer_config.json").write_text(json.dumps({**settings, "chat_template": template}))
    halve(place / "half", base)
    return place


@pytest.fixture(scope="module")
def transformers_url(tmp_path_factory):
    """A server of whichever folder is named."""
    require("fastapi", "uvicorn", "openai")
    with transformers_serve(tmp_path_factory.mktemp("serve") / "log") as port:
        yield f"http://127.0.0.1:{port}/v1"


@pytest.mark.parametrize("what", STATUS)
def test_transformers_serve_is_reported(transformers_url, talking_run, folders, what):
    status, found = verified(talking_run, transformers_url, "--model", str(folders / what))
    assert status == STATUS[what], found
    assert FAULTS.get(what, "") in found["cause"]
    assert what not in FAULTS or what == "half" or "token " in found["cause"]
    assert bool(found["cause"]) is (what in FAULTS)


def test_the_documents_line_is_understood(talking_run, folders, tmp_path, monkeypatch):
    """The address is the one thing that is changed in it."""
    require("fastapi", "uvicorn", "openai")
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "support").symlink_to(talking_run)
    monkeypatch.chdir(tmp_path)
    lines = [one.text for one in blocks(ROOT / "docs" / "serving.md", "text") if one.text.startswith("ftengine verify")]
    with transformers_serve(tmp_path / "log", str(folders / "tuned")) as port:
        for line in lines:
            line = line.replace("http://localhost:8000", f"http://127.0.0.1:{port}")
            result = CliRunner().invoke(main, shlex.split(line)[1:])
            assert (result.exit_code, "the tuned model" in result.stdout) == (0, True), result.output
    assert lines


# llama.cpp


@pytest.fixture(scope="module")
def files(talking_run, tmp_path_factory):
    """The same as GGUF files."""
    require("xllamacpp")
    place, base = tmp_path_factory.mktemp("files"), load_run(talking_run).recipe.model.source

    class Other(GgufExporter):
        def export(self, source, folder):
            merged = source.merged("float32")
            if self.what == "base":
                AutoModelForCausalLM.from_pretrained(base).save_pretrained(merged)
            if self.what == "half":
                halve(merged, base)
            tokenizer = AutoTokenizer.from_pretrained(merged)
            tokenizer.chat_template = broken(tokenizer.chat_template, self.what)
            tokenizer.save_pretrained(merged)
            return super().export(replace(source, processor=tokenizer), folder)

    for what in STATUS:
        exporter = type("Made", (Other,), {"what": what})()
        export_run(load_run(talking_run), exporter, place / what, verify=False)
    return place


@pytest.mark.parametrize("what", STATUS)
def test_llama_cpp_is_reported(talking_run, files, what):
    with served(files / what / "model.gguf", SimpleNamespace(max_length=512)) as server:
        status, found = verified(talking_run, f"{server.address}/v1")
    assert status == STATUS[what], found
    own = {"tuned": "from_tuned", "base": "from_base"}.get(what)
    assert own is None or found[own] < 1e-3  # its log-probabilities are told, and of the same tokens
    assert FAULTS.get(what, "") in found["cause"]
    assert bool(found["cause"]) is (what in FAULTS)
