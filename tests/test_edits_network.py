"""Edits of a PyTorch network of the user's own and of what it is made from: each result is a clean build's."""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT

NETWORK = """
import json
from pathlib import Path

import torch

from own.blocks import block

FOLDER = Path(__file__).parent


class Net(torch.nn.Module):
    def __init__(self, num_classes: int) -> None:
        super().__init__()
        widths = json.loads((FOLDER / "widths.json").read_text())
        self.features = torch.nn.Sequential(*(block(a, b) for a, b in zip([3, *widths], widths)))
        self.classifier = torch.nn.Linear(widths[-1], num_classes)
        self.scale = sum(float(path.read_text()) for path in sorted((FOLDER / "scales").glob("*.txt")))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        from own.head import pooled

        return self.classifier(pooled(self.features(x) * self.scale))


def net(num_classes: int) -> Net:
    made = Net(num_classes)
    if (FOLDER / "start.bin").exists():
        torch.nn.init.constant_(made.classifier.bias, len((FOLDER / "start.bin").read_bytes()) / 8)
    return made


def unused() -> int:
    return 1
"""
FILES: dict[str, tuple[str | None, ...]] = {
    "network.py": (NETWORK, NETWORK.replace("* self.scale", "- self.scale"), NETWORK.replace("a, b)", "a, b).eval()")),
    "blocks.py": tuple(
        f"import torch\n\nfrom own.sizes import KERNEL\n\n\ndef block(a, b):\n"
        f"    return torch.nn.Sequential(torch.nn.Conv2d(a, b, KERNEL, stride=2, padding=1), torch.nn.{activation}())\n"
        for activation in ("ReLU", "SiLU", "ReLU6")
    ),
    "sizes.py": ("KERNEL = 3\n", "KERNEL = 2\n"),
    "head.py": tuple(f"def pooled(x):\n    return x.{how}((2, 3))\n" for how in ("mean", "amax", "amin")),
    "widths.json": ("[4, 8]", "[4, 6]", "[8, 8]", "[4]"),
    "scales/a.txt": ("1", "2", None),
    "scales/b.txt": (None, "0.5"),
    "start.bin": (None, "1", "22"),
}
"""File of the network's package -> its contents in turn; None: there is none."""
APART = {
    "README.md": ("one", "two", None),
    "training.py": ("import network\n", "import nothing\n"),
    "scales/c.csv": (None, "7"),
}
"""Files beside them that no step reads."""  # fmt: skip


class World:
    """A package with a network beside a folder of artifacts."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.state: dict[str, int] = {name: 0 for name in FILES | APART}
        for name in self.state:
            self.write(name)

    def write(self, name: str) -> None:
        """The file as the state says."""
        path, text = self.folder / "user/own" / name, (FILES | APART)[name][self.state[name]]
        path.parent.mkdir(parents=True, exist_ok=True)
        if text is None:
            path.unlink(missing_ok=True)
        else:
            path.write_text(text)

    def start(self, store: str) -> subprocess.Popen[str]:
        """A build of every step that measures nothing."""
        given = {
            "PATH": os.environ["PATH"],
            "HOME": str(self.folder),
            "PYTHONPATH": os.pathsep.join([str(ROOT), str(self.folder / "user")]),
        }
        return subprocess.Popen(
            [sys.executable, str(ROOT / "tests/portable.py"), "target=host", "model=torchvision", "model.name=own",
             "model.architecture=own.network:net", "data=digits", "candidates=[onnxruntime_fp32]",
             "data.splits={train: 0, calibration: 8, selection: 16, report: 16}",
             f"artifacts_dir={self.folder / store}"],
            env=given, cwd=self.folder, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip

    def build_both(self, clean: str) -> tuple[dict[str, Any], dict[str, Any]]:
        """An incremental build and, at the same time, one in the empty store `clean`: what is said of each step."""
        processes = {store: self.start(store) for store in (clean, "store")}
        found = {}
        for store, process in processes.items():
            out, err = process.communicate(timeout=300)
            if process.returncode == 2 and "was loaded as it was before its last change" in err:
                process = self.start(store)
                out, err = process.communicate(timeout=300)
            assert process.returncode == 0, err
            found[store] = json.loads(out)
        return found["store"], found[clean]


def _edit(world: World, count: int, seed: int) -> Counter[str]:
    """Makes seeded edits, builds twice after each, and compares; returns how many edits of each kind there were."""
    draw = random.Random(seed)
    seen: set[str] = set()
    tally: Counter[str] = Counter()
    for number in range(count + 1):
        kind, what = "first", ""
        if number:
            kind = draw.choice(["code", "code", "beside", "beside", "apart", "touch", "back"])
            source = [name for name in FILES if (name.endswith(".py")) == (kind == "code")]
            name = draw.choice({"apart": list(APART), "touch": list(FILES)}.get(kind, source))
            path, what = world.folder / "user/own" / name, f"edit {number} ({kind}: {name})"
            before = path.stat() if path.exists() else None
            if kind == "back":
                for each in FILES:
                    world.state[each] = 0
                    world.write(each)
            elif kind == "touch":
                if before:
                    os.utime(path, ns=(draw.randrange(10**18), draw.randrange(10**18)))
            else:
                others = range(len((FILES | APART)[name]))
                world.state[name] = draw.choice([i for i in others if i != world.state[name]])
                world.write(name)
                if before and path.exists() and draw.random() < 0.3:
                    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
        tally[kind] += 1
        now, clean = world.build_both(f"clean {number}")
        shutil.rmtree(world.folder / f"clean {number}")
        assert all(row["status"] == "executed" for row in clean.values()) and {"export", "fuse"} <= set(now)
        differing = [step for step, row in now.items() if row["object"] != clean[step]["object"]]
        assert not differing, f"{what}: {differing} are not what a clean build makes"
        state = json.dumps({name: world.state[name] for name in FILES}, sort_keys=True)
        ran = [step for step, row in now.items() if row["status"] == "executed"]
        assert state not in seen or not ran, f"{what}: {ran} ran in vain"
        seen.add(state)
    return tally


@pytest.mark.soak
@pytest.mark.timeout(3600)
def test_after_30_edits_of_an_own_network_every_result_is_a_clean_builds(tmp_path: Path) -> None:
    tally = _edit(World(tmp_path), 30, seed=0)
    print(dict(tally))
    assert min(tally[kind] for kind in ("code", "beside", "apart", "touch")) >= 2


def test_after_some_edits_of_an_own_network_every_result_is_a_clean_builds(tmp_path: Path) -> None:
    """A seeded sample of the soak test."""
    _edit(World(tmp_path), 1, seed=5)
