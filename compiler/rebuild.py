"""Builds an artifact again from its manifest alone, in an empty store, and compares what must be the same."""

from __future__ import annotations

import dataclasses
import json
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from compiler import lookup
from compiler.config import revive
from compiler.errors import ConfigError, IntegrityError
from compiler.identity import KeyMaker, resolve_path
from compiler.keys.memo import Memo, content_digest
from compiler.keys.tools import tool_version
from compiler.outcome import Watcher
from compiler.plan import Plan, check_tools, make_plan
from compiler.runner import Runner
from compiler.schema import Config
from compiler.stages.calibrate import RECORD
from compiler.store import Store

SHARED = "calibrate"


@dataclass(frozen=True)
class Compared:
    """One file of the artifact: `found` is the digest of what was built now, None where it was not."""

    path: str
    recorded: str
    found: str | None

    @property
    def same(self) -> bool:
        """Whether the bytes are those that the manifest names."""
        return self.recorded == self.found


def rebuild(manifest: Mapping[str, Any], own_code: bool, watcher: Watcher) -> list[Compared]:
    """Builds the selected candidate's portable steps anew; one entry for each file that the manifest calls portable.

    `own_code` allows the manifest to name modules that are not ours: it is data, and what it names is run.

    Raises:
        ConfigError: the manifest's configuration is none of this version, or has no selected candidate.
        IntegrityError: it names code that was not allowed, or an input is not the one that was built from.
        CompilerError: a step failed, or a tool lacks.
    """
    config = revive(manifest["config"])
    if not own_code:
        _refuse_code(config)
    if manifest["selected"] not in config.candidates:
        raise ConfigError("the manifest has no selected candidate", fix="see why: python -m compiler show PATH")
    portable = {file["path"]: file["sha256"] for file in manifest["files"] if file.get("portable")}
    with tempfile.TemporaryDirectory(prefix="rebuild-") as folder, Store(Path(folder) / ".store") as store:
        memo = Memo(store.root / "memo.json", store.write)
        plan = make_plan(config)
        needed = _delivering(plan, manifest["selected"], RECORD in portable)
        check_inputs(manifest, set(plan.ancestors(needed)), memo)
        check_tools(plan, needed)
        outcome = Runner(plan, store, KeyMaker(config, memo), watcher).make(needed)
        built = {entry.path: entry.sha256 for entry in outcome.results["package"].entries}
    return [Compared(path, digest, built.get(path)) for path, digest in sorted(portable.items())]


def differences(manifest: Mapping[str, Any]) -> list[str]:
    """In words, what is installed here in another version than where the artifact was built."""
    then = manifest["environment"]
    found = [
        f"{name} {version} to {tool_version(name)}"
        for name, version in sorted(then["packages"].items())
        if tool_version(name) != version
    ]
    from compiler.keys.environment import build_isa, interpreter

    for what, now in (("interpreter", interpreter()), ("build_isa", build_isa())):
        if then.get(what) not in (None, now):
            found.append("the CPU's features" if what == "build_isa" else f"{then[what]} to {now}")
    return found


def check_inputs(manifest: Mapping[str, Any], steps: set[str], memo: Memo) -> None:
    """Refuses weights and data that are not those that the manifest names.

    Raises:
        ConfigError: one is not there.
        IntegrityError: one has another content.
    """
    for name, entry in sorted(manifest["inputs"].items()):
        path = resolve_path(entry["path"])
        if name.rpartition(".")[0] in steps and content_digest(path, memo) != entry["sha256"]:
            raise IntegrityError(
                f"{path} is not what the artifact was built from ({name} had the SHA-256 {entry['sha256']})",
                fix="restore that file, or build a new version from this one",
            )


def _delivering(plan: Plan, selected: str, calibrated: bool) -> list[str]:
    """Makes `package` gather only what does not depend on measuring; returns the steps to make."""
    step, candidate = plan.steps["package"], plan.candidates[selected]
    inputs = {"model": candidate.result} | ({SHARED: SHARED} if calibrated else {})
    stage = dataclasses.replace(step.stage, artifact=candidate.spec.artifact)  # type: ignore[call-arg]
    plan.steps["package"] = dataclasses.replace(step, stage=stage, inputs=inputs)
    return ["package"]


def _refuse_code(config: Config) -> None:
    """A manifest may choose among our stages, runtimes and networks, and never name other code to be run."""
    named = [f"toolchains.{name}.python" for name in config.toolchains]
    named += [name for name in (config.model.architecture, config.data.metric) if ":" in name]
    for candidate in config.candidate.values():
        named += [name for name in (candidate.backend, candidate.runtime or "") if "." in name]
        named += [str(v) for v in candidate.options.values() if isinstance(v, str) and ":" in v]
        named += [name for name in map(_stage_of, candidate.steps.values()) if not _ours(name)]
    named += [name for name in map(_stage_of, config.steps.values()) if not _ours(name)]
    if named:
        raise IntegrityError(
            f"the manifest names code that is not this project's: {', '.join(sorted(set(named)))}",
            fix="if you trust it: python -m compiler rebuild PATH --own-code",
        )


def _stage_of(spec: Mapping[str, Any] | None) -> str:
    return str((spec or {}).get("stage", ""))


def _ours(stage: str) -> bool:
    backend = stage.rpartition(".")[0]
    return not backend or backend in lookup.backends()


def report(compared: list[Compared]) -> str:
    """The comparison as JSON."""
    return json.dumps([{**dataclasses.asdict(item), "same": item.same} for item in compared], indent=1)
