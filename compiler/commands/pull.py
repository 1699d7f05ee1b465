"""pull: fetches an artifact from a registry into a folder, verified file by file before anything has its name there.

A folder that holds an artifact gets the new one in its place; files that are the same are not fetched again. A transfer
that was broken off is gone on with by the next call.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from compiler.commands.arguments import add_trust_flags, parse_size, parser, policy_of
from compiler.commands.transfers import shown
from compiler.errors import ConfigError
from compiler.outputs import check_output_file, write_output
from compiler.registries.reference import parse
from compiler.runtime import fetch
from compiler.terminal import need_pages
from compiler.words import printable


def run(arguments: list[str]) -> int:
    """Prints what was verified and, last, the folder."""
    options = parser("pull", __doc__ or "")
    options.add_argument(
        "reference", metavar="REF", help="file:PATH or oci://HOST/REPOSITORY, with :TAG or @sha256:..."
    )
    options.add_argument("folder", metavar="DIR", type=Path, help="not there yet, empty, or pulled into before")
    add_trust_flags(options)
    options.add_argument("--max-bytes", metavar="SIZE", default="64GB", help="refuse what is larger (default 64GB)")
    options.add_argument(
        "--report", type=Path, metavar="FILE", help="write the verified manifest as one page of HTML too"
    )
    options.add_argument("--json", action="store_true", help="print nothing but JSON")
    given = options.parse_args(arguments)
    if given.report is not None:
        if given.report.absolute().is_relative_to(given.folder.absolute()):
            raise ConfigError(
                f"{given.report} is inside the artifact, which nothing changes", fix="choose another place"
            )
        check_output_file(given.report)
        need_pages()
    reference, policy = parse(given.reference), policy_of(given)
    limit = parse_size(given.max_bytes)
    with shown("pulling") as tell:
        pulled = fetch.pull(reference, given.folder, policy, tell, limit)
    for note in pulled.notes:
        print(f"note: {printable(note)}", file=sys.stderr)
    if given.report is not None:
        from compiler.html import render

        write_output(given.report, render(pulled.manifest).encode())
    if given.json:
        record = {
            "reference": str(reference.pinned(pulled.digest)), "digest": pulled.digest, "folder": str(given.folder),
            "version": pulled.manifest["version"], "status": pulled.manifest["status"], "new": pulled.new,
            "notes": pulled.notes,
        }  # fmt: skip
        print(json.dumps(record, indent=1))
        return 0
    for line in pulled.trust.lines():
        print(line, file=sys.stderr)
    if not pulled.new:
        print("nothing to do: the folder holds it already", file=sys.stderr)
    print(reference.pinned(pulled.digest), file=sys.stderr)
    print(given.folder)
    return 0
