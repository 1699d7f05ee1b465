"""Nothing in a folder of images is left out or read otherwise in silence."""

from __future__ import annotations

import json
import os
import unicodedata
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import command
from PIL import Image

from compiler import pictures, sentences
from compiler.data.imagefolder import ImageFolder
from compiler.errors import ConfigError
from compiler.keys.memo import full_digest
from compiler.pictures import read_picture
from compiler.plan import make_stage
from compiler.stages.samples import Samples, SplitSizes

HOW: dict[str, Any] = {"resize": 0, "crop": 8, "orientation": "exif", "background": [255, 255, 255]}


def _image(path: Path, value: int = 100, side: int = 8, **save: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (side, side), (value, value, value)).save(path, **save)
    return path


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Two classes of three images each."""
    for name in ("ant", "bee"):
        for number in range(3):
            _image(tmp_path / "data" / name / f"{number}.png", 50 * number)
    return tmp_path / "data"


def test_what_is_left_out_is_counted_by_its_reason(root: Path) -> None:
    (root / "ant/notes.txt").write_text("")
    (root / "ant/scan.tiff").write_bytes(b"")
    (root / "ant/._0.png").write_bytes(b"")
    (root / "Thumbs.db").write_bytes(b"")
    (root / "readme.md").write_text("")
    _image(root / "lone.png")
    _image(root / "bee/more/deep/0.png")
    _image(root / "__MACOSX/ant/0.png")
    _image(root / ".git/0.png")
    os.mkfifo(root / "bee/pipe.png")  # reading it would wait for ever
    (root / "bee/gone.png").symlink_to("nowhere.png")
    (root / "bee/loop").symlink_to(root)
    (root / "again").symlink_to(root / "ant")
    (root / "bee/empty").mkdir()
    (root / "bee/linked.png").symlink_to(root / "ant/0.png")
    source = ImageFolder(root, None, HOW)
    assert source.ids == [*(f"ant/{i}.png" for i in range(3)), *(f"bee/{i}.png" for i in range(3)), "bee/linked.png"]
    facts = source.found.facts()
    assert facts["taken"] == 7
    assert facts["skipped"] == {
        "hidden, or written by an operating system": 4,
        "not in the folder of a class": 1,
        "not named as an image (.md)": 1,
        "not named as an image (.tiff)": 1,
        "not named as an image (.txt)": 1,
        "in a folder inside a class": 1,
        "an empty folder inside a class": 1,
        "not a regular file": 1,
        "a link that leads nowhere": 1,
        "a link to a folder": 2,
    }
    assert "bee/more/deep/0.png: in a folder inside a class" in facts["examples"]
    full_digest(root)  # the key of such a folder is computed without following loops or waiting


def test_key_of_a_data_folder_covers_what_its_record_says(root: Path) -> None:
    seen = {full_digest(root)}
    changes = (
        lambda: (root / "bee/loop").symlink_to(root),
        lambda: os.mkfifo(root / "bee/pipe.png"),
        lambda: (root / "bee/gone.png").symlink_to("nowhere"),
        lambda: (root / "bee/3.png").symlink_to(root / "ant/0.png"),
        lambda: _image(root / "ant/0.png", 7),  # the target of that link
    )
    for change in changes:
        change()
        seen.add(full_digest(root))
    assert len(seen) == len(changes) + 1


def test_a_class_without_images_is_refused_with_what_its_folder_holds(root: Path) -> None:
    (root / "cow").mkdir()
    (root / "cow/0.tiff").write_bytes(b"")
    with pytest.raises(ConfigError, match="no images in the folder of the class cow") as caught:
        ImageFolder(root, None, HOW)
    assert "remove the folder" in caught.value.fix and caught.value.details == [
        "cow/0.tiff: not named as an image (.tiff)"
    ]
    for name in ("doe", "elk"):
        (root / name).mkdir()
    with pytest.raises(ConfigError, match="folders of 3 classes: cow, doe, elk"):
        ImageFolder(root, None, HOW)


def test_classes_of_the_list_without_a_folder_are_counted_not_refused(root: Path) -> None:
    listing = root.parent / "classes.txt"
    listing.write_text("ant\nbee\ncow\ndoe\n")
    found = ImageFolder(root, listing, HOW).found
    assert found.absent == ["cow", "doe"] and found.notes == ["2 of 4 classes have no samples"]


@pytest.mark.parametrize("parts", [("train", "val"), ("training",), ("a", "b")])
def test_a_root_one_level_too_high_is_refused_with_the_line_that_is_right(tmp_path: Path, parts: tuple[str]) -> None:
    for part in parts:
        _image(tmp_path / part / "ant/0.png")
        _image(tmp_path / part / "bee/0.png")
    with pytest.raises(ConfigError, match="one level too high") as caught:
        ImageFolder(tmp_path, None, HOW)
    assert caught.value.fix == " or ".join(f"data.root={tmp_path / part}" for part in sorted(parts))


def test_names_are_compared_in_one_unicode_form(tmp_path: Path) -> None:
    composed, decomposed = (unicodedata.normalize(form, "Äpfel") for form in ("NFC", "NFD"))
    _image(tmp_path / "data" / decomposed / "süß.png")
    _image(tmp_path / "data" / "pears" / "0.png")
    for written in (composed, decomposed):
        listing = tmp_path / "classes.txt"
        listing.write_text(f"pears\n{written}\n", encoding="utf-8")
        source = ImageFolder(tmp_path / "data", listing, HOW)
        assert source.classes == ["pears", composed] and source.labels == [0, 1]
    _image(tmp_path / "data" / composed / "0.png")
    with pytest.raises(ConfigError, match="one name, written in two Unicode forms"):
        ImageFolder(tmp_path / "data", None, HOW)


@pytest.mark.parametrize(
    ("names", "noted"), [(("8", "9", "10"), True), (("08", "09", "10"), False), (("1", "2", "x"), False)]
)
def test_classes_named_by_numbers_out_of_order_are_noted(tmp_path: Path, names: tuple[str, ...], noted: bool) -> None:
    for name in names:
        _image(tmp_path / "data" / name / "0.png")
    source = ImageFolder(tmp_path / "data", None, HOW)
    assert any("order of text" in note for note in source.found.notes) == noted
    (tmp_path / "classes.txt").write_text("\n".join(names))
    assert not ImageFolder(tmp_path / "data", tmp_path / "classes.txt", HOW).found.notes


# -- pixels ----------------------------------------------------------------------------------------


def _corner(path: Path, orientation: int, **save: Any) -> Path:
    """A black picture with a white corner, stored so that `orientation` brings the corner to the top left."""
    shown = np.zeros((8, 8, 3), np.uint8)
    shown[:3, :2] = 255
    back = {
        1: lambda a: a, 2: lambda a: a[:, ::-1], 3: lambda a: a[::-1, ::-1], 4: lambda a: a[::-1],
        5: lambda a: a.transpose(1, 0, 2), 6: lambda a: np.rot90(a, 1), 7: lambda a: np.rot90(a, 2).transpose(1, 0, 2),
        8: lambda a: np.rot90(a, -1),
    }[orientation]  # fmt: skip
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(np.ascontiguousarray(back(shown))).save(path, exif=exif, **save)
    return path


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", [".png", ".webp"])
def test_pictures_are_turned_as_a_viewer_shows_them_or_taken_as_stored(
    tmp_path: Path, orientation: int, suffix: str
) -> None:
    path = _corner(tmp_path / f"x{suffix}", orientation, lossless=True)
    changes: list[str] = []
    shown = read_picture(path, HOW, changes)
    assert shown[0, 0, 0] == 255 and shown[2, 1, 0] == 255 and shown.astype(int).sum() == 6 * 3 * 255
    assert changes == (["turned"] if orientation > 1 else [])
    stored = read_picture(path, {**HOW, "orientation": "stored"})
    assert (stored == np.asarray(Image.open(path).convert("RGB"))).all()


def test_broken_exif_does_not_refuse_the_picture(tmp_path: Path) -> None:
    path = _image(tmp_path / "x.jpg", exif=b"Exif\0\0II*\0\xff\xff\xff\x7fgarbage")
    assert read_picture(path, HOW).shape == (8, 8, 3)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "RGB"])
def test_transparent_pixels_show_the_background(tmp_path: Path, mode: str) -> None:
    pixels = np.full((8, 8, 4), (10, 10, 10, 255), np.uint8)
    pixels[:, 4:, :] = (200, 200, 200, 0)
    picture = Image.fromarray(pixels)
    if mode == "RGB":
        picture.convert("RGB").save(tmp_path / "x.png", transparency=(200, 200, 200))
    elif mode == "P":
        picture.quantize(4).save(tmp_path / "x.png")
    else:
        picture.convert(mode).save(tmp_path / "x.png")
    changes: list[str] = []
    for background in ([255, 255, 255], [0, 128, 0]):
        shown = read_picture(tmp_path / "x.png", {**HOW, "background": background}, changes)
        assert (shown[:, 4:] == background).all() and (shown[:, :4] == 10).all()
    assert changes == ["flattened"] * 2
    assert (read_picture(tmp_path / "x.png", {**HOW, "background": None})[:, :4] == 10).all()


def test_half_transparent_pixels_are_blended_and_opaque_ones_are_not_counted(tmp_path: Path) -> None:
    Image.new("RGBA", (8, 8), (0, 0, 0, 128)).save(tmp_path / "half.png")
    Image.new("RGBA", (8, 8), (7, 8, 9, 255)).save(tmp_path / "opaque.png")
    changes: list[str] = []
    assert (read_picture(tmp_path / "opaque.png", HOW, changes) == (7, 8, 9)).all() and changes == []
    assert abs(int(read_picture(tmp_path / "half.png", HOW, changes)[0, 0, 0]) - 127) <= 1 and changes == ["flattened"]


def test_pixel_limit_holds_from_the_first_pixel_above_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = _image(tmp_path / "x.png", side=20)
    monkeypatch.setattr(pictures, "MAX_PIXELS", 400)
    assert read_picture(path, HOW).shape == (8, 8, 3)
    monkeypatch.setattr(pictures, "MAX_PIXELS", 399)
    with pytest.raises(ConfigError, match="20 x 20 pixels, more than 399"):
        read_picture(path, HOW)


@pytest.mark.parametrize("pixels", [101, 179, 181, 400])
def test_a_small_file_of_many_megapixels_is_refused(tmp_path: Path, pixels: int) -> None:
    """Pillow warns above 89 megapixels and refuses above 179: neither is our limit, and neither opens the way."""
    path = tmp_path / "x.png"
    Image.new("1", (10_000, pixels * 100)).save(path)
    assert path.stat().st_size < 1_000_000
    with pytest.raises(ConfigError, match="pixels"):
        read_picture(path, HOW)


# -- on the screen and in the manifest -------------------------------------------------------------


def _samples(root: Path, out: Path, **more: Any) -> dict[str, Any]:
    out.mkdir()
    sizes = SplitSizes(train=0, calibration=2, selection=2, report=None)
    return Samples(dataset="imagefolder", root=root, resize=0, crop=8, splits=sizes, **more).run({}, out)


def test_record_names_turned_transparent_and_unreadable_samples(root: Path, tmp_path: Path) -> None:
    _corner(root / "ant/turned.png", 6)
    Image.new("RGBA", (8, 8), (0, 0, 0, 0)).save(root / "bee/clear.png")
    (root / "bee/broken.png").write_bytes(b"\x89PNG\r\n\x1a\nrubbish")
    with pytest.raises(ConfigError, match=r"cannot read the image .*bee/broken\.png"):
        _samples(root, tmp_path / "strict")
    found = _samples(root, tmp_path / "lenient", unreadable="skip")["found"]
    assert (found["taken"], found["turned"], found["flattened"]) == (8, 1, 1)
    assert found["skipped"] == {"unreadable, too large, or smaller than the crop": 1}
    lines = sentences.data({"data": {"found": found}})
    assert lines[0].startswith("Data: 8 images taken, 1 files or folders left out: 1 unreadable")
    assert "1 turned by their EXIF orientation, 1 with transparency" in lines[1]
    meta = json.loads((tmp_path / "lenient/meta.json").read_text())
    assert (meta["preprocessing"]["orientation"], meta["preprocessing"]["background"]) == ("exif", [255, 255, 255])


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [("orientation", "exiv", "did you mean 'exif'"), ("unreadable", "skp", "did you mean 'skip'"),
     ("background", (1.0, 2.0), "background has 2 values"),
     ("background", (0.0, 0.0, 256.0), "background[2] is 256.0")],
)  # fmt: skip
def test_wrong_values_of_the_datas_fields_are_refused(root: Path, field: str, value: Any, words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        make_stage(Samples, {"dataset": "imagefolder", "root": str(root), field: value}, "samples")
    assert words in caught.value.what


def test_runtime_reads_a_picture_as_the_build_did(first: Any, tmp_path: Path) -> None:
    folder = first.project.latest
    path = _corner(tmp_path / "photo.png", 3)
    done = command("run", folder, "--input", path, "--output", tmp_path / "a.npy")
    assert done.code == 0, done.err
    manifest = json.loads((folder / "manifest.json").read_text())
    np.save(tmp_path / "x.npy", read_picture(path, manifest["preprocessing"])[None])
    assert command("run", folder, "--input", tmp_path / "x.npy", "--output", tmp_path / "b.npy").code == 0
    assert (np.load(tmp_path / "a.npy") == np.load(tmp_path / "b.npy")).all()
    (tmp_path / "bad.jpg").write_bytes(b"no picture")
    refused = command("run", folder, "--input", tmp_path / "bad.jpg", "--output", tmp_path / "c.npy")
    assert refused.code == 2 and "cannot read the image" in refused.err
