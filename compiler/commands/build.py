"""build: the artifact for a target and a model. The verb that is meant when none is given."""

from __future__ import annotations

import contextlib
import json
import sys
import traceback
from pathlib import Path
from typing import Any

from compiler.commands.arguments import ConfigArguments, parse_config_arguments, print_error
from compiler.config import compose, expand_sweep
from compiler.errors import UNUSABLE_NAMES, CompilerError, InterruptedBuild, unusable_name
from compiler.gate import gate
from compiler.identity import KeyMaker
from compiler.keys.memo import Memo
from compiler.plan import check_tools, make_plan
from compiler.registries.reference import parse as parse_reference
from compiler.schema import Config
from compiler.store import Store

SEVERITY = (0, 3, 2, 4, 6, 5, 1, 130)
"""Exit codes, mildest first: a multirun ends with the most severe."""


def run(arguments: list[str]) -> int:
    """Builds every job that the overrides ask for."""
    options = parse_config_arguments("build", __doc__ or "", arguments)
    jobs = expand_sweep(options.overrides, options.config_dirs) if options.multirun else [options.overrides]
    worst = 0
    manifests = []
    with Workplaces() as places:
        for number, job in enumerate(jobs, 1):
            if options.multirun:
                print(f"[{number}/{len(jobs)}] {' '.join(job)}", file=sys.stderr)
            manifest, error = _build(job, options, places)
            if manifest is not None:
                manifests.append(manifest)
            if error is not None:
                worst = max(worst, error.exit_code, key=SEVERITY.index)
                if not options.multirun and not options.json:
                    raise error
                print_error(error)
    if options.json and (manifests or options.multirun):
        print(json.dumps(manifests if options.multirun else manifests[0], indent=1))
    return worst


class Workplaces(contextlib.ExitStack):
    """The stores of a command, and what it remembers of inputs: the jobs of a multirun share them."""

    def __init__(self) -> None:
        super().__init__()
        self._open: dict[Path, tuple[Store, Memo]] = {}

    def at(self, artifacts: Path) -> tuple[Store, Memo]:
        """The store below `artifacts` and its memo."""
        root = artifacts.absolute() / ".store"
        if root not in self._open:
            store = self.enter_context(Store(root))
            self._open[root] = store, Memo(root / "memo.json", store.write)
        return self._open[root]


def _build(
    overrides: list[str], options: ConfigArguments, places: Workplaces
) -> tuple[dict[str, Any] | None, CompilerError | None]:
    """One build: the manifest of what was built, and what went wrong; both where a gate failed.

    Raises:
        InterruptedBuild: the user ended it, and with it a multirun.
    """
    try:
        config = compose(overrides, options.config_dirs)
        artifacts = Path(config.artifacts_dir)
        store, memo = places.at(artifacts)
        folder, manifest, executed, new = _run_steps(config, artifacts, store, memo, KeyMaker(config, memo))
        if executed:
            memo.forget_all()  # while steps ran, source and tools may have changed
    except InterruptedBuild:
        raise
    except CompilerError as error:
        return None, error
    except Exception as error:
        if isinstance(error, OSError) and error.filename is not None and error.errno in UNUSABLE_NAMES:
            return None, unusable_name(error)
        if not options.multirun:
            raise
        traceback.print_exc()
        return None, CompilerError(f"internal error: {error}", fix="report this; it is a bug in the compiler")
    if not options.json:
        with contextlib.suppress(BrokenPipeError):  # who reads the table may stop reading; the artifact is there
            _print(manifest, folder, executed, new)
    failed = gate(config.strict, manifest, folder)
    if config.publish and (failed is None or config.force):
        try:
            _publish(config, folder)
        except CompilerError as unpublished:
            failed = unpublished
    if not options.json:
        print(folder / "manifest.json", flush=True)
    return manifest, failed


def _publish(config: Config, folder: Path) -> None:
    from compiler.commands.publish import send
    from compiler.publishing import Signer

    signing = config.signing
    signer = Signer(Path(signing.key), tuple(map(Path, signing.certificates))) if signing.key else None
    published = send(folder, parse_reference(config.registry), config.force, signer)
    print(published.reference, file=sys.stderr)


def _print(manifest: dict[str, Any], folder: Path, executed: int, new: bool) -> None:
    from compiler.report import print_manifest

    print_manifest(manifest, folder)
    if not new and executed:
        print(f"{executed} results were made again; this version was written before.")
    elif not new:
        print("Nothing to do: every result is in the store and this version was written before.")
    elif not executed:
        print("No step ran: every result was in the store.")


def _run_steps(
    config: Config, artifacts: Path, store: Store, memo: Memo, keys: KeyMaker
) -> tuple[Path, dict[str, Any], int, bool]:
    from compiler import deferral, versions
    from compiler.manifest import assemble
    from compiler.progress import watcher
    from compiler.runner import Runner
    from compiler.unfinished import assemble_deferred

    plan = make_plan(config)
    keys.check_inputs(plan)
    lacks = deferral.lacking(plan)
    if lacks and not config.defer:
        raise deferral.refuse(
            lacks, "build where that is, or prepare the rest here with defer=true, for finish to complete"
        )
    check_tools(plan, deferral.here(plan) if lacks else None)
    with contextlib.suppress(OSError):
        store.clean_leftovers()
    try:
        with watcher() as watching:
            runner = Runner(plan, store, keys, watching)
            outcome = runner.prepare() if lacks else runner.run()
    except KeyboardInterrupt:
        raise InterruptedBuild("interrupted", fix="run the same command again: finished steps are kept") from None
    finally:
        keys.save()
    root = artifacts.absolute()

    def assembled() -> dict[str, Any]:
        keys.check_fully(plan)
        inputs = keys.outside(plan)
        return assemble_deferred(plan, outcome, inputs, lacks) if lacks else assemble(plan, outcome, inputs)

    folder, manifest, new = versions.deliver(root, store, config, outcome, memo, assembled)
    keys.save()
    return artifacts / folder.relative_to(root), manifest, outcome.executed, new
