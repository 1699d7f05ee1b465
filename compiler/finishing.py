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
from compiler.canonical import encode, tree_digest, tree_entries
from compiler.config import revive
from compiler.deferral import lacking_to_finish, refuse, sentence
from compiler.disk import copy, explain_os_errors
from compiler.errors import ConfigError, IntegrityError, StepError, unknown_name
from compiler.identity import KeyMaker, key_of
from compiler.keys.memo import Memo
from compiler.manifest import assemble
from compiler.outcome import Outcome, Watcher
from compiler.plan import Plan, make_plan
from compiler.prepared import FIX, check_steps, hosts, records
from compiler.rebuild import refuse_code
from compiler.runner import Runner
from compiler.runtime.verify import DEFERRED
from compiler.schema import Executor
from compiler.stages.package_deferred import FOLDER, ROLE
from compiler.store import Origin, Result, Store

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
            f"{folder} has nothing to finish: its status is {manifest['status']}", fix=_what_else(manifest)
        )
    try:
        return _finish(folder, manifest, wish, artifacts, watcher)
    except NOT_WRITTEN_SO as error:
        raise IntegrityError(
            f"{folder} is not a deferred version that builds write: {error!r}"[:300], fix=FIX
        ) from error


def _what_else(manifest: Mapping[str, Any]) -> str:
    origin = manifest.get("finished_from")
    if manifest["status"] == DEFERRED and isinstance(origin, Mapping) and isinstance(origin.get("version"), str):
        return f"what it left open is finished from the version that it came from: {origin['version']}"
    return "see it: python -m compiler show PATH"


def _finish(folder: Path, manifest: Mapping[str, Any], wish: Wish, artifacts: Path, watcher: Any) -> Finished:
    prepared_on = hosts(manifest)
    config = revive(manifest["config"])
    config.executor = Executor(environment=config.executor.environment)  # how much of this machine is no manifest's say
    config.artifacts_dir = str(artifacts)
    if not wish.own_code:
        refuse_code(config, "finish")
    plan = make_plan(config)
    names = _prepared_names(manifest, plan)
    outcome = Outcome(
        prepared=frozenset(names), finished_from={name: str(manifest[name]) for name in ("version", "digest")}
    )
    outcome.left_out = _left_out(manifest, plan, names, wish)
    check_steps(plan, names, outcome.left_out)
    with Store(artifacts / ".store") as store, watcher as watching:
        memo = Memo(store.root / "memo.json", store.write)
        keys = KeyMaker(config, memo)
        outcome.records = records(manifest, plan)
        for name in names:
            outcome.results[name] = _adopt(store, folder / FOLDER / name, name)
            if name in outcome.records:  # the key by which this store knows it: `measure` looks for it here
                outcome.records[name] = dataclasses.replace(outcome.records[name], key=outcome.results[name].key)
        dict(outcome.facts("samples")["splits"])
        _run(plan, store, keys, watching, outcome)

        def assembled() -> dict[str, Any]:
            found = assemble(plan, outcome, manifest["inputs"], prepared_on)
            found["environment"]["prepared_in"] = manifest["environment"]
            found |= {"finished_from": outcome.finished_from}
            encode(found)  # facts of prepared results are in it: a NaN there would make a manifest that nobody reads
            return found

        place, written, new = versions.deliver(artifacts.absolute(), store, config, outcome, memo, assembled)
        keys.save()
    return Finished(artifacts / place.relative_to(artifacts.absolute()), written, outcome.executed, new)


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
        lost = [name for name in racing if name in failed and out[name][0] == "failed"]
        if wish.candidates and set(wish.candidates) <= set(lost):
            raise ConfigError(
                f"{lost[0]} failed where the build was prepared: {failed[lost[0]]}",
                fix="prepare the build again, or finish other candidates",
            )
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
