"""Signature bundles: what one says, and the process that can make and verify them.

`model-signing` may not fit into this environment, so it runs in whichever has it: JSON in, JSON out.
"""

from __future__ import annotations

import base64
import functools
import hashlib
import importlib.util
import json
import os
import re
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from compiler.errors import ConfigError, IntegrityError, MissingToolError
from compiler.foreign_files import read_limited
from compiler.runtime.verify import MANIFEST, SIDECARS, SIGNATURE
from compiler.words import printable

PYTHON = "MODEL_COMPILER_SIGNING_PYTHON"
INSTALL = (
    "pip install 'target-model-compiler[signing]' (in a checkout: make setup); it does not fit beside [build]: "
    f"install it elsewhere and set {PYTHON} to that interpreter"
)
FIX = "do not use this artifact; build or fetch it again"
MAX_BUNDLE_BYTES = 4 << 20
PASSED_ON = ("HOME", "TMPDIR", "LD_LIBRARY_PATH")
LEAST_SECONDS = 120
SLOWEST_BYTES_PER_S = 5 << 20
"""Of reading and hashing: the time limit is for what hangs, not for what is large."""


@dataclass(frozen=True)
class Bundle:
    """What a signature says of itself: nothing in it is proven before `verify_bundle`."""

    text: str
    kind: str
    """`key` or `certificate`: what it was made with."""
    hint: str
    """SHA-256, in hex, of the public key's PEM form or of the certificate; empty if it names none."""
    files: dict[str, str]
    """The signed files with their SHA-256."""


def read_bundle(file: Path) -> Bundle:
    """Reads a signature without trusting it.

    Raises:
        IntegrityError: it is no bundle of the OpenSSF Model Signing format over whole files by SHA-256.
    """
    try:
        data = read_limited(file, MAX_BUNDLE_BYTES)
        bundle = json.loads(data)
        kind, hint = _signer(bundle["verificationMaterial"])
        payload = json.loads(base64.b64decode(bundle["dsseEnvelope"]["payload"], validate=True))
        resources = payload["predicate"]["resources"]
        files = {entry["name"]: entry["digest"] for entry in resources}
        if len(files) != len(resources) or any(entry["algorithm"] != "sha256" for entry in resources):
            raise ValueError("files by one SHA-256 each are what it must list")
        if not all(isinstance(text, str) for text in (*files, *files.values())):
            raise TypeError("a name or digest is no text")
        return Bundle(data.decode(), kind, hint, files)
    except (ValueError, KeyError, TypeError, AttributeError, IndexError, RecursionError) as error:
        raise IntegrityError(f"{file.name} is not a model signature ({error!r})"[:300], fix=FIX) from None


def _signer(material: Mapping[str, Any]) -> tuple[str, str]:
    if "x509CertificateChain" in material:
        first = material["x509CertificateChain"]["certificates"][0]["rawBytes"]
        return "certificate", hashlib.sha256(base64.b64decode(first, validate=True)).hexdigest()
    hint = material["publicKey"]["hint"]
    if not isinstance(hint, str) or not re.fullmatch("[0-9a-f]{64}", hint):
        raise ValueError("it does not say which key it was made with")
    return "key", hint


def check_files(bundle: Bundle, digests: Mapping[str, str]) -> None:
    """Checks that a signature is about exactly the files with these SHA-256 `digests`.

    Raises:
        IntegrityError: it is not; the message names the files.
    """
    for what, names in (
        ("not what was signed", [n for n in digests if bundle.files.get(n, digests[n]) != digests[n]]),
        ("not covered by the signature", [n for n in digests if n not in bundle.files]),
        ("signed, and not here", [n for n in bundle.files if n not in digests]),
    ):
        if names:
            more = f" (and {len(names) - 3} more)" if len(names) > 3 else ""
            names.sort(key=lambda name: (name in (MANIFEST, *SIDECARS), name))  # what the others follow from first
            listed = ", ".join(str(printable(name[:100])) for name in names[:3])
            raise IntegrityError(f"{listed}{more}: {what}", fix=FIX)


def verify_bundle(folder: Path, bundle: Bundle, keys: list[Path], certificates: list[Path], size: int) -> str:
    """Who signed the files in `folder`, of those that are trusted: a key's file name, or a certificate's subject.

    `size`, in bytes, of all files decides how long it may take.

    Raises:
        IntegrityError: the signature is not theirs, or not over these files.
        ConfigError: a trusted key or certificate cannot be read.
        MissingToolError: `model-signing` is nowhere.
    """
    answer = ask({
        "do": "verify", "folder": str(folder), "bundle": bundle.text, "kind": bundle.kind, "hint": bundle.hint,
        "keys": [str(path.absolute()) for path in keys],
        "certificates": [str(path.absolute()) for path in certificates],
    }, size)  # fmt: skip
    if "by" not in answer:
        raise IntegrityError(f"{SIGNATURE} is refused: {answer.get('what') or 'no answer'}", fix=FIX)
    return str(answer["by"])


def ask(request: Mapping[str, Any], size: int = 0) -> dict[str, Any]:
    """Has one request answered by `oms.py` where `model-signing` is installed; a refusal is an answer.

    Raises:
        ConfigError: a key or certificate cannot be used.
        MissingToolError: `model-signing` is nowhere, cannot be started, or does not answer.
    """
    command, environment = _command()
    limit = LEAST_SECONDS + size / SLOWEST_BYTES_PER_S
    try:
        done = subprocess.run(
            command, input=json.dumps(request), capture_output=True, text=True, encoding="utf-8", errors="replace",
            env=environment, timeout=limit, check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        raise MissingToolError(
            f"{command[0]} did not answer within {limit:.0f} s", fix=f"look at the disk, or correct {PYTHON}"
        ) from None
    except OSError as error:
        raise MissingToolError(f"{command[0]} cannot be started: {error.strerror}", fix=INSTALL) from None
    try:
        answer: dict[str, Any] = json.loads(done.stdout)
    except ValueError:
        last = (done.stderr.strip().splitlines() or ["nothing"])[-1]
        raise MissingToolError(
            f"{command[0]} cannot run model-signing, it ended with {done.returncode}: {_short(last)}", fix=INSTALL
        ) from None
    what = _short(str(answer.get("what", "")))
    if answer.get("error") == "usage":
        raise ConfigError(what, fix="docs/trust.md says how keys and certificates are made")
    if answer.get("error") == "missing":
        raise MissingToolError(f"{command[0]} has no model-signing: {what}", fix=INSTALL)
    return {name: _short(value) if name in ("what", "by") else value for name, value in answer.items()}


@functools.cache
def _importable() -> bool:
    return importlib.util.find_spec("model_signing") is not None


def _command() -> tuple[list[str], dict[str, str]]:
    """The interpreter that has `model-signing`, with the script, and the little environment it gets."""
    environment = {name: os.environ[name] for name in PASSED_ON if name in os.environ} | {"LC_ALL": "C.UTF-8"}
    script = str(Path(__file__).with_name("oms.py"))
    named, beside = os.environ.get(PYTHON), Path(sys.prefix) / "signing" / "bin" / "python"
    if named:
        return [named, "-I", script], environment
    if _importable():
        if "PYTHONPATH" in os.environ:
            environment["PYTHONPATH"] = os.environ["PYTHONPATH"]
        return [sys.executable, "-P", script], environment  # -P: modules beside the script are not its own
    if beside.exists():
        return [str(beside), "-I", script], environment
    raise MissingToolError("signatures need the Python package model-signing, which is not installed", fix=INSTALL)


def available() -> tuple[bool, str]:
    """Whether signatures can be made and verified here; where, or what would install what lacks."""
    try:
        command, _ = _command()
        return True, f"model-signing {ask({'do': 'version'})['version']} in {command[0]}"
    except MissingToolError as error:
        return False, f"{error.what}: {error.fix}"


def _short(text: object) -> str:
    words = " ".join(str(text).split())
    return str(printable(words if len(words) <= 300 else f"{words[:297]}..."))
