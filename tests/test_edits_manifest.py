"""Edits of the source whose words reach a manifest: a build that goes on says what a clean one says.

Two manifests are compared after each edit. That of a deferred build holds no measured figure: a build from nothing
must give the same, but for times and paths. A measured one is made again in a copy of the store in which every step's
result is kept and every version forgotten.
"""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from conftest import CONF, ROOT, Done

WORDS: dict[str, tuple[str, ...]] = {
    "compiler/deferral.py": (", which {host} has not", ", and {host} has none"),
    "compiler/unfinished.py": ('"deferred: not measured"', '"not measured"'),
    "compiler/selection.py": ("the uncompiled baseline", "the network as it is", "eager execution"),
    "compiler/gates.py": ("95 % upper bound {upper:.2f}, {samples}", "95 % upper bound {upper:.2f} of {samples}"),
    "compiler/manifest.py": ('HOST = "build-host"', 'HOST = "the build host"'),
    "compiler/runtime/noise.py": ("(median absolute deviation)", "(by their median)"),
    "compiler/runtime/host.py": ("LEAST_MEMORY_SHARE = 0.8", "LEAST_MEMORY_SHARE = 0.7"),
    "compiler/runtime/gpu.py": ("an NVIDIA GPU with its driver", "a GPU with a driver"),
    "compiler/proportions.py": ("Z_95 = 1.959964", "Z_95 = 1.644854"),
    "compiler/figures.py": ("MEGABYTE = 1e6", "MEGABYTE = 1048576.0"),
}
"""File -> texts that stand there in turn; each reaches a manifest, or a figure in it."""

APART = (
    "compiler/registries/oci.py",
    "compiler/registries/http.py",
    "compiler/commands/build.py",
    "compiler/commands/show.py",
    "compiler/progress.py",
    "compiler/report.py",
    "compiler/walker.py",
    "compiler/runtime/fetch.py",
)
"""Files of which no word reaches a result or a manifest."""

VARYING = {"version", "created", "digest", "seconds", "why", "status of step", "artifacts_dir", "registry"}


class World:
    """A copy of the package, in which it builds for one target that is here and one that is not."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        ignored = shutil.ignore_patterns("__pycache__", "*.safetensors")
        shutil.copytree(ROOT / "compiler", folder / "compiler", ignore=ignored)
        shutil.copytree(ROOT / "conf", folder / "conf")
        shutil.copytree(CONF, folder / "more")
        (folder / "tmp").mkdir()
        for name, texts in WORDS.items():
            text = (folder / name).read_text()
            assert text.count(texts[0]) == 1, f"{name} has no {texts[0]!r}, or more than one"
            assert not any(other in text.replace(texts[0], "") for other in texts[1:]), f"{name} has another of {texts}"
        for name in APART:
            assert (folder / name).is_file(), f"{name} is no more: name another file"

    def start(self, target: str, store: str) -> subprocess.Popen[str]:
        """A build as a process of its own."""
        given = {"PATH": os.environ["PATH"], "HOME": str(self.folder), "TMPDIR": str(self.folder / "tmp")}
        words = ["--config-dir", str(self.folder / "more"), f"target={target}", "model=nullmodel"]
        return subprocess.Popen(
            [sys.executable, "-m", "compiler", *words, f"artifacts_dir={self.folder / store}"],
            env=given, cwd=self.folder, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip

    def built(self, target: str, store: str) -> Done:
        """A finished build; run again where its process had loaded source of before the edit (it says so)."""
        for _ in range(2):
            process = self.start(target, store)
            out, err = process.communicate(timeout=300)
            if process.returncode != 2 or "was loaded as it was before its last change" not in err:
                break
        assert process.returncode == 0, err
        return Done(process.returncode, out, err)

    def forgetful(self, store: str, copy: str) -> str:
        """A copy of a store with every step's result and without versions."""
        shutil.copytree(self.folder / store / ".store", self.folder / copy / ".store", symlinks=True)
        for name in ("versions", "latest"):
            shutil.rmtree(self.folder / copy / ".store" / name, ignore_errors=True)
        return copy

    def write(self, name: str, text: str, quietly: bool) -> None:
        """Replaces a source file; quietly: its time stays as it was, and so does its size where the text's is equal."""
        before = (self.folder / name).stat()
        (self.folder / name).write_text(text)
        if quietly:
            os.utime(self.folder / name, ns=(before.st_atime_ns, before.st_mtime_ns))


def _said(manifest: Any, folder: Path) -> Any:
    """A manifest without what differs between two builds of one thing: times, names made of them, this test's paths."""
    if isinstance(manifest, dict):
        step = {"key", "seconds"} <= set(manifest)
        left_out = VARYING | ({"status"} if step else set())
        return {name: _said(value, folder) for name, value in manifest.items() if name not in left_out}
    if isinstance(manifest, list):
        return [_said(value, folder) for value in manifest]
    if isinstance(manifest, str):
        return re.sub(r"clean \d+|store", "STORE", manifest.replace(str(folder), "FOLDER"))
    return manifest


def _edit(world: World, count: int, seed: int) -> Counter[str]:
    """Makes seeded edits, builds after each, and compares; returns how many edits of each kind there were."""
    draw = random.Random(seed)
    state = {name: 0 for name in WORDS}
    seen: dict[str, set[str]] = {"nulltarget": set(), "gputarget": set()}
    tally: Counter[str] = Counter()
    for number in range(count + 1):
        kind, what = "first", ""
        if number:
            kind = draw.choice(["words", "words", "words", "apart", "touch"])
            name = draw.choice(sorted(WORDS if kind != "apart" else APART))
            what = f"edit {number} ({kind} of {name})"
            text = (world.folder / name).read_text()
            if kind == "words":
                old = state[name]
                state[name] = draw.choice([i for i in range(len(WORDS[name])) if i != old])
                world.write(name, text.replace(WORDS[name][old], WORDS[name][state[name]]), draw.random() < 0.3)
            elif kind == "apart":
                world.write(name, f"{text}\n# remark {number}\n", quietly=False)
            else:
                os.utime(world.folder / name, ns=(draw.randrange(10**18), draw.randrange(10**18)))
        tally[kind] += 1
        for target, seen_states in seen.items():
            done = world.built(target, "store")
            now = json.dumps(state, sort_keys=True)
            idle = "Nothing to do" in done.out
            assert idle == (now in seen_states), f"{what}: {target} {'was idle' if idle else 'worked in vain'}"
            assert not (idle and done.executed), f"{what}: {done.executed}"
            seen_states.add(now)
            copy = f"clean {number}" if target == "gputarget" else world.forgetful("store", f"clean {number} measured")
            clean = world.built(target, copy)
            assert "Nothing to do" not in clean.out and (target == "gputarget") == bool(clean.executed), what
            assert _said(done.manifest, world.folder) == _said(clean.manifest, world.folder), what
            shutil.rmtree(world.folder / copy)
    return tally


@pytest.mark.soak
@pytest.mark.timeout(3600)
def test_after_40_edits_of_words_every_manifest_is_a_clean_builds(tmp_path: Path) -> None:
    tally = _edit(World(tmp_path), 40, seed=0)
    print(dict(tally))
    assert min(tally[kind] for kind in ("words", "apart", "touch")) >= 5


def test_after_some_edits_of_words_every_manifest_is_a_clean_builds(tmp_path: Path) -> None:
    """A seeded sample of the soak test."""
    _edit(World(tmp_path), 2, seed=3)
