"""Samples: the dataset, split, resized and cropped once, as every later step sees it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar

import compiler.data.digits
from compiler.data.imagefolder import UNREADABLE, ImageFolder
from compiler.data.source import Source
from compiler.data.splits import digest, split
from compiler.disk import write_array
from compiler.errors import ConfigError
from compiler.limits import Between, OneOf
from compiler.pictures import ORIENTATIONS
from compiler.stage import Stage, report_progress, write_json

STORED = ("calibration", "selection", "report")
LARGEST_SIDE = 10_000
"""Of a network's input, in pixels: as many as a picture may have (`compiler.pictures.MAX_PIXELS`)."""
Deviation = Annotated[float, Between(0, above=True)]
Shade = Annotated[float, Between(0, 255)]


@dataclasses.dataclass(kw_only=True)
class SplitSizes:
    """Samples per split; None takes the rest."""

    train: Annotated[int, Between(0)] | None = 0
    calibration: Annotated[int, Between(1)] | None = 100
    selection: Annotated[int, Between(1)] | None = 100
    report: Annotated[int, Between(1)] | None = None


@dataclasses.dataclass(kw_only=True)
class Samples(Stage):
    """Writes `<split>.npy` (uint8 RGB, (n, side, side, 3)) and `<split>.labels.npy` (int64), not for training.

    `meta.json` holds class names, preprocessing and each split's size and digest. Images stay uint8:
    normalisation belongs to the model's input and is done where the model runs.
    """

    tools: ClassVar[tuple[str, ...]] = ("numpy", "pillow", "scikit-learn")

    dataset: Annotated[str, OneOf("digits", "imagefolder")]
    root: Path | None = None
    classes: Path | None = None
    resize: Annotated[int, Between(0, LARGEST_SIDE)] = 256
    crop: Annotated[int, Between(1, LARGEST_SIDE)] = 224
    mean: tuple[float, float, float] = (0.5, 0.5, 0.5)
    std: tuple[Deviation, Deviation, Deviation] = (0.5, 0.5, 0.5)
    orientation: Annotated[str, OneOf(*ORIENTATIONS)] = "exif"
    background: tuple[Shade, Shade, Shade] | None = (255.0, 255.0, 255.0)
    unreadable: Annotated[str, OneOf(*UNREADABLE)] = "error"
    layout: Annotated[str, OneOf("NCHW", "NHWC")] = "NCHW"
    num_classes: Annotated[int, Between(1)] | None = None
    splits: SplitSizes = dataclasses.field(default_factory=SplitSizes)
    split_seed: int = 0

    def check_files(self) -> None:
        """See `Stage.check_files`. Pictures are listed, and not opened."""
        sizes = dataclasses.asdict(self.splits)
        if self.dataset == "digits":
            split(compiler.data.digits.COUNT, sizes, self.split_seed)
            return
        found = ImageFolder(self._folder(), self.classes, self._preprocessing())
        self._check_count(found.classes)
        split(len(found.ids), sizes, self.split_seed)

    def run(self, inputs: Mapping[str, Path], out: Path) -> dict[str, Any]:
        """See `Stage.run`.

        Raises:
            ConfigError: the dataset cannot be read, or is too small for its splits.
        """
        import numpy as np

        preprocessing = self._preprocessing()
        source = self._source(preprocessing)
        self._check_count(source.classes)
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

    def _check_count(self, classes: Sequence[str]) -> None:
        if self.num_classes is not None and self.num_classes != len(classes):
            raise ConfigError(
                f"the data has {len(classes)} classes, data.num_classes says {self.num_classes}",
                fix="correct it, or leave it out",
            )

    def _preprocessing(self) -> dict[str, Any]:
        """How a picture becomes the network's input, as the manifest records it and the runtime does it."""
        behind = None if self.background is None else list(self.background)
        return {
            "color": "RGB", "orientation": self.orientation, "background": behind,
            "resize": self.resize, "resize_filter": "bilinear", "crop": self.crop,
            "divide_by": 255.0, "mean": list(self.mean), "std": list(self.std),
        }  # fmt: skip

    def _source(self, preprocessing: Mapping[str, Any]) -> Source:
        if self.dataset == "digits":
            return compiler.data.digits.Digits(self.crop)
        return ImageFolder(self._folder(), self.classes, preprocessing, self.unreadable)

    def _folder(self) -> Path:
        if self.root is None or not self.root.is_dir():
            raise ConfigError(
                f"the data folder {self.root} is not a folder",
                fix="set data.root to a folder with one sub-folder a class",
            )
        return self.root


def read_meta(samples: Path) -> dict[str, Any]:
    """What `Samples` wrote about its samples."""
    import json

    meta: dict[str, Any] = json.loads((samples / "meta.json").read_text())
    return meta
