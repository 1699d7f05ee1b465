"""Command lines that anybody may write: refused in words with a documented exit code, quickly, and nothing is run."""

from __future__ import annotations

import json
import subprocess
import sys
import unicodedata
from pathlib import Path
from typing import Any

import pytest
from conftest import CONF, environment
from security.many_commands import SECONDS

NULL = ["--config-dir", str(CONF), "target=nulltarget", "model=nullmodel"]
PLAN = ["plan", *NULL]
BUILD = ["build", *NULL]
ESCAPES = "\x1b]0;owned\x07\x1b[31mred\x1b[2J\r\x08\x9b1m"
BACKWARDS = "\u202eevil\u2066"

REFUSED: dict[str, list[str]] = {
    # verbs and flags
    "an unknown verb": ["biuld", "target=host"],
    "an empty argument": [""],
    "empty arguments": ["", "", "="],
    "an empty verb before others": ["", *NULL],
    "a verb in capitals": ["BUILD", *NULL],
    "a module for a verb": ["arguments", *NULL],
    "a path for a verb": ["../compiler/commands/build", *NULL],
    "a dotted verb": ["build.run", *NULL],
    "a dunder for a verb": ["__init__", *NULL],
    "two verbs": ["plan", "build", *NULL],
    "a verb of a hundred kilobytes": ["v" * 100_000],
    "a verb of escapes": [ESCAPES],
    "a verb that turns the line around": [BACKWARDS],
    "a verb of combining marks": ["e" + "\u0301" * 1000],
    "a verb of emoji": ["\U0001f525" * 50],
    "a verb that is no UTF-8": ["\udcff\udc80\udcfe"],
    "an unknown flag": [*PLAN, "--jsno"],
    "a flag of another verb": [*PLAN, "--policy", "x.yaml"],
    "a flag without its value": ["plan", "--config-dir"],
    "a flag of escapes": [*PLAN, f"--{ESCAPES}"],
    "a flag of a hundred kilobytes": [*PLAN, "--" + "f" * 100_000],
    "nothing but two dashes": ["--"],
    "two dashes before a flag": [*PLAN, "--", "--json"],
    "a single dash": ["-"],
    "a file of arguments": [*PLAN, "@arguments.txt"],
    "a file of arguments for a verb": ["@arguments.txt"],
    "store without an action": ["store"],
    "store with an unknown action": ["store", "rm", "artifacts_dir=."],
    "store with another key": ["store", "ls", "target=host"],
    "store where there is none": ["store", "fsck", "artifacts_dir=/dev/null"],
    "gc that keeps less than nothing": ["store", "gc", "--keep", "-1", "artifacts_dir=artifacts"],
    "gc to a size that is none": ["store", "gc", "--max-size", "1e999GB", "artifacts_dir=store"],
    "show with two paths": ["show", "a", "b"],
    "show of a device": ["show", "/dev/zero"],
    "show of memory": ["show", "/proc/self/mem"],
    "show of a name too long": ["show", "x" * 5000],
    "show of a path too deep": ["show", "a/" * 3000],
    "show of a name of escapes": ["show", f"/tmp/{ESCAPES}"],
    "show of a name with a line of its own": ["show", "a\nerror: nothing\n"],
    "verify of no UTF-8": ["verify", "\udcff"],
    "verify with a key that is a folder": ["verify", ".", "--key", "/"],
    "verify with a policy that is a device": ["verify", ".", "--policy", "/dev/zero"],
    "run without an input": ["run", "."],
    "run with a batch of words": ["run", ".", "--input", "x", "--output", "y", "--batch", "many"],
    "measure with infinite rounds": ["measure", ".", "--rounds", "inf"],
    "compare of one": ["compare", "."],
    "compare with an unknown gate": ["compare", ".", ".", "--fail-on", "beauty"],
    "publish to no registry": ["publish", ".", "ftp://example.invalid/x"],
    "publish to a registry with a name and password": ["publish", ".", "oci://user:secret@localhost/x"],
    "pull of no reference": ["pull", "..:..", "into"],
    "pull of a reference of escapes": ["pull", f"oci://{ESCAPES}/x", "into"],
    "history of no reference": ["history", "oci://"],
    # the grammar of overrides
    "a key without a value": [*PLAN, "seed="],
    "a value without a key": [*PLAN, "=1"],
    "a word": [*PLAN, "seed"],
    "an unknown key": [*PLAN, "sed=1"],
    "an unknown key added": [*PLAN, "+x=1"],
    "an unknown key forced": [*PLAN, "++x.y=1"],
    "a key taken away": [*PLAN, "~x"],
    "a key that is needed taken away": [*PLAN, "~model.name"],
    "a group taken away": [*PLAN, "~target"],
    "an unknown field": [*PLAN, "executor.job=1"],
    "a key of escapes": [*PLAN, f"{ESCAPES}=1"],
    "a key of a hundred kilobytes": [*PLAN, "k" * 100_000 + "=1"],
    "a key of ten thousand parts": [*PLAN, "a." * 10_000 + "b=1"],
    "a known key of ten thousand parts": [*PLAN, "steps." + "a." * 10_000 + "b=1"],
    "a value of a hundred kilobytes": [*PLAN, "objective=" + "v" * 100_000],
    "a list of brackets": [*PLAN, "candidates=" + "[" * 10_000],
    "a list of balanced brackets": [*PLAN, "candidates=" + "[" * 3000 + "]" * 3000],
    "mappings in mappings": [*PLAN, "steps=" + "{a:" * 500 + "1" + "}" * 500],
    "an open quote": [*PLAN, "model.name='x"],
    "an open brace": [*PLAN, "steps={a:"],
    "an open interpolation": [*PLAN, "model.name=${"],
    "an interpolation of itself": [*PLAN, "model.name=${model.name}"],
    "an interpolation in a circle": [*PLAN, "model.name=${target.name}", "target.name=${model.name}"],
    "interpolations in interpolations": [*PLAN, "model.name=" + "${" * 300 + "}" * 300],
    "the environment": [*PLAN, "model.name=${oc.env:SECRET}"],
    "the environment in a number": [*PLAN, "seed=${oc.env:SECRET}"],
    "the environment within another resolver": [*PLAN, "model.name=${oc.decode:${oc.env:SECRET}}"],
    "an unknown resolver": [*PLAN, "model.name=${eval:1+1}"],
    "a resolver that makes an object": [*PLAN, "seed=${oc.create:{_target_:os.system}}"],
    "a target to call": [*PLAN, "+_target_=os.system"],
    "a target to call in a step": [*PLAN, "steps.export._target_=os.system"],
    "several values without --multirun": [*PLAN, "seed=1,2"],
    "a sweep by a function": [*PLAN, "seed=range(1,3)"],
    "an unknown function": [*PLAN, "seed=system(ls)"],
    "an endless sweep": [*PLAN, "-m", "seed=range(0,1000000000000)"],
    "an endless sweep beside an empty one": [*PLAN, "-m", "seed=range(5,5)", "data.split_seed=range(0,1000000000)"],
    "a sweep without a step": [*PLAN, "-m", "seed=range(1,10,0)"],
    "ten thousand million combinations": [*PLAN, "-m", *[f"steps.x{n}={','.join('0123456789')}" for n in range(10)]],
    # Hydra's own settings
    "a folder to run in": [*PLAN, "hydra.run.dir=elsewhere", "hydra.job.chdir=true", "sed=1"],
    "a launcher": [*PLAN, "hydra/launcher=joblib"],
    "a sweeper": [*PLAN, "hydra/sweeper=ax"],
    "a search path to somewhere": [*PLAN, "hydra.searchpath=[file:///etc]"],
    "a search path in a package": [*PLAN, "hydra.searchpath=[pkg://os]"],
    "an unknown setting of Hydra": [*PLAN, "hydra.nothing=1"],
    "a path for Hydra's configuration": [*PLAN, "--config-path", "/etc"],
    "a name for Hydra's configuration": [*PLAN, "--config-name", "passwd"],
    "Hydra's own --run": [*PLAN, "--run"],
    "Hydra's own --experimental-rerun": [*PLAN, "--experimental-rerun", "x.pickle"],
    "a configuration folder that is a device": ["plan", "--config-dir", "/dev/zero", "target=nulltarget"],
    "a configuration folder with a name too long": ["plan", "--config-dir", "x" * 5000, "target=nulltarget"],
    "a configuration to show that there is not": [*PLAN, "--cfg", "everything"],
    "information that there is not": [*PLAN, "--info", "secrets"],
    # names and paths
    "no target": ["plan", "--config-dir", str(CONF), "model=nullmodel"],
    "an unknown target": [*PLAN, "target=nultarget"],
    "a target that is a path": [*PLAN, "target=../../../etc/passwd"],
    "a target that is a device": [*PLAN, "target=/dev/zero"],
    "a target that is a list": [*PLAN, "target=[a,b]"],
    "a target of escapes": [*PLAN, f"target={ESCAPES}"],
    "a target that is no UTF-8": [*PLAN, "target=\udcff"],
    "a model with a slash": [*PLAN, "model=a/b"],
    "a model of null": [*PLAN, "model=null"],
    "a model's name that is a path": [*PLAN, "model.name=../../escape"],
    "a model's name of dots": [*PLAN, "model.name=.."],
    "a model's name that turns the line around": [*PLAN, f"model.name={BACKWARDS}"],
    "a model's name with a line of its own": [*PLAN, "model.name=a\nb"],
    "a model's name that is no UTF-8": [*PLAN, "model.name=\udcff"],
    "a model's name of a hundred kilobytes": [*PLAN, "model.name=" + "n" * 100_000],
    "an empty artifacts folder": [*PLAN, "artifacts_dir="],
    "artifacts in a device": [*PLAN, "artifacts_dir=/dev/null"],
    "artifacts below a device": [*BUILD, "artifacts_dir=/dev/null/x"],
    "artifacts in a process": [*BUILD, "artifacts_dir=/proc/self/mem"],
    "artifacts with a name too long": [*BUILD, "artifacts_dir=" + "a" * 5000],
    "artifacts in no UTF-8": [*BUILD, "artifacts_dir=\udcff\udcfe/x", "model.weights=nowhere"],
    "weights that are a device": [*BUILD, "model.architecture=x.y", "model.weights=/dev/zero", "model.sha256=0"],
    "a digest without weights": [*PLAN, "model.sha256=" + "0" * 64],
    "a candidate's module of Python": [*PLAN, "candidate.null_fp32.backend=os"],
    "a candidate's unknown module": [*PLAN, "candidate.null_fp32.backend=../../x"],
    "a candidate that there is not": [*PLAN, "candidate.nothing.backend=os"],
    "a candidate's artifact that is a path": [*PLAN, "candidate.null_fp32.artifact=../x"],
    "a candidate's artifact that is the manifest": [*PLAN, "candidate.null_fp32.artifact=manifest.json"],
    "candidates of a path": [*PLAN, "candidates=[../../x]"],
    "a candidate twice a thousand": [*PLAN, "candidates=[" + ",".join(["x"] * 1000) + "]"],
    "a stage of Python": [*PLAN, "steps.export.stage=os.system"],
    "a stage of Python with a colon": [*PLAN, "steps.export.stage=os:system"],
    "a registry that is none": [*PLAN, "publish=true", "registry=http://x"],
    "a registry with a password": [*PLAN, "publish=true", "registry=oci://a:b@localhost/x"],
    "a key that is a folder": [*PLAN, "publish=true", "registry=file:r", "signing.key=/"],
    "a certificate without a key": [*PLAN, "signing.certificates=[x]"],
    # numbers
    "jobs below nothing": [*PLAN, "executor.jobs=-1"],
    "a thousand thousand combinations": [*PLAN, "-m", *[f"steps.x{n}={','.join('0123456789' * 100)}" for n in (1, 2)]],
    "a sweep in a random order without end": [*PLAN, "-m", "seed=shuffle(range(0,1e12,0.1))"],
    "a candidate's backend that begins with a dot": [*PLAN, "candidate.null_fp32.backend=.os"],
    "jobs that are half": [*PLAN, "executor.jobs=0.5"],
    "jobs of thirty digits": [*PLAN, "executor.jobs=" + "9" * 30],
    "a memory limit that is infinite": [*PLAN, "executor.memory_limit_mb=inf"],
    "a memory limit of 1e18": [*PLAN, "executor.memory_limit_mb=1e18"],
    "a memory limit that is no number": [*PLAN, "executor.memory_limit_mb=nan"],
    "a time limit of nothing": [*PLAN, "executor.time_limit_s=0"],
    "a time limit of 1e999": [*PLAN, "executor.time_limit_s=1e999"],
    "a time limit of 1e300": [*PLAN, "executor.time_limit_s=1e300"],
    "threads below one": [*PLAN, "target.threads=-5"],
    "cores of text": [*PLAN, "target.cores=many"],
    "an accuracy above all": [*PLAN, "model.accuracy=101"],
    "a budget that is no number": [*PLAN, "budget.latency_p95_ms=nan"],
    "a seed of a hundred thousand digits": [*PLAN, "seed=" + "9" * 100_000],
    "a seed below nothing": [*PLAN, "seed=-1"],
    "a split below nothing": [*PLAN, "data.splits.report=-3"],
    "an objective that there is not": [*PLAN, "objective=beauty"],
}  # fmt: skip


@pytest.fixture(scope="module")
def ended(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """Every command line's outcome, and under an empty name what lies in the folder where they all ran."""
    folder = tmp_path_factory.mktemp("commands")
    (folder / "arguments.txt").write_text("target=host\n")
    (folder / "store" / ".store").mkdir(parents=True)
    settings = {"HOME": str(folder), "SECRET": "hunter2", "HYDRA_FULL_ERROR": "1"}
    cases = [{"arguments": words, "folder": str(folder), "settings": settings} for words in REFUSED.values()]
    done = subprocess.run(
        [sys.executable, Path(__file__).with_name("many_commands.py")],
        input=json.dumps(cases), capture_output=True, text=True, env=environment(), check=False, timeout=600,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    left = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*"))
    return {**dict(zip(REFUSED, json.loads(done.stdout), strict=True)), "": {"left": left}}


@pytest.mark.parametrize("name", REFUSED)
def test_it_is_refused_in_words(name: str, ended: dict[str, dict[str, Any]]) -> None:
    done = ended[name]
    assert done["code"] == 2, done
    assert done["seconds"] < SECONDS and "Traceback" not in done["err"]
    lines = done["err"].strip().splitlines()
    assert lines[-1].startswith("error: ") and len(lines[-1]) > len("error: "), lines[-5:]
    assert len(done["err"]) < 300_000  # what was given, a few times at most
    for text in (done["out"], done["err"]):
        assert not [c for c in text if c != "\n" and unicodedata.category(c) in ("Cc", "Cf", "Cs")], text[:300]
        assert "hunter2" not in text


def test_nothing_is_written_but_artifacts(ended: dict[str, dict[str, Any]]) -> None:
    others = [path for path in ended[""]["left"] if path.partition("/")[0] not in ("arguments.txt", "store")]
    assert [path for path in others if not path.startswith("artifacts")] == []
