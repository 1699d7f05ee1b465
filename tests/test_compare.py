"""compare: a difference is marked where it is shown, what does not compare is said to be so, gates fail by name."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
from conftest import Done, Project, command

from compiler.comparison import compare, judge
from compiler.figures import read_side
from compiler.proportions import wilson

Manifest = dict[str, Any]


def _manifest(**changes: Any) -> Manifest:
    """A manifest with one candidate; `changes` are set by dotted names, candidate fields as they are."""
    row: Manifest = {
        "id": "fast", "backend": "tflite", "runtime": "tflite", "precision": "fp32", "size_bytes": 1_000_000,
        "options": {"threads": 2, "batch": 1},
        "latency_ms": {
            "p50": 2.0, "p95": 2.2, "p95_upper": 2.3, "ci95": [1.98, 2.02], "threads": 2, "batch": 1, "stable": True,
            "unstable_reasons": [], "on": "build-host",
        },
        "throughput_per_s": 500.0, "peak_memory_mb": 100.0, "memory_on": "build-host", "speedup": 3.0,
        "speedup_ci95": [2.9, 3.1], "load_ms": 5.0, "first_call_ms": 3.0,
        "accuracy": {
            "metric": "top1", "split": "report", "value": 90.0, "n": 1000, "drop": 0.0, "drop_ci95": [-0.5, 0.5],
        },
    }  # fmt: skip
    manifest: Manifest = {
        "schema_version": 1, "model": "net", "target": "board", "version": "20261101T000000Z-00000000",
        "created": "2026-11-01T00:00:00Z", "digest": "d", "status": "pass",
        "selected_because": "", "baseline": "base", "selected": "fast", "candidates": [row], "verdicts": [],
        "measured_on": [{"id": "build-host", "fingerprint": "f" * 16}],
        "files": [{"path": "model.tflite", "role": "model", "size_bytes": 1_000_000, "sha256": "0"}],
        "steps": [
            {"name": "benchmark", "outputs": ["1"]}, {"name": "evaluate.report.base", "outputs": ["2"]},
        ],
        "signature": {"inputs": [], "outputs": []}, "preprocessing": {}, "budget": {}, "environment": {}, "config": {},
        "weights": {"claim": None}, "data": {"dataset": "digits", "splits": {"report": {"n": 1000, "digest": "s"}}},
    }  # fmt: skip
    for name, value in changes.items():
        node: Any = row if name.partition("__")[0] in row else manifest
        *path, last = name.split("__")
        for part in path:
            node = node[int(part) if part.isdigit() else part]
        node[last] = value
    return copy.deepcopy(manifest)


def _rows(**changes: Any) -> dict[str, Any]:
    """Rows by name of the unchanged manifest against one with `changes`."""
    rows, _ = compare(read_side(_manifest()), read_side(_manifest(**changes)))
    return {row.name: row for row in rows}


def _latency(p50: float, half: float = 0.01) -> dict[str, Any]:
    return {"latency_ms__p50": p50, "latency_ms__ci95": [p50 * (1 - half), p50 * (1 + half)]}


def _accuracy(value: float, drop: float, half: float) -> dict[str, Any]:
    return {"accuracy__value": value, "accuracy__drop": drop, "accuracy__drop_ci95": [drop - half, drop + half]}


def test_version_compared_with_itself_shows_no_difference() -> None:
    rows, notes = compare(read_side(_manifest()), read_side(_manifest()))
    assert {row.verdict for row in rows} == {"same", "shown"} and notes == []


@pytest.mark.parametrize(
    ("changes", "verdict", "note"),
    [
        (_latency(1.0), "better", "2.00x faster"),
        (_latency(3.0), "worse", "1.50x slower"),
        (_latency(2.5, 0.3), "same", "no difference shown"),
        (_latency(2.03, 0.0001), "same", "no difference shown"),
        ({**_latency(1.0), "latency_ms__threads": 1}, "not_comparable", "other protocol: threads 2, 1"),
        ({**_latency(1.0), "latency_ms__batch": 8}, "not_comparable", "other protocol: batch 1, 8"),
        ({**_latency(1.0), "measured_on__0__fingerprint": "e" * 16}, "not_comparable", "different host (ffff"),
        (
            {**_latency(1.0), "latency_ms__stable": False, "latency_ms__unstable_reasons": ["the host was busy"]},
            "not_comparable",
            "B is unstable (the host was busy)",
        ),
        ({"latency_ms__ci95": None}, "not_comparable", "no interval"),
        ({"latency_ms": None, "memory_on": "build-host"}, "not_comparable", "not measured"),
    ],
)
def test_latency_differs_only_where_intervals_part(changes: dict[str, Any], verdict: str, note: str) -> None:
    row = _rows(**changes)["p50"]
    assert (row.verdict, note in row.note) == (verdict, True), row


@pytest.mark.parametrize(
    ("changes", "verdict", "note"),
    [
        (_accuracy(89.8, 0.2, 0.4), "same", "drops from the same baseline"),
        (_accuracy(88.0, 2.0, 1.0), "worse", "2.00 points worse"),
        (_accuracy(92.0, -2.0, 1.0), "better", "2.00 points better"),
        # another baseline: each accuracy has Wilson's interval, +-1.9 points, and these do not part
        ({**_accuracy(88.0, 2.0, 1.0), "steps__1__outputs": ["x"]}, "same", "each on its own"),
        ({**_accuracy(80.0, 10.0, 1.0), "steps__1__outputs": ["x"]}, "worse", "10.00 points worse (each on its own)"),
        ({"accuracy__metric": "m:f"}, "not_comparable", "other metric (top1, m:f)"),
        ({"data__splits__report__digest": "t"}, "not_comparable", "other samples"),
        (
            {"accuracy__split": "selection", "data__splits__selection": {"digest": "s"}},
            "not_comparable",
            "other samples",
        ),
        ({"accuracy": None, "weights__claim": "no accuracy is claimed"}, "not_comparable", "B: no accuracy is claimed"),
    ],
)
def test_accuracy_differs_only_on_the_same_samples(changes: dict[str, Any], verdict: str, note: str) -> None:
    row = _rows(**changes)["accuracy"]
    assert (row.verdict, note in row.note) == (verdict, True), row


def test_users_metric_compares_against_the_same_baseline_and_not_otherwise() -> None:
    own = {"accuracy__metric": "m:f", "accuracy__value": -3.5}
    one = read_side(_manifest(**own))
    worse = {**own, "accuracy__drop": 2.0, "accuracy__drop_ci95": [1.0, 3.0]}
    verdicts = []
    for more in ({}, {"steps__1__outputs": ["x"]}):
        rows = {row.name: row for row in compare(one, read_side(_manifest(**worse, **more)))[0]}
        verdicts.append((rows["accuracy"].verdict, rows["accuracy"].a_ci95))
    assert verdicts == [("worse", None), ("not_comparable", None)]


def test_size_is_exact_and_memory_needs_a_tenth() -> None:
    assert _rows(size_bytes=1_005_000)["size"].note == "0.5% larger"
    assert _rows(peak_memory_mb=109.0)["peak memory"].verdict == "same"
    assert _rows(peak_memory_mb=150.0)["peak memory"].note == "50.0% more"
    assert _rows(peak_memory_mb=50.0)["peak memory"].verdict == "better"
    assert "different host" in _rows(peak_memory_mb=50.0, measured_on__0__fingerprint="e")["peak memory"].note


def test_options_and_files_that_differ_are_marked() -> None:
    rows = _rows(options={"threads": 2, "batch": 1, "HINT": "f32"})
    assert (rows["options"].verdict, rows["files"].verdict) == ("different", "shown")


def test_figures_taken_at_different_times_are_said_to_be() -> None:
    other = read_side(_manifest(steps__0__outputs=["9"]))
    assert "at different times" in compare(read_side(_manifest()), other)[1][0]


def test_gate_fails_by_name_and_is_unproven_where_nothing_compares() -> None:
    rows = _rows(**_latency(3.0), size_bytes=1_009_000, peak_memory_mb=150.0, accuracy=None)
    results = {f["gate"]: f["result"] for f in judge(rows.values(), ["latency", "accuracy", "size", "memory"])}
    assert results == {"latency": "fail", "accuracy": "unproven", "size": "pass", "memory": "fail"}
    assert judge(_rows(size_bytes=1_011_000).values(), ["size"])[0]["result"] == "fail"


def test_wilsons_interval_is_the_published_one() -> None:
    # Newcombe, 1998, "Two-sided confidence intervals for the single proportion", table I: 81 of 263; 0 of 20
    assert wilson(100 * 81 / 263, 263) == pytest.approx((25.53, 36.62), abs=0.01)
    assert wilson(0.0, 20) == pytest.approx((0.0, 16.11), abs=0.01)


def _written(folder: Path, **changes: Any) -> Path:
    folder.mkdir()
    (folder / "manifest.json").write_text(json.dumps(_manifest(**changes)))
    return folder


@pytest.fixture
def pair(tmp_path: Path) -> tuple[Path, Path]:
    """A reference and a version that is slower, larger and whose accuracy was taken on other samples."""
    other = {"data__splits__report__digest": "t"}
    return _written(tmp_path / "ref"), _written(tmp_path / "new", **_latency(3.0), size_bytes=2_000_000, **other)


def _gate(pair: tuple[Path, Path], *arguments: str) -> Done:
    return command("compare", "--baseline", pair[0], pair[1], *arguments)


def test_gate_ends_with_3_and_names_what_is_worse(pair: tuple[Path, Path]) -> None:
    done = _gate(pair, "--fail-on=latency,size,memory")
    cause = done.last_lines()[1]
    assert done.code == 3
    assert "latency: 1.50x slower" in cause and "size: 100.0% larger" in cause and "memory" not in cause
    assert "1.50x slower" in done.out


def test_gate_that_is_not_proven_warns_and_fails_only_when_strict(pair: tuple[Path, Path]) -> None:
    done = _gate(pair, "--fail-on=accuracy,memory")
    assert done.code == 0 and "warning: accuracy: not comparable: other samples" in done.err
    strict = _gate(pair, "--fail-on=accuracy,memory", "--strict")
    assert strict.code == 3 and "unproven: accuracy" in strict.last_lines()[1]


def test_json_is_the_comparison_and_nothing_else(pair: tuple[Path, Path]) -> None:
    done = _gate(pair, "--fail-on=latency", "--json")
    record = json.loads(done.out)
    assert done.code == 3 and record["gates"] == [{"gate": "latency", "result": "fail", "reason": "1.50x slower"}]
    assert next(r for r in record["rows"] if r["name"] == "p50")["ratio"] == 1.5


@pytest.mark.parametrize(
    ("arguments", "what"),
    [
        (["--fail-on=latncy"], "unknown gate 'latncy'; did you mean 'latency'?"),
        (["--fail-on="], "unknown gate ''"),
        (["--fail-onn=size"], "unknown flag '--fail-onn=size'; did you mean '--fail-on'?"),
        (["--strict"], "--fail-on names none"),
        (["third"], "takes two versions, not 3"),
    ],
)
def test_wrong_words_are_answered(pair: tuple[Path, Path], arguments: list[str], what: str) -> None:
    done = _gate(pair, *arguments)
    assert done.code == 2 and what in done.last_lines()[1]


def test_one_version_alone_and_one_that_is_not_there_are_refused(pair: tuple[Path, Path]) -> None:
    assert "two versions, not 1" in command("compare", pair[0]).last_lines()[1]
    assert command("compare", pair[0], pair[0].parent).code == 2
    assert command("compare", pair[0], _written(pair[0].parent / "none", selected=None)).code == 2


@pytest.mark.parametrize(
    "changes",
    [
        {"latency_ms": []}, {"latency_ms__p50": "2"}, {"latency_ms__p50": True}, {"latency_ms__ci95": [2, 1]},
        {"latency_ms__on": "elsewhere"}, {"latency_ms__unstable_reasons": [1]}, {"peak_memory_mb": {}},
        {"accuracy__value": 101.0}, {"accuracy__n": 0}, {"accuracy__n": 1e400}, {"accuracy__drop_ci95": [1]},
        {"data__splits": []}, {"measured_on": [3]}, {"steps": [{}]}, {"id": 5, "selected": 5}, {"weights__claim": 7},
        {"options": {"threads": 2, "batch": [[[[]]]]}, "size_bytes": -1.5e308, "speedup": [1]},
    ],
)  # fmt: skip
def test_manifest_of_another_shape_is_an_integrity_error(tmp_path: Path, changes: dict[str, Any]) -> None:
    good = _written(tmp_path / "good")
    done = command("compare", good, _written(tmp_path / "bad", **changes))
    assert done.code == 6 and "is not a manifest" in done.last_lines()[1], done.err


def test_manifest_cannot_steer_the_terminal(tmp_path: Path) -> None:
    evil = "\x1b]0;owned\x07"
    good = _written(tmp_path / "good")
    options = {"threads": 2, "batch": 1, evil: evil}
    bad = _written(tmp_path / "bad", model=f"net{evil}", options=options, weights__claim=evil, accuracy=None)
    for more in ([], ["--json"], ["--fail-on=accuracy"]):
        done = command("compare", good, bad, *more)
        assert done.code == 0 and "\x1b" not in done.out + done.err and "\x07" not in done.out + done.err


def test_built_versions_compare(built: Project) -> None:
    first = built.latest
    second = built.build("candidates=[null_slow]")
    done = command("compare", first, second.manifest_path)
    assert done.code == 0, done.err
    assert "null_slow" in done.out and "no difference shown (drops from the same baseline)" in done.out
