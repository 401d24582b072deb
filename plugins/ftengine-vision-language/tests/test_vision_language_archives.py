"""Pictures in a zip or tar beside the data are read in place, and hostile archives are refused."""

import io
import tarfile
import zipfile

import numpy as np
import pytest
from expected import raises
from vision_models import square

from ftengine.errors import DataError
from ftengine_vision_language import ImageTextToText, archives
from ftengine_vision_language.pictures import identity_of, open_picture


def png(colour):
    written = io.BytesIO()
    square(colour).save(written, "PNG")
    return written.getvalue()


def write_zip(file, contents, how=zipfile.ZIP_DEFLATED):
    with zipfile.ZipFile(file, "w", how) as archive:
        for name, content in contents.items():
            archive.writestr(name, content)


def write_tar(file, contents, mode="w"):
    with tarfile.open(file, mode) as archive:
        for name, content in contents.items():
            member = content if isinstance(content, tarfile.TarInfo) else tarfile.TarInfo(name)
            if member is not content:
                member.size = len(content)
            archive.addfile(member, io.BytesIO(b"" if member is content else content))


WRITE = {"zip": write_zip, "tar": write_tar}


@pytest.mark.parametrize("kind", WRITE)
@pytest.mark.parametrize("inside", ["", "pictures/"])
def test_a_path_leads_through_an_archive(tmp_path, kind, inside):
    """By its name, or as the folder that is absent; a folder that is there comes first."""
    WRITE[kind](tmp_path / f"pictures.{kind}", {f"{inside}sub/a.png": png("red"), f"{inside}b.png": b"no picture"})
    own = ImageTextToText(ImageTextToText.Config())

    def row(path):
        return own.in_folder({"prompt": "what ?", "completion": "red", "image": path}, str(tmp_path))

    for path in (f"pictures.{kind}/{inside}sub/a.png", "pictures/sub/a.png"):
        [picture] = own.view(row(path)).inputs
        assert np.array_equal(np.asarray(picture), np.asarray(square("red")))
        assert identity_of(row(path)["image"]) == identity_of(png("red"))
    with raises(DataError, "picture 1", "pictures", "b.png"):
        own.check_input(row("pictures/b.png"))
    with raises(DataError, "picture 1", f"pictures.{kind}", "'c.png'"):
        own.check_input(row("pictures/c.png"))
    (tmp_path / "pictures" / "sub").mkdir(parents=True)
    square("blue").save(tmp_path / "pictures" / "sub" / "a.png")
    [picture] = own.view(row("pictures/sub/a.png")).inputs
    assert np.array_equal(np.asarray(picture), np.asarray(square("blue")))


@pytest.mark.parametrize("kind", WRITE)
def test_each_archive_is_indexed_once(tmp_path, kind, monkeypatch):
    """However many there are, in whatever order pictures are read."""
    opened, cls = [], {"zip": archives._Zip, "tar": archives._Tar}[kind]
    monkeypatch.setattr(cls, "__init__", lambda own, path, init=cls.__init__: (opened.append(path), init(own, path))[1])
    for number in range(20):
        WRITE[kind](tmp_path / f"{number}.{kind}", {"a.png": png("red")})
    for number in list(range(20)) * 2:
        open_picture(str(tmp_path / str(number) / "a.png"), "picture 1")
    assert len(opened) == 20


@pytest.mark.parametrize("kind", WRITE)
def test_names_as_other_tools_write_them(tmp_path, kind):
    """Members that begin with ./, endings in capitals, and a set of which each archive holds a part."""
    WRITE[kind](tmp_path / f"m.{kind.upper()}", {"./sub/a.png": png("red"), "sub/b.png": b""})
    (other,) = set(WRITE) - {kind}
    WRITE[other](tmp_path / f"m.{other}", {"c.png": png("blue")})
    for path, colour in (("m/sub/a.png", "red"), (f"m.{kind.upper()}/sub/a.png", "red"), ("m/c.png", "blue")):
        picture = open_picture(str(tmp_path / path), "picture 1")
        assert np.array_equal(np.asarray(picture), np.asarray(square(colour)))
    assert archives.archived(tmp_path / "m" / "sub" / "b.png", "picture 1") == b""
    with raises(DataError, "'d.png'", "m.ZIP" if kind == "zip" else "m.zip", "m.TAR" if kind == "tar" else "m.tar"):
        open_picture(str(tmp_path / "m" / "d.png"), "picture 1")


@pytest.mark.parametrize(("file", "mode"), [("g.tar.gz", "w:gz"), ("g.tgz", "w:gz"), ("g.tar", "w:xz")])
def test_a_compressed_tar_is_named(tmp_path, file, mode):
    write_tar(tmp_path / file, {"a.png": png("red")}, mode)
    for path in (f"{file}/a.png", "g/a.png"):
        with raises(DataError, file, "compressed"):
            open_picture(str(tmp_path / path), "picture 1")


def test_an_encrypted_picture_is_refused(tmp_path):
    write_zip(tmp_path / "a.zip", {"a.png": png("red")})
    content = bytearray((tmp_path / "a.zip").read_bytes())
    content[content.index(b"PK\x01\x02") + 8] |= 1
    (tmp_path / "a.zip").write_bytes(content)
    with raises(DataError, "encrypted"):
        open_picture(str(tmp_path / "a.zip" / "a.png"), "picture 1")


def test_an_archive_that_changes_is_read_anew(tmp_path):
    for colour, fill in (("red", 0), ("blue", 10)):
        write_tar(tmp_path / "a.tar", {"a.png": png(colour), "fill": b"0" * fill * 1024})
        picture = open_picture(str(tmp_path / "a.tar" / "a.png"), "picture 1")
        assert np.array_equal(np.asarray(picture), np.asarray(square(colour)))


def test_archives_stay_in_the_folder_of_the_data(tmp_path):
    """Neither a path through an archive nor a link leads out, and links within archives are no files."""
    own, folder = ImageTextToText(ImageTextToText.Config()), tmp_path / "data"
    folder.mkdir()
    (tmp_path / "secret.png").write_bytes(png("red"))
    link = tarfile.TarInfo("link.png")
    link.type, link.linkname = tarfile.SYMTYPE, str(tmp_path / "secret.png")
    write_tar(folder / "a.tar", {"link.png": link, "../secret.png": png("blue")})
    write_zip(tmp_path / "out.zip", {"a.png": png("red")})
    (folder / "out.zip").symlink_to(tmp_path / "out.zip")
    for path in ("a.tar/link.png", "a.tar/../../secret.png", "../out.zip/a.png", "out.zip/a.png", "out/a.png"):
        with raises(DataError, "picture 1"):
            own.check_input(own.in_folder({"prompt": "what ?", "image": path}, str(folder)))


def test_damaged_and_hostile_archives_are_refused(tmp_path, monkeypatch):
    (tmp_path / "a.zip").write_bytes(b"no archive")
    (tmp_path / "a.tar").write_bytes(b"no archive")
    write_zip(tmp_path / "lzma.zip", {"a.png": png("red")}, zipfile.ZIP_LZMA)
    write_tar(tmp_path / "packed.tar", {"a.png": png("red")}, "w:gz")
    for name in ("a.zip", "a.tar", "lzma.zip", "packed.tar"):
        with raises(DataError, "picture 1", name):
            open_picture(str(tmp_path / name / "a.png"), "picture 1")
    monkeypatch.setattr(archives, "MOST_BYTES", 1000)
    for kind, write in WRITE.items():
        write(tmp_path / f"bomb.{kind}", {"a.png": bytes(1001)})
        with raises(DataError, "picture 1", f"bomb.{kind}", "1,001"):
            open_picture(str(tmp_path / f"bomb.{kind}" / "a.png"), "picture 1")


@pytest.mark.parametrize("kind", WRITE)
def test_a_hundred_damaged_archives_are_read_or_refused(tmp_path, kind):
    rng, refused = np.random.default_rng(0), 0
    file = tmp_path / f"good.{kind}"
    WRITE[kind](file, {"a.png": png("red"), "b.png": png("blue")})
    good = file.read_bytes()
    for number in range(100):
        spoilt = bytearray(good)
        for at in rng.integers(0, len(good), 40):
            spoilt[at] = rng.integers(256)
        damaged = tmp_path / f"{number}.{kind}"
        damaged.write_bytes(spoilt[: rng.integers(1, len(good))] if number % 2 else spoilt)
        try:
            open_picture(str(damaged / "a.png"), "picture 1")
        except DataError:  # any other error fails
            refused += 1
    assert refused > 20
