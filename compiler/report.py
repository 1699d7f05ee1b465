"""A manifest as a table for people."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from compiler import sentences, terminal
from compiler.figures import MEGABYTE
from compiler.sentences import NONE, by_speed, latency_cells
from compiler.words import printable

STYLE = {
    "selected": "bold green",
    "rejected": "yellow",
    "failed": "red",
    "pass": "green",
    "fail": "red",
    "unproven": "yellow",
}


def print_manifest(manifest: dict[str, Any], folder: Path, console: Console | None = None) -> None:
    """Prints the candidates, the verdicts, what was selected and why, and where it lies."""
    manifest = printable(manifest)
    console = console or terminal.console()
    table = Table(title=f"{manifest['model']} for {manifest['target']}", title_justify="left", pad_edge=False)
    table.add_column("candidate")
    for name in sentences.columns(manifest):
        table.add_column(name, justify="right")
    table.add_column("verdict")
    for row in sorted(manifest["candidates"], key=by_speed):
        style = STYLE.get(row["status"], "dim" if row["status"] == "skipped" else "")
        table.add_row(row["id"], *sentences.cells(row, manifest), sentences.standing(row, manifest), style=style)
    console.print(table)
    notes = (*sentences.loads(manifest), *sentences.on_gpu(manifest), *sentences.whole_call(manifest))
    for line in (*notes, *sentences.data(manifest), sentences.reference(manifest)):
        if line:
            console.print(line, soft_wrap=True)
    _print_doubts(manifest, console)
    for status, line in sentences.turned_down(manifest):
        console.print(Text(line, STYLE[status]), soft_wrap=True)
    for verdict in manifest["verdicts"]:
        value, bound = sentences.figure(verdict)
        text = Text(f"{verdict['metric']}: {value}{f' (budget {bound})' if bound else ''} ")
        text.append(verdict["result"], STYLE[verdict["result"]])
        console.print(text + Text(f"  {verdict['reason']}", "dim"), soft_wrap=True)
    if sentences.weights(manifest):
        console.print(sentences.weights(manifest), style="" if manifest["weights"]["demo"] else "yellow")
    for line in sentences.deferred(manifest, str(folder)):
        console.print(Text(line, "yellow"), soft_wrap=True)
    console.print(f"Selected: {manifest['selected'] or 'none'}: {manifest['selected_because']}", soft_wrap=True)
    console.print(f"Status: {manifest['status']}")
    for file in manifest["files"]:
        if file["role"] in ("model", "weights"):
            console.print(
                f"{file['role'].capitalize()}: {folder / file['path']} ({file['size_bytes'] / MEGABYTE:.2f} MB)",
                soft_wrap=True,
            )


def _print_doubts(manifest: dict[str, Any], console: Console) -> None:
    """What keeps the figures from being taken at face value."""
    if sentences.screened(manifest):
        console.print(sentences.screened(manifest), style="dim")
    rows = [(row["id"], row) for row in manifest["candidates"]]
    proxy = [sentences.proxy(manifest)] if sentences.proxy(manifest) else []
    for line in (*sentences.undecided(manifest), *proxy, *sentences.unstable(rows)):
        console.print(line, style="yellow")


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
    is_steady = sentences.steady(record["candidates"].items(), record["speedup_reference"])
    was_steady = sentences.steady(known.items(), sentences.speedup_reference(manifest))
    for name, figures in sorted(record["candidates"].items(), key=lambda item: (-item[1]["speedup"], item[0])):
        before = known.get(name, {})
        earlier = latency_cells(before, was_steady) if before.get("latency_ms") else [NONE] * 4
        table.add_row(
            name, *latency_cells(figures, is_steady), earlier[0], earlier[-1],
            style=STYLE.get(before.get("status", ""), ""),
        )  # fmt: skip
    console.print(table)
    console.print(f"Measured on {sentences.machine(host)}, speed-ups against {record['speedup_reference']}.")
    if sentences.another_host(record, manifest):
        console.print(sentences.another_host(record, manifest), style="yellow")
    for line in sentences.unstable(sorted(record["candidates"].items())):
        console.print(line, style="yellow")


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
