"""What the console's table and the report page say alike: a manifest's rows, columns and sentences, as plain text."""

from __future__ import annotations

from typing import Any

from compiler.figures import MEGABYTE

NONE = "-"


def by_speed(row: dict[str, Any]) -> tuple[float, str]:
    """The order of candidates: the fastest first, then by name."""
    return (-row["speedup"] if row["speedup"] else 0.0, row["id"])


def columns(manifest: dict[str, Any]) -> list[str]:
    """Titles of the table of candidates, between the name and the verdict."""
    p50 = "p50 ms" if manifest["measured_on"][0]["is_target"] else "p50 ms (proxy)"
    return ["size MB", p50, "95 % interval", "p95 ms", "speed-up", metric(manifest), "drop (interval)"]


def metric(manifest: dict[str, Any]) -> str:
    """The name of the metric that the candidates were evaluated by, with its unit."""
    named = {row["accuracy"]["metric"] for row in manifest["candidates"] if row["accuracy"]}
    found: str = next(iter(sorted(named)), "top1")
    return {"top1": "top-1 %", "top5": "top-5 %"}.get(found, found)


def cells(row: dict[str, Any]) -> list[str]:
    """A candidate's figures under `columns`."""
    accuracy = row["accuracy"]
    found = [f"{row['size_bytes'] / MEGABYTE:.2f}" if row["size_bytes"] else NONE]
    found += latency_cells(row) if row["latency_ms"] else [NONE] * 4
    if not accuracy:
        return [*found, NONE, NONE]
    ends = accuracy["drop_ci95"]
    return [
        *found,
        f"{accuracy['value']:.2f}" + ("" if accuracy["split"] == "report" else " (selection)"),
        f"{accuracy['drop']:.2f}" + (f" ({ends[0]:.2f} to {ends[1]:.2f})" if ends else ""),
    ]


def latency_cells(row: dict[str, Any]) -> list[str]:
    """Median (`~`: unstable), its interval, p95, speed-up."""
    latency, interval = row["latency_ms"], row["speedup_ci95"]
    low, high = latency["ci95"]
    return [
        f"{latency['p50']:.3f}{'' if latency['stable'] else ' ~'}",
        f"{low:.3f}-{high:.3f}",
        f"{latency['p95']:.3f}",
        f"{row['speedup']:.2f}x" + (f" ({interval[0]:.2f}-{interval[1]:.2f})" if interval else ""),
    ]


def standing(row: dict[str, Any], manifest: dict[str, Any]) -> str:
    """A candidate's status, or that it is the baseline."""
    return "baseline" if row["id"] == manifest["baseline"] else str(row["status"])


def figure(verdict: dict[str, Any]) -> tuple[str, str]:
    """A verdict's value and its bound."""
    value = NONE if verdict["value"] is None else f"{verdict['value']:.4g}"
    return value, "" if verdict["bound"] is None else f"{verdict['bound']:g}"


def loads(manifest: dict[str, Any]) -> list[str]:
    """Where the candidates were measured at points of their own, and at a stated load."""
    found = []
    if manifest["config"].get("objective") == "throughput":
        for row in sorted(manifest["candidates"], key=by_speed):
            if row["latency_ms"]:
                at = row["options"]
                where = f"batch {at['batch']}, {at['threads']} threads, {at.get('streams', 1)} streams"
                found.append(f"{row['id']}: {row['throughput_per_s']:.1f} samples a second at {where}")
    for row in manifest["candidates"]:
        load = row.get("load")
        if load:
            p99 = f"p99 {load['p99']:.3g} ms" if load["p99"] is not None else "too few requests for a p99"
            behind = "" if load["kept_up"] else "; it does not keep up"
            found.append(f"{row['id']} at {load['rate_per_s']:g} requests a second: {p99}, waiting included{behind}")
    return found


def screened(manifest: dict[str, Any]) -> str:
    """Which candidates were given a brief look only; empty where none was."""
    brief = [r["id"] for r in manifest["candidates"] if r["latency_ms"] and r["latency_ms"].get("depth") == "screen"]
    names = ", ".join(sorted(brief))
    return f"Screened only, too far behind to be measured in depth: {names}." if brief else ""


def proxy(manifest: dict[str, Any]) -> str:
    """That the latency is a proxy, and on what it was taken; empty where it is the target's own."""
    host = manifest["measured_on"][0]
    if host["is_target"]:
        return ""
    return (
        f"Latency is a proxy: measured on {host['cpu_model']} ({host['arch']}, {host['cores']} cores), not on "
        f"{manifest['target']}. It ranks the candidates; what the target itself needs is unproven."
    )


def undecided(manifest: dict[str, Any]) -> list[str]:
    """What the measurement left open."""
    return [f"Still open after all rounds: {question}." for question in manifest["measured_on"][0].get("undecided", ())]


def unstable(rows: list[tuple[str, dict[str, Any]]]) -> list[str]:
    """Why figures are not to be taken at face value; `rows` are names and candidates."""
    return [
        f"Unstable: {name}: {'; '.join(row['latency_ms']['unstable_reasons'])}."
        for name, row in rows
        if row["latency_ms"] and not row["latency_ms"]["stable"]
    ]


def turned_down(manifest: dict[str, Any]) -> list[tuple[str, str]]:
    """Status and sentence of every candidate that was rejected or failed."""
    return [
        (row["status"], f"{row['status'].capitalize()}: {row['id']}: {row['reason']}")
        for row in manifest["candidates"]
        if row["status"] in ("rejected", "failed")
    ]


def weights(manifest: dict[str, Any]) -> str:
    """What the accuracy is not: of demo weights, or not claimed; empty where it is what it seems."""
    if manifest["weights"]["demo"]:
        return (
            "Demo weights, trained on scikit-learn's digits. Build your own: python -m compiler "
            f"target={manifest['target']} model={manifest['model']} model.weights=WEIGHTS.safetensors "
            "model.sha256=null data=imagefolder data.root=IMAGES"
        )
    claim = manifest["weights"]["claim"]
    return f"Accuracy: {claim}." if claim else ""


def another_host(record: dict[str, Any], manifest: dict[str, Any]) -> str:
    """That a later measurement was taken elsewhere; empty where it was not."""
    if record["host"]["fingerprint"] == manifest["measured_on"][0]["fingerprint"]:
        return ""
    return "The manifest's figures were taken on another host: the two do not compare."
