"""finish: completes a deferred build on the host that has what it lacked, a GPU for example.

  python -m compiler target=t4 model=mobilenetv3                 anywhere: ends deferred
  python -m compiler finish artifacts/mobilenetv3/t4/VERSION     where the GPU is: builds, measures, evaluates, selects

What was prepared is verified and counts by its digest. It needs numpy and the libraries of the candidates; torch only
for candidates of PyTorch. A new version is written, which names the one that it finished.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from compiler.commands.arguments import add_trust_flags, parser, policy_of
from compiler.errors import ConfigError, InterruptedBuild
from compiler.terminal import with_rich

ARTIFACTS = Path("artifacts")


def run(arguments: list[str]) -> int:
    """Prints the table and, last, the new manifest's path; exit 4 where something lacks, 3 where a gate failed."""
    options = parser("finish", __doc__ or "")
    options.add_argument("path", help="a deferred version's folder, or a reference")
    options.add_argument("--candidates", default="", metavar="A,B", help="only these; the others are left out")
    options.add_argument("--partial", action="store_true", help="what this host cannot finish stays deferred")
    options.add_argument(
        "--own-code", action="store_true", help="allow PyTorch programs, and modules that are not ours"
    )
    options.add_argument("--artifacts-dir", type=Path, metavar="DIR", help="where to (default: where PATH lies)")
    options.add_argument("--strict", action="store_true", help="what is unproven, or failed, fails")
    add_trust_flags(options)
    options.add_argument("--json", action="store_true", help="print nothing but the manifest")
    given = options.parse_args(arguments)
    if given.candidates and given.partial:
        raise ConfigError("--candidates and --partial contradict each other", fix="give one of them")

    from compiler.finishing import Wish, finish
    from compiler.gate import gate
    from compiler.progress import watcher
    from compiler.runtime.located import local_folder
    from compiler.runtime.trust import check
    from compiler.runtime.verify import read_manifest

    policy = policy_of(given)
    folder = read_manifest(local_folder(given.path, policy))[0].resolve()  # builds print the manifest's own path
    manifest = check(folder, policy).manifest
    wish = Wish(tuple(filter(None, given.candidates.split(","))), given.partial, given.own_code)
    try:
        done = finish(folder, manifest, wish, given.artifacts_dir or _home(folder, manifest), watcher())
    except KeyboardInterrupt:
        raise InterruptedBuild("interrupted", fix="run the same command again: finished steps are kept") from None
    if given.json:
        print(json.dumps(done.manifest, indent=1))
    else:
        _print(done.manifest, done.folder)
        if not done.new:
            print("Nothing to do: this version was written before.")
        print(done.folder / "manifest.json", flush=True)
    failed = gate(given.strict, done.manifest, done.folder)
    if failed is not None:
        raise failed
    return 0


def _home(folder: Path, manifest: dict[str, Any]) -> Path:
    """The folder of artifacts that the version lies in; `artifacts` where it lies in none."""
    if folder.parts[-3:] == (manifest["model"], manifest["target"], manifest["version"]):
        return folder.parents[2]
    return ARTIFACTS


def _print(manifest: dict[str, Any], folder: Path) -> None:
    if with_rich():
        from compiler.report import print_manifest

        print_manifest(manifest, folder)
        return
    from compiler.plain_report import lines  # a host that only finishes builds

    print("\n".join(lines(manifest, folder)))
