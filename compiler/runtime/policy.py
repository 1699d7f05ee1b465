"""What a user demands of an artifact before it is opened: a YAML file, or bare keys."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from compiler.errors import ConfigError, MissingToolError, unknown_name
from compiler.foreign_files import read_limited

VARIABLE = "MODEL_COMPILER_POLICY"
"""Names the policy that holds where none is given."""
MAX_POLICY_BYTES = 64 << 10
STATUSES = ("pass", "provisional", "budget_failed", "deferred")


@dataclass(frozen=True)
class Policy:
    """What is demanded; the default demands nothing but that files match their manifest."""

    require_signature: bool = False
    """One that a trusted key or certificate vouches for. Keys that are named alone demand it too."""
    require_provenance: bool = False
    trusted_keys: tuple[Path, ...] = ()
    """Public keys, PEM, on P-256, P-384 or P-521; in a file relative to it."""
    trusted_certificates: tuple[Path, ...] = ()
    """Roots, and intermediates that signatures lack, PEM."""
    refuse_older: bool = False
    """Nothing created before what is installed, nor of another model or target."""
    models: tuple[str, ...] = ()
    """Names that are allowed; empty: all."""
    targets: tuple[str, ...] = ()
    statuses: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.require_signature and not self.trusted_keys and not self.trusted_certificates:
            raise ConfigError("a signature is required and nobody is trusted", fix="name trusted_keys")
        for path in (*self.trusted_keys, *self.trusted_certificates):
            if not path.is_file():
                raise ConfigError(f"the trusted key or certificate {path} is not there", fix="check the path")
        for status in self.statuses:
            if status not in STATUSES:
                raise unknown_name("status in the policy", status, STATUSES)

    @staticmethod
    def of_keys(paths: Sequence[Path]) -> Policy:
        """A signature by one of these public keys is required."""
        return Policy(require_signature=True, trusted_keys=tuple(paths))

    @staticmethod
    def read(path: Path) -> Policy:
        """The policy in a YAML file.

        Raises:
            ConfigError: the file is not there, no plain YAML, or has a key or value that a policy has not.
            MissingToolError: PyYAML is not installed.
        """
        content = _mapping(path)
        fields = {field.name: field for field in dataclasses.fields(Policy)}
        values: dict[str, Any] = {}
        for name, value in content.items():
            if name not in fields:
                raise unknown_name(f"key in the policy {path}:", name, fields)
            flag = isinstance(fields[name].default, bool)
            if flag and not isinstance(value, bool):
                raise ConfigError(f"{name} in {path} is a {type(value).__name__}", fix="write true or false")
            if not flag and not (isinstance(value, list) and value and all(isinstance(v, str) for v in value)):
                raise ConfigError(f"{name} in {path} is no list of texts", fix=f"write {name}: [one, two]")
            files = name.startswith("trusted_")
            values[name] = value if flag else tuple(path.parent / v if files else v for v in value)
        named = "trusted_keys" in values or "trusted_certificates" in values
        return Policy(**{"require_signature": named, **values})


def chosen(path: Path | None = None, keys: Sequence[Path] = ()) -> Policy | None:
    """The policy in the file `path`, or that of the environment; `keys` are trusted besides, and make one required.

    Raises:
        ConfigError, MissingToolError: as `Policy.read`.
    """
    if path is None and not keys and os.environ.get(VARIABLE):
        path = Path(os.environ[VARIABLE])
    if path is None:
        return Policy.of_keys(keys) if keys else None
    policy = Policy.read(path)
    if not keys:
        return policy
    return dataclasses.replace(policy, require_signature=True, trusted_keys=(*policy.trusted_keys, *keys))


def _mapping(path: Path) -> dict[str, Any]:
    """The file's one table: plain YAML, no tags, no key twice."""
    try:
        import yaml
    except ImportError:
        raise MissingToolError(
            "policies need the Python package PyYAML, which is not installed",
            fix="pip install 'target-model-compiler[signing]', or pip install pyyaml",
        ) from None
    try:
        data = read_limited(path, MAX_POLICY_BYTES)
    except OSError as error:
        raise ConfigError(f"cannot read the policy {path}: {error.strerror}", fix="check the path") from None
    except ValueError as error:
        raise ConfigError(f"cannot read the policy {path}: {error}", fix="is this the right file?") from None
    try:
        node = yaml.compose(data, Loader=yaml.SafeLoader)
        content = yaml.safe_load(data)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        first = " ".join(str(error).split())[:200]
        raise ConfigError(f"{path} is not plain YAML: {first}", fix="correct the file; tags are not allowed") from None
    if not isinstance(content, dict) or not all(isinstance(name, str) for name in content):
        raise ConfigError(f"the policy {path} is no table of keys and values", fix="see docs/trust.md")
    names = [key.value for key, _ in node.value]
    for name in names:
        if names.count(name) > 1:
            raise ConfigError(f"{name} is in the policy {path} twice", fix="keep one")
    return content
