"""Keys and certificates for the tests of signatures: run by the interpreter that has `cryptography`, into a folder."""

from __future__ import annotations

import datetime
import sys
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID


def key(name: str, made: Any = None, encrypted: bool = False) -> Any:
    """NAME.key and NAME.pub."""
    made = made or ec.generate_private_key(ec.SECP256R1())
    closed = serialization.BestAvailableEncryption(PASSWORD.encode()) if encrypted else serialization.NoEncryption()
    form = serialization.PrivateFormat.PKCS8
    (OUT / f"{name}.key").write_bytes(made.private_bytes(serialization.Encoding.PEM, form, closed))
    public = serialization.PublicFormat.SubjectPublicKeyInfo
    (OUT / f"{name}.pub").write_bytes(made.public_key().public_bytes(serialization.Encoding.PEM, public))
    return made


def certificate(name: str, of: Any, issuer: str, by: Any, authority: bool = False, use: Any = None) -> None:
    """NAME.pem, for the key `of`, by the issuer's key `by`."""
    now = datetime.datetime.now(datetime.UTC)

    def called(common: str) -> x509.Name:
        return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common)])

    builder = (
        x509.CertificateBuilder(called(issuer), called(name), of.public_key(), x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=30))
        .add_extension(x509.BasicConstraints(ca=authority, path_length=None), critical=True)
        .add_extension(
            x509.KeyUsage(not authority, False, False, False, False, authority, authority, False, False), critical=True
        )
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(of.public_key()), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(by.public_key()), critical=False)
    )
    if use is not None:
        builder = builder.add_extension(x509.ExtendedKeyUsage([use]), critical=False)
    made = builder.sign(by, hashes.SHA256())
    (OUT / f"{name}.pem").write_bytes(made.public_bytes(serialization.Encoding.PEM))


if __name__ == "__main__":
    OUT, PASSWORD = Path(sys.argv[1]), sys.argv[2]
    key("team"), key("other"), key("rsa", rsa.generate_private_key(65537, 2048))
    key("k1", ec.generate_private_key(ec.SECP256K1()))
    locked = key("locked", encrypted=True)
    root, middle, stranger, web = key("root"), key("middle"), key("stranger"), key("web")
    certificate("root", root, "root", root, authority=True)
    certificate("stranger", stranger, "stranger", stranger, authority=True)
    certificate("middle", middle, "root", root, authority=True)
    certificate("release", locked, "middle", middle, use=ExtendedKeyUsageOID.CODE_SIGNING)
    certificate("direct", locked, "root", root)
    certificate("web", web, "root", root, use=ExtendedKeyUsageOID.SERVER_AUTH)
