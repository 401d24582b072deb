"""Pictures in conversations on tiny models: tokens, labels, loss, gradients and answers are those of transformers."""

import base64
import copy
import io
import json
import struct
import zlib
from contextlib import nullcontext
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from expected import raises
from PIL import Image
from vision_models import ARCHITECTURES, square, tiny

from ftengine.api import LoadedModel
from ftengine.errors import DataError, InputError, RecipeError
from ftengine.model import Criterion
from ftengine_vision_language import VQA, BlankPicture, ImageTextToText, ScramblePicture
from ftengine_vision_language.evaluator import accuracy, normalised
from ftengine_vision_language.looking import Looking
from ftengine_vision_language.pictures import FORMATS, MOST_PIXELS, open_picture
from ftengine_vision_language.rows import COLUMNS, MESSAGES, read_dialogue, recognise_pictures, with_paths
from ftengine_vision_language.task import _answer_text

QUICK = ("llava", "qwen2_5_vl")
EACH = [pytest.param(name, marks=[pytest.mark.slow] * (name not in QUICK)) for name in ARCHITECTURES]


def user(*parts):
    return {"role": "user", "content": list(parts)}


def text(content):
    return {"type": "text", "text": content}


def rows():
    """One picture; two of other sizes and two answers; none."""
    pair = [{"type": "image", "image": square("blue", 64, 40)}, {"type": "image", "image": square("green", 33, 70)}]
    return [
        {"messages": [user({"type": "image"}, text("what colour is it ?")), _says("red")], "images": [square("red")]},
        {
            "messages": [
                user(*pair, text("what is the second ?")),
                _says("green"),
                user(text("and the first ?")),
                _says("the first is blue ."),
            ]
        },
        {"messages": [user(text("hello there")), _says("hello")]},
    ]


def _says(answer):
    return {"role": "assistant", "content": answer}


@pytest.fixture(scope="module", params=EACH)
def made(request):
    return tiny(request.param)


def task(**options):
    return ImageTextToText(ImageTextToText.Config(**options))


def test_tokens_are_the_processors_and_answers_alone_train(made):
    _, processor = made
    for row, trained in zip(
        rows(), (["red <|im_end|>"], ["green <|im_end|>", "the first is blue. <|im_end|>"], None), strict=True
    ):
        features = task().encode(row, processor)
        dialogue = read_dialogue(row)
        whole = processor.apply_chat_template(dialogue.messages(), tokenize=False)
        pictures = {"images": [list(dialogue.pictures)]} if dialogue.pictures else {}
        expected = processor(text=[whole], **pictures, add_special_tokens=True, return_tensors="pt")["input_ids"][0]
        assert features.inputs["input_ids"] == expected.tolist()
        shown = [piece for piece, trains in task().decode_example(features, processor) if trains]
        assert trained is None or [piece.strip() for piece in shown] == trained
        assert features.weight == sum(label != -100 for label in features.inputs["labels"][1:])


def test_loss_and_gradients_are_the_models_own(made):
    """Of a batch with pictures of several sizes, and a row without one; transformers' loss is float32."""
    module, processor = made
    own = task()
    batch = own.collate([own.encode(row, processor) for row in rows()], processor)
    ours, theirs = copy.deepcopy(module).double(), copy.deepcopy(module).double()
    wide = {key: value.double() if value.is_floating_point() else value for key, value in batch.items()}
    total, weight = own.loss(ours, wide, Criterion())
    (total / weight).backward()
    theirs(**wide).loss.backward()
    assert weight == int((batch["labels"] != -100).sum())
    gradients = dict(theirs.named_parameters())
    for name, parameter in ours.named_parameters():
        assert (parameter.grad is None) == (gradients[name].grad is None), name
        if parameter.grad is not None:
            torch.testing.assert_close(parameter.grad, gradients[name].grad, rtol=1e-4, atol=1e-7)


def test_each_row_of_a_batch_reads_its_own_pictures(made):
    """A row's loss is the same alone and among others, and another with other pictures."""
    module, processor = made
    own = task()
    features = [own.encode(row, processor) for row in rows()]
    together = own.predict(module, own.collate(features, processor))
    alone = [own.predict(module, own.collate([one], processor))[0] for one in features]
    assert [one["loss"] for one in together] == pytest.approx([one["loss"] for one in alone], rel=1e-4)
    swapped = own.with_inputs(rows()[1], own.view(rows()[1]).inputs[::-1])
    [other] = own.predict(module, own.collate([own.encode(swapped, processor)], processor))
    assert other["loss"] != pytest.approx(alone[1]["loss"], rel=1e-7)


def test_answers_are_those_of_generate(made):
    module, processor = made
    loaded = LoadedModel(module, processor, "tiny", "image-text-to-text")
    answers = task().infer(loaded, rows(), {"max_new_tokens": 4})
    for row, answer in zip(rows(), answers, strict=True):
        dialogue = read_dialogue(row)
        asked = processor.apply_chat_template(
            dialogue.messages(len(dialogue.turns) - 1), tokenize=False, add_generation_prompt=True
        )
        pictures = {"images": [list(dialogue.pictures)]} if dialogue.pictures else {}
        inputs = processor(text=[asked], **pictures, return_tensors="pt")
        output = module.generate(**inputs, do_sample=False, max_new_tokens=4)[0, inputs["input_ids"].shape[1] :]
        assert answer["completion"] == processor.tokenizer.decode(output, skip_special_tokens=True).strip()
    with raises(InputError, "temperature"):
        task().infer(loaded, rows()[:1], {"temperature": 1.0})


def png(picture):
    written = io.BytesIO()
    picture.save(written, "PNG")
    return written.getvalue()


def test_layouts_of_other_tools_are_one(tmp_path):
    picture = square("red")
    picture.save(tmp_path / "a.png")
    path, data = str(tmp_path / "a.png"), png(picture)
    url = "data:image/png;base64," + base64.b64encode(data).decode()
    question, answer = "what colour is it ?", _says("red")
    layouts = [
        {"messages": [user({"type": "image_url", "image_url": {"url": url}}, text(question)), answer]},
        {"messages": [user({"type": "image", "path": path}, text(question)), answer]},
        {"messages": [user({"type": "image"}, text(question)), answer], "images": [{"bytes": data, "path": None}]},
        {"messages": [{"role": "user", "content": f"<image>{question}"}, answer], "images": [path]},
        {"messages": [{"role": "user", "content": question}, answer], "image": data},
        {
            "conversations": [{"from": "human", "value": f"<image>\n{question}"}, {"from": "gpt", "value": "red"}],
            "image": path,
        },
        {"prompt": question, "completion": "red", "image": path},
    ]
    first, *others = [read_dialogue(row) for row in layouts]
    assert all(other.turns == first.turns for other in others)
    pixels = [np.asarray(open_picture(one.pictures[0], "picture 1")) for one in (first, *others)]
    assert all(np.array_equal(one, np.asarray(picture)) for one in pixels)
    views = [task().view(row) for row in layouts]
    assert len({json.dumps(view.identity) for view in views}) == 1
    assert [view.target for view in views] == ["red"] * 7


def test_paths_begin_beside_the_data_file_and_stay_in_its_folder(tmp_path):
    (tmp_path / "data").mkdir()
    square("red").save(tmp_path / "data" / "a.png")
    square("blue").save(tmp_path / "b.png")
    folder, question = str(tmp_path / "data"), text("what ?")

    def layouts(path):
        parts = (
            {"type": "image", "path": path},
            {"type": "image", "image": path},
            {"type": "image_url", "image_url": path},
        )
        for part in (*parts, {"type": "image_url", "image_url": {"url": path}}):
            yield {"messages": [user(part, question), _says("red")]}
            yield {"prompt": [user(part, question)], "completion": [_says("red")]}
            yield {"conversations": [{"from": "human", "value": [part, question]}, {"from": "gpt", "value": "red"}]}
            yield {"conversations": [user(part, question), _says("red")]}
        yield {"images": [{"path": path, "bytes": None}], "messages": [user(question), _says("red")]}
        yield {"image": path, "prompt": "what ?", "completion": "red"}

    for row in (*layouts("a.png"), *layouts(str(tmp_path / "data" / "a.png"))):
        [picture] = task().view(task().in_folder(row, folder)).inputs
        assert np.array_equal(np.asarray(picture), np.asarray(square("red")))
    for row in (*layouts("../b.png"), *layouts(str(tmp_path / "b.png"))):
        with raises(DataError, "b.png", folder, "outside_files"):
            task().check_input(task().in_folder(row, folder))
        task(outside_files=True).check_input(task(outside_files=True).in_folder(row, folder))


def test_every_column_that_dialogues_are_read_from_has_its_paths_guarded():
    read = set()

    class Row(dict):
        def get(self, key, default=None):
            read.add(key)
            return super().get(key, default)

        def __getitem__(self, key):
            read.add(key)
            return super().__getitem__(key)

    said = [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]
    for row in ({"conversations": said}, {"messages": [user(text("a"))]}, {"prompt": "a", "completion": "b"}):
        for picture in ({"image": b"c"}, {"images": [b"c"]}):
            read_dialogue(Row(row | picture))
    assert {"conversations", "messages", "prompt", "completion", "images", "image"} <= read
    assert read - {*COLUMNS, *MESSAGES} <= {"tools", "functions", "chat_template_kwargs"}  # no messages in them
    outside = [user({"type": "tool_result", "content": [{"type": "image", "path": "../b.png"}]})]
    for column in MESSAGES:
        assert '"outside"' in json.dumps(with_paths({column: outside}, "data", inside=True))


@pytest.mark.parametrize(
    ("row", "facts"),
    [
        ({"prompt": "<image> <image> a", "completion": "b", "image": "x.png"}, ["2 places", "1 pictures"]),
        ({"prompt": "<image> a", "completion": "b"}, ["1 places", "0 pictures"]),
        ({"prompt": "a", "completion": "b", "image": "missing.png"}, ["missing.png"]),
        ({"prompt": "a", "completion": "b", "image": "https://a.b/c.png"}, ["network"]),
        ({"prompt": "a", "completion": "b", "image": "data:image/png;base64,%%"}, ["base64"]),
        ({"prompt": "a", "completion": "b", "image": b"no picture"}, ["picture 1"]),
        ({"messages": [user({"type": "video", "video": "x"}, text("a")), _says("b")]}, ["'video'"]),
        ({"messages": [user({"type": "image", "path": "x"}, text("a")), _says("b")], "image": "y"}, ["column"]),
        ({"prompt": "a", "image": "x.png"}, ["picture 1"]),
    ],
)
def test_rows_that_cannot_be_read_name_what_is_wrong(row, facts):
    _, processor = tiny("llava")
    with raises(DataError, *facts):
        task().encode(row, processor)


@pytest.mark.parametrize(("side", "reason"), [(10_000, f"{MOST_PIXELS:,}"), (30_000, "900000000 pixels")])
def test_pictures_that_are_hostile_or_too_large_are_refused(tmp_path, side, reason):
    """By the header, before anything is decoded: a PNG that states so many pixels and has none."""
    header = struct.pack(">4sIIBBBBB", b"IHDR", side, side, 8, 2, 0, 0, 0)
    content = b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + header + struct.pack(">I", zlib.crc32(header))
    data = struct.pack(">I", 0) + b"IDAT" + struct.pack(">I", zlib.crc32(b"IDAT"))
    (tmp_path / "bomb.png").write_bytes(content + data)
    with raises(DataError, "bomb.png", "pixels", reason):
        open_picture(str(tmp_path / "bomb.png"), "picture 1")
    with raises(DataError, "picture 1"):
        open_picture("/dev/zero", "picture 1")


@pytest.mark.parametrize("form", FORMATS)
def test_a_hundred_damaged_pictures_of_a_format_are_read_or_refused(form):
    rng, refused = np.random.default_rng(0), 0
    written = io.BytesIO()
    square("red", 12, 10).save(written, form)
    good = written.getvalue()
    for _ in range(100):
        spoilt = bytearray(good)
        for at in rng.integers(0, len(good), 20):
            spoilt[at] = rng.integers(256)
        try:
            open_picture(bytes(spoilt[: rng.integers(1, len(good))]), "picture 1")
        except DataError:  # any other error fails
            refused += 1
    assert refused > 20


def test_long_rows_are_refused_and_never_cut():
    _, processor = tiny("llava")
    with raises(DataError, "max_length", "pictures"):
        task(max_length=20).encode(rows()[0], processor)
    large = {"prompt": "a", "completion": "red", "image": square("red", 400, 300)}
    sizes = [
        len(task(picture_size=size).encode(large, tiny("qwen2_5_vl")[1]).inputs["input_ids"]) for size in (None, 32)
    ]
    assert sizes[1] < sizes[0]


def test_a_tokenizer_alone_is_refused():
    _, processor = tiny("llava")
    with raises(RecipeError, "processor: all"):
        task().set_model(LoadedModel(torch.nn.Linear(1, 1), processor.tokenizer, "tiny", "image-text-to-text"), None)


def test_a_question_about_a_picture_is_recognised():
    row = {"question": "what ?", "answer": "red", "image": "a.png"}
    found = recognise_pictures(list(row), [row])
    assert (found.certainty, found.columns) == (3, {"prompt": "question", "completion": "answer"})
    assert recognise_pictures(["question", "answer"], [{"question": "a", "answer": "b"}]) is None
    shared = {"conversations": [{"from": "human", "value": [{"type": "image", "path": "a.png"}, text("what ?")]}]}
    assert recognise_pictures(["conversations"], [shared]).certainty == 3


def test_answers_are_compared_as_vqa_does():
    assert normalised("The two Dogs' house, 3.5 m!") == "2 dogs house 3.5 m"
    assert accuracy("Red.", ["red"]) == 1
    assert accuracy("red", ["red", "blue"]) == 1
    # Ten people, two of whom say red: min(n / 3, 1) over leaving each out (visualqa.org/evaluation).
    people = ["red"] * 2 + ["blue"] * 8
    assert accuracy("red", people) == pytest.approx((2 * 1 / 3 + 8 * 2 / 3) / 10)
    assert accuracy("blue", people) == 1
    kept = [
        VQA().keep({"completion": "a red", "references": json.dumps(some)})["accuracy"] for some in (["red"], ["b"], [])
    ]
    scores = VQA().score({"accuracy": np.array(kept)}, np.ones(3))
    assert scores == {"vqa_accuracy": 0.5}


def test_answers_of_vqa_v2_are_their_texts():
    assert _answer_text({"answer": "yes", "answer_confidence": "maybe", "answer_id": 1}) == _answer_text("yes") == "yes"


def test_blank_and_scrambled_pictures_lose_what_they_show():
    import random

    gradient = Image.fromarray(np.arange(64 * 64 * 3, dtype=np.uint32).reshape(64, 64, 3).astype(np.uint8))
    blank = np.asarray(BlankPicture().change(gradient, random.Random(0)))
    assert np.array_equal(blank, np.full((64, 64, 3), 127))
    scrambled = np.asarray(ScramblePicture().change(gradient, random.Random(0)))
    assert not np.array_equal(scrambled, np.asarray(gradient))
    assert np.array_equal(np.sort(scrambled.ravel()), np.sort(np.asarray(gradient).ravel()))


@pytest.mark.parametrize(
    ("better", "level", "words"),
    [(False, "good", "uses"), (None, "alarm", "no difference"), (True, "alarm", "better without them")],
)
def test_the_rule_says_what_answers_are_without_pictures(better, level, words):
    def figure(value, better=None):
        return SimpleNamespace(value=value, better=better)

    probe = SimpleNamespace(
        kind="ablation", name="blank-picture", against={"vqa": figure(0.1, better)}, tuned={"vqa": figure(0.4)}
    )
    evaluation = SimpleNamespace(
        probes=[probe],
        metrics={"vqa": SimpleNamespace(label="VQA accuracy")},
        tuned={"vqa": figure(0.5)},
        difference={"vqa": figure(0.3, better=True)},
    )
    recipe = SimpleNamespace(task={"name": "image-text-to-text"})
    run = SimpleNamespace(recipe=recipe, evaluation=evaluation, headline_metric="vqa")
    [finding] = Looking().judge(run)
    assert finding.level == level
    assert words in finding.text


def test_what_does_not_fit_together_is_named_before_training(made):
    """A template without marks of pictures, a processor of another patch size, and PaliGemma's attention."""
    module, processor = made
    loaded = LoadedModel(module, processor, "tiny", "image-text-to-text")
    task().set_model(loaded, None)
    mixed = copy.deepcopy(module)
    mixed.get_input_embeddings().to(torch.bfloat16)  # frozen weights keep the base's type
    task().set_model(LoadedModel(mixed, processor, "tiny", "image-text-to-text"), None)
    blind = copy.copy(processor)
    blind.chat_template = "{% for m in messages %}{% for p in m.content %}{{ p.text }}{% endfor %}{% endfor %}"
    with raises(RecipeError, "chat template", "picture"):
        task().set_model(LoadedModel(module, blind, "tiny", "image-text-to-text"), None)
    paligemma = SimpleNamespace(config=SimpleNamespace(model_type="paligemma"))
    with raises(RecipeError, "paligemma"):
        task().set_model(LoadedModel(paligemma, processor, "tiny", "image-text-to-text"), None)


def test_a_processor_of_another_size_is_named_before_training():
    module, processor = tiny("llava")
    processor.patch_size = 16
    with raises(RecipeError, "processor", "patch"):
        task().set_model(LoadedModel(module, processor, "tiny", "image-text-to-text"), None)


def test_a_chat_shows_pictures(tmp_path, monkeypatch, capsys):
    """`/image FILE` begins the next turn with it; what cannot be opened is named, and nothing is attached."""
    from ftengine.cli import chat as command
    from ftengine.engine.chat import Chat

    module, processor = tiny("llava")
    asked, own = [], task()
    monkeypatch.setattr(own, "infer", lambda loaded, rows, options=None: asked.append(rows) or [{"completion": "red"}])
    square("red").save(tmp_path / "a.png")
    loaded = LoadedModel(module, processor, "tiny", "image-text-to-text")
    generation = SimpleNamespace(generate=SimpleNamespace(options={"max_new_tokens": 4}))
    run = SimpleNamespace(
        task=own, recipe=SimpleNamespace(evaluation=generation), model=lambda base: nullcontext(loaded)
    )
    lines = iter(
        [f"/image {tmp_path / 'no.png'}", f"/image {tmp_path / 'a.png'}", "what is it ?", "and now ?", "/quit"]
    )
    monkeypatch.setattr("builtins.input", lambda _: next(lines))
    with Chat(run) as chat:
        command._talk(chat, ("tuned",), terminal=True)
    shown, told = capsys.readouterr()
    [first], [second] = asked
    assert "no.png" in told
    assert first["messages"] == [user({"type": "image", "image": str(tmp_path / "a.png")}, text("what is it ?"))]
    assert second["messages"][0] == first["messages"][0]
    assert second["messages"][-1]["content"] == "and now ?"
    assert shown == "red\nred\n"
