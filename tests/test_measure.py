"""Measurements: what is claimed follows from what was seen, and what cannot be believed says so."""

from __future__ import annotations

import itertools
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import ROOT
from hypothesis import given, settings
from hypothesis import strategies as st

from compiler import bundle as bundles
from compiler.errors import IntegrityError, StepError
from compiler.runtime import arrivals, noise, sensors, statistics
from compiler.runtime import bundle as reading
from compiler.runtime.arrivals import under_load
from compiler.runtime.depths import contenders, measure_bundle
from compiler.runtime.measure import Data, Record, measure, undecided
from compiler.runtime.rounds import PASSES, Seen
from compiler.runtime.sweep import choose, sweep

SIGNATURE = {
    "inputs": [{"name": "x", "dtype": "float32", "shape": [1, 2, 2, 3], "layout": "NHWC"}],
    "outputs": [{"name": "y", "dtype": "float32", "shape": [1, 2], "layout": "NC"}],
    "preprocessing": {"mean": [0.0] * 3, "std": [1.0] * 3},
}
QUICK = {"seed": 0, "threads": 1, "rounds": 2, "max_rounds": 2, "min_calls": 20, "min_seconds": 0.0}
IDLE = {"quiet": True, "others_share": 0.01, "switches_per_s": 5.0, "reference_spread": 0.004}
CALM = {
    "round_seconds": 1.0, "others_share": 0.0, "steal_share": 0.0, "seconds": 1.0, "switches": 3, "void": 0, "mhz": [],
    "governor": "performance", "temperature_c": 50.0, "load_average": 0.1,
}  # fmt: skip


@pytest.fixture
def make_bundle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A function that writes a bundle of spinners, one a keyword, each with its options."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT))

    def make(protocol: dict[str, Any] | None = None, objective: str = "latency", **options: dict[str, Any]) -> Path:
        folder = tmp_path / "bundle"
        folder.mkdir()
        file = tmp_path / "model.bin"
        file.write_bytes(b"model")
        entries = [
            bundles.Entry(name, "tests.runtimes.spinner", [file], "model.bin", how, SIGNATURE)
            for name, how in options.items()
        ]
        images = np.zeros((4, 2, 2, 3), np.uint8)
        wanted = {"objective": objective, "latency_p95_ms": None}
        bundles.write(folder, entries, images, {**QUICK, **(protocol or {})}, next(iter(options)), wanted)
        (tmp_path / "out").mkdir()
        return folder

    return make


# -- statistics ------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [6, 7, 8, 9, 10])
def test_signed_rank_interval_has_the_exact_coverage(count: int) -> None:
    """Of all sign patterns of `count` symmetric values, at most 5 % put 0 outside: counted, not simulated."""
    values = np.arange(1, count + 1) / 100.0
    outside = 0
    for signs in itertools.product((-1, 1), repeat=count):
        low, high = statistics.paired_ratio(values * np.array(signs))[1] or (0, 0)
        outside += low > 1 or high < 1
    assert outside / 2**count <= 0.05
    assert outside > 0, "an interval that never misses says nothing"


def test_below_six_rounds_there_is_no_interval() -> None:
    assert statistics.paired_ratio(np.zeros(5))[1] is None and statistics.paired_ratio(np.zeros(6))[1] is not None


@given(st.lists(st.floats(-0.02, 0.02), min_size=6, max_size=20), st.floats(1.5, 8.0))
@settings(max_examples=50, deadline=None)
def test_one_disturbed_round_hardly_moves_the_ratio(values: list[float], factor: float) -> None:
    calm, _ = statistics.paired_ratio(np.array(values))
    disturbed, _ = statistics.paired_ratio(np.array([*values[:-1], np.log(factor)]))
    assert abs(disturbed / calm - 1) < 0.05


@pytest.mark.parametrize(
    ("ratio", "interval", "said"),
    [(1.10, (1.05, 1.2), "faster"), (0.90, (0.8, 0.95), "slower"), (1.015, (1.012, 1.018), "equal"),
     (1.03, (0.99, 1.07), "open"), (1.01, (0.97, 1.05), "open"), (1.5, None, "open")],
)  # fmt: skip
def test_a_win_is_claimed_only_where_the_interval_excludes_one_and_the_effect_is_worth_it(
    ratio: float, interval: tuple[float, float] | None, said: str
) -> None:
    assert statistics.claim(ratio, interval) == said


def _rounds(medians: list[float], bursts: int = 10, noise_share: float = 0.002) -> list[list[Any]]:
    generator = np.random.default_rng(0)
    return [[m * (1 + noise_share * generator.standard_normal(20)) for _ in range(bursts)] for m in medians]


def test_a_machine_of_two_speeds_does_not_change_who_is_faster() -> None:
    """Both candidates see the same speed in the same burst: the ratio stays, whatever the machine does."""
    speeds = [1.0, 2.0, 1.0, 2.0, 2.0, 1.0]
    slow, fast = _rounds([1.10 * s for s in speeds]), _rounds([1.0 * s for s in speeds])
    ratio, interval = statistics.paired_ratio(statistics.log_ratios(slow, fast))
    assert interval is not None and ratio == pytest.approx(1.10, abs=0.01) and interval[0] > 1.08


def test_p99_and_its_interval_are_not_reported_below_a_thousand_calls() -> None:
    few, enough = (statistics.summarize([[np.ones(n)]], "a") for n in (999, 1000))
    names = ("p99", "p99_lower", "p99_upper")
    assert [few[name] for name in names] == [None] * 3 and [enough[name] for name in names] == [1.0] * 3


def test_interval_of_the_median_knows_that_calls_of_one_burst_resemble_each_other() -> None:
    """Bursts that differ give a wide interval, however many calls each of them has."""
    generator = np.random.default_rng(1)
    levels = [[1 + 0.1 * generator.standard_normal() for _ in range(10)] for _ in range(6)]
    low, high = statistics.summarize([[np.full(1000, level) for level in row] for row in levels], "a")["ci95"]
    assert high - low > 0.02


# -- noise -----------------------------------------------------------------------------------------


def _reasons(rounds: Any, facts: Any, drift: float = 0.0, idle: Any = None) -> list[str]:
    return noise.reasons(rounds, facts, drift, idle or IDLE, facts)


def test_threads_that_yield_to_each_other_are_no_sign_of_a_busy_host() -> None:
    busy_looking = [{**CALM, "switches": 3000}] * 6
    assert noise.reasons(_rounds([1.0] * 6), busy_looking, 0.0, IDLE, [CALM] * 6) == []
    assert _reasons(_rounds([1.0] * 6), busy_looking) == []


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"others_share": 0.3}, "other processes used 30% of the host"),
        ({"steal_share": 0.05}, "the hypervisor took 5.0% of the time"),
        ({"switches": 400, "others_share": 0.02}, "the reference was interrupted 400 times a second"),
        ({"void": 0b101}, "12 bursts are void"),
        ({"temperature_c": 83.2}, "the machine was 83 degrees Celsius hot"),
        ({"mhz": [1500.0, 1500.0, 600.0]}, "the clock changed between 600 and 1500 MHz"),
    ],
)
def test_each_sign_of_a_busy_machine_is_named(change: dict[str, Any], words: str) -> None:
    rounds = _rounds([1.0] * 6)
    assert _reasons(rounds, [CALM] * 6) == []
    assert any(words in reason for reason in _reasons(rounds, [{**CALM, **change}] * 6))


def test_a_governor_that_changes_between_rounds_is_named() -> None:
    facts = [CALM] * 5 + [{**CALM, "governor": "powersave"}]
    assert _reasons(_rounds([1.0] * 6), facts) == ["the clock's governor changed (performance, powersave)"]


def test_unsteady_bursts_drift_and_two_speeds_are_named() -> None:
    restless = _rounds([1.0] * 6, noise_share=0.5)
    assert "bursts of calls differ" in _reasons(restless, [CALM] * 6)[0]
    assert "drifted by 5.0%" in _reasons(_rounds([1.0] * 6), [CALM] * 6, 0.05)[0]
    assert "more than one speed" in _reasons(_rounds([1.0] * 5 + [2.0]), [CALM] * 6)[0]


def test_thresholds_follow_what_the_idle_machine_shows_but_not_a_busy_one() -> None:
    facts = [{**CALM, "switches": 350, "others_share": 0.02}] * 6
    restless = {**IDLE, "switches_per_s": 200.0}
    assert _reasons(_rounds([1.0] * 6), facts)
    assert not _reasons(_rounds([1.0] * 6), facts, idle=restless)
    assert _reasons(_rounds([1.0] * 6), facts, idle={**restless, "quiet": False})


def test_a_board_that_throttles_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """MOCK: a Raspberry Pi's and a PC's files, which this machine does not have."""
    monkeypatch.setattr(sensors, "SYS", tmp_path)
    assert sensors.throttling() == () and sensors.clock_mhz() is None and sensors.temperature_c() is None
    flags = tmp_path / sensors.THROTTLE_FLAGS
    flags.parent.mkdir(parents=True)
    flags.write_text("0\n")
    count = tmp_path / "devices/system/cpu/cpu0/thermal_throttle/core_throttle_count"
    count.parent.mkdir(parents=True)
    count.write_text("3\n")
    before = sensors.throttling()
    flags.write_text("50005\n")
    after = sensors.throttling()
    count.write_text("4\n")
    assert before == ("0", "3") and before != after != sensors.throttling()
    for core in range(64):
        clock = tmp_path / f"devices/system/cpu/cpu{core}/cpufreq/scaling_cur_freq"
        clock.parent.mkdir(parents=True)
        clock.write_text(f"{1_500_000 - core}\n")
    zone = tmp_path / "class/thermal/thermal_zone0/temp"
    zone.parent.mkdir(parents=True)
    zone.write_text("61234\n")
    assert sensors.temperature_c() == pytest.approx(61.234) and 1499 < (sensors.clock_mhz() or 0) <= 1500


def _record(medians: dict[str, list[float]], void: int = 0) -> Record:
    record = Record()
    for r in range(len(next(iter(medians.values())))):
        record.rounds.append(
            {
                name: Seen([[int(values[r] * 1e6)] * 5 for _ in range(PASSES)], {**CALM, "void": void})
                for name, values in medians.items()
            }
        )
    return record


def _spec(*names: str, objective: str = "latency", bound: float | None = None) -> dict[str, Any]:
    entries = [{"id": name, "options": {}} for name in names]
    return {
        "candidates": entries, "baseline": names[0], "decisions": {"objective": objective, "latency_p95_ms": bound},
        "protocol": QUICK,
    }  # fmt: skip


def test_void_bursts_do_not_count() -> None:
    record = _record({"base": [1.0] * 6, "reference": [1.0] * 6}, void=0b11)
    assert len(Data(_spec("base"), record).rounds["base"][0]) == PASSES - 2
    with pytest.raises(StepError, match="slowed itself down during every burst"):
        Data(_spec("base"), _record({"base": [1.0], "reference": [1.0]}, void=2**PASSES - 1))


# -- decisions -------------------------------------------------------------------------------------


def _ask(spec: dict[str, Any], medians: dict[str, list[float]]) -> list[str]:
    return undecided(spec, Data(spec, _record(medians)))


def test_rounds_go_on_while_the_fastest_is_not_certain() -> None:
    spec = _spec("base", "a", "b")
    base, a = [9.0] * 6, [1.0, 1.01, 1.0, 0.99, 1.0, 1.0]
    assert _ask(spec, {"base": base, "a": a, "b": [1.5] * 6}) == []
    assert _ask(spec, {"base": base, "a": a, "b": [v * 1.005 for v in a]}) == []  # equal within 2 %: certain enough
    torn = [1.2, 0.9, 1.1, 0.95, 1.2, 0.9]
    assert _ask(spec, {"base": base, "a": a, "b": torn}) == ["whether a is faster than b"]


def test_rounds_go_on_while_the_gate_is_not_certain() -> None:
    medians = {"base": [9.0] * 6, "a": [1.0, 1.0, 1.0, 1.4, 1.0, 1.0]}
    assert _ask(_spec("base", "a", bound=1.2), medians) == ["whether p95 of a is within 1.2 ms"]
    assert _ask(_spec("base", "a", bound=5.0), medians) == _ask(_spec("base", "a", bound=0.5), medians) == []


def test_for_size_only_the_baseline_matters() -> None:
    torn = [1.2, 0.9, 1.1, 0.95, 1.2, 0.9]
    medians = {"base": [9.0] * 6, "a": [1.0] * 6, "b": torn}
    assert _ask(_spec("base", "a", "b", objective="size"), medians) == []


def test_a_screening_rules_out_only_what_never_came_near() -> None:
    rounds = {"best": [5.0, 5.1, 4.9], "near": [4.0, 4.1, 4.8], "far": [2.0, 2.5, 2.2], "other": [9.0]}
    assert contenders({name: {"speedup_rounds": values} for name, values in rounds.items()}, "best") == ["best", "near"]


# -- real processes --------------------------------------------------------------------------------


def test_interleaved_rounds_see_a_planted_difference(make_bundle: Any, tmp_path: Path) -> None:
    folder = make_bundle({"rounds": 6, "max_rounds": 6}, base={"us": 400}, fast={"us": 200}, same={"us": 400})
    result = measure(folder, tmp_path / "out")
    assert result["candidates"]["fast"]["speedup"] == pytest.approx(2.0, rel=0.15)
    low, high = result["candidates"]["same"]["speedup_ci95"]
    assert low < 1.05 and high > 0.95
    raw = np.load(tmp_path / "out" / "latencies.npz")
    assert raw["fast/5"].dtype == np.int64 and raw["fast/5/bursts"].sum() == len(raw["fast/5"]) >= 20
    assert result["candidates"]["fast"]["latency_ms"]["n"] == sum(len(raw[f"fast/{i}"]) for i in range(6))


def test_a_candidate_that_dies_is_left_out_by_name_and_the_others_are_measured(
    make_bundle: Any, tmp_path: Path
) -> None:
    folder = make_bundle(base={}, broken={"fail": "planted fault"}, dead={"fail": "die"}, good={})
    result = measure(folder, tmp_path / "out")
    assert set(result["candidates"]) == {"base", "good"}
    assert "planted fault" in result["failed"]["broken"] and "exit code 7" in result["failed"]["dead"]


def test_a_baseline_that_fails_ends_the_measurement(make_bundle: Any, tmp_path: Path) -> None:
    with pytest.raises(StepError, match="measuring base failed"):
        measure(make_bundle(base={"fail": "planted"}, good={}), tmp_path / "out")


def test_without_the_baseline_speed_ups_name_what_they_are_taken_against(make_bundle: Any, tmp_path: Path) -> None:
    folder = make_bundle(base={}, good={"us": 200}, other={})
    spec = json.loads((folder / "bundle.json").read_text())
    spec["candidates"] = [e for e in spec["candidates"] if e["id"] != "base"]
    (folder / "bundle.json").write_text(json.dumps(spec))
    result = measure(folder, tmp_path / "out")
    assert result["speedup_reference"] == "good" and result["candidates"]["good"]["speedup"] == 1.0


def test_two_depths_confirm_only_the_contenders(make_bundle: Any, tmp_path: Path) -> None:
    protocol = {"rounds": 3, "max_rounds": 3, "screen": {"rounds": 2, "min_calls": 10, "min_seconds": 0.0}}
    folder = make_bundle(protocol, base={"us": 900}, fast={"us": 100}, slow={"us": 800}, slower={"us": 850})
    result = measure_bundle(folder, tmp_path / "out")
    depth = {name: figures["depth"] for name, figures in result["candidates"].items()}
    assert depth == {"base": "confirm", "fast": "confirm", "slow": "screen", "slower": "screen"}
    assert result["candidates"]["fast"]["latency_ms"]["rounds"] == 3


def test_candidates_that_memory_does_not_hold_together_are_visited_alone(
    make_bundle: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from compiler.runtime import memory

    left = iter([1000.0, 100.0])
    monkeypatch.setattr(memory, "available_mb", lambda: next(left, 1000.0))
    result = measure(make_bundle(base={}, good={}), tmp_path / "out")
    assert result["alone"] and result["candidates"]["good"]["latency_ms"]["rounds"] == 2


def test_memory_is_reported_over_the_state_before_loading_and_as_a_whole(make_bundle: Any, tmp_path: Path) -> None:
    result = measure(make_bundle(base={}, big={"mb": 80}), tmp_path / "out")
    big, base = result["candidates"]["big"], result["candidates"]["base"]
    assert 75 <= big["peak_memory_mb"] <= 110 and big["process_memory_mb"] > big["peak_memory_mb"]
    assert base["peak_memory_mb"] < 20


# -- batch, memory, load ---------------------------------------------------------------------------

POINTS = {"seconds": 0.02, "latency_p95_ms": None, "threads": [1], "streams": [1]}


def test_out_of_memory_at_a_large_batch_ends_that_point_and_the_largest_batch_is_found(make_bundle: Any) -> None:
    folder = make_bundle(base={"us": 0, "mb": 20}, small={"us": 0})
    found = sweep(folder, {**POINTS, "max_batch": 32, "memory_limit_mb": 300})
    curve = found["curves"]["base"]
    assert [p["status"] for p in curve["points"]][-1] == "out_of_memory"
    assert curve["points"][-1]["batch"] == 16 and "more than 300 MB" in curve["points"][-1]["reason"]
    assert curve["largest_batch"]["exhausted"] and 10 <= curve["largest_batch"]["batch"] <= 14
    assert found["curves"]["small"]["points"][-1]["status"] == "ok"


def test_a_process_that_the_kernel_kills_is_out_of_memory_not_a_failure(make_bundle: Any, tmp_path: Path) -> None:
    folder = make_bundle(base={"mb": 1 << 26})  # 64 TB a sample: no machine has that
    point = sweep(folder, {**POINTS, "max_batch": 1, "memory_limit_mb": 1000})["curves"]["base"]["points"][0]
    assert point["status"] == "out_of_memory"


def test_the_point_of_highest_throughput_within_the_bounds_is_chosen() -> None:
    def point(batch: int, p95: float, rate: float, memory: float = 10.0) -> dict[str, Any]:
        return {"batch": batch, "threads": 1, "streams": 1, "status": "ok", "p95_ms": p95, "throughput_per_s": rate,
                "process_memory_mb": memory}  # fmt: skip

    points = [point(1, 1, 100), point(2, 1.5, 150), point(4, 2.5, 180), point(8, 5, 182), point(16, 9, 300, 999)]
    points.append({"batch": 32, "threads": 1, "streams": 1, "status": "out_of_memory"})

    def chosen(bound: float | None) -> int:
        best = choose(points, bound, 100.0)
        return int(best["batch"]) if best else 0

    assert (chosen(None), chosen(2.0), chosen(0.5)) == (4, 2, 0)  # 8 gains too little over 4


def test_under_load_the_queue_counts(make_bundle: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """At half of what it can do a candidate answers at once; above what it can do the queue grows."""
    folder = make_bundle(base={"us": 2000})
    calm = under_load(folder, ["base"], 100.0, 0, lambda what: None)["base"]
    assert calm["kept_up"] and calm["n"] >= 300 and 1.9 < calm["p50"] < calm["p99"]
    monkeypatch.setattr(arrivals, "SHORTEST_S", 1.0)
    behind = under_load(folder, ["base"], 700.0, 0, lambda what: None)["base"]
    assert not behind["kept_up"] and behind["p50"] > 10 * calm["p50"]


# -- bundles ---------------------------------------------------------------------------------------


def test_an_altered_bundle_is_refused_by_name(make_bundle: Any) -> None:
    folder = make_bundle(base={})
    (folder / "base" / "model.bin").write_bytes(b"other")
    with pytest.raises(IntegrityError, match=r"base/model\.bin"):
        reading.read(folder)


@pytest.mark.parametrize("name", ["../outside", "/etc/passwd"])
def test_a_bundle_that_names_files_outside_is_refused(make_bundle: Any, name: str) -> None:
    folder = make_bundle(base={})
    spec = json.loads((folder / "bundle.json").read_text())
    spec["candidates"][0]["file"] = name
    (folder / "bundle.json").write_text(json.dumps(spec))
    with pytest.raises(IntegrityError, match="names the file"):
        reading.read(folder)


def test_a_bundle_runs_without_our_package_installed(make_bundle: Any, tmp_path: Path) -> None:
    import subprocess
    import sys

    folder = make_bundle(base={})
    shutil.rmtree(folder)
    folder.mkdir()
    file = tmp_path / "model.npz"
    np.savez(file, weight=np.ones((12, 2), np.float32))
    entry = bundles.Entry("base", "reference", [file], "model.npz", {}, {"inputs": []})
    bundles.write(folder, [entry], np.zeros((2, 2, 2, 3), np.uint8), QUICK, "base", {"objective": "latency"}, True)
    packages = str(Path(np.__file__).parent.parent)
    code = (
        "import sys, runpy, compiler; print(compiler.__file__, file=sys.stderr); sys.argv[1:] = ['.', 'out'];"
        "runpy.run_module('compiler.runtime.measure', run_name='__main__')"
    )
    # -S: no site-packages, so none of this checkout; numpy comes back by its folder
    done = subprocess.run(
        [sys.executable, "-S", "-c", code], cwd=folder, capture_output=True, text=True, timeout=120, check=False,
        env={"PYTHONPATH": packages},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert str(folder) in done.stderr and json.loads(done.stdout)["candidates"]["base"]["latency_ms"]["n"] >= 40
