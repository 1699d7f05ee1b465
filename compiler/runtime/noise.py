"""Whether the machine was quiet while it measured: reasons in words why a figure may not be believed.

Thresholds are floors, raised to what the same machine shows when nothing else runs: before the first round the machine
is watched, and the reference is timed alone. A machine that was not quiet then raises nothing.
"""

from __future__ import annotations

import statistics as st
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from compiler.runtime import sensors
from compiler.runtime.visitor import Visitor

if TYPE_CHECKING:
    from compiler.runtime.statistics import Rounds

QUIET_OTHERS_SHARE = 0.05
WAIT_FOR_QUIET_S = 5.0
WATCH_S = 0.5
IDLE_BURSTS = 10
IDLE_BURST_S = 0.05
FACTOR = 2.0
"""How many times what an idle machine shows still counts as idle."""
SPREAD = 0.03
DRIFT = 0.03
OTHERS_SHARE = 0.05
STEAL_SHARE = 0.01
SOME_OTHERS = 0.01
SWITCHES_PER_S = 250.0  # one every tick of a common scheduler
ROUND_RANGE = 0.10
CLOCK_RANGE = 0.05
HOT_C = 80.0
"""From here on many boards and laptops slow down."""
LEAST_TELLING_S = 0.1
"""/proc/stat counts in hundredths of a second: a tenth of a second of others' work tells nothing."""

NOT_WATCHED: dict[str, Any] = {"quiet": False, "others_share": 0.0, "switches_per_s": 0.0, "reference_spread": 0.0}


def watch(bundle: Path, reference: str, report: Callable[[str], None]) -> dict[str, Any]:
    """What the machine shows before the first round: `quiet`, `others_share`, `switches_per_s`, `reference_spread`.

    Waits a few seconds for whatever is still at work to end.
    """
    import numpy as np

    from compiler.runtime.statistics import burst_spread

    deadline = time.monotonic() + WAIT_FOR_QUIET_S
    others = sensors.others_share(WATCH_S)
    while others > QUIET_OTHERS_SHARE and time.monotonic() < deadline:
        report("waiting until the machine is quiet")
        others = sensors.others_share(WATCH_S)
    switches, seconds, bursts = 0, 0.0, []
    with Visitor(bundle, reference, 1) as visitor:
        visitor.ready()
        visitor.ask("open")
        visitor.ask("warm")
        for _ in range(IDLE_BURSTS):
            answer = visitor.ask("burst", calls=20, seconds=IDLE_BURST_S)
            switches += answer["switches"]
            seconds += answer["seconds"]
            bursts.append(np.asarray(answer["times"], np.float64) / 1e6)
    return {
        "quiet": others <= QUIET_OTHERS_SHARE,
        "others_share": round(others, 4),
        "switches_per_s": round(switches / seconds, 2),
        "reference_spread": round(burst_spread([bursts]), 4),
    }


def reasons(
    rounds: Rounds,
    facts: Sequence[Mapping[str, Any]],
    drift: float,
    idle: Mapping[str, Any],
    reference: Sequence[Mapping[str, Any]],
) -> list[str]:
    """Why the figures of one candidate are unstable; empty where they are not. `facts`: one mapping a round.

    Interruptions are counted on the `reference` of the same rounds, and only where others worked at all: the kernel
    counts as one as well when a process's own threads wake and yield to each other.
    """
    from compiler.runtime.statistics import burst_spread, round_range

    scale = FACTOR if idle["quiet"] else 0.0
    found = []
    spread = burst_spread(rounds)
    if spread > max(SPREAD, scale * idle["reference_spread"]):
        found.append(f"bursts of calls differ by {spread:.1%} (median absolute deviation)")
    low, high = round_range(rounds)
    if high > low * (1 + ROUND_RANGE):
        found.append(f"the machine ran at more than one speed: rounds from {low:.3g} to {high:.3g} ms")
    if drift > DRIFT:
        found.append(f"the reference drifted by {drift:.1%} between rounds")
    seconds = sum(f["round_seconds"] for f in facts)
    others = sum(f["others_share"] * f["round_seconds"] for f in facts) / seconds
    if others > max(OTHERS_SHARE, scale * idle["others_share"]) and others * seconds > LEAST_TELLING_S:
        found.append(f"other processes used {others:.0%} of the host while it was measured")
    steal = sum(f["steal_share"] * f["round_seconds"] for f in facts) / seconds
    if steal > STEAL_SHARE:
        found.append(f"the hypervisor took {steal:.1%} of the time")
    active = sum(f["seconds"] for f in reference)
    rate = st.median(f["switches"] / max(f["seconds"], 1e-9) for f in reference)
    limit = max(SWITCHES_PER_S, scale * idle["switches_per_s"])
    if others > SOME_OTHERS and rate > limit and active > LEAST_TELLING_S:
        found.append(f"the reference was interrupted {rate:.0f} times a second")
    throttled = sum(f.get("throttled_periods", 0) for f in facts)
    if throttled:
        found.append(f"the CPU quota of the container stopped it in {throttled} periods")
    void = sum(int(f["void"]).bit_count() for f in facts)
    if void:
        found.append(f"the machine slowed itself down (heat or power): {void} bursts are void")
    hottest = max((f["temperature_c"] for f in facts if f["temperature_c"] is not None), default=0.0)
    if hottest >= HOT_C:
        found.append(f"the machine was {hottest:.0f} degrees Celsius hot")
    governors = sorted({f["governor"] for f in facts})
    if len(governors) > 1:
        found.append(f"the clock's governor changed ({', '.join(governors)})")
    clocks = [mhz for f in facts for mhz in f["mhz"]]
    if clocks and max(clocks) - min(clocks) > CLOCK_RANGE * st.median(clocks):
        found.append(f"the clock changed between {min(clocks):.0f} and {max(clocks):.0f} MHz")
    return found
