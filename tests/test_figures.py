"""Selection, statistics and fidelity: what is claimed follows from what was seen."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from compiler.conversion import compare, judge
from compiler.errors import ConfigError, StepError
from compiler.runtime import preprocess, statistics
from compiler.selection import Evidence, decide, demand, order
from compiler.stages.evaluate import paired_drop


def _figures(p50: float, size: int, spread: float = 0.01, memory: float = 10.0) -> dict[str, Any]:
    latency = {"p50": p50, "ci95": [p50 * (1 - spread), p50 * (1 + spread)], "p95_upper": p50 * 1.5, "stable": True}
    speed = {"speedup": 9 / p50, "speedup_ci95": [9 / p50 * (1 - spread), 9 / p50 * (1 + spread)]}
    return {"latency_ms": latency, "size_bytes": size, "peak_memory_mb": memory, **speed}


def _evidence(candidates: dict[str, Any], budget: dict[str, Any] | None = None, **more: Any) -> Evidence:
    given_: dict[str, Any] = {
        "budget": {"accuracy_drop": 1.0, **(budget or {})}, "objective": "latency", "baseline": "base", "trained": True,
        "evaluate_all": False, "evaluations": {"selection": {}, "report": {}},
        "benchmark": {
            "candidates": {"base": _figures(9, 9), **candidates}, "is_target": True, "undecided": [],
        },
    }  # fmt: skip
    return Evidence(**{**given_, **more})


def _run(evidence: Evidence, drops: dict[str, float]) -> dict[str, Any]:
    """Answers every demand from `drops`, then decides."""
    asked = []
    for _ in range(20):
        wanted = demand(evidence)
        if not wanted:
            break
        for split, name in wanted:
            asked.append(name)
            drop = drops.get(name, 0.0)
            evidence.evaluations[split][name] = {
                "drop": drop,
                "drop_ci95": [drop - 1, drop + 1],
                "drop_upper95": drop + 0.8,
                "value": 90 - drop,
                "value_lower95": 88 - drop,
                "split": split,
            }
    return {**decide(evidence), "asked": asked}


def test_fastest_within_the_budget_is_selected() -> None:
    evidence = _evidence({"a": _figures(1, 5), "b": _figures(2, 5), "c": _figures(3, 5)})
    result = _run(evidence, {"a": 2.0, "b": 0.5})
    assert (result["selected"], result["met"]) == ("b", True)
    assert result["candidates"]["a"]["status"] == "rejected" and result["candidates"]["c"]["status"] == "skipped"
    assert "c" not in result["asked"]


def test_candidates_that_cannot_be_told_apart_are_ranked_by_size() -> None:
    assert order(_evidence({"big": _figures(1.000, 9), "small": _figures(1.005, 4), "slow": _figures(1.5, 1)})) == [
        "small",
        "big",
        "slow",
    ]


def test_reason_names_only_candidates_that_were_really_tied() -> None:
    candidates = {"f": _figures(3.0, 5, 0.03), "b": _figures(3.05, 100, 0.03), "d": _figures(3.2, 10, 0.01)}
    result = _run(_evidence(candidates), {"f": 9.0})
    assert (result["selected"], "d" in result["reason"].split()) == ("b", False)


def test_wide_interval_does_not_make_a_slow_candidate_one_of_the_fastest() -> None:
    assert order(_evidence({"fast": _figures(1.0, 9, 0.02), "slow": _figures(2.7, 1, 0.9)})) == ["fast", "slow"]


def test_size_objective_takes_the_smallest() -> None:
    assert order(_evidence({"a": _figures(1, 9), "b": _figures(9, 4)}, objective="size")) == ["b", "a"]


def test_when_nothing_meets_the_budget_the_least_drop_is_nearest() -> None:
    result = _run(_evidence({"a": _figures(1, 5), "b": _figures(2, 5)}), {"a": 9.0, "b": 4.0})
    assert (result["selected"], result["met"]) == ("b", False)
    assert "drop of 4.00 points" in result["candidates"]["b"]["reason"]


def test_upper_gate_judges_the_one_sided_upper_bound() -> None:
    candidates = {"a": _figures(1, 5), "b": _figures(2, 5)}
    assert _run(_evidence(candidates, {"accuracy_gate": "upper"}), {"a": 0.5, "b": -0.5})["selected"] == "b"
    assert _run(_evidence(candidates, {"accuracy_gate": "point"}), {"a": 0.5, "b": -0.5})["selected"] == "a"


def test_latency_and_memory_gates_judge_only_where_this_host_is_the_target() -> None:
    candidates = {"a": _figures(10, 5, memory=500.0), "b": _figures(20, 5)}
    budget = {"latency_p95_ms": 1, "peak_memory_mb": 100}
    native = _evidence(candidates, budget)
    assert not _run(native, {})["met"]
    proxy = _evidence(candidates, budget, benchmark={**native.benchmark, "is_target": False})
    assert _run(proxy, {})["selected"] == "a"


def test_untrained_network_is_ranked_without_asking_for_accuracy() -> None:
    result = _run(_evidence({"a": _figures(2, 5), "b": _figures(1, 5)}, trained=False), {})
    assert (result["selected"], result["asked"]) == ("b", [])


@given(
    st.dictionaries(
        st.sampled_from("abcdef"), st.tuples(st.floats(0.1, 10), st.integers(1, 9), st.floats(-2, 5)), min_size=1
    )
)
def test_selected_candidate_meets_the_budget_or_none_does(rows: dict[str, tuple[float, int, float]]) -> None:
    evidence = _evidence({name: _figures(p50, size) for name, (p50, size, _) in rows.items()})
    result = _run(evidence, {name: drop for name, (_, _, drop) in rows.items()})
    good = [name for name, (_, _, drop) in rows.items() if drop <= 1.0]
    assert result["met"] == bool(good)
    if good:
        ranking = order(evidence)
        assert result["selected"] == min(good, key=ranking.index)
    assert set(result["candidates"]) == {"base", *rows}


def test_interval_of_the_median_covers_the_truth_about_as_often_as_it_says() -> None:
    generator = np.random.default_rng(1)
    hits = 0
    for trial in range(60):
        rounds = [np.split(1.0 + 0.05 * generator.standard_normal(400), 10) for _ in range(6)]
        low, high = statistics.bootstrap_quantiles(rounds, (0.5,), str(trial))[0]
        hits += low <= 1.0 <= high
    assert hits >= 52


def test_paired_ratio_cancels_drift_that_both_candidates_feel() -> None:
    generator = np.random.default_rng(2)
    drift = [1.0, 1.3, 0.8, 1.1, 1.6, 1.0]
    base = [np.split(2.0 * d * (1 + 0.01 * generator.standard_normal(200)), 5) for d in drift]
    fast = [np.split(1.0 * d * (1 + 0.01 * generator.standard_normal(200)), 5) for d in drift]
    ratio, interval = statistics.paired_ratio(statistics.log_ratios(base, fast))
    assert ratio == pytest.approx(2.0, rel=0.02)
    assert interval is not None and interval[0] <= ratio <= interval[1] and interval[1] - interval[0] < 0.05


def test_unsteady_machine_is_seen() -> None:
    assert statistics.burst_spread([[np.full(50, 1.0)] * 10] * 4) == 0.0
    assert statistics.burst_spread([[np.full(50, 1.0 + 0.2 * (i % 2)) for i in range(10)]] * 4) > 0.05
    assert statistics.drift([[np.full(9, 1.0)], [np.full(9, 1.0)], [np.full(9, 1.1)]]) == pytest.approx(0.1)


def test_paired_drop_counts_only_disagreements() -> None:
    before = np.array([True] * 90 + [False] * 10)
    after = before.copy()
    after[:3] = False
    after[95] = True
    drop = paired_drop(before, after)
    low, high = drop.ci95
    assert drop.value == pytest.approx(2.0)
    assert low < 0 < drop.value < drop.upper95 < high < 8


@pytest.mark.parametrize(
    ("name", "precision"),
    [("noise", "int8"), ("constant", "int8"), ("permuted", "int8"), ("scaled", "fp32"), ("unloaded", "fp32")],
)
def test_conversion_that_computes_something_else_fails(name: str, precision: str) -> None:
    generator = np.random.default_rng(0)
    logits = generator.standard_normal((64, 10)).astype(np.float32) * 4
    wrong = {
        "noise": generator.standard_normal((64, 10)).astype(np.float32),
        "constant": np.ones((64, 10), np.float32),
        "permuted": logits[:, ::-1],
        "scaled": np.tanh(logits),
        "unloaded": 0.01 * generator.standard_normal((64, 10)).astype(np.float32),
    }[name]
    with pytest.raises(StepError, match="computes something else"):
        judge(compare(logits, wrong), precision, trained=True)


def test_healthy_rounding_passes_and_nan_never_does() -> None:
    logits = np.random.default_rng(0).standard_normal((64, 10)).astype(np.float32) * 4
    judge(compare(logits, np.round(logits * 8) / 8), "int8", trained=True)
    judge(compare(logits, logits + 1e-5), "fp32", trained=True)
    broken = logits.copy()
    broken[3, 2] = np.nan
    with pytest.raises(StepError, match="NaN or infinity for 1 of 64"):
        compare(logits, broken)


def test_network_that_answers_everything_alike_is_not_judged_by_it() -> None:
    flat = np.ones((64, 10), np.float32) + 1e-6 * np.random.default_rng(0).standard_normal((64, 10)).astype(np.float32)
    fidelity = compare(flat, np.ones((64, 10), np.float32))
    assert not fidelity["discriminates"]
    judge(fidelity, "int8", trained=False)


def test_how_much_a_conversion_may_change_is_the_precisions_or_what_the_configuration_says() -> None:
    logits = np.random.default_rng(0).standard_normal((64, 10)).astype(np.float32)
    fidelity = compare(logits, logits + 0.2 * np.random.default_rng(1).standard_normal((64, 10)).astype(np.float32))
    judge(fidelity, "int8", trained=True)
    with pytest.raises(StepError, match=r"centred cosine 0\.98.. \(at least 0\.99\)"):
        judge(fidelity, "int8", trained=True, min_cosine=0.99)
    with pytest.raises(StepError, match=r"same top-1 class on .*\(at least 100%\)"):
        judge(fidelity, "int8", trained=True, min_agreement=1.0)
    with pytest.raises(StepError):
        judge(fidelity, "fp16", trained=True)
    judge(fidelity, "fp16", trained=True, min_cosine=0.9, min_agreement=0.5)


SIGNATURE = {"preprocessing": {"mean": [0.5] * 3, "std": [0.5] * 3}, "outputs": []}


@given(st.integers(0, 255), st.sampled_from(["NCHW", "NHWC"]), st.sampled_from(["float32", "int8", "uint8"]))
@settings(max_examples=40)
def test_encoding_follows_the_signature(value: int, layout: str, dtype: str) -> None:
    shape = [1, 3, 4, 5] if layout == "NCHW" else [1, 4, 5, 3]
    zero = 0 if dtype == "int8" else 128
    entry = {"dtype": dtype, "shape": shape, "layout": layout, "scale": 1 / 127, "zero_point": zero}
    images = np.full((2, 4, 5, 3), value, np.uint8)
    encoded = preprocess.encode(images, {**SIGNATURE, "inputs": [entry]})
    assert encoded.shape == (2, *shape[1:]) and encoded.dtype == np.dtype(dtype)
    back = preprocess.decode(encoded, entry)
    assert np.allclose(back, value / 127.5 - 1, atol=0.01)


def test_images_of_another_size_are_refused() -> None:
    entry = {"dtype": "float32", "shape": [1, 3, 4, 5], "layout": "NCHW"}
    with pytest.raises(ConfigError, match="images have the shape"):
        preprocess.encode(np.zeros((1, 8, 8, 3), np.uint8), {**SIGNATURE, "inputs": [entry]})


@pytest.mark.parametrize("spread", [0.0, 1e-12, 1e-7, 1.0, 1e30])
@pytest.mark.parametrize("centre", [0.0, 1e-38, 1.0, 1e6])
def test_histogram_counts_every_value_however_alike_they_are(centre: float, spread: float) -> None:
    from compiler.stages.calibrate import histogram

    values = (centre + spread * np.linspace(-1, 1, 500)).astype(np.float32)
    counts = histogram(values, 2048, float(values.min()), float(values.max()))
    assert counts.sum() == 500 and len(counts) == 2048
