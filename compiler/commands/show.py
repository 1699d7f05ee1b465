"""show: prints a manifest as a table."""

from __future__ import annotations

import json

from compiler import plain_report
from compiler.commands.arguments import parser
from compiler.errors import IntegrityError
from compiler.runtime.located import local_folder
from compiler.runtime.verify import read_manifest
from compiler.terminal import with_rich

SHOWN = 3
"""Of the later measurements, the newest so many are shown."""


def run(arguments: list[str]) -> int:
    """Prints the manifest at PATH."""
    options = parser("show", __doc__ or "")
    options.add_argument("path", help="a version's folder, .../latest, a manifest.json, or a reference")
    options.add_argument("--json", action="store_true", help="print the manifest itself")
    given = options.parse_args(arguments)
    folder, manifest = read_manifest(local_folder(given.path))
    if given.json:
        print(json.dumps(manifest, indent=1))
        return 0
    from compiler.observations import listing

    try:
        if not with_rich():
            print("\n".join(plain_report.lines(manifest, folder)))
            return 0
        from compiler.report import print_manifest, print_observation

        print_manifest(manifest, folder)
        for record in listing(folder)[-SHOWN:]:
            print_observation(record, manifest)
    except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError, RecursionError) as error:
        raise IntegrityError(
            f"{folder}/manifest.json is not a manifest ({error!r})"[:300], fix="fetch or build it again"
        ) from None
    return 0
