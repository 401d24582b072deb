"""A chat template that writes the day: that on which the run began, wherever its models are asked."""

import datetime
import shutil
from types import SimpleNamespace

import pytest
from expected import raises
from runs import Interrupting, Interruption

from ftengine import fine_tune, load_run
from ftengine.api import Conversation, Message
from ftengine.chat import render
from ftengine.chat.template_date import fix_date, template_date
from ftengine.data.features import features_key
from ftengine.engine.experiment import Experiment
from ftengine.engine.prepared_data import prepare_data
from ftengine.engine.proof import exact_run
from ftengine.errors import NotExportable
from ftengine.run.records import Environment
from ftengine.testing.models import byte_level_tokenizer
from ftengine_builtins.exporters.ollama import default_system
from ftengine_builtins.tasks.causal_lm import CausalLM

FIRST, NEXT = datetime.date(2026, 2, 28), datetime.date(2026, 3, 1)
WRITES = "{{ strftime_now('%d %b %Y') }}\n"
ASKED = Conversation((Message("user", "hello"), Message("assistant", "yes")))


def processor(template=WRITES):
    made = byte_level_tokenizer(pad_token="<|endoftext|>")
    made.chat_template = template + made.chat_template
    return made


@pytest.fixture(scope="module")
def dated_folder(llama_folder, tmp_path_factory):
    """The tiny Llama, whose template begins with the day."""
    folder = tmp_path_factory.mktemp("dated") / "llama"
    shutil.copytree(llama_folder, folder)
    file = folder / "chat_template.jinja"
    file.write_text(WRITES + file.read_text())
    return folder


@pytest.fixture
def on(monkeypatch):
    """Have runs begin on a day."""
    return lambda day: monkeypatch.setenv("_FTENGINE_DATE", day.isoformat())


@pytest.fixture
def recipe(chat_recipe, dated_folder, tmp_path, monkeypatch):
    monkeypatch.setenv("FTENGINE_CACHE", str(tmp_path / "own"))
    brief = {"train__max_steps": 2, "evaluation__answers": 2, "evaluation__reuse_base": True}
    return lambda **changes: chat_recipe(**{"model__source": str(dated_folder), **brief, **changes})


@pytest.mark.parametrize("template", [WRITES, WRITES + "{%- generation %}{%- endgeneration %}"])
def test_a_template_writes_the_day_that_was_fixed(template):
    made = processor(template)
    assert render(made, ASKED).startswith(f"{datetime.date.today():%d %b %Y}")
    for day in (FIRST, NEXT):
        fix_date(made, day)
        assert template_date(made) == day
        assert render(made, ASKED).startswith(f"{day:%d %b %Y}")
    assert template_date(processor("")) is None


def test_features_depend_on_the_day_where_the_template_writes_it():
    for template, others in ((WRITES, 2), ("", 1)):
        made, keys = processor(template), set()
        for day in (FIRST, NEXT):
            fix_date(made, day)
            keys.add(features_key("a", CausalLM(), made, 64))
        assert len(keys) == others


def prompts(run):
    with run.model() as loaded:
        return run.task.prompt({"prompt": [{"role": "user", "content": "hello"}]}, loaded), loaded.processor


def test_rows_of_another_day_are_encoded_anew(recipe, on):
    texts = []
    for day in (FIRST, NEXT):
        on(day)
        data = prepare_data(Experiment.open(recipe()))
        texts.append(data.ready.processor.decode(data.encoded["train"].features(0).inputs["input_ids"]))
    assert [f"{day:%d %b %Y}" in text for day, text in zip((FIRST, NEXT), texts, strict=True)] == [True, True]


@pytest.mark.slow
def test_a_run_keeps_its_day_when_it_goes_on_and_when_it_is_asked(recipe, tmp_path, on):
    on(FIRST)
    whole = fine_tune(recipe(output=str(tmp_path / "whole")))
    saving = {"train__checkpoint_every": 1}
    with pytest.raises(Interruption):
        fine_tune(recipe(**saving), listener=Interrupting(1))
    on(NEXT)
    run = fine_tune(recipe(**saving), resume=True)
    assert Environment.read(run.directory).date == FIRST
    assert run.evaluation == whole.evaluation
    again = load_run(run.path)
    prompt, made = prompts(again)
    assert "28 Feb 2026" in made.decode(prompt.ids)
    assert again.evaluate()["base"] == whole.evaluation["base"]
    other = fine_tune(recipe(output=str(tmp_path / "other")))
    assert Environment.read(other.directory).date == NEXT
    assert other.evaluation["base"] != whole.evaluation["base"]
    # Programs that serve write their own day, so what is compared with them is asked for that.
    for today, written in ((True, "01 Mar 2026"), (False, "28 Feb 2026")):
        prompt, made = prompts(exact_run(again, today=today))
        assert written in made.decode(prompt.ids)


def test_a_modelfile_fixes_no_day():
    with raises(NotExportable, "date", "gguf"):
        default_system(SimpleNamespace(processor=processor(), base="a model"))
    assert default_system(SimpleNamespace(processor=processor(""), base="a model")) == ""
