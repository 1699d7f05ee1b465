"""report: a manifest as one page of HTML, which opens anywhere and prints well.

It goes to <artifacts_dir>/<model>/<target>/.observations/<version>/report.html: a finished version is never changed.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from compiler.commands.arguments import parser
from compiler.errors import ConfigError
from compiler.outputs import check_output_file, write_output
from compiler.runtime.located import local_folder
from compiler.runtime.verify import read_manifest

REPORT = "report.html"


def run(arguments: list[str]) -> int:
    """Writes the page and prints where it is."""
    options = parser("report", __doc__ or "")
    options.add_argument("path", help="a version's folder, .../latest, a manifest.json, or a reference")
    options.add_argument("--output", type=Path, metavar="FILE", help="write it there")
    given = options.parse_args(arguments)
    folder, manifest = read_manifest(local_folder(given.path))
    file = _place(folder, manifest) if given.output is None else given.output
    check_output_file(file)
    from compiler.html import render
    from compiler.observations import listing

    page = render(manifest, listing(folder))
    write_output(file, page.encode())
    print(file)
    return 0


def _place(folder: Path, manifest: dict[str, Any]) -> Path:
    from compiler.observations import HOME

    if folder.parts[-3:] != (manifest["model"], manifest["target"], manifest["version"]):
        raise ConfigError(
            f"{folder} is not in an artifacts folder, as <model>/<target>/<version>",
            fix="say where the page goes: --output report.html",
        )
    return folder.parent / HOME / folder.name / REPORT
