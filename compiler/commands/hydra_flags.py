"""Hydra's own flags (`--cfg`, `--info`, `--hydra-help`, `--shell-completion`), answered by Hydra itself.

They may stand anywhere on the command line; overrides are read as a build reads them.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator

from compiler.commands.arguments import Parser, add_config_flags, parser
from compiler.config import expand_sweep, search_path
from compiler.hydra_errors import hydra_errors
from compiler.overrides import check_override, conf_dir, expand_models
from compiler.resolvers import register_resolvers

CONFIGS = ("job", "hydra", "all")
TOPICS = ("all", "config", "defaults", "defaults-tree", "plugins", "searchpath")


def run(arguments: list[str]) -> int:
    """Prints what the flags ask for, for each job of a multirun.

    Raises:
        ConfigError: a wrong flag, or an override that does not compose.
    """
    given = _parser().parse_intermixed_args(arguments)
    words = [name for name, asked in (("--hydra-help", given.hydra_help), ("--resolve", given.resolve)) if asked]
    words += ["--shell-completion"] if given.shell_completion else []
    for name, value in (("--cfg", given.cfg), ("--package", given.package), ("--info", given.info)):
        words += [name, value] if value is not None else []
    dirs = given.config_dir
    jobs = expand_sweep(given.overrides, dirs) if given.multirun else [given.overrides]
    for job in jobs:
        overrides = [check_override(word, dirs) for word in expand_models(job, dirs)]
        _ask([*words, "hydra.output_subdir=null", "hydra.run.dir=.", *search_path(dirs), *overrides])
    return 0


def _parser() -> Parser:
    options = parser("build", __doc__ or "")
    options.add_argument("overrides", nargs="*", metavar="KEY=VALUE")
    options.add_argument("--cfg", "-c", choices=CONFIGS, help="print the composed configuration")
    options.add_argument("--package", "-p", help="of --cfg: a part of it")
    options.add_argument("--resolve", action="store_true", help="of --cfg: interpolations resolved")
    options.add_argument("--info", "-i", nargs="?", choices=TOPICS, const="all", help="how it was composed")
    options.add_argument("--hydra-help", action="store_true")
    options.add_argument("--shell-completion", "-sc", action="store_true")
    add_config_flags(options)
    return options


def _ask(words: list[str]) -> None:
    import hydra

    register_resolvers()

    @hydra.main(version_base="1.3", config_path=str(conf_dir()), config_name="config")
    def show(_config: object) -> None:
        """Hydra prints what its flags ask for and does not call this."""

    with _as_hydra_reads(words), hydra_errors():
        show()


@contextlib.contextmanager
def _as_hydra_reads(words: list[str]) -> Iterator[None]:
    """`words` as the process's arguments, and errors raised in place of being printed with the end of the process."""
    arguments, before = sys.argv, os.environ.get("HYDRA_FULL_ERROR")
    sys.argv, os.environ["HYDRA_FULL_ERROR"] = [arguments[0], *words], "1"
    try:
        yield
    finally:
        sys.argv = arguments
        del os.environ["HYDRA_FULL_ERROR"]
        if before is not None:
            os.environ["HYDRA_FULL_ERROR"] = before
