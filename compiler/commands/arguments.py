"""Verbs' own flags, taken out of the command line before Hydra's overrides are read."""

from __future__ import annotations

import argparse
import math
import re
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from compiler.errors import CompilerError, ConfigError, did_you_mean
from compiler.words import printable

if TYPE_CHECKING:
    from compiler.runtime.policy import Policy


UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12} | {
    "KIB": 2**10, "MIB": 2**20, "GIB": 2**30, "TIB": 2**40,
}  # fmt: skip


@dataclass(frozen=True)
class ConfigArguments:
    """What a verb that takes a configuration was given."""

    overrides: list[str]
    config_dirs: list[Path]
    json: bool
    multirun: bool


class Parser(argparse.ArgumentParser):
    """argparse with this project's errors."""

    def error(self, message: str) -> None:  # type: ignore[override]
        """Raises ConfigError in place of exiting."""
        words = message.split("unrecognized arguments: ")
        if len(words) == 2:
            wrong = words[1].split()[0]
            known = [option for action in self._actions for option in action.option_strings]
            raise ConfigError(f"unknown flag {wrong!r}{did_you_mean(wrong, known)}", fix=f"see {self.prog} --help")
        raise ConfigError(message, fix=f"see {self.prog} --help")


def parser(verb: str, doc: str) -> Parser:
    """A parser for one verb; its help is the module's docstring."""
    return Parser(
        prog=f"python -m compiler {verb}", description=doc.partition(":")[2].strip() or doc, allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip


def parse_config_arguments(verb: str, doc: str, arguments: list[str]) -> ConfigArguments:
    """Flags and overrides of `build` and `plan`.

    Raises:
        ConfigError: an unknown flag, with the nearest known one.
    """
    options = parser(verb, doc)
    options.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="any Hydra override; target=NAME is needed")
    options.add_argument("--json", action="store_true", help="print nothing but JSON")
    add_config_flags(options)
    options.epilog = "Hydra's --cfg, --info, --hydra-help and --package work too."
    given = options.parse_intermixed_args(arguments)
    return ConfigArguments(given.overrides, given.config_dir, given.json, given.multirun)


def add_config_flags(options: Parser) -> None:
    """--config-dir and --multirun of the verbs that compose a configuration."""
    options.add_argument(
        "--config-dir",
        "-cd",
        action="append",
        default=[],
        type=Path,
        help="a folder with your own YAML (target/, model/, data/, ...)",
    )
    options.add_argument(
        "--multirun", "-m", action="store_true", help="build every combination of comma-separated values"
    )


def add_trust_flags(options: Parser) -> None:
    """--key and --policy of the verbs that open what others may have made; `policy_of` reads them."""
    options.add_argument(
        "--key",
        action="append",
        default=[],
        type=Path,
        metavar="PUB",
        help="require a signature by this public key",
    )
    options.add_argument(
        "--policy", type=Path, metavar="FILE", help="what is demanded (YAML); without it $MODEL_COMPILER_POLICY"
    )


def policy_of(given: argparse.Namespace) -> Policy | None:
    """The policy that --key and --policy, or the environment, ask for."""
    from compiler.runtime.policy import chosen

    return chosen(given.policy, given.key)


def parse_size(text: str) -> int:
    """Bytes of a size as people write it: `500MB`, `8GiB`.

    Raises:
        ConfigError: it is none.
    """
    match = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)\s*([A-Za-z]*)", text.strip())
    unit = UNITS.get(match.group(2).upper()) if match else None
    if match is None or unit is None:
        raise ConfigError(f"{text!r} is no size", fix="for example 500MB, 20GB, 8GiB")
    size = float(match.group(1)) * unit
    if not math.isfinite(size):
        raise ConfigError("the size is too large", fix="for example 500MB, 20GB, 8GiB")
    return int(size)


def print_error(error: CompilerError) -> None:
    """Details, then what to do, then the cause on the last line of standard error."""
    for line in error.details:
        print(f"  {_shown(line)}", file=sys.stderr)
    if error.fix:
        print(f"try: {_shown(error.fix)}", file=sys.stderr)
    print(f"error: {_shown(error.what)}", file=sys.stderr, flush=True)


def _shown(text: str) -> str:
    """Names of files and words of manifests are in errors: they steer no terminal and make no lines."""
    return str(printable(" ".join(text.splitlines()).replace("\t", " ")))
