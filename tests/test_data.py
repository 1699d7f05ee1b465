"""Datasets and checkpoints: bad ones are refused in words, good ones become what the network was trained on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from compiler.data.imagefolder import ImageFolder
from compiler.data.splits import NAMES, split
from compiler.errors import ConfigError
from compiler.runtime.pytorch import network
from compiler.stages.samples import Samples, SplitSizes, read_meta


@given(st.integers(4, 300), st.integers(0, 3), st.tuples(*[st.integers(0, 60)] * 3))
def test_splits_are_disjoint_seeded_and_as_large_as_asked(count: int, seed: int, sizes: tuple[int, int, int]) -> None:
    asked: dict[str, int | None] = dict(zip(NAMES, (*sizes, None), strict=True))
    if sum(sizes) >= count:
        with pytest.raises(ConfigError, match=f"the dataset has {count} samples"):
            split(count, asked, seed)
        return
    parts = split(count, asked, seed)
    everything = [i for name in NAMES for i in parts[name]]
    assert sorted(everything) == list(range(count))
    assert [len(parts[name]) for name in NAMES[:3]] == list(sizes)
    assert parts == split(count, asked, seed)


def test_two_open_splits_are_refused() -> None:
    with pytest.raises(ConfigError, match="both open"):
        split(10, {"selection": None, "report": None}, 0)


def _folder(root: Path, classes: tuple[str, ...] = ("cat", "dog"), count: int = 6, side: int = 20) -> Path:
    generator = np.random.default_rng(0)
    for name in classes:
        (root / name).mkdir(parents=True)
        for i in range(count):
            pixels = generator.integers(0, 255, (side, side + 4, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(root / name / f"{i}.png")
    return root


def _how(resize: int, crop: int, **more: Any) -> dict[str, Any]:
    return {"resize": resize, "crop": crop, "orientation": "exif", "background": [255, 255, 255], **more}


def test_class_list_fixes_the_order_when_not_all_classes_are_present(tmp_path: Path) -> None:
    root = _folder(tmp_path / "data")
    listing = tmp_path / "classes.txt"
    listing.write_text("zebra\ndog\ncat\n")
    source = ImageFolder(root, listing, _how(16, 12))
    assert source.classes == ["zebra", "dog", "cat"]
    assert source.labels == [2] * 6 + [1] * 6
    assert source.image(0).shape == (12, 12, 3)


def test_folder_that_the_class_list_does_not_name_is_refused(tmp_path: Path) -> None:
    listing = tmp_path / "classes.txt"
    listing.write_text("cat\ndogs\n")
    with pytest.raises(ConfigError, match=r"dog is not a class .* did you mean 'dogs'"):
        ImageFolder(_folder(tmp_path / "data"), listing, _how(16, 12))


def test_empty_folder_unreadable_image_and_too_small_image_are_named(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError, match="no images below"):
        ImageFolder(tmp_path / "empty", None, _how(16, 12))
    root = _folder(tmp_path / "data")
    (root / "cat/0.png").write_bytes(b"not an image")
    with pytest.raises(ConfigError, match=r"cannot read the image .*cat/0\.png"):
        ImageFolder(root, None, _how(16, 12)).image(0)
    with pytest.raises(ConfigError, match="less than the crop"):
        ImageFolder(root, None, _how(0, 32)).image(1)


def test_truncated_image_is_named(tmp_path: Path) -> None:
    root = _folder(tmp_path / "data")
    data = (root / "cat/0.png").read_bytes()
    (root / "cat/0.png").write_bytes(data[: len(data) // 2])
    with pytest.raises(ConfigError, match="cannot read the image"):
        ImageFolder(root, None, _how(16, 12)).image(0)


def test_missing_data_folder_and_empty_split_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="is not a folder"):
        Samples(dataset="imagefolder", root=tmp_path / "none").run({}, tmp_path)
    sizes = SplitSizes(train=0, calibration=0, selection=4, report=None)
    with pytest.raises(ConfigError, match="the calibration split is empty"):
        Samples(dataset="imagefolder", root=_folder(tmp_path / "d"), resize=16, crop=12, splits=sizes).run({}, tmp_path)


def test_samples_write_each_split_with_its_labels_and_digest(tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    sizes = SplitSizes(train=0, calibration=4, selection=3, report=None)
    Samples(dataset="imagefolder", root=_folder(tmp_path / "d"), resize=16, crop=12, splits=sizes).run({}, out)
    meta = read_meta(out)
    assert {name: part["n"] for name, part in meta["splits"].items()} == {
        "train": 0,
        "calibration": 4,
        "selection": 3,
        "report": 5,
    }
    assert np.load(out / "report.npy").shape == (5, 12, 12, 3)
    assert len({part["digest"] for name, part in meta["splits"].items() if name != "train"}) == 3


def test_demo_weights_were_trained_on_the_split_that_the_data_file_names() -> None:
    from omegaconf import OmegaConf

    from compiler.overrides import conf_dir
    from compiler.zoo import digits

    data = OmegaConf.load(conf_dir() / "data/digits.yaml")
    assert dict(data.splits) == digits.SPLITS and (data.split_seed, data.crop) == (digits.SPLIT_SEED, digits.SIDE)


def test_unknown_architecture_is_refused_with_the_nearest() -> None:
    with pytest.raises(ConfigError, match="'resnet19'; did you mean 'resnet1"):
        network("resnet19", 10)
    with pytest.raises(ConfigError, match="cannot be loaded"):
        network("no.such.module:net", 10)
