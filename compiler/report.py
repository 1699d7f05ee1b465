"""A manifest as a table for people."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from compiler import terminal
from compiler.terminal import printable

MEGABYTE = 1e6
STYLE = {
    "selected": "bold green",
    "rejected": "yellow",
    "failed": "red",
    "pass": "green",
    "fail": "red",
    "unproven": "yellow",
}
NONE = "-"


def print_manifest(manifest: dict[str, Any], folder: Path, console: Console | None = None) -> None:
    """Prints the candidates, the verdicts, what was selected and why, and where it lies."""
    manifest = printable(manifest)
    console = console or terminal.console()
    host = manifest["measured_on"][0]
    proxy = not host["is_target"]
    table = Table(title=f"{manifest['model']} for {manifest['target']}", title_justify="left", pad_edge=False)
    table.add_column("candidate")
    for name in (
        "size MB",
        "p50 ms (proxy)" if proxy else "p50 ms",
        "95 % interval",
        "p95 ms",
        "speed-up",
        _metric(manifest),
        "drop (interval)",
    ):
        table.add_column(name, justify="right")
    table.add_column("verdict")
    for row in sorted(manifest["candidates"], key=_speed):
        style = STYLE.get(row["status"], "dim" if row["status"] == "skipped" else "")
        verdict = "baseline" if row["id"] == manifest["baseline"] else row["status"]
        table.add_row(row["id"], *_figures(row), verdict, style=style)
    console.print(table)
    _print_throughput(manifest, console)
    _print_doubts(manifest, console)
    for row in manifest["candidates"]:
        if row["status"] in ("rejected", "failed"):
            console.print(
                Text(f"{row['status'].capitalize()}: {row['id']}: {row['reason']}", STYLE[row["status"]]),
                soft_wrap=True,
            )
    for verdict in manifest["verdicts"]:
        bound = f" (budget {verdict['bound']:g})" if verdict["bound"] is not None else ""
        value = NONE if verdict["value"] is None else f"{verdict['value']:.4g}"
        line = Text(f"{verdict['metric']}: {value}{bound} ")
        line.append(verdict["result"], STYLE[verdict["result"]])
        console.print(line + Text(f"  {verdict['reason']}", "dim"))
    if manifest["weights"]["demo"]:
        console.print(
            "Demo weights, trained on scikit-learn's digits. Build your own: python -m compiler "
            f"target={manifest['target']} model={manifest['model']} model.weights=WEIGHTS.safetensors "
            "model.sha256=null data=imagefolder data.root=IMAGES"
        )
    elif manifest["weights"]["claim"]:
        console.print(Text(f"Accuracy: {manifest['weights']['claim']}.", "yellow"))
    console.print(f"Selected: {manifest['selected']}: {manifest['selected_because']}")
    console.print(f"Status: {manifest['status']}")
    for file in manifest["files"]:
        if file["role"] in ("model", "weights"):
            console.print(
                f"{file['role'].capitalize()}: {folder / file['path']} ({file['size_bytes'] / MEGABYTE:.2f} MB)",
                soft_wrap=True,
            )


def _print_throughput(manifest: dict[str, Any], console: Console) -> None:
    """Where the candidates were measured at points of their own, and at a stated load."""
    if manifest["config"].get("objective") == "throughput":
        for row in sorted(manifest["candidates"], key=_speed):
            if row["latency_ms"]:
                at = row["options"]
                where = f"batch {at['batch']}, {at['threads']} threads, {at.get('streams', 1)} streams"
                console.print(f"{row['id']}: {row['throughput_per_s']:.1f} samples a second at {where}")
    for row in manifest["candidates"]:
        load = row.get("load")
        if load:
            p99 = f"p99 {load['p99']:.3g} ms" if load["p99"] is not None else "too few requests for a p99"
            behind = "" if load["kept_up"] else "; it does not keep up"
            console.print(f"{row['id']} at {load['rate_per_s']:g} requests a second: {p99}, waiting included{behind}")


def _print_doubts(manifest: dict[str, Any], console: Console) -> None:
    """What keeps the figures from being taken at face value."""
    host = manifest["measured_on"][0]
    proxy = not host["is_target"]
    brief = [r["id"] for r in manifest["candidates"] if r["latency_ms"] and r["latency_ms"].get("depth") == "screen"]
    if brief:
        console.print(
            f"Screened only, too far behind to be measured in depth: {', '.join(sorted(brief))}.", style="dim"
        )
    for question in host.get("undecided", ()):
        console.print(f"Still open after all rounds: {question}.", style="yellow")
    if proxy:
        console.print(
            f"Latency is a proxy: measured on {host['cpu_model']} ({host['arch']}, {host['cores']} cores), not on "
            f"{manifest['target']}. It ranks the candidates; what the target itself needs is unproven.",
            style="yellow",
        )
    for row in manifest["candidates"]:
        if row["latency_ms"] and not row["latency_ms"]["stable"]:
            console.print(f"Unstable: {row['id']}: {'; '.join(row['latency_ms']['unstable_reasons'])}.", style="yellow")


def print_observation(record: dict[str, Any], manifest: dict[str, Any], console: Console | None = None) -> None:
    """Prints a later measurement of a version beside what its manifest says."""
    record, manifest = printable(record), printable(manifest)
    console = console or terminal.console()
    host = record["host"]
    title = f"{manifest['model']} for {manifest['target']}, {manifest['version']}, measured again {record['created']}"
    table = Table(title=title, title_justify="left", pad_edge=False)
    table.add_column("candidate")
    for name in ("p50 ms", "95 % interval", "p95 ms", "speed-up", "in the manifest: p50 ms", "speed-up"):
        table.add_column(name, justify="right")
    known = {row["id"]: row for row in manifest["candidates"]}
    for name, figures in sorted(record["candidates"].items(), key=lambda item: (-item[1]["speedup"], item[0])):
        before = known.get(name, {})
        latency = before.get("latency_ms")
        table.add_row(
            name, *_latency(figures), f"{latency['p50']:.3f}" if latency else NONE,
            f"{before['speedup']:.2f}x" if before.get("speedup") else NONE,
            style=STYLE.get(before.get("status", ""), ""),
        )  # fmt: skip
    console.print(table)
    console.print(f"Measured on {host['cpu_model']} ({host['arch']}, {host['cores']} cores), speed-ups against "
                  f"{record['speedup_reference']}.")  # fmt: skip
    if host["fingerprint"] != manifest["measured_on"][0]["fingerprint"]:
        console.print("The manifest's figures were taken on another host: the two do not compare.", style="yellow")
    for name, figures in sorted(record["candidates"].items()):
        if not figures["latency_ms"]["stable"]:
            console.print(f"Unstable: {name}: {'; '.join(figures['latency_ms']['unstable_reasons'])}.", style="yellow")


def print_curves(found: dict[str, Any], console: Console | None = None) -> None:
    """Prints the curves of a sweep: for each candidate its points, the best of them, and the largest batch."""
    found = printable(found)
    console = console or terminal.console()
    for name, curve in sorted(found["curves"].items()):
        table = Table(title=name, title_justify="left", pad_edge=False)
        for title in ("batch", "threads", "streams", "p50 ms", "p95 ms", "samples a second", "memory MB"):
            table.add_column(title, justify="right")
        for point in curve["points"]:
            place = [str(point[key]) for key in ("batch", "threads", "streams")]
            if point["status"] != "ok":
                table.add_row(*place, *[NONE] * 3, point["status"].replace("_", " "), style="yellow")
                continue
            table.add_row(
                *place, f"{point['p50_ms']:.3f}", f"{point['p95_ms']:.3f}", f"{point['throughput_per_s']:.1f}",
                f"{point['process_memory_mb']:.0f}", style="bold green" if point == curve["best"] else "",
            )  # fmt: skip
        console.print(table)
        largest = curve["largest_batch"]
        if largest:
            end = (
                f"the largest within {found['memory_limit_mb']:.0f} MB" if largest["exhausted"] else "as many as tried"
            )
            console.print(f"Batch {largest['batch']} runs: {end}.")
    console.print("One visit a point: a curve says where to look; what is claimed is measured in rounds.", style="dim")


def _metric(manifest: dict[str, Any]) -> str:
    named = {row["accuracy"]["metric"] for row in manifest["candidates"] if row["accuracy"]}
    metric = next(iter(named), "top1")
    return {"top1": "top-1 %", "top5": "top-5 %"}.get(metric, metric)


def _speed(row: dict[str, Any]) -> tuple[float, str]:
    return (-row["speedup"] if row["speedup"] else 0.0, row["id"])


def _latency(row: dict[str, Any]) -> list[str]:
    latency, interval = row["latency_ms"], row["speedup_ci95"]
    low, high = latency["ci95"]
    return [
        f"{latency['p50']:.3f}{'' if latency['stable'] else ' ~'}",
        f"{low:.3f}-{high:.3f}",
        f"{latency['p95']:.3f}",
        f"{row['speedup']:.2f}x" + (f" ({interval[0]:.2f}-{interval[1]:.2f})" if interval else ""),
    ]


def _figures(row: dict[str, Any]) -> list[str]:
    latency, accuracy = row["latency_ms"], row["accuracy"]
    cells = [f"{row['size_bytes'] / MEGABYTE:.2f}" if row["size_bytes"] else NONE]
    cells += _latency(row) if latency else [NONE] * 4
    if accuracy:
        ends = accuracy["drop_ci95"]
        cells += [
            f"{accuracy['value']:.2f}" + ("" if accuracy["split"] == "report" else " (selection)"),
            f"{accuracy['drop']:.2f}" + (f" ({ends[0]:.2f} to {ends[1]:.2f})" if ends else ""),
        ]
    else:
        cells += [NONE, NONE]
    return cells
