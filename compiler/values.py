"""What the values of a configuration must be, which types alone do not say."""

from __future__ import annotations

import dataclasses
import functools
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from compiler.data.listing import LARGEST_CLASS_LIST
from compiler.errors import ConfigError, unknown_name
from compiler.limits import Between
from compiler.names import check_names
from compiler.registries.reference import parse as parse_reference
from compiler.runtime.verify import MANIFEST, SIDECARS
from compiler.schema import Config, Match, Model, Splits

LARGEST_WEIGHTS = 64 << 30
LARGEST_SEED = 2**63 - 1
"""What PyTorch's generator takes; libraries with smaller seeds get its remainder."""
OBJECTIVES = ("latency", "throughput", "size")
POSITIVE = Between(0, above=True)
LIMITS = {
    "target.threads": Between(1),
    "target.cores": Between(1),
    "target.memory_mb": POSITIVE,
    "model.accuracy": Between(0, 100),
    **{f"data.splits.{split.name}": Between(0) for split in dataclasses.fields(Splits)},
    **{f"budget.{name}": POSITIVE for name in (
        "latency_p95_ms", "latency_p99_ms", "first_answer_ms", "size_mb", "peak_memory_mb", "arrival_rate_per_s",
        "load_p99_ms",
    )},
    "budget.accuracy_drop": Between(-math.inf),
    "budget.accuracy_min": Between(-math.inf),
}  # fmt: skip
"""Key -> what its number must be, where it has one. A drop below zero asks for a gain; a metric may have any unit."""
LIMITS_TO_BUILD = {
    "seed": Between(0, LARGEST_SEED),
    "data.split_seed": Between(0, LARGEST_SEED),
    "executor.jobs": Between(0, 1000),
    "executor.time_limit_s": Between(0.001, 1e9),
    "executor.memory_limit_mb": Between(0, 1e9),
}
"""The same for a configuration that is composed now; older manifests may have recorded other numbers."""


def check_values(config: Config) -> None:
    """Checks any configuration, recorded ones included.

    Raises:
        ConfigError: with the key, what it is, and what it must be.
    """
    for what, value, known in (
        ("objective", config.objective, OBJECTIVES),
        ("evaluate", config.evaluate, ("on_demand", "all")),
        ("budget.accuracy_gate", config.budget.accuracy_gate, ("point", "upper")),
        ("data.layout", config.data.layout, ("NCHW", "NHWC")),
    ):
        if value not in known:
            raise unknown_name(what, value, known)
    _check_numbers(config, LIMITS)
    least = config.budget.accuracy_min
    if least is not None and least > 100 and ":" not in config.data.metric:
        raise ConfigError(f"budget.accuracy_min is {least}", fix="give percent, from 0 to 100")
    _check_match(config.target.match)
    _check_model(config.model)
    if (config.budget.load_p99_ms is None) != (config.budget.arrival_rate_per_s is None):
        raise ConfigError(
            "budget.load_p99_ms and budget.arrival_rate_per_s belong together", fix="give both, or neither"
        )
    _check_registry(config)
    _check_candidates(config)
    if not config.artifacts_dir.strip():
        raise ConfigError("artifacts_dir is empty", fix="name a folder")
    if not config.candidates:
        raise ConfigError("the list of candidates is empty", fix="name some: candidates=[tflite_fp32]")
    for what, name in (("target.name", config.target.name), ("model.name", config.model.name)):
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}", name):
            raise ConfigError(
                f"{what} {name[:200]!r} cannot name a folder",
                fix="use letters, digits, '.', '_' and '-', 100 of them at most",
            )


def _check_numbers(config: Config, limits: Mapping[str, Between]) -> None:
    for key, limit in limits.items():
        number: Any = functools.reduce(getattr, key.split("."), config)
        if number is None:
            continue
        expected = limit.broken(number) if isinstance(number, int) or math.isfinite(number) else "a finite number"
        if expected:
            raise ConfigError(f"{key} is {str(number)[:40]}", fix=f"it must be {expected}")


def _check_match(match: Match) -> None:
    for name in ("cpu_model", "gpu"):
        try:
            re.compile(getattr(match, name) or "")
        except re.error as error:
            raise ConfigError(
                f"target.match.{name} is not a regular expression: {error}", fix="escape what is meant as it stands"
            ) from None


def _check_model(model: Model) -> None:
    if model.sha256 is not None and not re.fullmatch(r"[0-9a-fA-F]{64}", model.sha256):
        raise ConfigError(
            f"model.sha256 {model.sha256!r} is no SHA-256", fix="it has 64 hexadecimal digits; see sha256sum"
        )
    if model.sha256 is not None and model.weights is None:
        raise ConfigError("model.sha256 is given without model.weights", fix="name the file, or leave the digest out")


def _check_registry(config: Config) -> None:
    if config.publish or config.registry:  # a manifest of before there were registries names none
        parse_reference(config.registry)


def _check_candidates(config: Config) -> None:
    for name, candidate in config.candidate.items():
        if Path(candidate.artifact).name != candidate.artifact:
            raise ConfigError(
                f"candidate.{name}.artifact is {candidate.artifact!r}", fix="give the name of a file, without a folder"
            )
        try:
            check_names([candidate.artifact, MANIFEST, *SIDECARS])
        except ValueError as error:
            raise ConfigError(
                f"candidate.{name}.artifact: {error}", fix="use letters, digits, '.', '_', '+' and '-'"
            ) from None
    for name in [config.baseline, *config.candidates]:
        if name not in config.candidate:
            raise unknown_name("candidate", name, config.candidate)


def _check_artifacts_dir(config: Config) -> None:
    """Of what is to be built here; a manifest may have recorded a folder of another machine."""
    folder = Path(config.artifacts_dir)
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"cannot write below {folder}: it is not a folder", fix="set artifacts_dir to another")


def _check_sizes(config: Config) -> None:
    """Before a file is hashed, which would take hours of one that has a size but no content."""
    for what, file, largest in (
        ("model.weights", config.model.weights, LARGEST_WEIGHTS),
        ("data.classes", config.data.classes, LARGEST_CLASS_LIST),
    ):
        if file is not None and Path(file).is_file() and (size := Path(file).stat().st_size) > largest:
            raise ConfigError(f"{what}: {file} has {size} bytes, more than {largest}", fix="check that it is the file")


def _check_signing(config: Config) -> None:
    """Before any work: what is wrong with it should not come out after an hour of building.

    Not of a configuration that a manifest recorded: its key stayed where the artifact was published.
    """
    for file in (config.signing.key, *config.signing.certificates):
        if config.publish and file is not None and not Path(file).is_file():
            raise ConfigError(f"signing: {file} is not there", fix="give the path of a file in PEM form")
    if config.signing.certificates and config.signing.key is None:
        raise ConfigError("signing.certificates is given without signing.key", fix="name the key that they belong to")


def check_for_build(config: Config) -> None:
    """Checks what is to be built here; what a manifest recorded may name files of another machine.

    Raises:
        ConfigError: with the file.
    """
    _check_numbers(config, LIMITS_TO_BUILD)
    _check_artifacts_dir(config)
    _check_sizes(config)
    _check_signing(config)
