"""verify: an artifact's files against its manifest, then its signature, then its provenance, then what it is bound to.

Without --key and --policy a signature is not checked, for nobody is trusted; --key demands one by that key. --installed
names what the artifact is to replace: an earlier one, or one of another model or target, is refused.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

from compiler.commands.arguments import add_trust_flags, parser, policy_of
from compiler.runtime import bound
from compiler.runtime.located import local_folder
from compiler.runtime.policy import Policy
from compiler.runtime.trust import check
from compiler.runtime.verify import read_manifest
from compiler.words import printable


def run(arguments: list[str]) -> int:
    """Exit 0 if everything matches; 6, naming the file, if not."""
    options = parser("verify", __doc__ or "")
    options.add_argument("path", help="a version's folder, .../latest, or a reference")
    add_trust_flags(options)
    options.add_argument("--installed", type=Path, metavar="DIR", help="the version that this one is to replace")
    options.add_argument("--json", action="store_true", help="print nothing but JSON")
    given = options.parse_args(arguments)
    policy, installed = policy_of(given), None
    if given.installed is not None:
        _, installed = read_manifest(given.installed)
        policy = dataclasses.replace(policy or Policy(), refuse_older=True)
    trust = check(local_folder(given.path, policy), policy, installed)
    manifest = trust.manifest
    if not given.json:
        print("\n".join(trust.lines()))
    binding = bound.check_manifest(manifest)
    if not given.json:
        print(f"engine: {printable(binding)}" if binding else "", end="\n" if binding else "")
        return 0
    found = {name: getattr(trust, name) for name in ("files", "signature", "signer", "provenance")} | {"bound": binding}
    print(json.dumps({name: manifest[name] for name in ("model", "target", "version", "digest")} | found, indent=1))
    return 0
