"""What Hydra, OmegaConf and PyYAML raise while a configuration is composed, in this project's words."""

from __future__ import annotations

import contextlib
import dataclasses
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from compiler.errors import ConfigError, did_you_mean


@contextlib.contextmanager
def hydra_errors(config_dirs: Sequence[Path] = ()) -> Iterator[None]:
    """Turns what Hydra, OmegaConf and PyYAML raise while they compose into this project's errors.

    Raises:
        ConfigError: with the key, or the user's file that cannot be read.
    """
    import yaml
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    try:
        yield
    except (HydraException, OmegaConfBaseException) as error:
        raise translated(error) from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise unreadable(error, config_dirs) from None
    except (ValueError, TypeError) as error:  # Hydra's own, for an override of a group by a value that is not a name
        raise ConfigError(
            str(error), fix="a group takes the name of one of its files; set single keys as GROUP.KEY"
        ) from error


def unreadable(error: Exception, config_dirs: Sequence[Path]) -> ConfigError:
    """Names the user's YAML file that cannot be read."""
    import yaml

    for folder in config_dirs:
        for path in sorted(folder.rglob("*.yaml")):
            try:
                yaml.safe_load(path.read_text(encoding="utf-8"))
            except (yaml.YAMLError, UnicodeDecodeError) as wrong:
                first = " ".join(str(wrong).split())[:200]
                return ConfigError(f"{path} is not plain YAML: {first}", fix="correct the file; tags are not allowed")
    return ConfigError(f"a YAML file cannot be read: {error}", fix="correct it")


def translated(error: Exception) -> ConfigError:
    """Hydra's and OmegaConf's errors in this project's form."""
    cause: BaseException = error
    while cause.__cause__ is not None:
        cause = cause.__cause__
    text = str(error)
    full_key = str(getattr(cause, "full_key", None) or "")
    key_match = re.search(r"Key '([^']+)'", str(cause)) or re.search(r"Could not override '([^']+)'", text)
    first = next((line.strip() for line in str(cause).splitlines() if line.strip()), type(cause).__name__)
    if "not in struct" in text or "not in struct" in str(cause) or "not in '" in str(cause):
        name = full_key or (key_match.group(1) if key_match else first)
        leaf = name.rpartition(".")[2]
        known = _known_keys(cause)
        fix = f"known here: {', '.join(known)}" if known else "compare with the files in conf/"
        return ConfigError(f"unknown key {name!r}{did_you_mean(leaf, known)}", fix=fix)
    if "MissingMandatoryValue" in type(cause).__name__ or "Missing mandatory value" in text:
        name = full_key or first.rpartition(":")[2].strip()
        return ConfigError(f"{name} has no value", fix=f"add {name}=VALUE")
    if "Ambiguous value for argument" in text:
        return ConfigError(
            f"{text.splitlines()[0].split(': ', 1)[-1]}: several values", fix="add --multirun to build each of them"
        )
    if "is not a ListConfig" in text or "ListConfig" in first:
        return ConfigError(f"{full_key or 'the key'} takes a list", fix=f"write {full_key or 'KEY'}=[a,b]")
    where = f"{full_key}: " if full_key and full_key not in first else ""
    return ConfigError(f"{where}{first}", fix="check the override or the YAML file that sets it")


def _known_keys(cause: BaseException) -> list[str]:
    parent = getattr(cause, "parent_node", None)
    if parent is not None and hasattr(parent, "keys"):
        return sorted(str(key) for key in parent.keys())  # noqa: SIM118 - an OmegaConf node, not a dict
    object_type = getattr(cause, "object_type", None)
    if object_type is not None and dataclasses.is_dataclass(object_type):
        return [f.name for f in dataclasses.fields(object_type)]
    return []
