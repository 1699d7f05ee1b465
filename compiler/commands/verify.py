"""verify: checks every file of an artifact against its manifest."""

from __future__ import annotations

from pathlib import Path

from compiler.commands.arguments import parser
from compiler.runtime.verify import verify


def run(arguments: list[str]) -> int:
    """Exit 0 if everything matches; 6, naming the file, if not."""
    options = parser("verify", __doc__ or "")
    options.add_argument("path", type=Path, help="a version's folder, or .../latest")
    given = options.parse_args(arguments)
    manifest = verify(given.path)
    print(f"verified: {len(manifest['files'])} files, digest {manifest['digest']}")
    return 0
