"""One round: every candidate once, each in a fresh process, taking turns burst by burst in random order.

The processes of a round import their libraries at the same time, then open and warm up one after another, and then
take turns: only one of them works at any moment, the others sleep. So the two halves of every comparison lie
milliseconds apart, and what changes slowly (clock, heat, a neighbour on the same hardware, the way between two virtual
cores) changes both alike. Where memory does not hold all of them at once, each is visited alone.
"""

from __future__ import annotations

import contextlib
import math
import os
import random
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from compiler.errors import MissingToolError, OutOfMemory, StepError
from compiler.runtime import control_group, memory, sensors
from compiler.runtime.names import ON_GPU
from compiler.runtime.pipeline import CALLS_SHARE
from compiler.runtime.visitor import Visitor, pool_threads

PASSES = 10
DEVICE_CALLS = 50
DEVICE_SECONDS = 1.5
"""How long a GPU's state is watched: its driver averages the utilization over up to a second."""
LEAST_FREE_SHARE = 0.2
"""Of the memory that was free before the round: with less left, the next candidate is not opened beside the others."""
FAILURES = (StepError, MissingToolError)


@dataclass(frozen=True)
class Depth:
    """How long a candidate is measured in one round: at least so many calls and seconds in all its bursts together."""

    calls: int
    seconds: float


@dataclass
class Seen:
    """What one candidate did in one round: `bursts` of latencies in nanoseconds, and what was noticed beside."""

    bursts: list[list[int]] = field(default_factory=list)
    facts: dict[str, Any] = field(default_factory=dict)


class TooLittleMemory(Exception):
    """The candidates of a round do not fit into memory together."""


def run_round(
    bundle: Path,
    spec: Mapping[str, Any],
    names: list[str],
    depth: Depth,
    shuffler: random.Random,
    alone: bool,
    report: Callable[[str], None],
) -> tuple[dict[str, Seen], dict[str, StepError | MissingToolError]]:
    """What each of `names` did, and the errors of those that failed.

    Raises:
        TooLittleMemory: `alone` is false and memory does not hold all candidates: do the round again, alone.
    """
    groups = [[name] for name in shuffler.sample(names, len(names))] if alone else [list(names)]
    seen: dict[str, Seen] = {}
    failed: dict[str, StepError | MissingToolError] = {}
    for group in groups:
        with contextlib.ExitStack() as stack:
            visitors = _open_all(bundle, spec, group, shuffler, stack, failed, report)
            bursts = _take_turns(visitors, depth, shuffler, failed, report)
            for name, visitor in list(visitors.items()):
                if name in failed:
                    continue
                try:
                    facts = {**visitor.facts, **visitor.ask("memory"), **bursts[name].facts}
                    facts["pipeline"] = visitor.ask(
                        "pipeline", calls=math.ceil(CALLS_SHARE * depth.calls), seconds=CALLS_SHARE * depth.seconds
                    )
                    if facts.pop("device", False):  # after all bursts of the round, so that it disturbs none
                        report(f"the GPU under {name}")
                        facts["device"] = visitor.ask("device", calls=DEVICE_CALLS, seconds=DEVICE_SECONDS)
                except FAILURES as error:
                    failed[name] = error
                    continue
                seen[name] = Seen(bursts[name].bursts, facts)
    return seen, failed


def _open_all(
    bundle: Path,
    spec: Mapping[str, Any],
    group: list[str],
    shuffler: random.Random,
    stack: contextlib.ExitStack,
    failed: dict[str, StepError | MissingToolError],
    report: Callable[[str], None],
) -> dict[str, Visitor]:
    entries = {entry["id"]: entry for entry in spec["candidates"]}
    free = memory.available_mb()
    visitors = {
        name: stack.enter_context(Visitor(bundle, name, pool_threads(entries[name], spec["protocol"])))
        for name in shuffler.sample(group, len(group))  # who starts first may get other memory
    }
    for name in shuffler.sample(group, len(group)):
        visitor = visitors[name]
        report(f"opening {name}")
        try:
            visitor.ready()
        except FAILURES as error:
            failed[name] = error
    for name in shuffler.sample(group, len(group)):
        if name in failed:
            continue
        if len(group) > 1 and memory.available_mb() < LEAST_FREE_SHARE * free:
            raise TooLittleMemory
        try:
            visitors[name].facts |= visitors[name].ask("open")
            visitors[name].facts |= visitors[name].ask("warm")
        except FAILURES as error:
            if isinstance(error, OutOfMemory) and len(group) > 1 and entries[name]["runtime"] in ON_GPU:
                raise TooLittleMemory from error  # the others of this round may have filled the GPU
            failed[name] = error
    for name in failed:
        if name in visitors:
            visitors.pop(name).end()
    return visitors


def _take_turns(
    visitors: dict[str, Visitor],
    depth: Depth,
    shuffler: random.Random,
    failed: dict[str, StepError | MissingToolError],
    report: Callable[[str], None],
) -> dict[str, Seen]:
    seen = {name: Seen() for name in visitors}
    totals: dict[str, dict[str, Any]] = {
        name: {"seconds": 0.0, "switches": 0, "void": 0, "mhz": []} for name in visitors
    }
    cpu = {name: visitor.ask("cpu")["cpu_s"] for name, visitor in visitors.items()}
    throttled = control_group.throttled_periods()
    busy, stolen, own, wall = sensors.busy_seconds(), sensors.stolen_seconds(), time.process_time(), time.monotonic()
    for turn in range(PASSES):
        for name in shuffler.sample(sorted(visitors), len(visitors)):
            if name in failed:
                continue
            report(name)
            calls = -(-depth.calls // PASSES)
            try:
                answer = visitors[name].ask("burst", calls=calls, seconds=depth.seconds / PASSES)
            except FAILURES as error:
                failed[name] = error
                continue
            seen[name].bursts.append(answer["times"])
            total = totals[name]
            total["seconds"] += answer["seconds"]
            total["switches"] += answer["switches"]
            total["void"] |= int(answer["void"]) << turn
            if answer["mhz"] is not None:
                total["mhz"].append(answer["mhz"])
    wall = time.monotonic() - wall
    used = time.process_time() - own
    for name, visitor in visitors.items():
        if name not in failed:
            used += visitor.ask("cpu")["cpu_s"] - cpu[name]
    cores = os.cpu_count() or 1
    shared = {
        "others_share": max(0.0, sensors.busy_seconds() - busy - used) / (wall * cores),
        "steal_share": (sensors.stolen_seconds() - stolen) / (wall * cores),
        "throttled_periods": control_group.throttled_periods() - throttled,
        "round_seconds": wall,
        "load_average": sensors.load_average(),
        "temperature_c": sensors.temperature_c(),
        "governor": sensors.governor(),
    }
    for name in visitors:
        seen[name].facts = {**totals[name], **shared}
    return seen
