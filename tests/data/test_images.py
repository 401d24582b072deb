"""Folders of images, paths in files, and images inside of Parquet and Arrow files."""

import json

import numpy as np
import pyarrow as pa
import pytest
from datasets import Dataset
from expected import raises
from partly import partly
from pyarrow import parquet

from ftengine.api import Features, Task, View, beside, require_inside
from ftengine.data.read import read_rows
from ftengine.data.rows import DataRows
from ftengine.data.split import make_splits
from ftengine.errors import DataError
from ftengine.run.recipe import DataSection
from ftengine_builtins.tasks import ImageClassification

PNG = b"\x89PNG not a real one "


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Two classes, one with a folder inside, and what file managers leave behind."""
    monkeypatch.chdir(tmp_path)
    for name in ("cat/1.png", "cat/far/2.JPG", "dog/3.webp", "cat/.hidden.png", "dog/Thumbs.db", ".git/4.png"):
        path = tmp_path / "photos" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(PNG + name.encode())
    return tmp_path / "photos"


@partly
class Named(Task):
    name = "named"
    file_columns = ("image", "images")


def fails(source, **options):
    with pytest.raises(DataError) as caught:
        read_rows(str(source), **options)
    return str(caught.value)


# Folders


def test_a_subfolder_is_a_label(folder):
    rows = read_rows("photos", task=Named())
    assert list(rows) == [
        {"image": "photos/cat/1.png", "label": "cat"},
        {"image": "photos/cat/far/2.JPG", "label": "cat"},
        {"image": "photos/dog/3.webp", "label": "dog"},
    ]
    assert rows.columns == ["image", "label"]
    assert rows.where(1) == "photos/cat/far/2.JPG"
    assert rows.select([2]).where(0) == "photos/dog/3.webp"


def test_images_beside_subfolders_are_refused(folder):
    (folder / "lost.png").write_bytes(PNG)
    assert "1 image beside its subfolders, 'lost.png' first" in fails("photos")


def test_files_that_are_no_images_end_the_command_or_are_counted(folder):
    (folder / "dog" / "notes.txt").write_text("x")
    assert "photos/dog/notes.txt: " in fails("photos")
    rows = read_rows("photos", on_error="skip")
    assert len(rows) == 3
    assert (rows.skipped.count, rows.skipped.first) == (1, ("photos/dog/notes.txt: not an image, by its suffix",))


def test_a_folder_without_images_says_what_it_found(tmp_path):
    (tmp_path / "notes.md").write_text("x")
    assert "holds no images (.bmp .gif" in fails(tmp_path)
    assert "its first file is 'notes.md'" in fails(tmp_path)


def test_a_circle_of_links_is_an_error(folder):
    (folder / "cat" / "again").symlink_to(folder)
    assert "photos cannot be listed" in fails("photos")


# Paths


@pytest.mark.parametrize("name", ["photos/list.csv", "photos/list.jsonl"])
def test_paths_are_relative_to_their_file(folder, name):
    (folder / "list.csv").write_text("image,label\ncat/1.png,a\n/abs/2.png,b\n,c\n")
    lines = [{"image": "cat/1.png", "label": "a"}, {"image": "/abs/2.png", "label": "b"}, {"image": None, "label": "c"}]
    (folder / "list.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    rows = read_rows(name, task=Named())
    assert [row["image"] for row in rows] == ["photos/cat/1.png", "/abs/2.png", None]
    assert rows[0]["label"] == "a"
    assert read_rows(name)[0]["image"] == "cat/1.png"


def test_paths_that_lead_out_of_the_folder_are_refused_where_the_task_says_so(folder):
    (folder / "list.csv").write_text("image,label\n../secret.png,a\ncat/1.png,b\n")
    task = ImageClassification()
    outside, inside = read_rows("photos/list.csv", task=task)
    with raises(DataError, "secret.png", "photos", "outside_files"):
        task.view(outside).inputs[0]
    assert inside["image"] == "photos/cat/1.png"
    opens = ImageClassification(ImageClassification.Config(outside_files=True))
    assert read_rows("photos/list.csv", task=opens)[0]["image"] == "photos/../secret.png"


def test_links_and_addresses_that_lead_out_of_the_folder_are_refused(folder, tmp_path):
    """A folder and a list that are themselves reached through links are read."""
    (tmp_path / "secret.png").write_bytes(PNG)
    (folder / "link.png").symlink_to(tmp_path / "secret.png")
    (folder / "up").symlink_to(tmp_path)
    (folder / "again.png").symlink_to(folder / "cat" / "1.png")
    names = ["link.png", "up/secret.png", "data:/../../secret.png", "data:a,/../../../secret.png", "x://../../../b"]
    for name in names:
        with raises(DataError, "outside", "outside_files"):
            require_inside(beside(name, "photos", inside=True), "image")
    for name in (f"file://{tmp_path}/secret.png", f"FILE:{tmp_path}/secret.png"):
        with raises(DataError, "secret.png") as error:
            require_inside(beside(name, "photos", inside=True), "image")
        assert "outside_files" not in str(error.value)
    for name in ("data:image/png;base64,iVBO/..g=", "https://example.org/a.png"):
        assert beside(name, "photos", inside=True) == name
    (tmp_path / "linked").symlink_to(folder)
    for place in ("photos", "linked"):
        for name in ("again.png", "cat/1.png", "cat/../dog/3.webp", "missing.png", "a\0b.png"):
            assert beside(name, place, inside=True) == f"{place}/{name}"
    (tmp_path / "blobs").write_text("image,label\ncat/1.png,b\n")
    (folder / "list.csv").symlink_to(tmp_path / "blobs")
    assert read_rows("photos/list.csv", task=ImageClassification())[0]["image"] == "photos/cat/1.png"


def test_lists_of_paths_are_relative_too_and_addresses_are_no_paths(folder):
    url = "data:image/png;base64,iVBORw0KGgo="
    lines = [
        {"images": ["cat/1.png", {"path": "dog/3.webp", "bytes": None}]},
        {"images": [url, "https://example.org/a.png"]},
        {"image": url},
    ]
    (folder / "list.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    rows = read_rows("photos/list.jsonl", task=Named())
    first = rows[0]["images"]
    assert (first[0], first[1]["path"]) == ("photos/cat/1.png", "photos/dog/3.webp")
    assert rows[1]["images"] == [url, "https://example.org/a.png"]
    assert rows[2]["image"] == url


# Images inside of files


def table(**columns):
    return pa.table({"image": [{"bytes": PNG, "path": "1.png"}, {"bytes": None, "path": "cat/1.png"}], **columns})


def test_numbers_of_named_categories_become_names(tmp_path):
    from datasets import ClassLabel, Dataset, Features, List, Value

    names = ClassLabel(names=["O", "B-X"])
    features = Features({"tokens": List(Value("string")), "tags": List(names), "kind": names})
    content = {"tokens": [["a", "b"], ["c"]], "tags": [[1, 0], [0]], "kind": [1, -1]}
    Dataset.from_dict(content, features=features).to_parquet(tmp_path / "data.parquet")
    rows = read_rows(str(tmp_path / "data.parquet"), columns={"label": "kind"})
    assert [row["tags"] for row in rows] == [["B-X", "O"], ["O"]]
    assert [row["label"] for row in rows] == ["B-X", None]


@pytest.mark.parametrize("layout", [pa.ipc.new_file, pa.ipc.new_stream])
def test_arrow_files_of_both_layouts_are_read(tmp_path, layout):
    content = table(label=pa.array(["a", "b"]).dictionary_encode())
    with layout(str(tmp_path / "data.arrow"), content.schema) as writer:
        writer.write_table(content, max_chunksize=1)
    rows = read_rows(str(tmp_path / "data.arrow"))
    assert [row["label"] for row in rows] == ["a", "b"]
    assert rows.where(1) == f"{tmp_path / 'data.arrow'} row 2"


@pytest.mark.parametrize("content", [b"ARROW1 but no more", b"not arrow at all", b"ARROW1"])
def test_a_damaged_arrow_file_is_refused(tmp_path, content):
    (tmp_path / "data.arrow").write_bytes(content)
    assert "cannot be read as Arrow" in fails(tmp_path / "data.arrow")


@pytest.mark.parametrize("kind", ["arrow", "parquet"])
def test_dates_and_column_names_that_python_cannot_hold_are_refused(tmp_path, kind):
    def written(day, name=b"spoilt"):
        content = pa.table({"day": [day], "spoilt": ["a"]})
        if kind == "parquet":
            parquet.write_table(content, tmp_path / "data.parquet", store_schema=False)
        else:
            with pa.ipc.new_file(str(tmp_path / "data.arrow"), content.schema) as writer:
                writer.write_table(content)
        file = tmp_path / f"data.{kind}"
        file.write_bytes(file.read_bytes().replace(b"spoilt", name))
        return file

    far = written([pa.scalar(10**7, pa.date32())])
    assert "column 'day'" in fails(far)
    assert "cannot be read as" in fails(written([None], b"\x80poilt"))


# What depends on the rows


@partly
class ImageTask(Task):
    name = "images"
    file_columns = ("image",)

    def view(self, row):
        with open(row["image"], "rb") as file:
            return View([], identity=file.read())


def test_equal_files_stay_on_one_side_and_leaks_are_reported_by_path(folder):
    for name in ("cat/7.png", "dog/8.png", "dog/9.png"):
        (folder / name).write_bytes(b"same")
    task = ImageTask()
    splits = make_splits(DataSection(train="photos", validation=0.4), task, 0)
    sides = [{row["image"] for row in rows} for rows in (splits.train, splits.validation)]
    copies = {f"photos/{name}" for name in ("cat/7.png", "dog/8.png", "dog/9.png")}
    assert any(copies <= side for side in sides)

    section = DataSection(train="photos", validation="photos/dog", leaks="warn")
    (leak,) = make_splits(section, task, 0).audited().facts["leaks"]
    assert leak["count"] == 3
    assert leak["places"][1] == "photos/cat/7.png = photos/dog/8.png"


def test_an_image_that_changes_is_noticed_like_a_row_that_does(folder):
    from ftengine.api import SilentListener
    from ftengine.data.encoding import encode_split

    class Encoding(ImageTask):
        def encode(self, example, processor, *, max_length=None):
            return Features({}, length=1, weight=1, truncated=False)

    def content():
        rows = read_rows("photos", task=Named())
        split = encode_split("train", rows, Encoding(), None, None, on_error="fail", listener=SilentListener())
        assert np.array_equal(split.lengths, [1, 1, 1])
        return split.content

    before = content()
    assert content() == before
    (folder / "cat" / "1.png").write_bytes(PNG + b"changed")
    assert content() != before


def test_a_prediction_names_the_image_and_not_its_bytes():
    from ftengine.engine.predict import _as_in_file

    rows = DataRows(
        Dataset.from_list([{"image": {"bytes": b"a" * 10_000, "path": "1.png"}}]), "photos", {"image": "image"}
    )
    row = _as_in_file(rows, 0)
    assert row["image"]["path"] == "1.png"
    assert len(row["image"]["bytes"]) == 32
