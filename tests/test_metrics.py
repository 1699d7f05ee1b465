"""The user's own metric: what it may return, how sure its drop is, and what it is told when it does not work."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import Project

from compiler import metrics
from compiler.errors import ConfigError, StepError
from compiler.metrics import paired_call_drop, paired_drop, paired_score_drop
from compiler.stages.evaluate import Evaluate

OWN = """
import numpy as np

WEIGHT = 100.0


def balanced(outputs, labels):
    assert outputs.dtype == np.float32 and labels.dtype == np.int64 and not outputs.flags.writeable
    right = outputs.argmax(axis=1) == labels
    return WEIGHT * np.mean([right[labels == c].mean() for c in np.unique(labels)])


def reciprocal_rank(outputs, labels):
    own = np.take_along_axis(outputs, labels[:, None], axis=1)
    return 1.0 / (1 + (outputs > own).sum(axis=1))


def raises(outputs, labels):
    raise KeyError("no such class")


def shape(outputs, labels):
    return outputs


def not_a_number(outputs, labels):
    return float("nan")


def share(outputs, labels):
    return (outputs.argmax(axis=1) == labels).mean()


def out_of_range(outputs, labels):
    return 50.0 * (outputs.argmax(axis=1) == labels)


CONSTANT = 3
"""


@pytest.fixture
def own(tmp_path: Path) -> Path:
    """A working folder with a module of the user's own."""
    folder = tmp_path / "own"
    folder.mkdir()
    (folder / "scores.py").write_text(OWN)
    return folder


def _accuracy(manifest: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {c["id"]: c["accuracy"] for c in manifest["candidates"]}


def _quiet(_done: int, _total: int, _what: str) -> None:
    pass


@pytest.mark.parametrize("name", ["balanced", "reciprocal_rank"])
def test_users_metric_is_evaluated_and_paired_with_the_baseline(built: Project, own: Path, name: str) -> None:
    spoilt = ["candidate.null_int8.steps.quantize.bits=2", "budget.accuracy_drop=90"]
    done = built.build(f"data.metric=scores:{name}", "evaluate=all", *spoilt, cwd=own)
    assert done.code == 0, done.err
    rows = _accuracy(done.manifest)
    assert {row["metric"] for row in rows.values()} == {f"scores:{name}"}
    assert rows["null_baseline"]["value"] > 90 and rows["null_baseline"]["drop_ci95"] is None
    assert rows["null_fp32"]["drop"] == 0.0
    low, high = rows["null_int8"]["drop_ci95"]
    assert low <= rows["null_int8"]["drop"] <= high
    assert rows["null_int8"]["drop"] == pytest.approx(
        rows["null_baseline"]["value"] - rows["null_int8"]["value"], abs=2e-4
    )


def test_change_to_the_metrics_source_evaluates_again_and_nothing_before_it(built: Project, own: Path) -> None:
    built.build("data.metric=scores:balanced", cwd=own)
    assert built.build("data.metric=scores:balanced", cwd=own).executed == []
    (own / "scores.py").write_text(OWN.replace("WEIGHT = 100.0", "WEIGHT = 90.0"))
    done = built.build("data.metric=scores:balanced", cwd=own)
    assert done.code == 0, done.err
    assert all(name.startswith(("evaluate.", "select", "package")) for name in done.executed)
    assert "(source of scores.py changed)" in done.err
    assert max(row["value"] for row in _accuracy(done.manifest).values() if row) <= 90.0


@pytest.mark.parametrize(
    ("name", "code", "what"),
    [
        ("nothing", 2, "scores.py has no 'nothing'"),
        ("CONSTANT", 2, "is a int"),
        ("raises", 5, "failed: KeyError: 'no such class'"),
        ("shape", 5, "returned float32 of shape (100, 4) for 100 samples"),
        ("not_a_number", 5, "returned NaN or infinity"),
        ("share", 5, "a share, not percent"),
        ("out_of_range", 5, "scores a sample from 50 to 50"),
    ],
)
def test_metric_that_does_not_work_is_named(built: Project, own: Path, name: str, code: int, what: str) -> None:
    done = built.build(f"data.metric=scores:{name}", cwd=own)
    fix, cause = done.last_lines()
    assert done.code == code, done.err
    assert f"scores:{name}" in cause and what in cause and fix.startswith("try: ")


@pytest.mark.parametrize(
    ("metric", "what"),
    [
        ("top_1", "unknown metric 'top_1'; did you mean 'top1'?"),
        ("top-5", "unknown metric 'top-5'; did you mean 'top5'?"),
        ("scores.py", "unknown metric"),
        ("nosuchmodule:f1", "there is no module 'nosuchmodule'"),
    ],
)
def test_unknown_metric_is_refused_before_anything_runs(project: Project, metric: str, what: str) -> None:
    done = project.build(f"data.metric={metric}")
    assert done.code == 2 and what in done.last_lines()[1] and done.executed == []
    assert "package.module:function" in done.last_lines()[0]


def test_top5_of_few_classes_is_refused(built: Project) -> None:
    done = built.build("data.metric=top5")
    assert done.code == 2 and "top5 of 4 classes is always 100 %" in done.last_lines()[1]


def _evaluate(folder: Path, weight: np.ndarray[Any, Any], **inputs: Path) -> tuple[Path, dict[str, Any]]:
    """An evaluation by the null runtime of ten classes: images (n, 1, 10, 3), logits images.ravel() @ weight."""
    folder.mkdir()
    samples = folder.parent / "samples"
    np.savez(folder / "model.npz", weight=weight.astype(np.float32), scale=np.float32(1), shape=np.array([1, 10, 3]))
    signature = {
        "inputs": [{"dtype": "float32", "shape": [1, 1, 10, 3], "layout": "NHWC"}],
        "outputs": [{"dtype": "float32", "shape": [1, 10]}],
        "preprocessing": {"mean": [0.0] * 3, "std": [1.0] * 3},
    }
    (folder / "signature.json").write_text(json.dumps(signature))
    stage = Evaluate(split="report", runtime="null", artifact="model.npz", metric="top5")
    out = folder / "out"
    out.mkdir()
    return out, stage.run({"model": folder, "samples": samples, **inputs}, out)


def test_top5_is_the_value_and_its_drop_is_paired(tmp_path: Path) -> None:
    generator = np.random.default_rng(3)
    (tmp_path / "samples").mkdir()
    images = generator.integers(0, 256, (200, 1, 10, 3), dtype=np.uint8)
    labels = generator.integers(0, 10, 200)
    np.save(tmp_path / "samples/report.npy", images)
    np.save(tmp_path / "samples/report.labels.npy", labels.astype(np.int64))
    weight = generator.standard_normal((30, 10))
    base, first = _evaluate(tmp_path / "base", weight)
    logits = images.reshape(200, -1) / 255.0 @ weight
    right = (np.argsort(-logits, axis=1)[:, :5] == labels[:, None]).any(axis=1)
    assert first["value"] == first["top5"] == pytest.approx(100 * right.mean())
    assert first["top1"] == pytest.approx(100 * (logits.argmax(axis=1) == labels).mean())
    _, second = _evaluate(tmp_path / "other", weight + generator.standard_normal((30, 10)), baseline=base)
    assert second["drop"] == pytest.approx(first["value"] - second["value"])
    assert second["drop_ci95"][0] < second["drop"] < second["drop_ci95"][1]
    _, broken = _evaluate(tmp_path / "broken", np.full((30, 10), np.nan), baseline=base)
    assert broken["value"] == broken["top1"] == 0.0  # an output that is NaN is never right


def test_interval_of_scores_is_that_of_agresti_and_min_where_scores_are_right_or_wrong() -> None:
    generator = np.random.default_rng(4)
    for rate in (0.0, 0.02, 0.2):
        before = generator.random(400) < 0.9
        after = before ^ (generator.random(400) < rate)
        exact = paired_drop(before, after)
        ours = paired_score_drop(before.astype(float), after.astype(float))
        low, high = exact.ci95
        our_low, our_high = ours.ci95
        assert ours.value == pytest.approx(exact.value)
        assert ours.upper95 == pytest.approx(exact.upper95, abs=0.25) and ours.sd == pytest.approx(exact.sd, rel=0.05)
        assert ours.after_lower95 == pytest.approx(exact.after_lower95, abs=1.0)
        assert our_low == pytest.approx(low, abs=0.25) and our_high == pytest.approx(high, abs=0.25)
        assert our_low < our_high


def test_intervals_cover_the_true_drop_about_as_often_as_they_say() -> None:
    generator = np.random.default_rng(5)
    labels = np.zeros(150, np.int64)
    hits = {"scores": 0, "calls": 0}
    for _ in range(40):
        before = generator.beta(8, 2, 150)
        after = np.clip(before - 0.05 + 0.05 * generator.standard_normal(150), 0, 1)
        truth = 5.008  # clipping at 1 adds a little; from ten million draws
        low, high = paired_score_drop(before, after).ci95
        hits["scores"] += low <= truth <= high
        low, high = paired_call_drop(
            "mean", lambda o, _: 100 * float(o.mean()), before[:, None].astype(np.float32),
            after[:, None].astype(np.float32), labels, _quiet,
        ).ci95  # fmt: skip
        hits["calls"] += low <= truth <= high
    assert min(hits.values()) >= 35


def test_intervals_are_the_same_in_every_run_and_pairing_narrows_them() -> None:
    generator = np.random.default_rng(6)
    outputs = generator.standard_normal((300, 4)).astype(np.float32)
    labels = generator.integers(0, 4, 300)
    changed = outputs + 0.05 * generator.standard_normal(outputs.shape).astype(np.float32)

    def accuracy(o: Any, y: Any) -> float:
        return 100.0 * float((o.argmax(axis=1) == y).mean())

    one = paired_call_drop("accuracy", accuracy, outputs, changed, labels, _quiet)
    assert one == paired_call_drop("accuracy", accuracy, outputs, changed, labels, _quiet)
    expected = paired_drop(outputs.argmax(1) == labels, changed.argmax(1) == labels)
    assert one.value == pytest.approx(expected.value)
    assert one.ci95 == pytest.approx(expected.ci95, abs=0.6)
    assert one.upper95 == pytest.approx(expected.upper95, abs=0.6) and one.sd == pytest.approx(expected.sd, rel=0.2)


def test_metric_may_not_change_what_it_is_given() -> None:
    def careless(outputs: Any, labels: Any) -> float:
        outputs[:] = 0
        return 1.0

    with pytest.raises(StepError, match="read-only"):
        metrics.apply("careless", careless, np.ones((2, 2), np.float32), np.zeros(2, np.int64))


def test_metric_that_fails_to_import_names_the_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "brokenmetric.py").write_text("import nosuchlibrary\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ConfigError, match="No module named 'nosuchlibrary'"):
        metrics.load("brokenmetric:f")
