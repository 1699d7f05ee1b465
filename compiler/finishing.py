"""Finishes a deferred build where the hardware is: what was prepared counts by its digest, the rest is run here.

The deferred version is data. Its files were verified before; here its configuration must be one that builds record, it
names no code but ours, and no step is run but those that take what was prepared.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from compiler import versions
from compiler.canonical import tree_digest, tree_entries
from compiler.config import revive
from compiler.deferral import lacking_to_finish, refuse, sentence
from compiler.disk import copy, explain_os_errors
from compiler.errors import ConfigError, IntegrityError, StepError, unknown_name
from compiler.identity import KeyMaker, is_path_field, key_of
from compiler.keys.memo import Memo
from compiler.manifest import DEFERRED, HOST, assemble
from compiler.outcome import Outcome, StepRecord, Watcher
from compiler.plan import BRIEF, REQUIRED, Plan, make_plan
from compiler.rebuild import refuse_code
from compiler.runner import Runner
from compiler.schema import Executor
from compiler.stages.package_deferred import FOLDER, ROLE
from compiler.store import Origin, Result, Store

FIX = "prepare the build again: python -m compiler target=... model=... defer=true"
PROGRAM = "the PyTorch program that it is made of can hold code, and --own-code was not given"
NOT_WRITTEN_SO = (LookupError, TypeError, ValueError, AttributeError, ArithmeticError, RecursionError)


@dataclasses.dataclass(frozen=True)
class Wish:
    """What the user asked for: `candidates` (empty: all), `partial`: those that lack something stay deferred;
    `own_code`: modules that are not ours, and programs of PyTorch, may be run.
    """

    candidates: tuple[str, ...] = ()
    partial: bool = False
    own_code: bool = False


@dataclasses.dataclass(frozen=True)
class Finished:
    """The new version: its folder, its manifest, how many steps ran, and whether it was written now."""

    folder: Path
    manifest: dict[str, Any]
    executed: int
    new: bool


def finish(folder: Path, manifest: Mapping[str, Any], wish: Wish, artifacts: Path, watcher: Any) -> Finished:
    """Builds, measures and evaluates what the verified version in `folder` left open; writes a new version below
    `artifacts`. `watcher` gives the context of a `Watcher`.

    Raises:
        ConfigError: there is nothing to finish, or no such candidate.
        MissingToolError: this host lacks what a candidate needs.
        IntegrityError: the version is not one that builds write.
        CompilerError: a step failed.
    """
    if manifest["status"] != DEFERRED or not any(file["role"] == ROLE for file in manifest["files"]):
        raise ConfigError(
            f"{folder} has nothing to finish: its status is {manifest['status']}",
            fix="see it: python -m compiler show PATH",
        )
    try:
        return _finish(folder, manifest, wish, artifacts, watcher)
    except NOT_WRITTEN_SO as error:
        raise IntegrityError(
            f"{folder} is not a deferred version that builds write: {error!r}"[:300], fix=FIX
        ) from error


def _finish(folder: Path, manifest: Mapping[str, Any], wish: Wish, artifacts: Path, watcher: Any) -> Finished:
    hosts = _checked(manifest)
    config = revive(manifest["config"])
    config.executor = Executor(environment=config.executor.environment)  # how much of this machine is no manifest's say
    config.artifacts_dir = str(artifacts)
    if not wish.own_code:
        refuse_code(config, "finish")
    plan = make_plan(config)
    names = _prepared_names(manifest, plan)
    outcome = Outcome(prepared=frozenset(names))
    outcome.left_out = _left_out(manifest, plan, names, wish)
    _check_steps(plan, names, outcome.left_out)
    with Store(artifacts / ".store") as store, watcher as watching:
        memo = Memo(store.root / "memo.json", store.write)
        keys = KeyMaker(config, memo)
        outcome.records = _records(manifest, plan)
        outcome.results = {name: _adopt(store, folder / FOLDER / name, name) for name in names}
        dict(outcome.facts("samples")["splits"])
        _run(plan, store, keys, watching, outcome)

        def assembled() -> dict[str, Any]:
            found = assemble(plan, outcome, manifest["inputs"], hosts)
            found["environment"]["prepared_in"] = manifest["environment"]
            return found | {"finished_from": {name: manifest[name] for name in ("version", "digest")}}

        place, written, new = versions.deliver(artifacts.absolute(), store, config, outcome, memo, assembled)
        keys.save()
    return Finished(artifacts / place.relative_to(artifacts.absolute()), written, outcome.executed, new)


def _checked(manifest: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The hosts that the prepared accuracies name, once what goes into the new manifest unread is of its form.

    Raises:
        ValueError: it is not.
    """
    hosts = [host for host in manifest["measured_on"] if host["id"] == HOST]
    if len(hosts) != 1 or not isinstance(hosts[0].get("fingerprint"), str):
        raise ValueError("measured_on does not say where it was prepared")
    for entry in manifest["inputs"].values():
        if not isinstance(entry["path"], str) or not isinstance(entry["sha256"], str):
            raise ValueError("inputs")
    if not isinstance(manifest["environment"]["packages"], dict):
        raise ValueError("environment")
    return hosts


def _run(plan: Plan, store: Store, keys: KeyMaker, watching: Watcher, outcome: Outcome) -> None:
    """Runs what is left. Raises CompilerError where it fails, whatever the prepared results say that no build wrote."""
    with contextlib.suppress(OSError):
        store.clean_leftovers()
    try:
        Runner(plan, store, keys, watching, outcome).run()
    finally:
        keys.save()


def _prepared_names(manifest: Mapping[str, Any], plan: Plan) -> list[str]:
    """The steps whose results the version holds, in the plan's order."""
    found = {str(file["path"]).split("/")[1] for file in manifest["files"] if file["role"] == ROLE}
    for name in sorted(found - plan.steps.keys()):
        raise IntegrityError(f"the version holds a result of {name!r}, which its build has not", fix=FIX)
    return [name for name in plan.steps if name in found]


def _left_out(manifest: Mapping[str, Any], plan: Plan, names: list[str], wish: Wish) -> dict[str, tuple[str, str]]:
    """The candidates that are not finished here, with status and reason.

    Raises:
        MissingToolError: one that is wanted lacks something.
    """
    base, racing = plan.config.baseline, [n for n in plan.candidates if n != plan.config.baseline]
    for name in wish.candidates:
        if name not in racing:
            raise unknown_name("candidate", name, racing)
    failed = {row["id"]: str(row["reason"]) for row in manifest["candidates"] if row["status"] == "failed"}
    lacks = lacking_to_finish(plan, names)
    programs = [] if wish.own_code else [n for n in racing if n not in lacks and _loads_programs(plan, n, names)]
    out: dict[str, tuple[str, str]] = {}
    for name in racing:
        if name in failed:
            out[name] = ("failed", failed[name])
        elif wish.candidates and name not in wish.candidates:
            out[name] = ("skipped", "left out when the build was finished")
        elif name in lacks and wish.partial:
            out[name] = (DEFERRED, sentence(lacks[name], "this host"))
        elif name in programs and wish.partial:
            out[name] = (DEFERRED, PROGRAM)
    missing = {name: lacks[name] for name in racing if name in lacks and name not in out}
    able = [name for name in racing if name not in out and name not in lacks and name not in programs]
    if missing:
        raise refuse(missing, _advice(able))
    asking = [name for name in programs if name not in out] or ([] if able else programs)
    if asking:
        others = f"; or finish the others: --candidates {','.join(able)}" if able else ""
        raise IntegrityError(
            f"the PyTorch program for {', '.join(asking)} can hold code",
            fix=f"if you trust who prepared it: python -m compiler finish PATH --own-code{others}",
        )
    if not able:
        raise refuse({n: lacks[n] for n in racing if n in lacks}, _advice(able))
    if base in lacks:
        out[base] = ("skipped", sentence(lacks[base], "this host"))
    return out


def _loads_programs(plan: Plan, candidate: str, names: Collection[str]) -> bool:
    return any(plan.steps[step].stage.loads_programs for step in plan.candidates[candidate].steps if step not in names)


def _advice(able: list[str]) -> str:
    if not able:
        return "finish it on a host that has it"
    names = ",".join(able)
    return (
        f"install it, or finish what can be finished here: --candidates {names} (or --partial: the rest stays deferred)"
    )


def _check_steps(plan: Plan, names: Collection[str], left_out: Collection[str]) -> None:
    """Refuses a version that would make other steps run than what is left of a deferred build.

    Raises:
        IntegrityError: a result lacks, or a candidate's step would read files of this host.
    """
    chains = {c.id: c for c in plan.candidates.values() if c.id not in left_out}
    own = {step for candidate in chains.values() for step in candidate.steps if step not in names}
    late = {*REQUIRED, *BRIEF} - {"samples"}
    for name in sorted(own):
        stage = type(plan.steps[name].stage)
        if any(is_path_field(stage, field.name) for field in dataclasses.fields(stage)):
            raise IntegrityError(f"the step {name} would read files of this host", fix=FIX)
    sources = {plan.candidates[name].result for name in chains}
    needed = {s for name in own for s in plan.steps[name].inputs.values()} | {"samples"} | (sources - own)
    for name in sorted(needed - own - set(names) - late):
        raise IntegrityError(f"the version lacks the result of the step {name}", fix=FIX)


def _records(manifest: Mapping[str, Any], plan: Plan) -> dict[str, StepRecord]:
    """What became of the steps that were made where the build was prepared."""
    found = {}
    for row in manifest["steps"]:
        name = str(row["name"])
        if name in plan.steps and name != "package" and row["key"] is not None:
            outputs = tuple(str(value) for value in row["outputs"])
            why = f"made for {manifest['version']}, which this finishes"
            found[name] = StepRecord(
                name, str(row["stage"]), str(row["key"]), "reused", float(row["seconds"]), outputs, why
            )
    return found


def _adopt(store: Store, source: Path, name: str) -> Result:
    """Puts a prepared result into the store, under a key that is its content's."""
    entries = tree_entries(source)
    document = {"prepared": tree_digest(entries)}
    known = store.take(key_of(document))
    if known is not None:
        return known
    with store.work_folder("prepared") as work, explain_os_errors(store.root):
        for entry in entries:
            target = work / "out" / entry.path
            target.parent.mkdir(parents=True, exist_ok=True)
            copy(source / entry.path, target)
        adopted = store.commit(key_of(document), document, work / "out", 0.0, Origin(step=name))
    if adopted.digest != document["prepared"]:
        raise StepError(f"the copy of {source} is not what it was copied from", fix="check the disk, then run again")
    return adopted
