"""build: the artifact for a target and a model. The verb that is meant when none is given."""

from __future__ import annotations

import contextlib
import json
import signal
import sys
import time
from pathlib import Path
from typing import Any

from compiler.commands.arguments import ConfigArguments, parse_config_arguments, print_error
from compiler.config import Config, compose, expand_sweep
from compiler.errors import CompilerError, GateError, InterruptedBuild, StepError
from compiler.keys import Memo
from compiler.plan import KeyMaker, make_plan
from compiler.store import Store

SEVERITY = (0, 3, 2, 4, 6, 5, 1, 130)
"""Exit codes, mildest first: a multirun ends with the most severe."""


def run(arguments: list[str]) -> int:
    """Builds every job that the overrides ask for."""
    options = parse_config_arguments("build", __doc__ or "", arguments)
    signal.signal(signal.SIGTERM, _interrupt)
    jobs = expand_sweep(options.overrides, options.config_dirs) if options.multirun else [options.overrides]
    worst = 0
    manifests = []
    for number, job in enumerate(jobs, 1):
        if options.multirun:
            print(f"[{number}/{len(jobs)}] {' '.join(job)}", file=sys.stderr)
        try:
            manifests.append(_build(job, options))
            code = 0
        except CompilerError as error:
            if not options.multirun:
                raise
            print_error(error)
            code = error.exit_code
        worst = max(worst, code, key=SEVERITY.index)
    if options.json:
        done = [m for m in manifests if m is not None]
        print(json.dumps(done if options.multirun else done[0], indent=1))
    return worst


def _build(overrides: list[str], options: ConfigArguments) -> dict[str, Any] | None:
    """One build; returns the manifest.

    Raises:
        GateError: built, but a gate failed (or is unproven under strict=true); the artifact is there all the same.
    """
    config = compose(overrides, options.config_dirs)
    artifacts = Path(config.artifacts_dir)
    store = Store(artifacts.absolute() / ".store")
    memo = Memo(store.root / "memo.json")
    keys = KeyMaker(config, memo)
    folder, manifest, executed, new = _run_steps(config, artifacts, store, memo, keys)
    if not options.json:
        from compiler.report import print_manifest

        print_manifest(manifest, folder)
        if not new:
            print("Nothing to do: every result is in the store and this version was written before.")
        elif not executed:
            print("No step ran: every result was in the store.")
    _gate(config, manifest, folder)
    if not options.json:
        print(folder / "manifest.json")
    elif options.multirun:
        return manifest
    return manifest


def _run_steps(
    config: Config, artifacts: Path, store: Store, memo: Memo, keys: KeyMaker
) -> tuple[Path, dict[str, Any], int, bool]:
    from compiler import versions
    from compiler.manifest import assemble
    from compiler.progress import watcher
    from compiler.runner import Runner
    from compiler.runtime.verify import MANIFEST

    with contextlib.suppress(OSError):
        store.clean_leftovers()
    plan = make_plan(config)
    try:
        with watcher() as watching:
            outcome = Runner(plan, store, keys, watching).run()
    except KeyboardInterrupt:
        raise InterruptedBuild("interrupted", fix="run the same command again: finished steps are kept") from None
    finally:
        keys.save()
    name = versions.identity(config, outcome)
    root = artifacts.absolute()
    known = versions.find(root, store, name, memo)
    if known is None:
        with store.lock(f"version-{name}"):  # two builds of the same thing write one version
            known = versions.find(root, store, name, memo)
            if known is None:
                manifest = assemble(plan, outcome)
                while versions.folder_of(root, manifest).exists():  # a damaged version of this very second
                    time.sleep(0.2)
                    manifest = assemble(plan, outcome)
                folder = versions.write(root, store, name, manifest, outcome)
                versions.find(root, store, name, memo)  # remembers the digests, so that the next call is quick
                keys.save()
                return artifacts / folder.relative_to(root), manifest, outcome.executed, True
    manifest = json.loads((known / MANIFEST).read_text())
    with contextlib.suppress(OSError):
        versions.point_latest(known, manifest["status"])
    keys.save()
    return artifacts / known.relative_to(root), manifest, outcome.executed, False


def _gate(config: Config, manifest: dict[str, Any], folder: Path) -> None:
    failed = [v for v in manifest["verdicts"] if v["result"] == "fail"]
    lost = [c for c in manifest["candidates"] if c["status"] == "failed"]
    where = f"the artifact is at {folder}"
    if failed:
        what = "; ".join(
            f"{v['metric']} {v['value']} against {v['bound']}" if v["bound"] is not None else v["reason"]
            for v in failed
        )
        raise GateError(
            f"the budget is not met: {what}; nearest candidate: {manifest['selected']}",
            fix=f"{where}; relax the budget, add candidates, or build a smaller model",
        )
    if config.strict:
        open_ = [v for v in manifest["verdicts"] if v["result"] == "unproven"]
        if lost:
            raise StepError(
                f"candidates failed under strict=true: {', '.join(c['id'] for c in lost)}",
                fix=f"{where}; see their reasons: python -m compiler show {folder}",
            )
        if open_:
            raise GateError(
                f"unproven under strict=true: {', '.join(v['metric'] for v in open_)} ({open_[0]['reason']})",
                fix=f"{where}; measure on the target itself",
            )


def _interrupt(_number: int, _frame: object) -> None:
    raise KeyboardInterrupt
