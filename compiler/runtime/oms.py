"""Signs and verifies by the OpenSSF Model Signing format: a script, in whichever environment has `model-signing`.

JSON on standard input and output, nothing of this project imported: `compiler.runtime.signatures` runs it.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import stat
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

SIGNATURE = "model.sig"
LARGEST_PEM = 1 << 20
UNSAID = {"InvalidSignature": "what it lists was not signed with the key that it names"}
"""Errors of the library that have no text."""


class UsageError(Exception):
    """A key or certificate of the caller's that cannot be used."""


def main() -> None:
    """Answers one request."""
    request = json.load(sys.stdin)
    with contextlib.redirect_stdout(sys.stderr):  # the library prints warnings
        answer = _answer(request)
    json.dump(answer, sys.stdout)


def _answer(request: dict[str, Any]) -> dict[str, Any]:
    known: dict[str, Callable[..., dict[str, Any]]] = {"version": _version, "sign": _sign, "verify": _verify}
    try:
        return known[request.pop("do")](**request)
    except ImportError as error:
        return {"error": "missing", "what": str(error)}
    except UsageError as error:
        return {"error": "usage", "what": str(error)}
    except Exception as error:
        return {"error": "refused", "what": str(error) or UNSAID.get(type(error).__name__, type(error).__name__)}


def _version() -> dict[str, Any]:
    from importlib.metadata import PackageNotFoundError, version

    try:
        version("pyopenssl")
        return {"version": version("model-signing")}
    except PackageNotFoundError as error:
        raise ImportError(f"{error} is not installed") from None


def _hashing() -> Any:
    """Every file but the signature: those of git too, which the library would leave out."""
    from model_signing import hashing

    return hashing.Config().set_ignored_paths(paths=[SIGNATURE], ignore_git_paths=False)


def _sign(folder: str, key: str, password: str | None, certificates: list[str]) -> dict[str, Any]:
    """The text of the bundle with the signature of everything in `folder`."""
    from cryptography.hazmat.primitives.serialization import Encoding
    from model_signing import signing

    secret = password.encode() if password else None
    pem = _private_key(Path(key), secret)
    config = signing.Config().set_hashing_config(_hashing())
    with tempfile.TemporaryDirectory(prefix="signing-") as work, _in_memory(pem) as private:
        if certificates:
            chain = [cert for path in certificates for cert in _certificates(path)]
            _check_use(chain[0], certificates[0])
            files = [Path(work) / f"{number}.pem" for number in range(len(chain))]
            for file, certificate in zip(files, chain, strict=True):
                file.write_bytes(certificate.public_bytes(Encoding.PEM))
            try:  # the library takes no empty chain; the certificate itself adds nothing
                config.use_certificate_signer(
                    private_key=private, signing_certificate=files[0], certificate_chain=files[1:] or files[:1]
                )
            except ValueError as error:
                raise UsageError(f"{certificates[0]} cannot sign with {key}: {error}") from None
        else:
            config.use_elliptic_key_signer(private_key=private)
        bundle = Path(work) / "bundle"
        config.sign(folder, bundle)
        return {"bundle": bundle.read_text(encoding="utf-8"), "public_key": _public(pem)}


def _verify(folder: str, bundle: str, kind: str, hint: str, keys: list[str], certificates: list[str]) -> dict[str, Any]:
    """Who signed, of those that are trusted; `kind` is what the bundle was signed with: `key` or `certificate`."""
    from cryptography.hazmat.primitives.serialization import Encoding
    from model_signing import verifying

    prints = {path: _fingerprint(path) for path in keys}
    roots = [cert for path in certificates for cert in _certificates(path)]
    with tempfile.TemporaryDirectory(prefix="verifying-") as work:
        signature = Path(work) / SIGNATURE
        signature.write_text(bundle, encoding="utf-8")
        if kind == "certificate":
            if not roots:
                return {"error": "refused", "what": "it was made with a certificate, and no certificate is trusted"}
            trusted = Path(work) / "trusted.pem"
            trusted.write_bytes(b"".join(root.public_bytes(Encoding.PEM) for root in roots))
            config = verifying.Config().use_certificate_verifier(certificate_chain=[trusted])
            config.set_hashing_config(_hashing()).verify(Path(folder), signature)
            try:
                return {"by": _check_use(_leaf(bundle), "its certificate")}
            except UsageError as error:  # the signer's fault, not the caller's
                return {"error": "refused", "what": str(error)}
        if hint not in prints.values():
            return {"error": "refused", "what": f"it was made with the key {hint[:16]}, which is not trusted"}
        path = next(path for path, found in prints.items() if found == hint)
        config = verifying.Config().use_elliptic_key_verifier(public_key=Path(path))
        config.set_hashing_config(_hashing()).verify(Path(folder), signature)
        return {"by": Path(path).name}


def _read(file: Path) -> bytes:
    """Read a key or certificates. Special files, and files larger than any key, are refused without being read.

    Raises:
        OSError: it cannot be read.
        UsageError: it is not a regular file, or too large.
    """
    handle = os.open(file, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)  # opening a FIFO would wait for a writer
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise UsageError(f"{file} is not a regular file")
    with os.fdopen(handle, "rb") as stream:
        data = stream.read(LARGEST_PEM + 1)
    if len(data) > LARGEST_PEM:
        raise UsageError(f"{file} has more than {LARGEST_PEM} bytes: it holds no key or certificate in PEM form")
    return data


def _private_key(path: Path, password: bytes | None) -> bytes:
    """A private key as plain PEM; the library takes no password for a key that has a certificate."""
    from cryptography.hazmat.primitives import serialization as s
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey

    try:
        data = _read(path)
        encrypted = b"ENCRYPTED" in data
        key = s.load_pem_private_key(data, password if encrypted else None)
    except OSError as error:
        raise UsageError(f"cannot read the key {path}: {error.strerror}") from None
    except (ValueError, TypeError) as error:
        raise UsageError(f"cannot read the key {path}: {_words(error)}") from None
    if not isinstance(key, EllipticCurvePrivateKey):
        raise UsageError(f"{path} is no key on an elliptic curve")
    _check_curve(key, path)
    return bytes(key.private_bytes(s.Encoding.PEM, s.PrivateFormat.PKCS8, s.NoEncryption()))


def _public(private: bytes) -> str:
    from cryptography.hazmat.primitives import serialization as s

    key = s.load_pem_private_key(private, None).public_key()
    return str(key.public_bytes(s.Encoding.PEM, s.PublicFormat.SubjectPublicKeyInfo), "ascii")


def _fingerprint(path: str) -> str:
    """SHA-256 of a public key's PEM, which is how a signature names the key it was made with."""
    from cryptography.hazmat.primitives import serialization as s
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePublicKey

    try:
        key = s.load_pem_public_key(_read(Path(path)))
    except OSError as error:
        raise UsageError(f"cannot read the key {path}: {error.strerror}") from None
    except (ValueError, TypeError):
        raise UsageError(f"{path} is no public key in PEM form") from None
    if not isinstance(key, EllipticCurvePublicKey):
        raise UsageError(f"{path} is no key on an elliptic curve")
    _check_curve(key, path)
    return hashlib.sha256(key.public_bytes(s.Encoding.PEM, s.PublicFormat.SubjectPublicKeyInfo)).hexdigest()


def _check_curve(key: Any, path: object) -> None:
    if key.curve.name not in ("secp256r1", "secp384r1", "secp521r1"):
        raise UsageError(f"{path} is on the curve {key.curve.name}, not on P-256, P-384 or P-521")


def _certificates(path: str) -> list[Any]:
    from cryptography import x509

    try:
        return list(x509.load_pem_x509_certificates(_read(Path(path))))
    except OSError as error:
        raise UsageError(f"cannot read the certificate {path}: {error.strerror}") from None
    except ValueError:
        raise UsageError(f"{path} has no certificate in PEM form") from None


def _leaf(bundle: str) -> Any:
    import base64

    from cryptography import x509

    chain = json.loads(bundle)["verificationMaterial"]["x509CertificateChain"]["certificates"]
    return x509.load_der_x509_certificate(base64.b64decode(chain[0]["rawBytes"]))


def _check_use(certificate: Any, what: str) -> str:
    """The subject of a certificate that may sign code.

    The library is content with `digitalSignature`, which every web server's certificate under the same root has too.
    """
    from cryptography import x509
    from cryptography.x509.oid import ExtendedKeyUsageOID

    try:
        uses = certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    except x509.ExtensionNotFound:
        uses = [ExtendedKeyUsageOID.CODE_SIGNING]
    if ExtendedKeyUsageOID.CODE_SIGNING not in uses:
        raise UsageError(f"{what} is not for signing code (extendedKeyUsage)")
    return str(certificate.subject.rfc4514_string())


@contextlib.contextmanager
def _in_memory(data: bytes) -> Iterator[Path]:
    """A path under which this process alone reads `data`, which is never on a disk."""
    handle = os.memfd_create("key")
    try:
        os.write(handle, data)
        yield Path(f"/proc/self/fd/{handle}")
    finally:
        os.close(handle)


def _words(error: Exception) -> str:
    """What is wrong with an encrypted key, without the library's details."""
    text = str(error)
    if "not given" in text:
        return "it is encrypted, and no password was given"
    return "the password is wrong" if "password" in text else "it is no private key in PEM form"


if __name__ == "__main__":
    main()
