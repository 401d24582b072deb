"""Images of every kind of row, what the model gets of them, and what is said of those that cannot be read."""

import io
import os
import shutil
import zlib

import numpy as np
import pytest
import torch
from expected import raises
from PIL import Image
from tiny import image_processor, tiny_resnet, tiny_vit

from ftengine.api import LoadRequest
from ftengine.errors import DataError, SourceError
from ftengine.model import Criterion
from ftengine_builtins.loaders.transformers import TransformersLoader
from ftengine_builtins.tasks.image_classification import ImageClassification, ImageClassificationConfig
from ftengine_builtins.tasks.pixels import check_image, image_identity, read_image

BINDING = [{"image": "x", "label": "cat"}, {"image": "y", "label": "dog"}]


def task(rows=BINDING, **options):
    made = ImageClassification(ImageClassificationConfig(**options))
    made.labels = made.learn_labels({"train": list(rows)})
    return made


def picture(seed=0, size=(40, 30), mode="RGB"):
    """Noise of a seed; size is (width, height)."""
    shape = (size[1], size[0], 3) if mode == "RGB" else (size[1], size[0])
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8))


def encoded(image, kind="PNG", **options):
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


@pytest.fixture(scope="session")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("vision")
    return {"vit": tiny_vit(root / "vit"), "resnet": tiny_resnet(root / "resnet")}


@pytest.fixture(params=["vit", "resnet"])
def loaded(request, folders):
    torch.manual_seed(0)
    loaded = TransformersLoader().load(LoadRequest(str(folders[request.param]), "image-classification", task().labels))
    loaded.module.eval()
    return loaded


# Reading


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF", "GIF", "WEBP"])
def test_a_path_bytes_and_the_hubs_form_are_the_same_image(kind, tmp_path):
    content = encoded(
        picture().quantize() if kind == "GIF" else picture(), kind, **({"lossless": True} if kind == "WEBP" else {})
    )
    path = tmp_path / "a.img"
    path.write_bytes(content)
    read = [np.asarray(read_image(x, "image")) for x in (str(path), path, content, {"bytes": content, "path": None})]
    read += [np.asarray(read_image(x, "image")) for x in ({"bytes": None, "path": str(path)}, Image.open(path))]
    assert read[0].shape == (30, 40, 3)
    assert all(np.array_equal(read[0], other) for other in read)


def test_images_are_turned_upright_as_their_camera_says():
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by a quarter
    assert read_image(encoded(picture(size=(40, 30)), "JPEG", exif=exif), "image").size == (30, 40)


def test_grey_palettes_and_transparency_become_rgb():
    for image in (picture(mode="L"), picture().quantize(), picture().convert("RGBA"), picture().convert("LA")):
        assert read_image(encoded(image), "image").mode == "RGB"


def test_sixteen_bits_are_scaled_not_cut_off():
    values = np.linspace(0, 65535, 40 * 30).astype("uint16").reshape(30, 40)
    read = np.asarray(read_image(encoded(Image.fromarray(values)), "image", "L"))
    assert np.array_equal(read, values >> 8)


def test_pixels_of_unknown_range_are_refused(tmp_path):
    image = Image.fromarray(np.linspace(0, 9, 16, dtype="float32").reshape(4, 4))
    with raises(DataError, "mode F"):
        read_image(encoded(image, "TIFF"), "image")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (encoded(picture())[:400], "is not an image that can be read: OSError: image file is truncated"),
        (b"<svg></svg>", "is not an image that can be read: UnidentifiedImageError"),
        (b"", "is not an image that can be read"),
        (encoded(picture())[:60] + b"\0" * 900, "is not an image that can be read"),
    ],
)
def test_a_damaged_file_is_named(content, message, tmp_path):
    path = tmp_path / "bad.png"
    path.write_bytes(content)
    with pytest.raises(DataError) as caught:
        read_image(str(path), "photo")
    assert str(caught.value).startswith(f"`photo`: {str(path)!r}")
    assert message in str(caught.value)


@pytest.mark.parametrize("value", [None, "", 7, {"path": None}, ["a.png"]])
def test_what_is_no_image_is_refused(value):
    with raises(DataError, "`image`"):
        read_image(value, "image")


def test_a_missing_file_and_a_folder_are_named(tmp_path):
    with raises(DataError, "nope.png"):
        read_image(str(tmp_path / "nope.png"), "image")
    with raises(DataError, "IsADirectoryError"):
        read_image(str(tmp_path), "image")


def test_only_formats_of_images_are_read_whatever_the_suffix(tmp_path):
    path = tmp_path / "x.png"
    for kind in ("EPS", "PCX"):
        picture().save(path, kind)
        for read in (check_image, read_image):
            with raises(DataError, "UnidentifiedImageError"):
                read(str(path), "image")


def test_a_small_file_with_very_many_pixels_is_refused():
    def chunk(kind, content):
        return len(content).to_bytes(4, "big") + kind + content + zlib.crc32(kind + content).to_bytes(4, "big")

    side = (13_300).to_bytes(4, "big")
    png = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", side * 2 + bytes([8, 2, 0, 0, 0])) + chunk(b"IDAT", b"")
    with raises(DataError, "DecompressionBombWarning", "176890000 pixels"):
        check_image(png, "image")


@pytest.mark.skipif(os.name != "posix", reason="devices and pipes are files on POSIX alone")
def test_devices_and_pipes_are_refused_unread(tmp_path, monkeypatch):
    os.mkfifo(tmp_path / "pipe.png")

    def opened(*_):
        raise AssertionError("it was opened")

    for name in ("open", "read_bytes"):
        monkeypatch.setattr(f"pathlib.Path.{name}", opened)
    monkeypatch.setattr("PIL.Image.open", opened)
    for path in ("/dev/zero", str(tmp_path / "pipe.png")):
        assert image_identity(path).startswith("'")  # what stands there, no hash
        with raises(DataError, "a device or a pipe"):
            check_image(path, "image")


# Rows


def test_files_that_are_equal_byte_for_byte_are_duplicates_whatever_their_names(tmp_path):
    picture().save(tmp_path / "a.png")
    shutil.copy(tmp_path / "a.png", tmp_path / "b.png")
    picture(1).save(tmp_path / "c.png")
    a, b, c = (task().view({"image": str(tmp_path / name)}).identity for name in ("a.png", "b.png", "c.png"))
    assert a == b != c
    assert a == image_identity((tmp_path / "a.png").read_bytes())


def test_a_tokenizer_is_no_image_processor(bert_folder):
    processor = TransformersLoader().load_processor(str(bert_folder))
    with raises(SourceError, "model.loader.processor=image"):
        task().encode({"image": picture(), "label": "cat"}, processor)


# The model


def test_a_head_that_was_trained_on_these_labels_stays(folders, tmp_path):
    labels = task().labels
    first = TransformersLoader().load(LoadRequest(str(folders["resnet"]), "image-classification", labels))
    first.module.save_pretrained(tmp_path)
    first.processor.save_pretrained(tmp_path)
    again = TransformersLoader().load(LoadRequest(str(tmp_path), "image-classification", labels))
    assert again.new_modules == ()
    probe = task().probe_batch(again)
    assert torch.equal(task().raw_outputs(first.module.eval(), probe), task().raw_outputs(again.module.eval(), probe))


def test_loss_and_predictions_are_those_of_a_plain_computation(loaded):
    bound = task()
    rows = [{"image": picture(i), "label": label} for i, label in enumerate(["cat", "dog", "dog"])]
    batch = bound.collate([bound.encode(row, loaded.processor) for row in rows], loaded.processor)
    total, weight = bound.loss(loaded.module, batch, Criterion())
    expected = loaded.module(**batch)
    torch.testing.assert_close(total / weight, expected.loss)
    assert [p["predicted"] for p in bound.predict(loaded.module, batch)] == expected.logits.argmax(dim=1).tolist()
    answers = bound.infer(loaded, [{"image": row["image"]} for row in rows])
    assert [a["label"] for a in answers] == [bound.labels.names[i] for i in expected.logits.argmax(dim=1)]


def test_images_left_at_different_sizes_are_refused_together():
    processor = image_processor()
    processor.do_resize = False
    bound = task()
    features = [bound.encode({"image": picture(size=size), "label": "cat"}, processor) for size in ((8, 8), (8, 9))]
    with raises(DataError, "(3, 8, 8)", "(3, 9, 8)"):
        bound.collate(features, processor)
