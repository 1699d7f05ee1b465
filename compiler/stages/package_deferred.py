"""Package of a deferred build: the results that another host needs to finish it."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from compiler.canonical import list_files
from compiler.conversion import SIGNATURE
from compiler.disk import copy
from compiler.stage import Stage, write_json
from compiler.stages.package import MEDIA_TYPES, OCTETS

FOLDER = "steps"
ROLE = "step"
ROLES = {"signature": SIGNATURE, "labels": "labels.txt"}


@dataclasses.dataclass(kw_only=True)
class PackageDeferred(Stage):
    """Copies whole results to `steps/<name>/`, and the model's signature and labels.

    Inputs: `step/<name>` for each result that is handed on, and `model`, whose signature it is.
    """

    def run(self, inputs: Mapping[str, Path], out: Path) -> dict[str, Any]:
        """See `Stage.run`; the facts list each file's role and media type."""
        files = []

        def name(path: str, role: str) -> None:
            files.append({"path": path, "role": role, "media_type": MEDIA_TYPES.get(Path(path).suffix, OCTETS)})

        for role, folder in inputs.items():
            step = role.removeprefix("step/")
            if step == role:
                continue
            for source in list_files(folder):
                relative = f"{FOLDER}/{step}/{source.relative_to(folder).as_posix()}"
                (out / relative).parent.mkdir(parents=True, exist_ok=True)
                copy(source, out / relative)
                name(relative, ROLE)
        signature = json.loads((inputs["model"] / SIGNATURE).read_text())
        write_json(out / SIGNATURE, signature)
        (out / "labels.txt").write_text("".join(f"{label}\n" for label in signature["labels"]), encoding="utf-8")
        for role, path in ROLES.items():
            name(path, role)
        return {"files": sorted(files, key=lambda f: f["path"]), "signature": signature}
