"""Builds an artifact again from its manifest alone, in an empty store, and compares what must be the same."""

from __future__ import annotations

import dataclasses
import json
import re
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from compiler import lookup
from compiler.config import revive
from compiler.deferral import here_lacking, refuse
from compiler.errors import ConfigError, IntegrityError
from compiler.identity import KeyMaker, resolve_path
from compiler.keys.memo import Memo
from compiler.keys.tools import tool_version
from compiler.outcome import Watcher
from compiler.plan import Plan, check_tools, make_plan
from compiler.runner import Runner
from compiler.runtime.verify import check_selected
from compiler.schema import Config, Executor
from compiler.stage import FACTS
from compiler.store import Store
from compiler.uneven import RECORD

SHARED = "calibrate"
CODE = re.compile(r"[^\W\d][\w.]*:[^\W\d][\w.]*")


@dataclass(frozen=True)
class Compared:
    """One file of the artifact: the digests in the manifest and of what was built now, None where there is none."""

    path: str
    recorded: str | None
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
    config.executor = Executor(environment=config.executor.environment)  # how much of this machine is no manifest's say
    if not own_code:
        refuse_code(config, "rebuild")
    check_selected(manifest, manifest["version"])
    if manifest["selected"] not in config.candidates:
        raise ConfigError("the manifest selects what its build has not", fix="see it: python -m compiler show PATH")
    recorded = {file["path"]: file["sha256"] for file in manifest["files"]}
    portable = {file["path"] for file in manifest["files"] if file.get("portable")}
    with tempfile.TemporaryDirectory(prefix="rebuild-") as folder, Store(Path(folder) / ".store") as store:
        memo = Memo(store.root / "memo.json", store.write)
        plan = make_plan(config)
        needed = _delivering(plan, manifest["selected"], RECORD in recorded)
        keys = KeyMaker(config, memo)
        check_inputs(manifest, keys, plan, set(plan.ancestors(needed)))
        lacks = here_lacking(plan, needed)
        if lacks:
            raise refuse({manifest["selected"]: lacks}, "rebuild it on a host that has it")
        check_tools(plan, needed)
        outcome = Runner(plan, store, keys, watcher).make(needed)
        built = {entry.path: entry.sha256 for entry in outcome.results["package"].entries if entry.path != FACTS}
    # what was built decides what is compared: a manifest could call nothing portable
    return [Compared(path, recorded.get(path), built.get(path)) for path in sorted(portable | built.keys())]


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


def check_inputs(manifest: Mapping[str, Any], keys: KeyMaker, plan: Plan, steps: set[str]) -> None:
    """Refuses weights and data that `steps` would read and that are not those that the manifest names.

    Raises:
        ConfigError: one is not there.
        IntegrityError: one has another content, or the manifest does not say which it had.
    """
    recorded = {name: str(entry["sha256"]) for name, entry in manifest["inputs"].items()}
    for name, entry in keys.outside(plan, steps).items():
        wanted = recorded.get(name, "that it does not tell")
        if entry["sha256"] != wanted:
            path = resolve_path(entry["path"])
            raise IntegrityError(
                f"{path} is not what the artifact was built from ({name} had the SHA-256 {wanted})",
                fix="restore that file, or build a new version from this one",
            )


def _delivering(plan: Plan, selected: str, calibrated: bool) -> list[str]:
    """Makes `package` gather only what does not depend on measuring; returns the steps to make."""
    step, candidate = plan.steps["package"], plan.candidates[selected]
    inputs = {"model": candidate.result} | ({SHARED: SHARED} if calibrated else {})
    stage = dataclasses.replace(step.stage, artifact=candidate.spec.artifact)  # type: ignore[call-arg]
    plan.steps["package"] = dataclasses.replace(step, stage=stage, inputs=inputs)
    return ["package"]


def refuse_code(config: Config, verb: str) -> None:
    """A manifest may choose among our stages, runtimes and networks, and never name other code to be run.

    Raises:
        IntegrityError: it names some; `verb` is what the user asked for.
    """
    named = [f"toolchains.{name}.python" for name in config.toolchains]
    named += [name for name in (config.model.architecture, config.data.metric) if ":" in name]
    for candidate in config.candidate.values():
        named += [name for name in (candidate.backend, candidate.runtime or "") if "." in name]
        named += _code_in(candidate.options)
        named += [name for name in candidate.steps if not _ours(name)]
    for spec in [*config.steps.values(), *(s for c in config.candidate.values() for s in c.steps.values())]:
        named += _code_in(spec)
        stage = spec.get("stage", "") if isinstance(spec, Mapping) else ""
        named += [] if _ours(str(stage)) else [str(stage)]
    if named:
        raise IntegrityError(
            f"the manifest names code that is not this project's: {', '.join(sorted(set(named)))}",
            fix=f"if you trust it: python -m compiler {verb} PATH --own-code",
        )


def _code_in(node: Any) -> list[str]:
    """Every text `package.module:name` in a stage's fields or a runtime's options, whatever they are called."""
    if isinstance(node, Mapping):
        return [text for item in node.values() for text in _code_in(item)]
    if isinstance(node, list | tuple):
        return [text for item in node for text in _code_in(item)]
    return [node] if isinstance(node, str) and CODE.fullmatch(node) else []


def _ours(stage: str) -> bool:
    backend = stage.rpartition(".")[0]
    return not backend or backend in lookup.backends()


def report(compared: list[Compared]) -> str:
    """The comparison as JSON."""
    return json.dumps([{**dataclasses.asdict(item), "same": item.same} for item in compared], indent=1)
