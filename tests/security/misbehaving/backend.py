"""Conversions that misbehave, each in one way, which is the name of a function below: `how` says which."""

from __future__ import annotations

import atexit
import ctypes
import dataclasses
import json
import os
import shutil
import signal
import socket
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar

from compiler.backends import null
from compiler.errors import StepError
from compiler.stage import PREVIOUS, Stage

Facts = dict[str, Any]
BRIEF_S = 4.0
ESCAPES = "\x1b[31mred\x1b]0;title\x07\x9b2J\r\x08 and \u202ereversed"
SLEEPER = "import time; time.sleep(600)"


@dataclasses.dataclass(kw_only=True)
class Misbehave(Stage):
    """Leaves a result without a model, and misbehaves."""

    inputs: ClassVar[Mapping[str, str]] = {"model": PREVIOUS, "samples": "samples"}

    how: str = ""

    def run(self, inputs: Mapping[str, Path], out: Path) -> Facts:
        found: Facts | None = CASES[self.how](inputs, out)
        return {} if found is None else found


@dataclasses.dataclass(kw_only=True)
class MisbehaveBriefly(Misbehave):
    """One that never ends by itself."""

    time_limit_s: ClassVar[float] = BRIEF_S


@dataclasses.dataclass(kw_only=True)
class Refuse(Stage):
    """Ends the chain of a candidate whose steps are whole, and which nobody needs to measure."""

    inputs: ClassVar[Mapping[str, str]] = {"before": PREVIOUS}

    def run(self, inputs: Mapping[str, Path], out: Path) -> Facts:
        raise StepError("its chain ends here")


@dataclasses.dataclass(kw_only=True)
class Samples(null.Samples):
    """The null backend's samples, and misbehaves after that."""

    how: str = ""

    def run(self, inputs: Mapping[str, Path], out: Path) -> Facts:
        facts = super().run(inputs, out)
        found: Facts | None = CASES[self.how](inputs, out)
        return facts if found is None else found


@dataclasses.dataclass(kw_only=True)
class Export(null.Export):
    """The null backend's export, and misbehaves after that."""

    how: str = ""

    def run(self, inputs: Mapping[str, Path], out: Path) -> Facts:
        facts = super().run(inputs, out)
        found: Facts | None = CASES[self.how](inputs, out)
        return facts if found is None else found


@dataclasses.dataclass(kw_only=True)
class MisbehaveAndConvert(null.Convert):
    """Converts as the null backend does, and misbehaves after that."""

    how: str = ""

    def run(self, inputs: Mapping[str, Path], out: Path) -> Facts:
        facts = super().run(inputs, out)
        found: Facts | None = CASES[self.how](inputs, out)
        return facts if found is None else found


def _work(out: Path) -> Path:
    """The worker's own folder."""
    return out.parent


def _answer(out: Path, content: bytes | Callable[[Path], object]) -> None:
    """Ends the worker with an answer that it did not write itself; what lies beside it is a whole result."""
    (out / "facts.json").write_text("{}")
    path = _work(out) / "answer.json"
    path.write_bytes(content) if isinstance(content, bytes) else content(path)
    os._exit(0)


def _progress(out: Path, content: bytes | Callable[[Path], object]) -> None:
    """Leaves something in place of the report of how far the step is, for long enough to be looked at."""
    path = _work(out) / "progress.json"
    path.write_bytes(content) if isinstance(content, bytes) else content(path)
    time.sleep(0.3)


def _sparse(path: Path, size: int = 1 << 40) -> None:
    """A file with nothing in it that claims a size."""
    with path.open("wb") as stream:
        stream.truncate(size)


def _deep(levels: int) -> bytes:
    return b"[" * levels + b"]" * levels


def _truth(**changes: Any) -> bytes:
    return json.dumps({"ok": True, "loaded": [], "reads": {}, "libraries": {}} | changes).encode()


# -- what lies in the result's folder ------------------------------------------------------------------------------


def a_link_to_a_file(inputs: Mapping[str, Path], out: Path) -> None:
    (out / "passwd").symlink_to("/etc/passwd")


def a_link_in_place_of_the_model(inputs: Mapping[str, Path], out: Path) -> None:
    (out / "model.npz").symlink_to(inputs["model"] / "model.npz")


def links_in_a_circle(inputs: Mapping[str, Path], out: Path) -> None:
    (out / "a").symlink_to("b")
    (out / "b").symlink_to("a")


def a_link_that_leads_nowhere(inputs: Mapping[str, Path], out: Path) -> None:
    (out / "a").symlink_to("nowhere")


def a_link_to_a_folder(inputs: Mapping[str, Path], out: Path) -> None:
    (out / "etc").symlink_to("/etc")


def a_link_to_the_folder_itself(inputs: Mapping[str, Path], out: Path) -> None:
    (out / "again").symlink_to(out)


def a_hard_link(inputs: Mapping[str, Path], out: Path) -> None:
    outside = _work(out) / "outside"
    outside.write_text("mine")
    os.link(outside, out / "linked")


def a_fifo(inputs: Mapping[str, Path], out: Path) -> None:
    os.mkfifo(out / "fifo")


def a_socket(inputs: Mapping[str, Path], out: Path) -> None:
    os.chdir(out)
    socket.socket(socket.AF_UNIX).bind("socket")


def a_device(inputs: Mapping[str, Path], out: Path) -> None:
    try:
        os.mknod(out / "null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
    except PermissionError:
        os.mkfifo(out / "null")


def a_name_that_is_not_utf8(inputs: Mapping[str, Path], out: Path) -> None:
    Path(os.fsdecode(os.fsencode(out) + b"/\xff\xfe")).write_text("x")


def a_folder_whose_name_is_not_utf8(inputs: Mapping[str, Path], out: Path) -> None:
    Path(os.fsdecode(os.fsencode(out) + b"/\xff")).mkdir()


def a_name_of_two_lines(inputs: Mapping[str, Path], out: Path) -> None:
    (out / "a\nerror: b").write_text("x")


def a_name_with_escapes(inputs: Mapping[str, Path], out: Path) -> None:
    (out / "\x1b[31mred").write_text("x")


def folders_fifteen_hundred_deep(inputs: Mapping[str, Path], out: Path) -> None:
    os.chdir(out)
    for _ in range(1500):
        Path("folder").mkdir()
        os.chdir("folder")
    Path("file").write_text("x")


def a_terabyte_of_nothing(inputs: Mapping[str, Path], out: Path) -> None:
    _sparse(out / "large", max(1 << 40, shutil.disk_usage(out).total + 1))


def more_than_the_disk_in_ten_files(inputs: Mapping[str, Path], out: Path) -> None:
    for number in range(10):
        _sparse(out / f"part-{number}", shutil.disk_usage(out).total // 9)


def no_result_folder(inputs: Mapping[str, Path], out: Path) -> None:
    _answer_without(out, lambda: None)


def a_link_in_place_of_the_result_folder(inputs: Mapping[str, Path], out: Path) -> None:
    _answer_without(out, lambda: out.symlink_to(inputs["model"]))


def a_file_in_place_of_the_result_folder(inputs: Mapping[str, Path], out: Path) -> None:
    _answer_without(out, lambda: out.write_text("x"))


def _answer_without(out: Path, then: Callable[[], object]) -> None:
    subprocess.run(["rm", "-rf", out], check=True)
    then()
    (_work(out) / "answer.json").write_bytes(_truth())
    os._exit(0)


def no_working_folder(inputs: Mapping[str, Path], out: Path) -> None:
    subprocess.run(["rm", "-rf", _work(out)], check=True)


def no_working_folder_and_gone(inputs: Mapping[str, Path], out: Path) -> None:
    subprocess.run(["rm", "-rf", _work(out)], check=True)
    os._exit(0)


def a_link_in_place_of_the_working_folder(inputs: Mapping[str, Path], out: Path) -> None:
    (_work(out) / "answer.json").write_bytes(_truth())
    aside = _work(out).with_name("aside-" + _work(out).name)
    _work(out).rename(aside)
    _work(out).symlink_to(aside)
    os._exit(0)


def no_permissions(inputs: Mapping[str, Path], out: Path) -> None:
    (out / "closed").mkdir()
    (out / "closed/inner").mkdir()
    (out / "closed/inner/file").write_text("x")
    (out / "closed/inner").chmod(0)
    (out / "closed").chmod(0)
    out.chmod(0o300)
    _work(out).chmod(0)


# -- what lies in place of the answer ------------------------------------------------------------------------------


def no_answer(inputs: Mapping[str, Path], out: Path) -> None:
    os._exit(0)


def an_empty_answer(inputs: Mapping[str, Path], out: Path) -> None:
    _answer(out, b"")


def an_answer_that_is_no_json(inputs: Mapping[str, Path], out: Path) -> None:
    _answer(out, b"{'ok': True}")


def an_answer_that_is_not_utf8(inputs: Mapping[str, Path], out: Path) -> None:
    _answer(out, b'{"ok": true, "loaded": ["\xff\xfe"]}')


def an_answer_that_is_a_list(inputs: Mapping[str, Path], out: Path) -> None:
    _answer(out, b"[true]")


def an_answer_that_is_a_number(inputs: Mapping[str, Path], out: Path) -> None:
    _answer(out, b"NaN")


def an_answer_a_hundred_thousand_deep(inputs: Mapping[str, Path], out: Path) -> None:
    _answer(out, _deep(100_000))


def an_answer_of_many_digits(inputs: Mapping[str, Path], out: Path) -> None:
    _answer(out, b'{"ok": true, "errno": ' + b"9" * 1_000_000 + b"}")


def an_answer_of_a_terabyte(inputs: Mapping[str, Path], out: Path) -> None:
    _answer(out, _sparse)


def an_answer_that_is_a_fifo(inputs: Mapping[str, Path], out: Path) -> None:
    _answer(out, os.mkfifo)


def an_answer_that_is_a_folder(inputs: Mapping[str, Path], out: Path) -> None:
    _answer(out, os.mkdir)


def an_answer_that_is_a_device(inputs: Mapping[str, Path], out: Path) -> None:
    _answer(out, lambda path: path.symlink_to("/dev/zero"))


def an_answer_that_is_a_circle(inputs: Mapping[str, Path], out: Path) -> None:
    _answer(out, lambda path: path.symlink_to(path))


def an_answer_whose_parts_are_of_other_types(inputs: Mapping[str, Path], out: Path) -> None:
    _answer(out, _truth(loaded=5, reads=[1, 2], libraries="x"))


def an_answer_with_reads_of_other_types(inputs: Mapping[str, Path], out: Path) -> None:
    _answer(out, _truth(reads={"/a": {"b": [1]}}))


def an_answer_with_half_characters(inputs: Mapping[str, Path], out: Path) -> None:
    _answer(out, b'{"ok": true, "loaded": ["\\udcff"], "reads": {"\\udcff": "\\udcff"}, "libraries": {}}')


def an_answer_with_a_key_twice(inputs: Mapping[str, Path], out: Path) -> None:
    _answer(out, b'{"ok": false, "ok": true, "loaded": [], "reads": {}, "libraries": {}}')


def an_answer_that_half_denies(inputs: Mapping[str, Path], out: Path) -> None:
    _answer(out, b'{"ok": "no", "error": ["StepError"], "what": {"a": 1}, "fix": 5, "details": "x"}')


def an_error_of_no_words(inputs: Mapping[str, Path], out: Path) -> None:
    _answer(out, b'{"ok": false}')


def an_error_with_escapes(inputs: Mapping[str, Path], out: Path) -> None:
    said = {"ok": False, "what": ESCAPES, "fix": ESCAPES, "details": [ESCAPES, "\udcff", "a\nerror: b"]}
    _answer(out, json.dumps(said).encode())


def an_error_of_megabytes(inputs: Mapping[str, Path], out: Path) -> None:
    said = {"ok": False, "what": "w" * (2 << 20), "fix": "f" * (2 << 20), "details": ["d" * 1000] * 3000}
    _answer(out, json.dumps(said).encode())


def an_error_number_that_is_none(inputs: Mapping[str, Path], out: Path) -> None:
    _answer(out, b'{"ok": false, "what": "so it is", "errno": [28]}')


def an_answer_without_facts(inputs: Mapping[str, Path], out: Path) -> None:
    (_work(out) / "answer.json").write_bytes(_truth())
    os._exit(0)


# -- facts ---------------------------------------------------------------------------------------------------------


def facts_with_nan(inputs: Mapping[str, Path], out: Path) -> Facts:
    return {"loss": float("nan")}


def facts_with_infinity(inputs: Mapping[str, Path], out: Path) -> Facts:
    return {"a": [{"loss": -float("inf")}]}


def facts_of_no_json(inputs: Mapping[str, Path], out: Path) -> Facts:
    return {"a": {1, 2}}


def facts_that_are_a_list(inputs: Mapping[str, Path], out: Path) -> Any:
    return [1, 2]


def facts_in_a_circle(inputs: Mapping[str, Path], out: Path) -> Facts:
    found: Facts = {}
    found["again"] = found
    return found


def facts_five_hundred_deep(inputs: Mapping[str, Path], out: Path) -> Facts:
    found: Facts = {}
    for _ in range(500):
        found = {"a": found}
    return found


def facts_with_half_characters(inputs: Mapping[str, Path], out: Path) -> Facts:
    return {"a": "\udcff"}


def facts_of_a_hundred_megabytes(inputs: Mapping[str, Path], out: Path) -> Facts:
    return {"a": "x" * (100 << 20)}


def facts_of_many_digits(inputs: Mapping[str, Path], out: Path) -> Facts:
    return {"a": 10**4000}


def facts_with_another_fidelity(inputs: Mapping[str, Path], out: Path) -> Facts:
    return {"fidelity": ESCAPES}


def facts_bound_to_nothing(inputs: Mapping[str, Path], out: Path) -> Facts:
    return {"bound_to": [ESCAPES], "fidelity": None}


def facts_that_are_replaced(inputs: Mapping[str, Path], out: Path) -> None:
    (out / "facts.json").mkdir()
    (_work(out) / "answer.json").write_bytes(_truth())
    os._exit(0)


def facts_that_are_a_terabyte(inputs: Mapping[str, Path], out: Path) -> None:
    _sparse(out / "facts.json", 1 << 33)
    (_work(out) / "answer.json").write_bytes(_truth())
    os._exit(0)


# -- exceptions ----------------------------------------------------------------------------------------------------


class Unspeakable(Exception):
    """One whose words cannot be had."""

    def __str__(self) -> str:
        raise ValueError("no words")

    __repr__ = __str__


class OfNoText(Exception):
    """One whose words are no text."""

    def __str__(self) -> str:
        return 5  # type: ignore[return-value]


class OddName(Exception):
    """One whose type has a name with control characters."""


def an_error_whose_words_cannot_be_had(inputs: Mapping[str, Path], out: Path) -> None:
    raise Unspeakable


def an_error_whose_words_are_no_text(inputs: Mapping[str, Path], out: Path) -> None:
    raise OfNoText


def an_error_whose_type_has_an_odd_name(inputs: Mapping[str, Path], out: Path) -> None:
    OddName.__name__ = ESCAPES
    raise OddName("x")


def an_error_of_ten_megabytes(inputs: Mapping[str, Path], out: Path) -> None:
    raise ValueError("x" * (10 << 20))


def an_error_of_ours_of_ten_megabytes(inputs: Mapping[str, Path], out: Path) -> None:
    raise StepError("x" * (10 << 20), fix="y" * (10 << 20), details=["z" * 1000] * 10_000)


def an_error_of_ours_of_no_text(inputs: Mapping[str, Path], out: Path) -> None:
    raise StepError({1, 2}, fix=b"x", details=[object()])  # type: ignore[arg-type, list-item]


def an_error_that_steers_the_terminal(inputs: Mapping[str, Path], out: Path) -> None:
    raise ValueError(ESCAPES)


def an_error_of_ours_that_steers_the_terminal(inputs: Mapping[str, Path], out: Path) -> None:
    raise StepError(ESCAPES, fix=ESCAPES, details=[ESCAPES])


def a_keyboard_interrupt(inputs: Mapping[str, Path], out: Path) -> None:
    raise KeyboardInterrupt


def an_exit_with_zero(inputs: Mapping[str, Path], out: Path) -> None:
    sys.exit(0)


def an_exit_with_words(inputs: Mapping[str, Path], out: Path) -> None:
    sys.exit(ESCAPES)


def a_base_exception(inputs: Mapping[str, Path], out: Path) -> None:
    raise BaseException("a base exception")


def endless_recursion(inputs: Mapping[str, Path], out: Path) -> None:
    endless_recursion(inputs, out)


def a_stack_overflow(inputs: Mapping[str, Path], out: Path) -> None:
    sys.setrecursionlimit(1 << 30)
    eval("-" * 10_000_000 + "1")


def a_wild_pointer(inputs: Mapping[str, Path], out: Path) -> None:
    ctypes.string_at(1)


def the_words_of_a_full_disk(inputs: Mapping[str, Path], out: Path) -> None:
    raise ValueError("no space left where I looked")


# -- output --------------------------------------------------------------------------------------------------------


def a_flood_without_lines(inputs: Mapping[str, Path], out: Path) -> None:
    while True:
        os.write(1, b"x" * (1 << 20))


def binary_output(inputs: Mapping[str, Path], out: Path) -> None:
    os.write(2, bytes(range(256)) * 40 + b"\n")
    raise ValueError("after binary output")


def a_log_that_steers_the_terminal(inputs: Mapping[str, Path], out: Path) -> None:
    for _ in range(20):
        print(ESCAPES, flush=True)
    os.abort()


def a_log_that_is_a_fifo(inputs: Mapping[str, Path], out: Path) -> None:
    (_work(out) / "log.txt").unlink()
    os.mkfifo(_work(out) / "log.txt")
    os.abort()


def a_log_that_is_another_file(inputs: Mapping[str, Path], out: Path) -> None:
    (_work(out) / "log.txt").unlink()
    (_work(out) / "log.txt").symlink_to("/etc/passwd")
    os.abort()


def closed_streams(inputs: Mapping[str, Path], out: Path) -> None:
    os.closerange(0, 1000)
    raise ValueError("after its streams were closed")


# -- processes -----------------------------------------------------------------------------------------------------


def a_stopped_process(inputs: Mapping[str, Path], out: Path) -> None:
    os.kill(os.getpid(), signal.SIGSTOP)


def a_deaf_process(inputs: Mapping[str, Path], out: Path) -> None:
    for number in set(range(1, 65)) - {signal.SIGCHLD}:
        try:
            signal.signal(number, signal.SIG_IGN)
        except (OSError, ValueError):
            continue
    _daemon()
    while True:
        time.sleep(1)


def an_endless_loop_in_c(inputs: Mapping[str, Path], out: Path) -> None:
    pattern = "(a+)+$"
    import re

    re.match(pattern, "a" * 64 + "b")


def the_end_of_its_own_group(inputs: Mapping[str, Path], out: Path) -> None:
    os.killpg(0, signal.SIGKILL)


def the_end_of_its_parents_group(inputs: Mapping[str, Path], out: Path) -> None:
    os.killpg(os.getpgid(os.getppid()), signal.SIGKILL)
    time.sleep(600)


def the_end_of_its_parent(inputs: Mapping[str, Path], out: Path) -> None:
    os.kill(os.getppid(), signal.SIGKILL)
    time.sleep(600)


def many_processes(inputs: Mapping[str, Path], out: Path) -> None:
    for _ in range(6):  # 64 processes, which wait for nothing
        os.fork()
    while True:
        time.sleep(1)


def _daemon() -> None:
    """A process that nothing ties to the worker: another session, another parent, other settings, other streams."""
    first = os.fork()
    if first:
        os.waitpid(first, 0)
        return
    os.setsid()
    if os.fork():
        os._exit(0)
    os.chdir("/")
    nothing = os.open(os.devnull, os.O_RDWR)
    for number in (0, 1, 2):
        os.dup2(nothing, number)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    os.execve(sys.executable, [sys.executable, "-c", SLEEPER, MARK], {})


MARK = f"misbehaving-{os.environ.get('HOME', '')}"
"""On the command line of what `_daemon` starts, for who looks for it: the worker's home lies in the store."""


def a_daemon(inputs: Mapping[str, Path], out: Path) -> None:
    _daemon()


def a_daemon_and_an_error(inputs: Mapping[str, Path], out: Path) -> None:
    _daemon()
    raise ValueError("and it left a daemon")


def a_daemon_and_a_crash(inputs: Mapping[str, Path], out: Path) -> None:
    _daemon()
    os.abort()


def children_that_stay(inputs: Mapping[str, Path], out: Path) -> None:
    for session in (False, True):
        subprocess.Popen([sys.executable, "-c", SLEEPER], start_new_session=session)


def a_child_that_writes_after_the_answer(inputs: Mapping[str, Path], out: Path) -> None:
    if os.fork():
        return
    os.setsid()
    while not (_work(out) / "answer.json").exists():
        time.sleep(0.001)
    for number in range(100_000):
        (out / f"late-{number}").write_text("x")
        time.sleep(0.01)


def a_thread_that_never_ends(inputs: Mapping[str, Path], out: Path) -> None:
    threading.Thread(target=time.sleep, args=(600,)).start()


def an_exit_handler_that_hangs(inputs: Mapping[str, Path], out: Path) -> None:
    atexit.register(time.sleep, 600)


def another_working_folder(inputs: Mapping[str, Path], out: Path) -> None:
    os.chdir("/")


# -- progress ------------------------------------------------------------------------------------------------------


def progress_that_is_a_fifo(inputs: Mapping[str, Path], out: Path) -> None:
    _progress(out, os.mkfifo)


def progress_that_is_a_folder(inputs: Mapping[str, Path], out: Path) -> None:
    _progress(out, os.mkdir)


def progress_that_is_a_device(inputs: Mapping[str, Path], out: Path) -> None:
    _progress(out, lambda path: path.symlink_to("/dev/zero"))


def progress_of_a_terabyte(inputs: Mapping[str, Path], out: Path) -> None:
    _progress(out, _sparse)


def progress_that_is_a_list(inputs: Mapping[str, Path], out: Path) -> None:
    _progress(out, b"[1, 2]")


def progress_without_its_parts(inputs: Mapping[str, Path], out: Path) -> None:
    _progress(out, b"{}")


def progress_of_other_types(inputs: Mapping[str, Path], out: Path) -> None:
    _progress(out, b'{"done": "x", "total": [], "what": {}}')


def progress_of_no_numbers(inputs: Mapping[str, Path], out: Path) -> None:
    _progress(out, b'{"done": NaN, "total": -Infinity, "what": "x"}')


def progress_of_many_digits(inputs: Mapping[str, Path], out: Path) -> None:
    _progress(out, b'{"done": ' + b"9" * 4000 + b', "total": 1' + b"0" * 4000 + b', "what": "x"}')


def progress_a_hundred_thousand_deep(inputs: Mapping[str, Path], out: Path) -> None:
    _progress(out, _deep(100_000))


def progress_that_steers_the_terminal(inputs: Mapping[str, Path], out: Path) -> None:
    _progress(out, json.dumps({"done": 1, "total": 2, "what": ESCAPES + "\udcff"}).encode())


# -- models --------------------------------------------------------------------------------------------------------


def no_model(inputs: Mapping[str, Path], out: Path) -> None:
    """Nothing is left at all."""


def _model(inputs: Mapping[str, Path], out: Path, signature: bytes) -> None:
    shutil.copyfile(inputs["model"] / "model.npz", out / "model.npz")
    (out / "signature.json").write_bytes(signature)


def a_model_without_a_signature(inputs: Mapping[str, Path], out: Path) -> None:
    shutil.copyfile(inputs["model"] / "model.npz", out / "model.npz")


def a_signature_that_is_a_list(inputs: Mapping[str, Path], out: Path) -> None:
    _model(inputs, out, b"[]")


def a_signature_of_huge_tensors(inputs: Mapping[str, Path], out: Path) -> None:
    signature = json.loads((inputs["model"] / "signature.json").read_text())
    signature["inputs"][0]["shape"] = [1, 1 << 40, 1 << 40]
    _model(inputs, out, json.dumps(signature).encode())


def a_signature_without_a_claim(inputs: Mapping[str, Path], out: Path) -> None:
    signature = json.loads((inputs["model"] / "signature.json").read_text())
    del signature["claim"]
    _model(inputs, out, json.dumps(signature).encode())


def a_signature_a_hundred_thousand_deep(inputs: Mapping[str, Path], out: Path) -> None:
    _model(inputs, out, _deep(100_000))


def weights_of_an_odd_name(inputs: Mapping[str, Path], out: Path) -> None:
    _model(inputs, out, (inputs["model"] / "signature.json").read_bytes())
    (out / "model.weights of größe").write_text("x")


def no_signature(inputs: Mapping[str, Path], out: Path) -> None:
    (out / "signature.json").unlink()


def no_facts_at_all(inputs: Mapping[str, Path], out: Path) -> Facts:
    return {}


def junk_in_every_file(inputs: Mapping[str, Path], out: Path) -> None:
    for path in out.iterdir():
        path.write_bytes(b"\x93NUMPY{[junk")


# -- harmless ------------------------------------------------------------------------------------------------------


def folders_twenty_deep(inputs: Mapping[str, Path], out: Path) -> None:
    folder = out.joinpath(*["folder"] * 20)
    folder.mkdir(parents=True)
    (folder / "file").write_text("x")


def names_that_differ_in_case(inputs: Mapping[str, Path], out: Path) -> None:
    for name in ("readme", "README", "ReadMe"):
        (out / name).write_text(name)


def a_name_of_255_characters(inputs: Mapping[str, Path], out: Path) -> None:
    (out / ("n" * 255)).write_text("x")


def names_in_other_scripts(inputs: Mapping[str, Path], out: Path) -> None:
    for name in ("größe.txt", "名前 with spaces", "-rf", "~", "$HOME"):
        (out / name).write_text("x")


def empty_folders(inputs: Mapping[str, Path], out: Path) -> None:
    (out / "empty" / "folders").mkdir(parents=True)


def facts_that_steer_the_terminal(inputs: Mapping[str, Path], out: Path) -> Facts:
    return {"note": ESCAPES, ESCAPES: 1}


# -- inputs --------------------------------------------------------------------------------------------------------


def a_changed_input(inputs: Mapping[str, Path], out: Path) -> None:
    path = inputs["model"] / "model.npz"
    path.chmod(0o644)
    path.write_bytes(b"spoiled")


def a_file_more_in_an_input(inputs: Mapping[str, Path], out: Path) -> None:
    inputs["model"].chmod(0o755)
    (inputs["model"] / "more").write_text("x")


def an_input_less(inputs: Mapping[str, Path], out: Path) -> None:
    inputs["samples"].chmod(0o755)
    (inputs["samples"] / "calibration.npy").unlink()


CASES: dict[str, Callable[[Mapping[str, Path], Path], Any]] = {
    name: value for name, value in list(globals().items()) if callable(value) and not name.startswith("_")
}
