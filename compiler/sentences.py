"""What the tables and the report page say alike: a manifest's rows, columns and sentences, as plain text."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from compiler.figures import MEGABYTE, PROPORTIONS
from compiler.proportions import wilson
from compiler.rounding import against, ends, significant, supported

NONE = "-"


def by_speed(row: dict[str, Any]) -> tuple[float, str]:
    """The order of candidates: the fastest first, then by name."""
    return (-row["speedup"] if row["speedup"] else 0.0, row["id"])


def columns(manifest: dict[str, Any]) -> list[str]:
    """Titles of the table of candidates, between the name and the verdict."""
    p50 = "p50 ms (proxy)" if proxy(manifest) else "p50 ms"
    return ["size MB", p50, "95 % interval", "p95 ms", "speed-up", metric(manifest), "drop (interval)"]


def metric(manifest: dict[str, Any]) -> str:
    """The name of the metric that the candidates were evaluated by, with its unit."""
    named = {accuracy_of(row)["metric"] for row in manifest["candidates"] if accuracy_of(row)}
    found: str = next(iter(sorted(named)), "top1")
    return {"top1": "top-1 %", "top5": "top-5 %"}.get(found, found)


def accuracy_of(row: dict[str, Any]) -> dict[str, Any]:
    """A candidate's accuracy; where it has none yet, that of the ONNX model that was prepared for it; else empty."""
    found: dict[str, Any] = row["accuracy"] or (row.get("prepared") or {}).get("accuracy") or {}
    return found


def cells(row: dict[str, Any], manifest: dict[str, Any]) -> list[str]:
    """A candidate's figures under `columns`."""
    accuracy = accuracy_of(row)
    found = [f"{row['size_bytes'] / MEGABYTE:.2f}" if row["size_bytes"] else NONE]
    base = steady(((one["id"], one) for one in manifest["candidates"]), speedup_reference(manifest))
    found += latency_cells(row, base) if row["latency_ms"] else [NONE] * 4
    if not accuracy:
        return [*found, NONE, NONE]
    return [*found, _accuracy_cell(accuracy) + _of_what(row, accuracy), _drop_cell(accuracy)]


def _accuracy_cell(accuracy: dict[str, Any]) -> str:
    value = accuracy["value"]
    if accuracy["metric"] not in PROPORTIONS:
        return f"{value:.2f}"
    low, high = wilson(value, accuracy["n"])
    return supported(value, low, high, most=2)


def _drop_cell(accuracy: dict[str, Any]) -> str:
    interval = accuracy["drop_ci95"]
    if not interval:
        return f"{accuracy['drop']:.2f}"
    low, high = interval
    return f"{supported(accuracy['drop'], low, high, most=2)} ({' to '.join(ends(low, high, most=2))})"


def speedup_reference(manifest: dict[str, Any]) -> str:
    """The candidate that speed-ups are against: the baseline, or what stood in for it."""
    named = (row["speedup_reference"] for row in manifest["candidates"] if row.get("speedup_reference"))
    return str(next(named, manifest["baseline"]))


def steady(rows: Iterable[tuple[str, Mapping[str, Any]]], name: str) -> bool:
    """Whether the candidate `name` was measured and is stable; `rows` are names and candidates."""
    latency = dict(rows).get(name, {}).get("latency_ms")
    return bool(latency and latency["stable"])


def _of_what(row: dict[str, Any], accuracy: dict[str, Any]) -> str:
    if not row["accuracy"]:
        return " (as ONNX)"
    return "" if accuracy["split"] == "report" else " (selection)"


def latency_cells(row: dict[str, Any], steady_baseline: bool) -> list[str]:
    """Median, its interval, p95, speed-up, to the digits that their intervals support; `~` marks what is unstable.

    A speed-up is as unstable as the less stable of the candidate and its baseline. Without an interval (fewer than six
    rounds) it has two digits.
    """
    latency, interval = row["latency_ms"], row["speedup_ci95"]
    low, high = latency["ci95"]
    mark = "" if latency["stable"] else " ~"
    quantile = latency["p95"], latency.get("p95_lower", low), latency.get("p95_upper", high)
    if interval:
        least, most = interval
        speedup = f"{supported(row['speedup'], least, most, most=2)}x ({'-'.join(ends(least, most, most=2))})"
    else:
        speedup = f"{significant(row['speedup'])}x"
    return [
        f"{supported(latency['p50'], low, high)}{mark}",
        "-".join(ends(low, high)),
        f"{supported(*quantile)}{mark}",
        speedup + ("" if latency["stable"] and steady_baseline else " ~"),
    ]


def standing(row: dict[str, Any], manifest: dict[str, Any]) -> str:
    """A candidate's status, or that it is the baseline."""
    return "baseline" if row["id"] == manifest["baseline"] else str(row["status"])


def figure(verdict: dict[str, Any]) -> tuple[str, str]:
    """A verdict's value and its bound."""
    if verdict["value"] is None:
        value = NONE
    elif verdict["bound"] is None:
        value = significant(verdict["value"])  # it has no interval here, and no bound to be compared with
    else:
        value = against(verdict["value"], verdict["bound"])
    return value, "" if verdict["bound"] is None else f"{verdict['bound']:g}"


def loads(manifest: dict[str, Any]) -> list[str]:
    """Where the candidates were measured at points of their own, and at a stated load."""
    found = []
    if manifest["config"].get("objective") == "throughput":
        for row in sorted(manifest["candidates"], key=by_speed):
            if row["latency_ms"]:
                at = row["options"]
                where = f"batch {at['batch']}, {at['threads']} threads, {at.get('streams', 1)} streams"
                found.append(f"{row['id']}: {significant(row['throughput_per_s'], 3)} samples a second at {where}")
    for row in manifest["candidates"]:
        load = row.get("load")
        if load:
            p99 = f"p99 {load['p99']:.3g} ms" if load["p99"] is not None else "too few requests for a p99"
            behind = "" if load["kept_up"] else "; it does not keep up"
            found.append(f"{row['id']} at {load['rate_per_s']:g} requests a second: {p99}, waiting included{behind}")
    return found


def whole_call(manifest: dict[str, Any]) -> list[str]:
    """What the selected candidate's whole call takes, preprocessing included, and what it waits for most; and how long
    a fresh process takes to its first answer, where that was measured.
    """
    row = next((r for r in manifest["candidates"] if r["id"] == manifest["selected"]), None)
    found = []
    if row and row.get("pipeline_ms"):
        ms = row["pipeline_ms"]
        around = ms["preprocessing"] + ms["postprocessing"]
        found.append(
            f"A whole call of {row['id']} takes {significant(ms['total'], 3)} ms: preprocessing "
            f"{significant(ms['preprocessing'])}, the network {significant(ms['model'], 3)}, postprocessing "
            f"{significant(ms['postprocessing'])}. The table shows the network alone."
        )
        if around > ms["model"]:
            found.append(
                f"The bottleneck of {row['id']} is preparing its input, not the network: a faster network hardly helps."
            )
    if row and row.get("first_answer_ms"):
        first = row["first_answer_ms"]
        found.append(
            f"A fresh process with {row['id']} answers after {significant(first['p50'])} ms (worst of "
            f"{first['starts']} starts: {significant(first['worst'])} ms)."
        )
    return found


def data(manifest: dict[str, Any]) -> list[str]:
    """What of a folder of images was taken, what was left out and why, and what was changed in reading."""
    found = manifest["data"].get("found")
    if not found:
        return []
    left = sum(found["skipped"].values())
    lines = []
    if left:
        why = ", ".join(f"{count} {reason}" for reason, count in sorted(found["skipped"].items()))
        more = f" (for example {found['examples'][0].partition(':')[0]})" if found["examples"] else ""
        lines.append(f"Data: {found['taken']} images taken, {left} files or folders left out: {why}{more}.")
    read = [
        f"{found[name]} {words}"
        for name, words in (("turned", "turned by their EXIF orientation"), ("flattened", "with transparency"))
        if found[name]
    ]
    if read:
        lines.append(f"Data: shown as a viewer shows them: {', '.join(read)} (data.orientation, data.background).")
    return [*lines, *(f"Data: {note}." for note in found["notes"])]


def screened(manifest: dict[str, Any]) -> str:
    """Which candidates were given a brief look only; empty where none was."""
    brief = [r["id"] for r in manifest["candidates"] if r["latency_ms"] and r["latency_ms"].get("depth") == "screen"]
    names = ", ".join(sorted(brief))
    return f"Screened only, too far behind to be measured in depth: {names}." if brief else ""


def proxy(manifest: dict[str, Any]) -> str:
    """That the latency is a proxy, and on what it was taken; empty where it is the target's own."""
    host = manifest["measured_on"][0]
    if host["is_target"] or not any(row["latency_ms"] for row in manifest["candidates"]):
        return ""
    return (
        f"Latency is a proxy: measured on {machine(host)}, not on "
        f"{manifest['target']}. It ranks the candidates; what the target itself needs is unproven."
    )


def machine(host: Mapping[str, Any]) -> str:
    """A host in words: its GPU where it has one, then its CPU."""
    cpu = f"{host['cpu_model']} ({host['arch']}, {host['cores']} cores)"
    if not host.get("gpu"):
        return cpu
    capability = host.get("gpu_compute_capability")
    about = f"compute capability {capability}, " if capability else ""
    return f"{host['gpu']} ({about}driver {host['driver']}) beside {cpu}"


def on_gpu(manifest: dict[str, Any]) -> list[str]:
    """Where the time of a call on a GPU goes, and how much of the GPU it used."""
    found = []
    for row in sorted(manifest["candidates"], key=by_speed):
        gpu = row.get("gpu")
        if not gpu:
            continue
        parts = [
            f"{words} {gpu[key]:.3f} ms"
            for key, words in (("copy_in_ms", "copy in"), ("compute_ms", "compute"), ("copy_out_ms", "copy out"))
            if gpu.get(key) is not None
        ]
        if gpu.get("utilization") is not None:
            parts.append(f"{gpu['utilization']:.0f} % busy")
        if gpu.get("memory_mb") is not None:
            parts.append(f"{gpu['memory_mb']:.0f} MB")
        cores = {True: "Tensor Cores ran", False: "no Tensor Core ran"}.get(gpu.get("tensor_cores"))
        found.append(f"{row['id']} on the GPU: {', '.join([*parts, *([cores] if cores else [])])}")
    return found


def deferred(manifest: dict[str, Any], path: str) -> list[str]:
    """What is still to be done elsewhere, and by which command; `path` is where the version lies."""
    named: dict[str, list[str]] = {}
    for row in manifest["candidates"]:
        if row["status"] == "deferred":
            named.setdefault(row["reason"], []).append(row["id"])
    lines = [f"Deferred: {', '.join(names)}: {reason}" for reason, names in named.items()]
    if manifest["status"] != "deferred":
        return lines
    if manifest["selected"] is not None:  # of this one nothing can be finished: it holds no steps
        origin = (manifest.get("finished_from") or {}).get("version", "the version that it came from")
        return [*lines, f"Finish the rest where that is, from {origin}."]
    return [*lines, f"Finish it where that is: python -m compiler finish {path}"]


def reference(manifest: dict[str, Any]) -> str:
    """What speed-ups are against, where it is not the baseline; else empty."""
    found = sorted({row["speedup_reference"] for row in manifest["candidates"] if row.get("speedup_reference")})
    return f"Speed-ups are against {found[0]}: the baseline was not measured there." if found else ""


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
    """Return whether the accuracy is of demo weights or not claimed, and how the weights were loaded; or nothing."""
    if manifest["weights"]["demo"]:
        return (
            "Demo weights, trained on scikit-learn's digits. Build your own: python -m compiler "
            f"target={manifest['target']} model={manifest['model']} model.weights=WEIGHTS.safetensors "
            "model.sha256=null data=imagefolder data.root=IMAGES"
        )
    claim, notes = manifest["weights"]["claim"], manifest["weights"].get("notes")
    said = [f"Accuracy: {claim}."] if claim else []
    if isinstance(notes, list) and notes:
        said.append(f"Weights: {'; '.join(map(str, notes))}.")
    return " ".join(said)


def another_host(record: dict[str, Any], manifest: dict[str, Any]) -> str:
    """That a later measurement was taken elsewhere; empty where it was not."""
    if record["host"]["fingerprint"] == manifest["measured_on"][0]["fingerprint"]:
        return ""
    return "The manifest's figures were taken on another host: the two do not compare."
