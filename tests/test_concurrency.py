"""Builders side by side: one execution a key, nobody waits for the dead, nobody sees half a result."""

from __future__ import annotations

import hashlib
import json
import os
import random
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from conftest import ROOT, Project, command, environment
from processes import processes, start, wait_for, wait_for_worker, wait_until, workers

from compiler.canonical import digest
from compiler.errors import CompilerError
from compiler.runtime.verify import verify
from compiler.store import Store, upkeep

TESTS = ROOT / "tests"
SLOW = ("candidates=[null_slow]", "candidate.null_slow.steps.convert.delay_s=2")
LINE = re.compile(r"^([0-9.]+) (.*)$", re.M)


@dataclass
class Said:
    """What a builder said, and when."""

    path: Path

    @property
    def lines(self) -> list[tuple[float, str]]:
        """Time and words of each line."""
        return [(float(when), what) for when, what in LINE.findall(self.path.read_text())]

    @property
    def process(self) -> int:
        """Its process."""
        return int(self.lines[0][1].split()[1])

    def when(self, start: str) -> list[float]:
        """When it said something that starts so."""
        return [when for when, what in self.lines if what.startswith(start)]

    @property
    def made(self) -> dict[str, str] | None:
        """The digests of the results, if it came to its end."""
        found = [what for _, what in self.lines if what.startswith("made ")]
        return json.loads(found[0].removeprefix("made ")) if found else None


@contextmanager
def builders(
    project: Project, count: int, steps: str, *overrides: str
) -> Iterator[tuple[list[Said], subprocess.Popen]]:
    """`count` builders of `steps` in one store, started at the same moment; ended at the end."""
    logs = project.artifacts.parent / f"logs-{time.monotonic_ns()}"
    logs.mkdir(parents=True)
    process = subprocess.Popen(
        [sys.executable, TESTS / "builders.py", str(count), logs, steps, *map(str, project.base), *overrides],
        cwd=TESTS, env=environment(),
    )  # fmt: skip
    said = [Said(logs / f"{number}.txt") for number in range(count)]
    try:
        wait_until(lambda: all(one.path.exists() and one.lines for one in said), "all builders began", 60)
        yield said, process
    finally:
        if process.poll() is None:
            for one in said:
                if one.made is None and one.path.exists() and one.lines:
                    os.kill(one.process, signal.SIGKILL)
            process.wait(timeout=20)


def times(said: list[Said], words: str) -> int:
    """How often anybody said what starts so."""
    return sum(len(one.when(words)) for one in said)


# -- one key -------------------------------------------------------------------------------------------------------


def test_of_twenty_builders_of_one_key_one_executes_and_the_others_wait_and_say_so(project: Project) -> None:
    with builders(project, 20, "null_slow.convert", *SLOW) as (said, process):
        assert process.wait(timeout=120) == 0, [one.path.read_text() for one in said]
    for step in ("samples", "export", "null_slow.convert"):
        assert times(said, f"{step}: running") == times(said, f"{step}: done") == 1, step
    assert times(said, "null_slow.convert: waiting for another build that makes it (process ") == 19
    assert len({json.dumps(one.made) for one in said}) == 1 and said[0].made
    assert set(said[0].made) == {"samples", "export", "null_slow.convert"}


def test_killed_builders_execution_is_taken_over_by_one_of_those_that_wait(project: Project) -> None:
    running = "null_slow.convert: running"
    with builders(project, 20, "null_slow.convert", *SLOW) as (said, process):
        wait_until(lambda: times(said, running) and times(said, "null_slow.convert: waiting") == 19, "19 wait", 60)
        wait_for_worker(project)
        holder = next(one for one in said if one.when(running))
        killed = time.monotonic()
        os.kill(holder.process, signal.SIGKILL)
        others = [one for one in said if one is not holder]
        wait_until(lambda: times(others, running), "somebody takes over", 10)
        taken = min(when for one in others for when in one.when(running))
        assert process.wait(timeout=120) == 0, [one.path.read_text() for one in said]
    assert 0 <= taken - killed < 10
    assert times(others, running) == times(said, "null_slow.convert: done") == 1
    assert holder.made is None and not holder.when("null_slow.convert: done")
    assert len({json.dumps(one.made) for one in others}) == 1 and others[0].made
    assert not workers(project)
    with Store(project.artifacts / ".store") as store:
        assert list(upkeep.check(store, project.artifacts, repair=False, told=lambda _: None)) == []
        store.clean_leftovers()
        assert list((store.root / "work").iterdir()) == []


@pytest.mark.soak
def test_builders_killed_one_after_the_other_leave_one_execution_to_the_last(project: Project) -> None:
    """Ten of twelve holders are killed at random moments of their execution."""
    running, dice = "null_slow.convert: running", random.Random(0)
    with builders(project, 12, "null_slow.convert", *SLOW) as (said, process):
        left = list(said)
        for _ in range(10):
            wait_until(lambda: times(left, running), "somebody takes over", 60)
            holder = next(one for one in left if one.when(running))
            time.sleep(dice.uniform(0, 1.5))
            assert holder.made is None
            os.kill(holder.process, signal.SIGKILL)
            left.remove(holder)
        assert process.wait(timeout=120) == 0
    assert times(said, running) == 11 and times(said, "null_slow.convert: done") == 1
    assert len({json.dumps(one.made) for one in left}) == 1 and left[0].made


def test_waiting_builder_ends_at_once_at_ctrl_c_and_the_holder_goes_on(project: Project) -> None:
    overrides = [SLOW[0], "candidate.null_slow.steps.convert.delay_s=600"]
    holder = start(project, *overrides)
    try:
        wait_for(holder, "null_slow.convert: running")
        wait_for_worker(project)
        waiting = start(project, *overrides)
        wait_for(waiting, f"null_slow.convert: waiting for another build that makes it (process {holder.pid})")
        waiting.send_signal(signal.SIGINT)
        _, err = waiting.communicate(timeout=10)
        assert waiting.returncode == 130 and err.strip().splitlines()[-1] == "error: interrupted"
        assert holder.poll() is None and len(workers(project)) == 1
    finally:
        holder.send_signal(signal.SIGINT)
        holder.communicate(timeout=20)
    assert holder.returncode == 130 and not processes(project)


# -- readers -------------------------------------------------------------------------------------------------------

WRITER = """
import random, sys
from pathlib import Path
from compiler.canonical import digest
from compiler.store import Store
dice = random.Random(int(sys.argv[2]))
with Store(Path(sys.argv[1])) as store:
    for number in range(int(sys.argv[3])):
        document, whose = {"n": number}, number % 3
        if whose == 1 - int(sys.argv[2]):
            continue  # the other writer's alone; every third is written by both at once
        for attempt in range(2):
            with store.work_folder("t") as folder:
                (folder / "out/sub").mkdir(parents=True)
                for name in ("a", "sub/b", "sub/c"):
                    (folder / "out" / name).write_bytes(random.Random(number).randbytes(40000))
                result = store.commit(digest(document), document, folder / "out", 0.0)
            if whose == int(sys.argv[2]) and not attempt:  # damaged, set aside by us or by the reader, again
                (result.path / "a").chmod(0o644)
                (result.path / "a").write_bytes(b"damaged")
"""


def _read_while_written(folder: Path, count: int) -> tuple[int, int]:
    """Two writers of the same keys and a reader: how often a key was looked up and how many results were read."""
    writers = [
        subprocess.Popen([sys.executable, "-c", WRITER, folder, str(seed), str(count)], env=environment())
        for seed in range(2)
    ]
    keys = [digest({"n": number}) for number in range(count)]
    looked = read = 0
    dice = random.Random(2)
    with Store(folder) as store:
        while any(writer.poll() is None for writer in writers):
            key = dice.choice(keys)
            looked += 1
            found = store.take(key)
            if found is None:
                continue
            try:
                contents = {e.path: (found.path / e.path).read_bytes() for e in found.entries}
            except FileNotFoundError:
                assert not found.path.exists()  # damaged by its writer since, and set aside as a whole
                continue
            read += 1
            for entry in found.entries:
                # half a file is shorter; what a writer of this test damages afterwards is one file, in one go
                whole = hashlib.sha256(contents[entry.path]).hexdigest() == entry.sha256
                assert whole or (entry.path == "a" and contents["a"] in (b"", b"damaged")), entry
    assert [writer.returncode for writer in writers] == [0, 0]
    return looked, read


def test_reader_sees_whole_results_or_none_while_others_write_them(tmp_path: Path) -> None:
    looked, read = _read_while_written(tmp_path, 60)
    assert looked > read > 0


@pytest.mark.soak
def test_reader_sees_whole_results_or_none_while_others_write_many(tmp_path: Path) -> None:
    """The same with 400 results."""
    looked, read = _read_while_written(tmp_path, 400)
    assert looked > read > 400


# -- the machine ---------------------------------------------------------------------------------------------------


def _working_candidates(project: Project, folder: Path, kinds: dict[str, str], seconds: float) -> tuple[list[str], str]:
    """Candidates that note when they were at work: what makes them known to a build, and the steps' names."""
    conf = folder / "conf/candidate"
    conf.mkdir(parents=True)
    for name, kind in kinds.items():
        (conf / f"{name}.yaml").write_text(
            "backend: unruly.backend\nruntime: 'null'\nprecision: fp32\nafter: samples\nartifact: model.npz\n"
            f"steps: {{{kind}: {{name: {name}, log: '{folder / 'log.txt'}', seconds: {seconds}}}, "
            "convert: {stage: 'null.convert'}}\n"  # never asked for: the last step of a candidate must make a model
        )
    overrides = ["--config-dir", str(folder / "conf"), f"candidates=[{','.join(kinds)}]", "executor.jobs=2"]
    return overrides, ",".join(f"{name}.{kind}" for name, kind in kinds.items())


def _intervals(log: Path) -> list[tuple[str, float, float]]:
    rows = [line.split() for line in log.read_text().splitlines()]
    return [(name, float(began), float(ended)) for name, began, ended in rows]


def _overlap(one: tuple[str, float, float], other: tuple[str, float, float]) -> bool:
    return one is not other and one[1] < other[2] and other[1] < one[2]


def test_independent_steps_run_beside_each_other_and_what_measures_runs_alone_on_the_machine(tmp_path: Path) -> None:
    """Two builds with stores of their own, as of one user on one machine: two steps each, and two that measure."""
    kinds = {"left": "work", "right": "work", "ruler": "quiet", "watch": "quiet"}
    projects = [Project(tmp_path / name) for name in ("one", "other")]
    overrides, steps = _working_candidates(projects[0], tmp_path, kinds, 0.6)
    with (
        builders(projects[0], 1, steps, *overrides) as (one, first),
        builders(projects[1], 1, steps, *overrides) as (other, second),
    ):
        codes = first.wait(timeout=120), second.wait(timeout=120)
        assert codes == (0, 0), [said.path.read_text() for said in one + other]
    intervals = _intervals(tmp_path / "log.txt")
    assert sorted(name for name, _, _ in intervals) == sorted([*kinds] * 2)
    for interval in intervals:
        if kinds[interval[0]] == "quiet":
            assert not any(_overlap(interval, another) for another in intervals), intervals
    assert any(_overlap(a, b) for a in intervals for b in intervals if {kinds[a[0]], kinds[b[0]]} == {"work"}), (
        intervals
    )
    waited = [what for said in one + other for _, what in said.lines if "waiting for the machine" in what]
    assert waited and all("(" in what for what in waited)


def test_one_builds_independent_steps_run_beside_each_other(project: Project, tmp_path: Path) -> None:
    overrides, steps = _working_candidates(project, tmp_path, {"left": "work", "right": "work"}, 1.5)
    with builders(project, 1, steps, *overrides) as (said, process):
        assert process.wait(timeout=120) == 0, said[0].path.read_text()
    left, right = _intervals(tmp_path / "log.txt")
    assert _overlap(left, right)


# -- garbage collection --------------------------------------------------------------------------------------------


class Collector(threading.Thread):
    """Collects garbage again and again, keeping no version: only what running builds need stays."""

    def __init__(self, artifacts: Path) -> None:
        super().__init__()
        self._artifacts = artifacts
        self._over = threading.Event()
        self.rounds = self.removed = 0
        self.failures: list[BaseException] = []

    def run(self) -> None:
        dice = random.Random(0)
        while not self._over.is_set():
            try:
                with Store(self._artifacts / ".store") as store:
                    keep, largest = dice.choice([(0, None), (None, 0), (1, 10_000)])
                    self.removed += len(upkeep.collect(store, self._artifacts, keep, largest).results)
                self.rounds += 1
            except (CompilerError, OSError) as error:
                self.failures.append(error)
            self._over.wait(dice.uniform(0, 0.1))

    def end(self) -> None:
        """Ends it after its round."""
        self._over.set()
        self.join(timeout=30)


def _build_while_collecting(project: Project, count: int, at_once: int) -> None:
    """Builds for several models that share steps, each of them beside a collector, `at_once` of them at a time."""
    (project.artifacts / ".store").mkdir(parents=True)
    collector = Collector(project.artifacts)
    collector.start()
    running: list[tuple[int, subprocess.Popen[str]]] = []
    try:
        for number in range(count):
            running.append((number, start(project, f"model.name=m{number % 3}", f"seed={number % 4}")))
            while len(running) >= at_once or (running and number == count - 1):
                which, process = running.pop(0)
                out, err = process.communicate(timeout=120)
                assert process.returncode == 0, (which, err)
                assert err.count("does not match") == err.count("set aside") == 0, err
                verify(Path(out.strip().splitlines()[-1]).parent)
    finally:
        for _, process in running:
            process.kill()
            process.communicate()
        collector.end()
    assert collector.failures == [] and collector.rounds > count and collector.removed > count
    for path in project.artifacts.glob("*/*/*/manifest.json"):
        verify(path.parent)
    with Store(project.artifacts / ".store") as store:
        assert list(upkeep.check(store, project.artifacts, repair=False, told=lambda _: None)) == []


def test_builds_succeed_while_garbage_is_collected_all_the_time(project: Project) -> None:
    _build_while_collecting(project, 3, at_once=2)


@pytest.mark.soak
def test_many_builds_succeed_while_garbage_is_collected_all_the_time(project: Project) -> None:
    """Twenty-four builds, three at a time."""
    _build_while_collecting(project, 24, at_once=3)


def test_collection_during_a_build_takes_nothing_that_it_needs(project: Project) -> None:
    """What a running build took or made, and what it had last time and may take, is there until it ends."""
    slow = ["candidates=[null_slow]", "candidate.null_slow.steps.convert.delay_s=600"]
    process = start(project, *slow)
    try:
        wait_for(process, "null_slow.convert: running")
        wait_for_worker(project)
        with Store(project.artifacts / ".store") as store:
            for _ in range(3):
                done = upkeep.collect(store, project.artifacts, keep=0, max_bytes=None)
                assert done.results == [] and done.results_left == 2 and done.other["leftovers"] == 0, done
        assert len(workers(project)) == 1
        process.send_signal(signal.SIGKILL)
        process.communicate(timeout=20)
        wait_until(lambda: not processes(project), "its worker is gone")
        with Store(project.artifacts / ".store") as store:
            done = upkeep.collect(store, project.artifacts, keep=0, max_bytes=None)
            assert {row.step for row in done.results} == {"samples", "export"} and done.results_left == 0
            assert done.other["leftovers"] == 1
        assert command("store", "ls", f"artifacts_dir={project.artifacts}", "--json").out.strip() == "[]"
    finally:
        process.kill()
        process.wait()
