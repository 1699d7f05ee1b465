"""A manifest as one page of HTML: no script, nothing from outside, and the same bytes for the same manifest."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from compiler import charts, sentences
from compiler.errors import IntegrityError
from compiler.runtime.names import DISTRIBUTIONS
from compiler.words import printable

TEMPLATES = Path(__file__).resolve().parent / "templates"
MEANING = {
    "pass": "every gate is proven, on the target itself",
    "provisional": "no gate failed, at least one is unproven",
    "budget_failed": "at least one gate failed: this is not to be shipped",
    "deferred": "a candidate could not be built here: the choice is open",
}
HOST = (
    "cpu_model", "board", "arch", "cores", "memory_mb", "os", "kernel", "virtualized", "governor", "cpu_quota",
    "memory_limit_mb", "gpu", "driver",
    "isa", "fingerprint", "reference_ms", "reference_drift", "temperature_c", "load_average",
)  # fmt: skip
NO_MANIFEST = (LookupError, TypeError, ValueError, AttributeError, ArithmeticError, RecursionError)


def render(manifest: Mapping[str, Any], observations: Iterable[Mapping[str, Any]] = ()) -> str:
    """The page. It depends on the arguments alone, all text of which is taken as hostile.

    `observations` are later measurements of the version, oldest first (`compiler.observations.listing`).

    Raises:
        IntegrityError: it is no manifest, or one of the observations is none.
    """
    import jinja2
    from markupsafe import Markup

    style = (TEMPLATES / "report.css").read_text()
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES), autoescape=True, undefined=jinja2.StrictUndefined,
        trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True,
    )  # fmt: skip
    environment.filters["value"] = _value
    template = environment.get_template("report.html")
    try:
        content = _content(printable(dict(manifest)), [printable(dict(record)) for record in observations])
        return template.render(
            **content,
            style=Markup(style),  # noqa: S704 - ours
            style_hash=base64.b64encode(hashlib.sha256(style.encode()).digest()).decode(),
        )
    except (*NO_MANIFEST, jinja2.UndefinedError) as error:
        raise IntegrityError(
            f"this manifest cannot be reported on ({error!r})"[:300], fix="fetch or build the artifact again"
        ) from None


def _content(manifest: dict[str, Any], observations: list[dict[str, Any]]) -> dict[str, Any]:
    """What the template shows: text and places, nothing left to compute."""
    rows = sorted(manifest["candidates"], key=sentences.by_speed)
    chosen = next((row for row in rows if row["id"] == manifest["selected"]), None)
    proxy = sentences.proxy(manifest)
    unstable = sentences.unstable([(row["id"], row) for row in manifest["candidates"]])
    host = manifest["measured_on"][0]
    return {
        "manifest": manifest,
        "meaning": MEANING[manifest["status"]],
        "proxy": proxy,
        "doubts": [*sentences.undecided(manifest), *unstable, sentences.weights(manifest)],
        "verdicts": [{**verdict, "figures": sentences.figure(verdict)} for verdict in manifest["verdicts"]],
        "chosen": _selected(chosen, manifest),
        "columns": sentences.columns(manifest),
        "rows": [
            {
                "id": row["id"], "status": row["status"], "standing": sentences.standing(row, manifest),
                "cells": sentences.cells(row, manifest), "reason": row["reason"], "options": _value(row["options"]),
                "backend": row["backend"], "precision": row["precision"],
            }
            for row in rows
        ],
        "notes": [
            *sentences.loads(manifest), *sentences.on_gpu(manifest), *sentences.whole_call(manifest),
            *sentences.data(manifest),
            sentences.screened(manifest), sentences.reference(manifest), *sentences.deferred(manifest, "PATH"),
        ],
        "latency": charts.latency(manifest),
        "accuracy": charts.accuracy(manifest),
        "metric": sentences.metric(manifest),
        "budget": [(name, _value(bound)) for name, bound in sorted(manifest["budget"].items()) if bound is not None],
        "hosts": [_host(entry) for entry in manifest["measured_on"]],
        "protocol": sorted((str(name), _value(value)) for name, value in host["protocol"].items()),
        "splits": [
            (name, _value(split.get("size", split.get("n"))), str(split["digest"]))
            for name, split in sorted(manifest["data"]["splits"].items())
        ],
        "steps": [
            {**step, "seconds": f"{step['seconds']:.1f}", "stage": step["stage"]} for step in manifest["steps"]
        ],
        "packages": sorted(manifest["environment"]["packages"].items()),
        "files": [{**file, "size": f"{file['size_bytes']:,}"} for file in manifest["files"]],
        "inputs": sorted((name, entry["sha256"]) for name, entry in manifest.get("inputs", {}).items()),
        "extra": _extra(chosen),
        "observations": [_observation(record, manifest) for record in observations],
    }  # fmt: skip


def _selected(row: dict[str, Any] | None, manifest: dict[str, Any]) -> list[tuple[str, str]]:
    """Titles and figures of the selected candidate."""
    if row is None:
        return []
    found = [
        ("backend, precision", f"{row['backend']}, {row['precision']}"), ("options", _value(row["options"])),
        *zip(sentences.columns(manifest), sentences.cells(row, manifest), strict=True),
    ]  # fmt: skip
    for title, key in (
        ("throughput, samples a second", "throughput_per_s"), ("peak memory MB", "peak_memory_mb"),
        ("load ms", "load_ms"), ("first call ms", "first_call_ms"),
    ):  # fmt: skip
        if row[key] is not None:
            found.append((title, f"{row[key]:.4g}"))
    for title, key in (("accuracy over", "accuracy"), ("fidelity to the step before", "fidelity")):
        if row[key]:
            keys = ("n", "top5", "isa") if key == "accuracy" else sorted(row[key])
            found.append((title, ", ".join(f"{name} {_value(row[key][name])}" for name in keys)))
    return found


def _host(entry: dict[str, Any]) -> dict[str, Any]:
    return {
        "id": entry["id"], "kind": entry["kind"], "is_target": entry["is_target"],
        "facts": [(name, _value(entry[name])) for name in HOST if entry.get(name) not in (None, [], "")],
    }  # fmt: skip


def _observation(record: dict[str, Any], manifest: dict[str, Any]) -> dict[str, Any]:
    host, figures = record["host"], record["candidates"]
    is_steady = sentences.steady(figures.items(), record["speedup_reference"])
    return {
        "created": record["created"],
        "on": sentences.machine(host),
        "against": record["speedup_reference"],
        "rows": [
            (name, sentences.latency_cells(row, is_steady))
            for name, row in sorted(figures.items(), key=lambda item: (-item[1]["speedup"], item[0]))
        ],
        "doubts": [sentences.another_host(record, manifest), *sentences.unstable(sorted(figures.items()))],
    }


def _extra(row: dict[str, Any] | None) -> str:
    """The extra of the distribution that the selected candidate's runtime needs: none that a manifest could invent."""
    runtime = row["runtime"] if row else ""
    return f"[{runtime}]" if runtime in DISTRIBUTIONS and runtime in ("tflite", "openvino", "onnxruntime") else ""


def _value(value: Any) -> str:
    """Any value of a manifest, in words."""
    if value is None:
        return sentences.NONE
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, list):
        return ", ".join(_value(item) for item in value)
    if isinstance(value, dict):
        return ", ".join(f"{name}={_value(item)}" for name, item in sorted(value.items()))
    return str(value)
