"""Signs a finished version by the OpenSSF Model Signing format, with a key that stays on this machine."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from compiler.disk import write_atomically
from compiler.errors import ConfigError, StepError
from compiler.runtime.signatures import ask
from compiler.runtime.verify import verify

PASSWORD = "MODEL_COMPILER_KEY_PASSWORD"  # noqa: S105 - the variable's name
"""Environment variable with the private key's password: a command line would show it to everyone."""


def sign(folder: Path, signature: Path, key: Path, certificates: Sequence[Path] = ()) -> str:
    """Writes a signature over every file in `folder` but `model.sig` itself to `signature`; gives the public key.

    `key` is a private key (PEM, on P-256, P-384 or P-521); the password of an encrypted one is in the variable
    MODEL_COMPILER_KEY_PASSWORD. `certificates` (PEM) begin with the one for the key; what follows leads to a root.
    With them the signature carries the certificates, without them it names the public key.

    Raises:
        IntegrityError: the folder is not what its manifest says: that is not signed.
        ConfigError: the key or a certificate cannot be used, or `signature` cannot be written.
        MissingToolError: `model-signing` is not installed.
        StepError: signing failed.
    """
    manifest = verify(folder)
    answer = ask({
        "do": "sign", "folder": str(folder.resolve()), "key": str(key.absolute()),
        "password": os.environ.get(PASSWORD), "certificates": [str(path.absolute()) for path in certificates],
    }, sum(file["size_bytes"] for file in manifest["files"]))  # fmt: skip
    if "bundle" not in answer:
        raise StepError(f"signing failed: {answer.get('what') or 'no answer'}", fix="see docs/trust.md")
    try:
        write_atomically(signature, answer["bundle"].encode())
    except OSError as error:
        raise ConfigError(f"cannot write {signature}: {error.strerror}", fix="choose another place") from None
    return str(answer["public_key"])
