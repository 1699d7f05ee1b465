"""What may be claimed: bounds are proven, broken or unproven by one rule, and everything that is printed follows."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import Project, command
from hypothesis import given
from hypothesis import strategies as st

from compiler import gates, sentences
from compiler.chance import against_chance, other_order
from compiler.gates import samples_to_prove, sentence, status_of, verdict
from compiler.metrics import paired_drop
from compiler.proportions import at_least, at_most
from compiler.rounding import against, decimals, ends, significant, supported

LATENCY = {
    "p95_upper": 40.0, "p99_upper": 45.0, "threads": 2, "n": 2000, "rounds": 6, "stable": True, "unstable_reasons": [],
}  # fmt: skip


def _report(lost: int, won: int, count: int) -> dict[str, Any]:
    before, after = np.zeros(count, bool), np.zeros(count, bool)
    before[:lost] = True
    after[lost : lost + won] = True
    both = np.arange(count) >= lost + won
    return {"n": count, "value": 90.0, **paired_drop(before | both, after | both).facts()}


# -- accuracy --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("lost", "won", "count", "point", "upper"),
    [
        (0, 0, 400, "pass", "pass"),  # no disagreement on 400 samples bounds the drop below half a point
        (0, 0, 100, "unproven", "fail"),
        (6, 4, 400, "unproven", "fail"),  # half a point lost, ten disagreements
        (60, 40, 40_000, "pass", "pass"),
        (20, 4, 400, "fail", "fail"),
    ],
)
def test_a_drop_passes_only_by_its_upper_bound(lost: int, won: int, count: int, point: str, upper: str) -> None:
    report = _report(lost, won, count)
    assert gates.accuracy_drop(1.0, "point", report, "").result == point
    assert gates.accuracy_drop(1.0, "upper", report, "").result == upper


def test_an_unproven_drop_says_how_many_samples_would_prove_it() -> None:
    judged = gates.accuracy_drop(1.0, "point", _report(6, 4, 400), "")
    assert judged.reason.startswith("95 % upper bound 1.") and "samples would prove it" in judged.reason
    needed = int(judged.reason.split("about ")[1].split(" ")[0].replace(",", ""))
    scale = needed // 400
    proven = sum(
        gates.accuracy_drop(1.0, "point", _report(lost, won, needed), "").result == "pass"
        for lost, won in zip(
            np.random.default_rng(0).binomial(needed, 6 / 400, 200),
            np.random.default_rng(1).binomial(needed, 4 / 400, 200),
            strict=True,
        )
    )
    assert scale > 5 and 0.7 < proven / 200 < 0.9  # a power of 80 %


def test_samples_that_prove_half_a_point_are_those_of_the_textbook() -> None:
    assert samples_to_prove(100 * 0.05**0.5, 0.5) == 13_000  # 12,367, rounded up: 5 % disagreements
    assert samples_to_prove(20.0, 0.0) is None and samples_to_prove(20.0, -1.0) is None


@given(st.floats(0.01, 100), st.floats(0.01, 5), st.floats(1.1, 10))
def test_a_wider_margin_never_needs_more_samples(sd: float, margin: float, factor: float) -> None:
    few, many = samples_to_prove(sd, margin * factor), samples_to_prove(sd, margin)
    assert few is not None and many is not None and few <= many


def test_least_accuracy_passes_only_by_its_lower_bound() -> None:
    report = {"value": 90.0, "value_lower95": 87.0, "n": 400}
    results = [gates.accuracy_min(bound, "point", report).result for bound in (86.0, 88.0, 91.0)]
    assert results == ["pass", "unproven", "fail"]
    assert gates.accuracy_min(88.0, "upper", report).result == "fail"


# -- the baseline ----------------------------------------------------------------------------------


def test_binomial_tails_are_exact() -> None:
    assert at_least(8, 10, 0.5) == pytest.approx(56 / 1024)
    assert at_most(2, 10, 0.5) == pytest.approx(56 / 1024)
    assert at_least(0, 10, 0.3) == pytest.approx(1.0) and at_least(3, 10, 0.0) == 0.0 and at_least(3, 10, 1.0) == 1.0
    assert at_least(400, 1000, 0.25) == pytest.approx(2.6e-26, rel=0.1)  # scipy.stats.binom.sf(399, 1000, 0.25)


def test_chance_is_the_largest_class_not_one_over_the_number_of_classes() -> None:
    labels = np.array([0] * 80 + [1] * 10 + [2] * 10)
    majority = against_chance(labels, np.arange(100) < 80, 1)
    assert majority["majority"] == 80.0 and not majority["better"]
    assert against_chance(labels, np.arange(100) < 95, 1)["better"]
    five = against_chance(np.arange(100) % 10, np.arange(100) < 52, 5)
    assert five["majority"] == 50.0 and not five["better"]


def test_another_order_of_classes_is_found_and_a_right_or_random_one_is_not() -> None:
    generator = np.random.default_rng(0)
    labels = generator.integers(0, 9, 300)
    rotated = np.where(generator.random(300) < 0.9, (labels + 1) % 9, generator.integers(0, 9, 300))
    found = other_order(rotated, labels)
    assert found is not None and found["reordered"] > 80 and found["as_given"] < 20
    assert other_order(labels, labels) is None
    assert other_order(generator.integers(0, 9, 300), labels) is None
    assert other_order(np.arange(300), np.arange(300)[::-1]) is None  # one sample a class: nothing to tell it by
    assert other_order(np.zeros(0, np.int64), np.zeros(0, np.int64)) is None


def test_a_baseline_at_chance_makes_its_drop_unproven_and_names_the_usual_causes() -> None:
    chance = {"correct": 12, "n": 100, "majority": 10.0, "p_value": 0.3, "better": False}
    baseline = {"metric": "top1", "value": 12.0, "n": 100, "chance": chance, "other_order": None}
    doubt = gates.doubt_of(baseline, None)
    for words in ("hardly better than chance", "order of the classes", "normalisation", "other weights"):
        assert words in doubt
    assert gates.accuracy_drop(1.0, "point", _report(0, 0, 400), doubt).result == "unproven"
    order = {"as_given": 12.0, "reordered": 97.0}
    assert "97.0 % instead of 12.0 %: give data.classes" in gates.doubt_of({**baseline, "other_order": order}, None)


def test_a_baseline_clearly_below_what_training_reported_is_in_doubt() -> None:
    chance = {"correct": 600, "n": 1000, "majority": 10.0, "p_value": 0.0, "better": True}
    baseline = {"metric": "top1", "value": 60.0, "n": 1000, "chance": chance, "other_order": None}
    assert gates.doubt_of(baseline, None) == "" and gates.doubt_of(baseline, 62.0) == ""
    assert "training reported 72 %" in gates.doubt_of(baseline, 72.0)


def test_scrambled_weights_end_provisional_and_the_screen_and_the_manifest_say_why(project: Project) -> None:
    done = project.build("steps.export.scramble=1", "steps.samples.classes=4", "budget.accuracy_drop=5")
    assert done.code == 0, done.err
    results = {v["metric"]: v["result"] for v in done.manifest["verdicts"]}
    assert done.manifest["status"] == "provisional"
    assert results["accuracy_drop"] == results["baseline_accuracy"] == "unproven"
    assert "with the classes in another order its top-1 would be 100.0 %" in done.out
    base = next(c for c in done.manifest["candidates"] if c["id"] == "null_baseline")
    assert base["accuracy"]["other_order"]["reordered"] == 100.0
    assert project.build("steps.export.scramble=1", "budget.accuracy_drop=5", "strict=true").code == 3


def test_claim_of_training_is_compared_with_the_baseline(built: Project) -> None:
    assert built.build("model.accuracy=99").manifest["status"] == "provisional"  # the speed-up of one round
    worse = ("steps.export.noise=6", "budget.accuracy_drop=90", "model.accuracy=99")
    done = built.build(*worse)
    assert "training reported 99 %" in done.out
    assert "training reported" not in built.build(*worse[:2]).out
    assert built.build("model.accuracy=101").code == 2


# -- latency ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "native", "result", "words"),
    [
        ({}, True, "pass", "upper end of the 95 % interval of p95"),
        ({"p95_upper": 68.0}, True, "fail", "upper end"),
        ({"p95_upper": 68.0, "stable": False, "unstable_reasons": ["heat"]}, True, "unproven", "unstable: heat"),
        ({"stable": False, "unstable_reasons": ["heat"]}, True, "unproven", "unstable: heat"),
        ({"rounds": 5}, True, "unproven", "2000 calls in 5 rounds"),
        ({"threads": 1}, True, "unproven", "measured with 1 threads"),
        ({}, False, "unproven", "a proxy"),
    ],
)
def test_a_latency_is_judged_by_its_upper_end_where_it_is_stable_and_the_targets_own(
    change: dict[str, Any], native: bool, result: str, words: str
) -> None:
    judged = gates.latency("latency_p95_ms", 50.0, {**LATENCY, **change}, native, "a proxy", 2)
    assert judged is not None and judged.result == result and words in judged.reason


def test_p99_needs_a_thousand_calls() -> None:
    few = gates.latency("latency_p99_ms", 50.0, {**LATENCY, "p99_upper": None, "n": 600}, True, "", 2)
    assert few is not None and (few.result, few.reason) == ("unproven", "600 calls; p99 needs 1,000")
    enough = gates.latency("latency_p99_ms", 50.0, LATENCY, True, "", 2)
    assert enough is not None and enough.result == "pass"
    assert gates.latency("latency_p99_ms", None, LATENCY, False, "a proxy", 2) is None


def test_bounds_on_p99_and_the_first_answer_are_measured_and_judged(project: Project) -> None:
    bounds = ("budget.latency_p99_ms=1000", "budget.first_answer_ms=60000", "steps.benchmark.rounds=6")
    done = project.build(*bounds, "candidates=[null_int8]")
    assert done.code == 0, done.err
    row = next(c for c in done.manifest["candidates"] if c["id"] == "null_int8")
    assert row["latency_ms"]["n"] >= 1000 and row["latency_ms"]["p99"] <= row["latency_ms"]["p99_upper"]
    first = row["first_answer_ms"]
    assert first["starts"] == 6 and first["worst"] >= first["p50"] > row["load_ms"] + row["first_call_ms"]
    judged = {v["metric"]: v for v in done.manifest["verdicts"]}
    assert judged["first_answer_ms"]["result"] == "pass" and judged["first_answer_ms"]["value"] == first["worst"]
    assert judged["latency_p99_ms"]["value"] == row["latency_ms"]["p99_upper"]
    assert "A fresh process with null_int8 answers after" in done.out
    missed = project.build(*bounds[:1], "budget.first_answer_ms=1", *bounds[2:], "candidates=[null_int8]")
    assert missed.code == 3 and "first_answer_ms" in missed.err


# -- one rule for status, sentence, table ----------------------------------------------------------

RESULTS = st.lists(st.sampled_from([True, False, None]), max_size=6)


@given(RESULTS)
def test_status_and_sentence_follow_from_the_same_verdicts(results: list[bool | None]) -> None:
    verdicts = [verdict(f"m{i}", 1.0, 1.0, ok, "") for i, ok in enumerate(results)]
    status, text = status_of(verdicts), sentence("a is the fastest", verdicts)
    assert ("within the budget" in text) == (status == "pass" and bool(verdicts))
    assert ("unproven" in text) == (status == "provisional")
    assert ("outside the budget" in text) == (status == "budget_failed")


def test_pass_is_not_said_while_it_is_open_whether_the_candidate_is_faster(project: Project) -> None:
    slow = ("candidate.null_baseline.runtime=tests.runtimes.delayed", "+candidate.null_baseline.options.us=3000")
    sure = project.build(*slow, "steps.benchmark.rounds=6")
    assert sure.manifest["status"] == "pass" and "within the budget" in sure.out
    brief = project.build(*slow, "steps.benchmark.rounds=2")
    assert brief.manifest["status"] == "provisional" and "within the budget" not in brief.out
    assert "is faster than null_baseline is still open" in brief.out
    assert command("show", brief.manifest_path.parent).out.splitlines()[-3:] == brief.out.splitlines()[-4:-1]


def _row(name: str, stable: bool, speedup: float, interval: list[float] | None) -> dict[str, Any]:
    latency = {
        "p50": 1.2345, "ci95": [1.1, 1.3], "p95": 2.3456, "p95_lower": 2.0, "p95_upper": 3.0, "stable": stable,
        "unstable_reasons": [] if stable else ["noise"], "depth": "confirm",
    }  # fmt: skip
    return {
        "id": name, "size_bytes": 10, "latency_ms": latency, "speedup": speedup, "speedup_ci95": interval,
        "accuracy": None, "status": "eligible", "reason": "",
    }  # fmt: skip


def test_a_speed_up_over_an_unstable_baseline_is_marked_and_has_no_digits_that_its_interval_does_not_support() -> None:
    rows = [_row("base", False, 1.0, None), _row("fast", True, 240.72, [44.70, 1144.31])]
    manifest = {"candidates": rows, "baseline": "base", "measured_on": [{"is_target": True}]}
    assert sentences.cells(rows[1], manifest)[1:5] == ["1.23", "1.10-1.30", "2.35", "240x (40-1140) ~"]
    steady = {**manifest, "candidates": [_row("base", True, 1.0, None), rows[1]]}
    assert sentences.cells(rows[1], steady)[4] == "240x (40-1140)"


@given(st.floats(1e-6, 1e6), st.floats(1e-9, 1e6), st.floats(0, 1))
def test_printed_digits_lie_within_a_tenth_of_the_half_width(value: float, width: float, where: float) -> None:
    low = value - width * where
    high = low + width
    shown = float(supported(value, low, high, most=12))
    half = (high - low) / 2
    if half > 1e-10:
        assert abs(shown - value) <= 0.051 * half * 1.0001 + 1e-12
    assert len(ends(low, high)) == 2 and isinstance(decimals(low, high), int)


@given(st.floats(1e-6, 1e6), st.floats(1e-6, 1e6))
def test_rounding_never_hides_that_a_bound_is_exceeded(value: float, bound: float) -> None:
    assert (float(against(value, bound)) <= bound) == (value <= bound)


def test_two_digits_stand_for_what_has_no_interval() -> None:
    assert [significant(v) for v in (0.0, 6.2345, 123.4, 0.012345)] == ["0", "6.2", "120", "0.012"]


# -- the whole call --------------------------------------------------------------------------------


def test_preprocessing_is_measured_on_its_own_and_named_where_it_is_the_bottleneck(project: Project) -> None:
    done = project.build()
    chosen = next(c for c in done.manifest["candidates"] if c["id"] == done.manifest["selected"])
    ms = chosen["pipeline_ms"]
    assert ms["total"] >= max(ms["preprocessing"], ms["model"]) > 0 and ms["total_p95"] >= ms["total"]
    assert "A whole call of" in done.out and "is preparing its input, not the network" in done.out
    slow = ["runtime=tests.runtimes.delayed", "options.us=5000"]
    other = project.build("candidates=[null_int8]", f"candidate.null_int8.{slow[0]}", f"+candidate.null_int8.{slow[1]}")
    assert "A whole call of" in other.out and "preparing its input" not in other.out


def test_the_page_says_what_the_table_says(project: Project, tmp_path: Path) -> None:
    from compiler.html import render

    manifest = json.loads(project.build().manifest_path.read_text())
    page = render(manifest)
    assert all(line.split(":")[0] in page for line in sentences.whole_call(manifest))
    assert manifest["selected_because"] in page
