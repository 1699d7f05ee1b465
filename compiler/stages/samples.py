"""Samples: the dataset, split, resized and cropped once, as every later step sees it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import compiler.data.digits
from compiler.data.imagefolder import UNREADABLE, ImageFolder
from compiler.data.source import Source
from compiler.data.splits import digest, split
from compiler.errors import ConfigError, unknown_name
from compiler.pictures import ORIENTATIONS
from compiler.stage import Stage, report_progress, write_array, write_json

STORED = ("calibration", "selection", "report")


@dataclasses.dataclass(kw_only=True)
class SplitSizes:
    """Samples per split; None takes the rest."""

    train: int | None = 0
    calibration: int | None = 100
    selection: int | None = 100
    report: int | None = None


@dataclasses.dataclass(kw_only=True)
class Samples(Stage):
    """Writes `<split>.npy` (uint8 RGB, (n, side, side, 3)) and `<split>.labels.npy` (int64), not for training.

    `meta.json` holds class names, preprocessing and each split's size and digest. Images stay uint8:
    normalisation belongs to the model's input and is done where the model runs.
    """

    tools: ClassVar[tuple[str, ...]] = ("numpy", "pillow", "scikit-learn")

    dataset: str
    root: Path | None = None
    classes: Path | None = None
    resize: int = 256
    crop: int = 224
    mean: tuple[float, ...] = (0.5, 0.5, 0.5)
    std: tuple[float, ...] = (0.5, 0.5, 0.5)
    orientation: str = "exif"
    background: tuple[float, ...] | None = (255.0, 255.0, 255.0)
    unreadable: str = "error"
    layout: str = "NCHW"
    num_classes: int | None = None
    splits: SplitSizes = dataclasses.field(default_factory=SplitSizes)
    split_seed: int = 0

    def run(self, inputs: Mapping[str, Path], out: Path) -> dict[str, Any]:
        """See `Stage.run`.

        Raises:
            ConfigError: the dataset cannot be read, or is too small for its splits.
        """
        import numpy as np

        preprocessing = self._preprocessing()
        source = self._source(preprocessing)
        if self.num_classes is not None and self.num_classes != len(source.classes):
            raise ConfigError(
                f"the data has {len(source.classes)} classes, data.num_classes says {self.num_classes}",
                fix="correct it, or leave it out",
            )
        parts = split(len(source.ids), dataclasses.asdict(self.splits), self.split_seed)
        total = sum(len(parts[name]) for name in STORED)
        done = 0
        for name in STORED:
            indices = parts[name]
            if not indices:
                raise ConfigError(f"the {name} split is empty", fix=f"give data.splits.{name} at least one sample")
            images = np.lib.format.open_memmap(
                out / f"{name}.npy", mode="w+", dtype=np.uint8, shape=(len(indices), self.crop, self.crop, 3)
            )
            for row, index in enumerate(indices):
                images[row] = source.image(index)
                done += 1
                report_progress(done, total, "images")
            images.flush()
            write_array(out / f"{name}.labels.npy", np.asarray([source.labels[i] for i in indices], np.int64))
        sizes = {
            name: {"n": len(part), "digest": digest([source.ids[i] for i in part])} for name, part in parts.items()
        }
        meta = {
            "dataset": self.dataset,
            "classes": source.classes,
            "layout": self.layout,
            "preprocessing": preprocessing,
            "splits": sizes,
            "split_seed": self.split_seed,
        }
        write_json(out / "meta.json", meta)
        facts = {
            "dataset": self.dataset,
            "splits": sizes,
            "split_seed": self.split_seed,
            "classes": len(source.classes),
        }
        return facts | ({"found": source.found.facts()} if isinstance(source, ImageFolder) else {})

    def _preprocessing(self) -> dict[str, Any]:
        """How a picture becomes the network's input, as the manifest records it and the runtime does it."""
        if self.orientation not in ORIENTATIONS:
            raise unknown_name("data.orientation", self.orientation, ORIENTATIONS)
        behind = self.background
        if behind is not None and (len(behind) != 3 or not all(0 <= value <= 255 for value in behind)):
            raise ConfigError(
                f"data.background is {list(behind)}",
                fix="give three numbers from 0 to 255, or null for the stored colours",
            )
        return {
            "color": "RGB", "orientation": self.orientation, "background": behind and list(behind),
            "resize": self.resize, "resize_filter": "bilinear", "crop": self.crop,
            "divide_by": 255.0, "mean": list(self.mean), "std": list(self.std),
        }  # fmt: skip

    def _source(self, preprocessing: Mapping[str, Any]) -> Source:
        if self.unreadable not in UNREADABLE:
            raise unknown_name("data.unreadable", self.unreadable, UNREADABLE)
        if len(self.mean) != 3 or len(self.std) != 3 or min(self.std) <= 0:
            raise ConfigError(
                "data.mean and data.std need three numbers each, std above 0", fix="for example data.std=[0.5,0.5,0.5]"
            )
        if self.crop < 1:
            raise ConfigError(f"data.crop is {self.crop}", fix="give the side of the network's input in pixels")
        if self.dataset == "digits":
            return compiler.data.digits.Digits(self.crop)
        if self.dataset == "imagefolder":
            if self.root is None or not self.root.is_dir():
                raise ConfigError(
                    f"the data folder {self.root} is not a folder",
                    fix="set data.root to a folder with one sub-folder a class",
                )
            return ImageFolder(self.root, self.classes, preprocessing, self.unreadable)
        raise unknown_name("dataset", self.dataset, ["digits", "imagefolder"])


def read_meta(samples: Path) -> dict[str, Any]:
    """What `Samples` wrote about its samples."""
    import json

    meta: dict[str, Any] = json.loads((samples / "meta.json").read_text())
    return meta
