"""Edits of everything that a result may hang on: what a build keeps is always what a clean build would make.

A world is a copy of this package with user code, an installed distribution, weights and data beside it, so that all
of it can really be edited. After each edit one build goes on in a store that has seen all edits before, and one starts
from nothing; by both every step's bytes must be equal.
"""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import json
import os
import random
import shutil
import subprocess
import sys
import zipfile
from collections import Counter
from collections.abc import Callable
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import pytest
from conftest import CONF, ROOT, Done

SOURCES: dict[str, tuple[str, ...]] = {
    "compiler/backends/null.py": ("] += 180", "] += 170", "] += 160"),
    "compiler/conversion.py": ("PROBE_SAMPLES = 64", "PROBE_SAMPLES = 48"),
    "compiler/runtime/null.py": ('tensor("logits"', 'tensor("scores"'),
    "compiler/proportions.py": ("Z_95 = 1.959964", "Z_95 = 1.644854"),
    "compiler/walker.py": ("MAX_JOBS = 4", "MAX_JOBS = 3"),
    "compiler/commands/plan.py": ("KEY_CHARACTERS = 12", "KEY_CHARACTERS = 16"),
    "user/own/reading.py": ("EVERY = 7", "EVERY = 5"),
    "user/own/twist.py": ("TURN = 1", "TURN = 2", "TURN = 3"),
    "user/own/helper.py": ("STEP = 1", "STEP = 2", "STEP = 3"),
    "user/own/deep.py": ("DEPTH = 1", "DEPTH = 2"),
    "user/own/score.py": ("SHARE = 1.0", "SHARE = 0.5"),
}
"""File -> texts that stand there in turn. All but those of the walker and of `plan` change some result."""

FIELDS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "seed": (("0", "1", "2"), ("*",)),
    "steps.samples.classes": (("4", "3"), ("samples",)),
    "steps.export.scale": (("1.0", "0.5", "2.0"), ("export",)),
    "candidate.null_int8.steps.convert.noise": (("0.0", "0.001"), ("null_int8.convert",)),
    "candidate.null_int8.steps.quantize.bits": (("8", "7", "6"), ("null_int8.quantize",)),
    "candidate.twist.steps.twist.gain": (("1.0", "2.0", "3.0"), ("twist.twist",)),
    "candidate.twist.options.streams": (("1", "2"), ("evaluate.*.twist",)),
    "data.metric": (("top1", "own.score:right"), ("evaluate.*",)),
    "executor.jobs": (("0", "1"), ()),
    "executor.time_limit_s": (("600", "900"), ()),
    "budget.size_mb": (("1", "2"), ()),
    "steps.benchmark.rounds": (("1", "2"), ()),
}
"""Key -> its values in turn, and the steps that have it among what decides their result."""

INPUTS = {"weights": ("export",), "data": ("samples",), "table": ("twist.twist",)}
"""File outside the store -> the steps that read it."""

BESIDE = {
    "own/anchors.json": ("twist.twist",),
    "own/parts/one.json": ("twist.twist",),
    "own/width.yaml": ("export",),
    "own/weights of classes.txt": ("evaluate.*",),
}
"""File next to own code -> the steps whose code reads it, where it takes part. No configuration names it."""

VARIABLES: dict[str, tuple[tuple[str | None, ...], tuple[str, ...]]] = {
    "LISTED": ((None, "a", "b"), ("*",)),
    "UNLISTED": ((None, "a", "b"), ()),
    "PYTHONHASHSEED": (("0", "1", "random"), ()),
    "TZ": (("UTC", "Asia/Tokyo"), ()),
    "LANG": (("C.UTF-8", "de_DE.ISO-8859-1"), ()),
    "HOME": (("home a", "home b"), ()),
    "cwd": (("folder a", "folder b"), ()),
}
"""Variable (or working folder) -> its values in turn, and the steps whose keys it concerns."""

TOOL: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "version": (("1.0", "1.1"), ("twist.twist",)),
    "factor": (("1", "2", "3"), ("twist.twist",)),
    "bytecode": (("", "nulltool.cpython-311.pyc,,", "__pycache__/nulltool.pyc,sha256=x,9"), ()),
    "script": (("", "../../../bin/nulltool,sha256=y,8"), ()),
}
"""What an edit of the installed distribution changes: version, a module with its hash, lines that say nothing."""

READING = """
import dataclasses, json
from pathlib import Path
import numpy as np
from compiler.backends import null
from compiler.conversion import PROBE, SIGNATURE, probe
from compiler.stage import write_json

EVERY = 7

@dataclasses.dataclass(kw_only=True)
class Samples(null.Samples):
    def run(self, inputs, out):
        facts = super().run(inputs, out)
        shift = sum(self.source.read_bytes()) % 4
        for path in sorted(out.glob("*.labels.npy")):
            labels = np.load(path)
            labels[shift::EVERY] = (labels[shift::EVERY] + 1) % self.classes
            np.save(path, labels)
        return facts

@dataclasses.dataclass(kw_only=True)
class Export(null.Export):
    def run(self, inputs, out):
        facts = super().run(inputs, out)
        stored = dict(np.load(out / "model.npz"))
        noise = np.random.default_rng(list(self.weights.read_bytes())).standard_normal(stored["weight"].shape)
        stored["weight"] *= 1 + int((Path(__file__).parent / "width.yaml").read_text())
        stored["weight"] += (4 * noise + np.random.random()).astype(np.float32)
        np.savez(out / "model.npz", **stored)
        before = json.loads((out / SIGNATURE).read_text())
        outputs, signature = probe(out / "model.npz", "null", {}, before, inputs["samples"], "NHWC")
        np.save(out / PROBE, outputs)
        write_json(out / SIGNATURE, signature)
        return facts
"""

TWIST = """
import dataclasses, json, os
from pathlib import Path
from typing import ClassVar
from compiler.backends.null import Convert
from own.helper import step

TURN = 1
ANCHORS = json.loads((Path(__file__).parent / "anchors.json").read_text())

@dataclasses.dataclass(kw_only=True)
class Twist(Convert):
    tools: ClassVar[tuple[str, ...]] = ("numpy", "nulltool")
    gain: float = 1.0
    table: Path | None = None

    def convert(self, inputs, out):
        import nulltool
        super().convert(inputs, out)
        notes = {
            "made of": [TURN, step(), ANCHORS, self.gain, nulltool.FACTOR, nulltool.__version__,
                        self.table.read_text()],
            "listed": os.environ.get("LISTED"), "unlisted": os.environ.get("UNLISTED"), "names": sorted(os.environ),
        }
        (out / "notes.json").write_text(json.dumps(notes))
        return {}

@dataclasses.dataclass(kw_only=True)
class Greedy(Convert):
    level = 3  # no annotation: no field

    def convert(self, inputs, out):
        return {"strength": self.strength}

@dataclasses.dataclass(kw_only=True)
class Secretive(Convert):
    def convert(self, inputs, out):
        import importlib
        importlib.import_module("own." + "hidden")
        return super().convert(inputs, out)

@dataclasses.dataclass(kw_only=True)
class Diverted(Convert):
    def convert(self, inputs, out):
        import sys
        sys.path.insert(0, str(Path(__file__).parents[2] / "elsewhere"))
        import twofold
        return super().convert(inputs, out)
"""

HELPER = """
STEP = 1

def step():
    from own.deep import DEPTH, parts
    return STEP * 10 + DEPTH + parts()
"""

DEEP = """
from pathlib import Path

DEPTH = 1

def parts():
    folder = Path(__file__).parent / "parts"
    return sum(int(path.read_text()) * 1000 for path in sorted(folder.glob("*.json")))
"""

SCORE = """
from pathlib import Path

SHARE = 1.0

def right(outputs, labels):
    share = float((Path(__file__).parent / "weights of classes.txt").read_text()) + 1
    return (outputs.argmax(axis=1) == labels) * SHARE / share
"""

CANDIDATE = """
backend: own.twist
runtime: 'null'
precision: fp32
after: export
artifact: model.npz
steps: {{{step}: {{}}}}
"""


class World:
    """A folder in which everything that a build depends on can be edited."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.state: dict[str, str | None] = {}
        ignored = shutil.ignore_patterns("__pycache__", "*.safetensors")
        shutil.copytree(ROOT / "compiler", folder / "compiler", ignore=ignored)
        shutil.copytree(ROOT / "conf", folder / "conf")
        shutil.copytree(CONF, folder / "more")
        own = folder / "user" / "own"
        own.mkdir(parents=True)
        for name, text in {
            "reading": READING, "twist": TWIST, "helper": HELPER, "score": SCORE, "deep": DEEP,
            "hidden": "",
        }.items():  # fmt: skip
            (own / f"{name}.py").write_text(text)
        for step in ("twist", "greedy", "secretive", "diverted"):
            (folder / "more/candidate" / f"{step}.yaml").write_text(CANDIDATE.format(step=step))
        for name in ("user", "elsewhere"):
            (folder / name).mkdir(exist_ok=True)
            (folder / name / "twofold.py").write_text(f"{name} = 1\n")
        for name in ("tmp", *(value for row in ("HOME", "cwd") for value in VARIABLES[row][0] if value)):
            (folder / name).mkdir()
        for name, (values, _) in (FIELDS | VARIABLES | TOOL).items():
            self.state[name] = values[0]
        for name in INPUTS:
            self.state[name] = "0"
            self.write_input(name)
        for name in BESIDE:
            self.state[name] = "0"
            self.write_beside(name)
        for name in SOURCES:
            self.state[name], self.state[f"comment of {name}"] = "0", ""
            text = self._path_of(name).read_text()
            assert text.count(SOURCES[name][0]) == 1, f"{name} has no {SOURCES[name][0]!r} any more: name another text"
        self.write_tool()

    # -- builds ----------------------------------------------------------------------------------------------------

    def start(self, store: str, *arguments: str, candidates: str = "null_int8,twist") -> subprocess.Popen[str]:
        """A process in this world with its present state; `arguments` are words of Python's command line."""
        state = self.state
        given = {
            "PATH": os.environ["PATH"],
            "PYTHONPATH": os.pathsep.join(str(self.folder / name) for name in ("", "user", "lib/site-packages")),
            "TMPDIR": str(self.folder / "tmp"),
            **{name: value for name in VARIABLES if (value := state[name]) is not None and name != "cwd"},
            "HOME": str(self.folder / str(state["HOME"])),
        }
        overrides = [
            "--config-dir", str(self.folder / "more"), "target=nulltarget", "model=nullmodel",
            f"candidates=[{candidates}]", f"artifacts_dir={self.folder / store}", "executor.environment=[LISTED]",
            "steps.samples.stage=own.reading.samples", f"steps.samples.source={self.path_to('data')}",
            "steps.export.stage=own.reading.export", f"model.weights={self.path_to('weights')}",
        ]  # fmt: skip
        if "twist" in candidates:
            overrides.append(f"candidate.twist.steps.twist.table={self.path_to('table')}")
        overrides += [f"{name}={state[name]}" for name in FIELDS if self._concerns(name, candidates)]
        return subprocess.Popen(
            [sys.executable, *arguments, *overrides], env=given, cwd=self.folder / str(state["cwd"]), text=True,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip

    def build(self, store: str = "store", candidates: str = "null_int8,twist") -> dict[str, Any]:
        """What `portable.py` says of every step."""
        return finished(self.start(store, str(ROOT / "tests/portable.py"), candidates=candidates))

    def build_both(self, clean: str, asked_again: list[str]) -> tuple[dict[str, Any], dict[str, Any]]:
        """An incremental build and, at the same time, one in the empty store `clean`."""
        processes = {store: self.start(store, str(ROOT / "tests/portable.py")) for store in (clean, "store")}
        found = {}
        for store, process in processes.items():
            out, err = process.communicate(timeout=300)
            if process.returncode == 2 and "was loaded as it was before its last change" in err:
                asked_again.append(err.splitlines()[-1])
                found[store] = self.build(store)
            else:
                assert process.returncode == 0, err
                found[store] = json.loads(out)
        return found["store"], found[clean]

    def plan(self) -> dict[str, dict[str, Any]]:
        """The plan's rows by step name; asked again where the process had loaded source of before (it says so)."""
        for _ in range(2):
            process = self.start("store", "-m", "compiler", "plan", "--json")
            out, err = process.communicate(timeout=300)
            if process.returncode == 0:
                break
            assert process.returncode == 2 and "was loaded as it was before its last change" in err, err
        return {row["name"]: row for row in json.loads(out)["steps"]}

    def fails(self, candidate: str, *overrides: str) -> Done:
        """A build of one candidate that is to fail."""
        process = self.start("store", str(ROOT / "tests/portable.py"), *overrides, candidates=candidate)
        out, err = process.communicate(timeout=120)
        assert process.returncode != 0
        return Done(process.returncode, out, err)

    @staticmethod
    def _concerns(name: str, candidates: str) -> bool:
        return not name.startswith("candidate.") or name.split(".")[1] in candidates.split(",")

    # -- what is there ---------------------------------------------------------------------------------------------

    def path_to(self, name: str) -> Path:
        """An input's file; `NAME path` in the state chooses between two with the same content."""
        return self.folder / f"{name} {self.state.get(f'{name} path') or 'one'}.bin"

    def write_input(self, name: str) -> None:
        """Both files of an input, with the content that the state says."""
        for which in ("one", "two"):
            (self.folder / f"{name} {which}.bin").write_text(f"{name} {self.state[name]}\n")

    def write_beside(self, name: str) -> None:
        """The file next to own code as the state says; None: there is none."""
        path = self.folder / "user" / name
        path.parent.mkdir(exist_ok=True)
        if self.state[name] is None:
            path.unlink(missing_ok=True)
        else:
            path.write_text(str(self.state[name]))

    def write_source(self, name: str) -> None:
        """The source file as the state says."""
        path = self._path_of(name)
        text = path.read_text().partition("\n# remark")[0]
        for variant in SOURCES[name]:
            text = text.replace(variant, SOURCES[name][int(self.state[name] or 0)])
        path.write_text(text + str(self.state[f"comment of {name}"]))

    def write_tool(self) -> None:
        """The installed distribution as the state says."""
        site = self.folder / "lib/site-packages"
        shutil.rmtree(site, ignore_errors=True)
        version = self.state["version"]
        info = site / f"nulltool-{version}.dist-info"
        info.mkdir(parents=True)
        source = f"__version__ = {version!r}\nFACTOR = {self.state['factor']}\n"
        (site / "nulltool.py").write_text(source)
        metadata = f"Metadata-Version: 2.1\nName: nulltool\nVersion: {version}\n"
        (info / "METADATA").write_text(metadata)
        record = [_record("nulltool.py", source.encode()), _record(f"{info.name}/METADATA", metadata.encode())]
        record += [line for name in ("bytecode", "script") if (line := str(self.state[name]))]
        (info / "RECORD").write_text("".join(f"{line}\n" for line in [*record, f"{info.name}/RECORD,,"]))

    def _path_of(self, name: str) -> Path:
        return self.folder / name

    def own_state(self, step: str, modules: list[str]) -> dict[str, str | None]:
        """All that a step's result may hang on, its inputs from other steps apart, by what this file declares."""
        declared = {
            **{name: steps for name, (_, steps) in (FIELDS | VARIABLES | TOOL).items()},
            **INPUTS,
            **{name: steps for name, steps in BESIDE.items() if "classes" not in name or "own.score" in modules},
        }
        found = {n: self.state[n] for n, steps in declared.items() if any(fnmatch(step, p) for p in steps)}
        for name in SOURCES:
            module = name.removesuffix(".py").removeprefix("user/").replace("/", ".")
            if module in modules:
                found[name] = hashlib.sha256(self._path_of(name).read_bytes()).hexdigest()
        return found

    # -- edits -----------------------------------------------------------------------------------------------------

    def edit(self, kind: str, draw: random.Random) -> str:
        """One edit of that kind; says in words what it did."""
        edits: dict[str, Callable[[random.Random], str]] = {
            "config": self._edit_config,
            "source": self._edit_source,
            "input": self._edit_input,
            "environment": self._edit_environment,
            "beside": self._edit_beside,
        }
        return edits[kind](draw)

    def set(self, name: str, draw: random.Random, values: tuple[Any, ...]) -> str:
        """Another one of `values`; values of before come back."""
        old = self.state.get(name)
        self.state[name] = draw.choice([value for value in values if value != old])
        return f"{name} from {old!r} to {self.state[name]!r}"

    def _edit_config(self, draw: random.Random) -> str:
        if draw.random() < 0.1:
            return self.set(f"{draw.choice(sorted(INPUTS))} path", draw, ("one", "two"))
        name = draw.choice(sorted(FIELDS))
        return self.set(name, draw, FIELDS[name][0])

    def _edit_source(self, draw: random.Random) -> str:
        name = draw.choice(sorted(SOURCES))
        path = self._path_of(name)
        before = path.stat()
        how = draw.choice(["constant", "constant", "quietly", "comment", "touch", "revert"])
        if how == "comment":
            said = self.set(f"comment of {name}", draw, ("", "\n# remark one\n", "\n# remark two\n\n\n"))
        elif how == "revert":
            self.state[name], self.state[f"comment of {name}"], said = "0", "", f"{name} as it was at first"
        elif how == "touch":
            said = f"{name} touched"
        else:
            said = self.set(name, draw, tuple(str(i) for i in range(len(SOURCES[name]))))
        self.write_source(name)
        if how == "quietly" and path.stat().st_size == before.st_size:
            os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
            said += ", size and time kept"
        return said

    def _edit_input(self, draw: random.Random) -> str:
        name = draw.choice(sorted(INPUTS))
        path = self.path_to(name)
        before = path.stat()
        how = draw.choice(["content", "content", "quietly", "touch", "rename", "copy", "mode"])
        if how in ("content", "quietly"):
            said = self.set(name, draw, tuple("012345"))
            self.write_input(name)
            if how == "quietly":
                os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
                said += ", size and time kept"
            return said
        if how == "touch":
            os.utime(path, ns=(draw.randrange(10**18), draw.randrange(10**18)))
        elif how == "rename":
            path.rename(path.with_suffix(".away"))
            path.with_suffix(".away").rename(path)
        elif how == "copy":
            shutil.copyfile(path, path.with_suffix(".copy"))
            path.with_suffix(".copy").replace(path)
        else:
            path.chmod(draw.choice([0o444, 0o644, 0o600, 0o755]))
        return f"{name}: {how}"

    def _edit_beside(self, draw: random.Random) -> str:
        name = draw.choice(sorted(BESIDE))
        path = self.folder / "user" / name
        if draw.random() < 0.2 and path.exists():
            os.utime(path, ns=(draw.randrange(10**18), draw.randrange(10**18)))
            return f"{name}: touched"
        said = self.set(name, draw, (None, *"0123") if "parts" in name else tuple("0123"))
        before = path.stat() if path.exists() else None
        self.write_beside(name)
        if before is not None and path.exists() and draw.random() < 0.3:
            os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
            said += ", size and time kept"
        return said

    def _edit_environment(self, draw: random.Random) -> str:
        if draw.random() < 0.5:
            name = draw.choice(sorted(TOOL))
            said = self.set(name, draw, TOOL[name][0])
            self.write_tool()
            return f"nulltool's {said}"
        name = draw.choice(sorted(VARIABLES))
        return self.set(name, draw, VARIABLES[name][0])


def finished(process: subprocess.Popen[str]) -> dict[str, Any]:
    """What a process printed as JSON; it must end well."""
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    found: dict[str, Any] = json.loads(out)
    return found


def _record(path: str, content: bytes) -> str:
    """A line of a RECORD file."""
    digest = base64.urlsafe_b64encode(hashlib.sha256(content).digest()).decode().rstrip("=")
    return f"{path},sha256={digest},{len(content)}"


@dataclasses.dataclass
class Tally:
    """What became of the steps after all edits."""

    edits: Counter[str] = dataclasses.field(default_factory=Counter)
    executed: Counter[str] = dataclasses.field(default_factory=Counter)
    reused: Counter[str] = dataclasses.field(default_factory=Counter)
    same_bytes: Counter[str] = dataclasses.field(default_factory=Counter)
    """Steps that ran and gave the bytes that they had given before the edit, by the kind of edit."""
    cut_off: int = 0
    """Steps that were reused although a step that fills one of their inputs had run again."""
    stale: list[str] = dataclasses.field(default_factory=list)
    differing: list[str] = dataclasses.field(default_factory=list)
    asked_again: list[str] = dataclasses.field(default_factory=list)
    """Builds that ended with the request to run again, because their own process had loaded source of before."""
    superfluous: list[str] = dataclasses.field(default_factory=list)
    unnoticed: list[str] = dataclasses.field(default_factory=list)

    def __str__(self) -> str:
        total, stale, vain = sum(self.edits.values()), len(self.stale), len(self.superfluous)
        rows = [f"{total} edits; {stale} stale hits; {vain} superfluous runs"]
        for kind in sorted(self.edits):
            rows.append(
                f"  {kind}: {self.edits[kind]} edits, {self.executed[kind]} steps ran "
                f"({self.same_bytes[kind]} of them gave the same bytes), {self.reused[kind]} reused"
            )
        rows.append(f"  {self.cut_off} times a step was reused below one that had run again")
        rows.append(f"  {len(self.asked_again)} builds asked to be run again")
        return "\n".join(rows)


def _edit(world: World, tally: Tally, count: int, seed: int) -> Tally:
    """Makes seeded edits with an incremental and a clean build after each."""
    draw = random.Random(seed)
    ran: dict[str, set[str]] = {}
    keys: set[str] = set()
    last: dict[str, dict[str, Any]] = {}
    kinds: list[str] = []
    for number in range(count + 1):
        kinds = kinds or draw.sample(["config", "source", "input", "environment", "beside"], 5)
        kind = kinds.pop() if number else "first"
        what = world.edit(kind, draw) if number else "first build"
        now, clean = world.build_both(f"clean {number}", tally.asked_again)
        shutil.rmtree(world.folder / f"clean {number}")
        assert set(now) == set(clean) and len(now) == 11
        assert all(row["status"] == "executed" for row in clean.values())
        tally.edits[kind] += number > 0
        for step, row in now.items():
            told = f"edit {number} ({kind}: {what}): {step} ({row['why']})"
            executed = row["status"] == "executed"
            if row["object"] != clean[step]["object"]:
                (tally.differing if executed else tally.stale).append(told)
            own = world.own_state(step, row["modules"])
            state = json.dumps([own, [now[name]["object"] for name in row["inputs"]]], sort_keys=True)
            before = ran.setdefault(step, set())
            if executed and (state in before or row["key"] in keys):
                tally.superfluous.append(told)
            if not executed and state not in before:
                tally.unnoticed.append(told)
            if executed:
                before.add(state)
                keys.add(row["key"])
            same = step in last and last[step]["object"] == row["object"]
            tally.executed[kind] += executed and number > 0
            tally.reused[kind] += not executed
            tally.same_bytes[kind] += executed and same
            tally.cut_off += not executed and any(now[name]["status"] == "executed" for name in row["inputs"])
        last = now
    return tally


def _judge(tally: Tally) -> None:
    assert tally.stale == [], "a result was served that a clean build does not make"
    assert tally.differing == [], "a step gave other bytes than in a clean build"
    assert tally.superfluous == [], "a step ran although nothing that decides its result had changed"
    assert tally.unnoticed == [], "a step was reused in a state in which it had never run"


@pytest.mark.soak
@pytest.mark.timeout(3600)
def test_after_300_edits_every_result_is_a_clean_builds_and_nothing_ran_in_vain(tmp_path: Path) -> None:
    tally = _edit(World(tmp_path), Tally(), 300, seed=0)
    print(tally)
    _judge(tally)
    assert min(tally.edits[kind] for kind in tally.edits if kind != "first") >= 60 and tally.cut_off >= 5


def test_after_some_edits_every_result_is_a_clean_builds_and_nothing_ran_in_vain(tmp_path: Path) -> None:
    """A seeded sample of the soak test: two edits of each kind."""
    _judge(_edit(World(tmp_path), Tally(), 10, seed=1))


@pytest.fixture
def world(tmp_path: Path) -> World:
    """A world in which nothing was built yet."""
    return World(tmp_path)


def _executed(found: dict[str, dict[str, Any]]) -> set[str]:
    return {name for name, row in found.items() if row["status"] == "executed"}


def test_what_runs_again_and_gives_the_same_bytes_stops_the_wave(world: World) -> None:
    first = world.build()
    for name in ("user/own/reading.py", "user/own/deep.py"):
        world.state[f"comment of {name}"] = "\n# remark\n"
        world.write_source(name)
    second = world.build()
    assert _executed(second) == {"samples", "export", "twist.twist"}
    assert {name: row["object"] for name, row in second.items()} == {n: row["object"] for n, row in first.items()}
    world.state["user/own/deep.py"] = "1"
    world.write_source("user/own/deep.py")
    third = world.build()
    assert _executed(third) == {"twist.twist", "evaluate.selection.twist", "evaluate.report.twist"}
    assert third["twist.twist"]["why"] == "source of own/deep.py changed"


def test_source_edited_within_the_second_in_which_it_was_compiled_is_noticed(world: World) -> None:
    """Python takes a compiled file for current by the source's size and second alone."""
    path = world.folder / "user/own/helper.py"
    before, clock = world.build()["twist.twist"], path.stat()
    assert list(path.parent.glob("__pycache__/helper.*.pyc"))
    path.write_text(path.read_text().replace("STEP = 1", "STEP = 2"))
    os.utime(path, ns=(clock.st_atime_ns, clock.st_mtime_ns))
    said: list[str] = []
    after, clean = world.build_both("clean", said)
    assert json.loads((_result(world, after["twist.twist"]) / "notes.json").read_text())["made of"][1] % 1000 == 21
    assert after["twist.twist"]["object"] == clean["twist.twist"]["object"] != before["object"]
    assert all("own/helper.py was loaded as it was before its last change" in line for line in said)


def _result(world: World, row: dict[str, Any], store: str = "store") -> Path:
    digest: str = row["object"]
    return world.folder / store / ".store/objects" / digest[:2] / digest


def test_plan_says_in_one_line_why_a_step_would_run(world: World) -> None:
    assert world.plan()["samples"]["why"] == "first run"
    first = world.build()
    assert {row["why"] for row in world.plan().values() if row["name"] in first} == {"in the store"}

    def why(name: str, value: str, step: str, write: Callable[[], None] = lambda: None) -> str:
        """What `plan` says of `step` while `name` has another value."""
        old, world.state[name] = world.state[name], value
        write()
        said = world.plan()[step]
        assert said["state"] == "miss"
        world.state[name] = old
        write()
        return str(said["why"])

    helper = "user/own/helper.py"
    assert why("candidate.twist.steps.twist.gain", "2.5", "twist.twist") == "field gain from 1.0 to 2.5"
    assert why("seed", "5", "samples") == "field seed from 0 to 5"
    assert why("weights", "9", "export", lambda: world.write_input("weights")) == "the content of weights changed"
    assert why(helper, "1", "twist.twist", lambda: world.write_source(helper)) == "source of own/helper.py changed"
    assert why("version", "1.1", "twist.twist", world.write_tool) == "nulltool 1.0 to 1.1"
    assert why("factor", "2", "twist.twist", world.write_tool) == "nulltool 1.0 to 1.0 (other files)"
    assert why("LISTED", "a", "samples") == "environment variable LISTED changed"
    assert {row["why"] for row in world.plan().values() if row["name"] in first} == {"in the store"}

    shutil.move(_result(world, first["twist.twist"]), world.folder / "away")
    assert world.plan()["twist.twist"]["why"] == "result missing or corrupt"
    world.state["steps.export.scale"] = "0.25"
    second = world.build(candidates="twist")  # the other candidate is left with the old one's result
    assert second["export"]["why"] == "field scale from 1.0 to 0.25"
    assert second["twist.twist"]["why"] == "input of export changed"
    assert world.plan()["null_int8.convert"]["why"] == "input of export changed"


def test_stage_that_reads_a_field_it_does_not_declare_fails_by_name(world: World) -> None:
    last = world.fails("greedy").last_lines()[1]
    assert last.startswith("error: greedy.greedy: ") and "'Greedy' object has no attribute 'strength'" in last
    done = world.fails("greedy", "candidate.greedy.steps.greedy.level=4")
    assert done.code == 2 and "step greedy.greedy has no field 'level'" in done.last_lines()[1]


def test_module_that_is_loaded_outside_the_closure_is_an_error(world: World) -> None:
    last = world.fails("secretive").last_lines()[1]
    assert last == "error: secretive.secretive: the step loaded modules that its key does not cover: own.hidden"


def test_module_that_is_loaded_from_another_place_than_the_key_covers_is_an_error(world: World) -> None:
    done = world.fails("diverted")
    assert done.code == 2
    assert done.last_lines()[1].endswith(
        f"the step loaded source that its key does not cover: {world.folder / 'elsewhere/twofold.py'}"
    )


def test_listed_variables_reach_a_worker_and_no_others_do(world: World) -> None:
    world.state |= {"LISTED": "yes", "UNLISTED": "no", "TZ": "Asia/Tokyo"}
    notes = json.loads((_result(world, world.build(candidates="twist")["twist.twist"]) / "notes.json").read_text())
    assert notes["listed"] == "yes" and notes["unlisted"] is None and "UNLISTED" not in notes["names"]
    world.state["LISTED"] = None
    notes = json.loads((_result(world, world.build(candidates="twist")["twist.twist"]) / "notes.json").read_text())
    assert notes["listed"] is None and "LISTED" not in notes["names"]


def _wheel(folder: Path, content: str) -> Path:
    """A wheel with a module, a script of its own and one that installers make; version and name are always equal."""
    info = "tinytool-1.0.dist-info"
    files = {
        "tinytool/__init__.py": f"{content}\ndef main():\n    return 0\n",
        "tinytool/table, of all.txt": "1\n",
        "tinytool-1.0.data/scripts/tiny.sh": "#!python\nprint(1)\n",
        f"{info}/METADATA": "Metadata-Version: 2.1\nName: tinytool\nVersion: 1.0\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: by-hand\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"{info}/entry_points.txt": "[console_scripts]\ntinytool = tinytool:main\n",
    }
    lines = [_record(f'"{name}"' if "," in name else name, text.encode()) for name, text in files.items()]
    files[f"{info}/RECORD"] = "".join(f"{line}\n" for line in [*lines, f"{info}/RECORD,,"])
    folder.mkdir()
    path = folder / "tinytool-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for name, text in files.items():
            archive.writestr(name, text)
    return path


def test_pip_and_uv_install_one_wheel_with_one_identity_and_another_file_is_another(tmp_path: Path) -> None:
    uv = shutil.which("uv") or shutil.which("uv", path=str(Path(sys.executable).parent))
    have_pip = subprocess.run([sys.executable, "-m", "pip", "--version"], capture_output=True, check=False).returncode
    if uv is None or have_pip != 0:
        pytest.skip("needs pip and uv: make setup")
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--python"]
    options = ["--no-index", "--no-deps", "--quiet"]

    def identities(name: str, wheel: Path, by_uv: bool) -> dict[str, str]:
        environment = tmp_path / name
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", environment], check=True)
        python = environment / "bin/python"
        if by_uv:
            install = [uv, "pip", "install", "--no-cache", "--offline", *options, "--python", python, wheel]
        else:
            install = [*pip, python, "install", *options, wheel]
        subprocess.run([str(word) for word in install], check=True, capture_output=True, cwd=tmp_path)
        said = subprocess.run(
            [python, "-m", "compiler.keys.tools", "tinytool"], check=True, capture_output=True, text=True,
            cwd=tmp_path, env={"PYTHONPATH": str(ROOT), "PATH": os.environ["PATH"]},
        ).stdout  # fmt: skip
        found: dict[str, str] = json.loads(said)[0]
        assert found["tinytool"].startswith("1.0 ")
        return found

    wheel = _wheel(tmp_path / "one", "FACTOR = 1")
    by_pip, by_uv = identities("by pip", wheel, by_uv=False), identities("by uv", wheel, by_uv=True)
    assert by_pip == by_uv
    assert identities("other", _wheel(tmp_path / "two", "FACTOR = 2"), by_uv=True) != by_uv
