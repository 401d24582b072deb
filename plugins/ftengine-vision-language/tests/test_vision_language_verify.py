"""`verify` sends pictures to an endpoint, a stub in this process that reads them from the request."""

import json

import pytest
from stub_server import served
from vision_models import square, tiny

import ftengine_vision_language
from ftengine import Recipe, fine_tune, registry_of
from ftengine.api import LoadedModel
from ftengine.chat.endpoint import Endpoint
from ftengine.engine.verify import verify_run
from ftengine.evaluation.questions import _continued
from ftengine.generation import GenerationOptions, answer_scores
from ftengine_vision_language import ImageTextToText
from ftengine_vision_language.looking import BlankPicture
from ftengine_vision_language.pictures import open_picture

COLOURS = ("red", "green", "blue")


def row(colour, width=40):
    return {"prompt": "what colour is it ?", "completion": colour, "image": square(colour, width)}


@pytest.mark.parametrize("name", ["llava", "qwen2_5_vl"])
def test_a_prompt_holds_what_the_model_reads_and_what_is_sent(name):
    """Answers and log-probabilities from it are the task's own, and the pictures that are sent are those of the row."""
    module, processor = tiny(name)
    own, loaded = ImageTextToText(), LoadedModel(module, processor, "tiny", "image-text-to-text")
    prompt = own.prompt(row("red"), loaded)
    [message] = prompt.messages
    [picture, text] = message["content"]
    assert text == {"type": "text", "text": "what colour is it ?"}
    assert open_picture(picture["image_url"]["url"], "picture 1").tobytes() == square("red").tobytes()
    features = own.encode(row("red"), processor)
    answer = [token for token in features.inputs["labels"] if token != -100]
    assert [*prompt.ids, *answer] == features.inputs["input_ids"][: len(prompt.ids) + len(answer)]
    [expected] = own.predict(module, own.collate([features], processor))
    scores = answer_scores(loaded, prompt.ids, answer, (), prompt.inputs)[:, 0]
    assert -scores.sum().item() == pytest.approx(expected["loss"], rel=1e-4)
    options = GenerationOptions.read({"max_new_tokens": 4})
    loaded.processor, tokens = processor.tokenizer, _continued(loaded, prompt, options, [6]).tokens
    [infers] = own.infer(LoadedModel(module, processor, "tiny", ""), [row("red")], {"max_new_tokens": 4})
    assert processor.tokenizer.decode(tokens, skip_special_tokens=True).strip() == infers["completion"]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A tiny model that has learnt which colour a square has."""
    folder = tmp_path_factory.mktemp("colours")
    module, processor = tiny("llava")
    for part in (module, processor):
        part.save_pretrained(folder / "model")
    for split, sizes in (("train", range(20, 44)), ("test", range(44, 52))):
        lines = []
        for size in sizes:
            colour, name = COLOURS[size % 3], f"{size}.png"
            square(colour, size).save(folder / name)
            lines.append(json.dumps({**row(colour), "image": name}))
        (folder / f"{split}.jsonl").write_text("\n".join(lines))
    recipe = {
        "model": {"source": str(folder / "model")},
        "task": "image-text-to-text",
        "data": {"train": str(folder / "train.jsonl"), "validation": None, "test": str(folder / "test.jsonl")},
        "strategy": "full",
        "train": {"epochs": 40, "batch_size": 12, "learning_rate": 1e-2},
        "evaluation": {"generate": {"max_new_tokens": 3}},
        "output": str(folder / "run"),
    }
    made = fine_tune(Recipe.make(recipe), registry=registry_of({"vision": ftengine_vision_language}))
    assert [line["loss"] for line in made.metrics if "loss" in line][-1] < 0.1
    return made


@pytest.mark.slow
@pytest.mark.parametrize(("model", "found"), [("tuned", "tuned"), ("base", "base"), ("blind", "other")])
def test_an_endpoint_answers_about_the_pictures_that_it_is_sent(run, model, found):
    def answer(body):
        bodies.append(body)
        reply = replies[json.dumps(body["messages"])] if replies else "red"
        return {"choices": [{"message": {"role": "assistant", "content": reply}, "finish_reason": "stop"}]}

    def verified():
        with served(None, answer=answer) as (_, url):
            return verify_run(run, Endpoint(url, "", key="NO_KEY", timeout=60, retries=0), rows=8)

    bodies, replies, own = [], {}, run.task
    verified()
    with run.model(base=model == "base") as loaded:
        for body in bodies:
            asked = {"messages": body["messages"]}
            if model == "blind":
                asked = own.with_inputs(asked, [BlankPicture().change(x, None) for x in own.view(asked).inputs])
            [reply] = own.infer(loaded, [asked], {"max_new_tokens": body["max_tokens"]})
            replies[json.dumps(body["messages"])] = reply["completion"]
    result = verified()
    assert len(replies) == result.rows == 8
    assert result.served == found, result
