"""rebuild: builds again from an artifact's manifest alone, in an empty store, and compares the portable files.

Nothing is measured and nothing is written: the artifact is proven to be what its manifest says it was made from.
"""

from __future__ import annotations

import sys

from compiler.commands.arguments import parser
from compiler.errors import ConfigError, IntegrityError
from compiler.runtime.located import local_folder
from compiler.runtime.trust import check
from compiler.runtime.verify import check_selected
from compiler.words import printable


def run(arguments: list[str]) -> int:
    """Exit 0 where every portable file has the recorded digest; 6, naming the first, if not."""
    options = parser("rebuild", __doc__ or "")
    options.add_argument("path", help="a version's folder, .../latest, or a reference")
    options.add_argument("--own-code", action="store_true", help="allow modules and interpreters that are not ours")
    options.add_argument("--json", action="store_true", help="print nothing but JSON")
    given = options.parse_args(arguments)
    manifest = check(local_folder(given.path)).manifest
    check_selected(manifest, given.path)
    if "inputs" not in manifest:
        raise ConfigError(f"{given.path} was built by an older version of the compiler", fix="build it again")

    from compiler import rebuild
    from compiler.progress import watcher

    try:
        with watcher() as watching:
            compared = rebuild.rebuild(manifest, given.own_code, watching)
        changed = rebuild.differences(manifest)
    except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError, RuntimeError, OSError) as error:
        raise IntegrityError(
            f"the manifest at {given.path} cannot be rebuilt from: {error!r}"[:300], fix="fetch or build it again"
        ) from error
    if given.json:
        print(rebuild.report(compared))
    else:
        for item in compared:
            print(f"{printable(item.path)}: {'same bytes' if item.same else 'differs'}")
    differing = [item for item in compared if not item.same]
    if differing:
        why = f"here differ: {', '.join(changed)}" if changed else "versions, interpreter and CPU features are the same"
        raise IntegrityError(
            f"{len(differing)} of {len(compared)} portable files are not rebuilt: {differing[0].path} differs; {why}",
            fix="install the versions that the manifest's environment names, or build a new version"
            if changed
            else "the artifact was made from other source than this, or was altered: do not trust it",
        )
    if changed and not given.json:
        print(f"the same although here differ: {', '.join(changed)}", file=sys.stderr)
    if not given.json:
        print(f"rebuilt: {len(compared)} of {len(compared)} portable files have the recorded digests")
    return 0
