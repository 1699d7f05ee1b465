"""The common form of a profile, the sentence that sums it up, and its tables. docs/profiling.md describes the form."""

from __future__ import annotations

import collections
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from compiler import terminal
from compiler.words import printable

if TYPE_CHECKING:
    from rich.console import Console

SCHEMA_VERSION = 1
BOTTLENECK = 0.5
STILL_PAYS = 0.75
ROUGH = 3.0
MUCH_OUTSIDE = 0.3
DISTURBED = 0.9
SHOWN = 10
SHOWN_KERNELS = 2


def candidate(record: dict[str, Any], role: str) -> dict[str, Any]:
    """One candidate in the common form, from what `compiler.profilers.one` wrote; `role` is baseline or artifact.

    Times are milliseconds a call. A `share`, 0 to 1, is of the time in all operators: what a profiler itself costs lies
    between them, and would make every operator look small. In `prediction` it is of the whole prediction.
    """
    prediction = dict(record["prediction"])
    for part in ("encode", "network", "decode"):
        prediction[f"{part}_share"] = _share(prediction[f"{part}_ms"], prediction["total_ms"])
    row: dict[str, Any] = {name: record[name] for name in ("id", "runtime", "options", "plain")}
    row |= {"role": role, "prediction": prediction, "operators": [], "by_type": [], "by_kernel": [], "files": []}
    seen = record["profiled"]
    if seen is None:
        return row | {"profiler": {"name": None, "reason": record["reason"]}}
    call = seen["call_ms"]
    within = sum(op["ms"] for op in seen["operators"])
    operators = sorted(
        ({**op, "share": _share(op["ms"], within)} for op in seen["operators"]), key=lambda op: (-op["ms"], op["name"])
    )
    outside = max(0.0, call - within)
    overhead = call / record["plain"]["median_ms"]
    notes = [
        f"profiling slows a call down, here by {overhead:.2f} times: read the shares, not the times",
        *seen["notes"],
    ]
    if overhead > ROUGH:
        notes.insert(1, "so large a slow-down (the profiler's cost, or a busy host) makes the shares rough")
    if overhead < DISTURBED:
        notes[0] = f"calls were faster when profiled ({overhead:.2f} times): this host was busy, profile again"
    return row | {
        "profiler": {
            "name": seen["profiler"],
            "reason": None,
            "calls": record["profiled_calls"],
            "call_ms": call,
            "overhead": overhead,
            "in_operators_ms": within,
            "outside_operators_ms": outside,
            "outside_operators_share": _share(outside, call),
            "facts": seen["facts"],
            "notes": notes,
        },
        "operators": operators,
        "by_type": _grouped(operators, within, lambda op: {"type": op["type"]}),
        "by_kernel": _grouped(
            [op for op in operators if op["kernel"]], within,
            lambda op: {"kernel": op["kernel"], "where": op["where"], "precision": op["precision"]},
        ),
        "files": seen["files"],
    }  # fmt: skip


def _grouped(
    operators: list[dict[str, Any]], whole: float, key: Callable[[dict[str, Any]], dict[str, Any]]
) -> list[dict[str, Any]]:
    groups: dict[tuple[Any, ...], list[dict[str, Any]]] = collections.defaultdict(list)
    for op in operators:
        groups[tuple(key(op).values())].append(op)
    rows = []
    for members in groups.values():
        total = sum(op["ms"] for op in members)
        row = key(members[0]) | {"count": len(members), "ms": total, "share": _share(total, whole)}
        if "type" in row:
            kernels: collections.Counter[str] = collections.Counter()
            for op in members:
                if op["kernel"]:
                    kernels[op["kernel"]] += op["ms"]
            row["kernels"] = [name for name, _ in kernels.most_common()]
            row["where"] = sorted({op["where"] for op in members if op["where"]})
        rows.append(row)
    return sorted(rows, key=lambda row: -row["ms"])


def _share(part: float, whole: float) -> float:
    return part / whole if whole > 0 else 0.0


def sentence(artifact: dict[str, Any]) -> str:
    """Where the artifact's time goes, and whether the network is the bottleneck of a prediction."""
    return f"{_where(artifact)}; {_bottleneck(artifact['prediction'])}."


def _where(row: dict[str, Any]) -> str:
    profiler = row["profiler"]
    if profiler["name"] is None:
        return f"where {row['id']} spends its time is not known ({profiler['reason']})"
    if not row["by_type"]:
        return f"{row['id']} ran no operator that its library names"
    top = row["by_type"][0]
    text = f"{top['share']:.0%} of the operators' time of {row['id']} is in {_operators(top)}"
    outside = profiler["outside_operators_share"]
    return text + (f" ({outside:.0%} of the profiled call is in no operator)" if outside > MUCH_OUTSIDE else "")


def _operators(top: dict[str, Any]) -> str:
    text = f"{top['count']} {top['type']} operator{'s' if top['count'] > 1 else ''}"
    kernels = top["kernels"]
    if kernels:
        more = f" and {len(kernels) - SHOWN_KERNELS} more" if len(kernels) > SHOWN_KERNELS else ""
        text += f" run by {', '.join(kernels[:SHOWN_KERNELS])}{more}"
    elif top["where"]:
        text += f" run by {', '.join(top['where'])}"
    return text


def _bottleneck(prediction: dict[str, Any]) -> str:
    network, before, after = (prediction[f"{part}_share"] for part in ("network", "encode", "decode"))
    if network < BOTTLENECK:
        name, share = ("pre-processing", before) if before >= after else ("post-processing", after)
        return f"{name} takes {share:.0%} of a prediction: the network is not the bottleneck"
    if network < STILL_PAYS:
        return f"the network is {network:.0%} of a prediction and pre-processing {before:.0%}: both count"
    return f"the network is {network:.0%} of a prediction, so a faster network still pays"


def print_profile(profile: dict[str, Any], console: Console | None = None) -> None:
    """The tables: the calls, operators by type and the longest operators, before and after, and the kernels."""
    from rich.table import Table

    profile = printable(profile)
    console = console or terminal.console()

    def table(title: str, *columns: str) -> Table:
        made = Table(title=title, title_justify="left", pad_edge=False)
        for column in columns:
            text = column.split(" ")[0] in ("candidate", "type", "operator", "kernel", "where", "precision", "profiler")
            made.add_column(column, justify="left" if text else "right")
        return made

    rows = profile["candidates"]
    calls = table(
        f"{profile['model']} for {profile['target']}, {profile['version']}",
        "candidate", "call ms", "image to tensor ms", "network ms", "to logits ms",
        "network %", "profiled call ms", "slow-down", "profiler",
    )  # fmt: skip
    for row in rows:
        parts, profiler = row["prediction"], row["profiler"]
        known = profiler["name"] is not None
        calls.add_row(
            f"{row['id']} ({row['role']})", f"{row['plain']['median_ms']:.3f}", f"{parts['encode_ms']:.3f}",
            f"{parts['network_ms']:.3f}", f"{parts['decode_ms']:.3f}", f"{100 * parts['network_share']:.0f}",
            f"{profiler['call_ms']:.3f}" if known else "-", f"{profiler['overhead']:.2f}x" if known else "-",
            profiler["name"] or f"none: {profiler['reason']}",
        )  # fmt: skip
    console.print(calls)
    sides = [row for row in rows if row["operators"]]
    for title, key, first in (("By type", "by_type", "type"), ("Longest operators", "operators", "operator")):
        if not sides:
            break
        side = table(
            f"{title}, in profiling mode", *[f"{n}{' ' * i}" for i in range(len(sides)) for n in _columns(first)]
        )
        for place in range(min(SHOWN, max(len(row[key]) for row in sides))):
            side.add_row(*[cell for row in sides for cell in _cells(row[key], place, key)])
        console.print("   |   ".join(f"{row['role']}: {row['id']}" for row in sides))
        console.print(side)
    kernels = table("Kernels that ran", "candidate", "kernel", "where", "precision", "n", "ms", "%")
    for row in sides:
        for entry in row["by_kernel"][:SHOWN]:
            figures = (str(entry["count"]), f"{entry['ms']:.3f}", f"{100 * entry['share']:.1f}")
            kernels.add_row(row["id"], entry["kernel"], entry["where"] or "-", entry["precision"] or "-", *figures)
    if kernels.rows:
        console.print(kernels)
    for name, reason in profile["left_out"].items():
        console.print(f"{name} was not profiled: {reason}.", style="yellow", soft_wrap=True)
    for row in rows:
        for note in row["profiler"].get("notes", []):
            console.print(f"{row['id']}: {note}.", style="dim", soft_wrap=True)
    console.print(profile["sentence"], soft_wrap=True)


def _columns(first: str) -> tuple[str, ...]:
    return (first, "n", "ms", "%") if first == "type" else (first, "type", "ms", "%")


def _cells(rows: list[dict[str, Any]], place: int, key: str) -> tuple[str, ...]:
    if place >= len(rows):
        return ("", "", "", "")
    row = rows[place]
    names = (row["type"], str(row["count"])) if key == "by_type" else (row["name"], row["type"])
    return (*names, f"{row['ms']:.3f}", f"{100 * row['share']:.1f}")
