"""store: looks after the results of earlier builds: lists them, removes what is not needed, checks all.

ls      every stored result, the least recently used first, and by how many finished versions each is needed
gc      removes results that neither a running build nor a kept version needs, and what failed or damaged builds left;
        finished versions are never touched
fsck    hashes everything in full: results, records, remembered inputs, finished versions
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from pathlib import Path

from compiler.commands.arguments import parse_size, parser
from compiler.errors import ConfigError, IntegrityError, unknown_name
from compiler.store import Store, upkeep
from compiler.words import printable

KEY_CHARACTERS = 12
ACTIONS = ("ls", "gc", "fsck")


def run(arguments: list[str]) -> int:
    """Exit 0; 6 where fsck found damage that it was not asked to repair, or cannot repair."""
    options = parser("store", __doc__ or "")
    options.add_argument("action", metavar="ls|gc|fsck")
    options.add_argument("where", nargs="?", default="artifacts_dir=artifacts", metavar="artifacts_dir=DIR")
    options.add_argument("--json", action="store_true", help="print nothing but JSON")
    keep = f"gc: keep what the newest N versions of each model and target need, and latest (default {upkeep.KEEP}, "
    options.add_argument("--keep", type=int, metavar="N", help=keep + "with --max-size all; 0: nothing)")
    size = "gc: remove the least recently used only until the store is no larger, for example 20GB"
    options.add_argument("--max-size", metavar="SIZE", help=size)
    options.add_argument("--dry-run", action="store_true", help="gc: say what would go, remove nothing")
    options.add_argument("--repair", action="store_true", help="fsck: set aside what is damaged; builds make it again")
    given = options.parse_intermixed_args(arguments)
    if given.action not in ACTIONS:
        raise unknown_name("action", given.action, ACTIONS)
    name, _, folder = given.where.partition("=")
    if name != "artifacts_dir" or not folder:
        raise ConfigError(f"{given.where!r} is not understood", fix="say artifacts_dir=DIR, or nothing for artifacts")
    artifacts = Path(folder).absolute()
    if not (artifacts / ".store").is_dir():
        raise ConfigError(f"there is no store in {folder}", fix="name the artifacts_dir of your builds")
    with Store(artifacts / ".store") as store:
        return {"ls": _ls, "gc": _gc, "fsck": _fsck}[given.action](store, artifacts, given)


def _ls(store: Store, artifacts: Path, given: argparse.Namespace) -> int:
    rows = upkeep.rows(store, artifacts)
    if given.json:
        print(json.dumps([dataclasses.asdict(row) for row in rows], indent=1))
        return 0
    from datetime import UTC, datetime

    from rich.table import Table

    from compiler import terminal

    table = Table(pad_edge=False)
    for title in ("key", "step", "built for", "MB", "last used", "versions"):
        table.add_column(title, justify="right" if title in ("MB", "versions") else "left")
    for row in rows:
        used = datetime.fromtimestamp(row.used, UTC).strftime("%Y-%m-%d %H:%M")
        cells = (row.key[:KEY_CHARACTERS], row.step, row.scope, _mb(row.size_bytes), used, str(row.kept_by))
        table.add_row(*map(printable, cells))
    terminal.console().print(table)
    sizes = {row.object: row.size_bytes for row in rows}
    print(f"{len(rows)} results, {len(sizes)} different ones of {_mb(sum(sizes.values()))} MB, in {store.root}")
    return 0


def _gc(store: Store, artifacts: Path, given: argparse.Namespace) -> int:
    largest = parse_size(given.max_size) if given.max_size is not None else None
    keep = given.keep if given.keep is not None or largest is not None else upkeep.KEEP
    if keep is not None and keep < 0:
        raise ConfigError(f"--keep {keep} is not a number of versions", fix="give 0 or more")
    done = upkeep.collect(store, artifacts, keep, largest, given.dry_run)
    if given.json:
        print(json.dumps({**dataclasses.asdict(done), "dry_run": given.dry_run}, indent=1))
        return 0
    for row in done.results:
        print(f"{row.key[:KEY_CHARACTERS]}  {row.step} ({row.scope})  {_mb(row.size_bytes)} MB")
    verb = "would remove" if given.dry_run else "removed"
    other = ", ".join(f"{count} {name}" for name, count in done.other.items() if count)
    print(f"{verb} {len(done.results)} results ({_mb(done.bytes_freed)} MB){'; ' + other if other else ''}")
    print(f"{done.results_left} results ({_mb(done.bytes_left)} MB) left in {store.root}")
    if largest is not None and done.bytes_left > largest:
        print(f"what versions and running builds need is larger than {given.max_size}: see --keep", file=sys.stderr)
    return 0


def _fsck(store: Store, artifacts: Path, given: argparse.Namespace) -> int:
    def told(what: str) -> None:
        if not given.json:
            print(f"checking {what}", file=sys.stderr, flush=True)

    found = []
    for damage in upkeep.check(store, artifacts, given.repair, told):
        found.append(damage)
        if not given.json:
            print(damage.what + (f": {damage.mended}" if damage.mended else ""), flush=True)
    if given.json:
        print(json.dumps([dataclasses.asdict(damage) for damage in found], indent=1))
    left = [damage for damage in found if not damage.mended]
    if left:
        raise IntegrityError(
            f"{len(left)} of {len(found)} findings remain; the first: {left[0].what}",
            fix="python -m compiler store fsck --repair sets results and records aside, and the next build makes them "
            "again; restore inputs and build versions again" if not given.repair
            else "restore the inputs, build the versions again and delete the damaged ones",
        )  # fmt: skip
    if not given.json:
        print(f"{len(found)} findings, all mended" if found else "everything is as it was written")
    return 0


def _mb(size: int) -> str:
    return f"{size / 1e6:.2f}"
