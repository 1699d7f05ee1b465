"""Keys change exactly when something that decides the result changes."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from conftest import Done, Project
from hypothesis import given
from hypothesis import strategies as st

from compiler import canonical, identity
from compiler.config import compose
from compiler.identity import KeyMaker, explain, key_of
from compiler.keys.memo import Memo, content_digest
from compiler.keys.sources import source_closure
from compiler.keys.tools import Tools
from compiler.plan import make_plan
from compiler.runtime import host
from compiler.typed import make

SCALARS = (
    st.none()
    | st.booleans()
    | st.integers(-(2**53), 2**53)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text()
)
VALUES = st.recursive(SCALARS, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=12)


@given(VALUES)
def test_canonical_json_round_trips(value: Any) -> None:
    assert json.loads(canonical.encode(value)) == value


@given(st.dictionaries(st.text(), SCALARS, min_size=2))
def test_order_of_keys_does_not_matter(value: dict[str, Any]) -> None:
    assert canonical.digest(value) == canonical.digest(dict(reversed(value.items())))


@given(VALUES, VALUES)
def test_different_values_have_different_digests(a: Any, b: Any) -> None:
    same = json.dumps(a, sort_keys=True) == json.dumps(b, sort_keys=True)
    assert (canonical.digest(a) == canonical.digest(b)) == same


@pytest.mark.parametrize("value", [math.nan, math.inf, {1, 2}, object()])
def test_what_has_no_canonical_form_is_refused(value: object) -> None:
    with pytest.raises((TypeError, ValueError)):
        canonical.encode(value)


def _documents(*overrides: str, memo: Path) -> dict[str, dict[str, Any]]:
    plan = make_plan(compose(["target=xeon", *overrides]))
    keys = KeyMaker(plan.config, Memo(memo))
    return {name: keys.document(step, dict.fromkeys(step.inputs, "0")) for name, step in plan.steps.items()}


@pytest.mark.parametrize(
    ("override", "touched"),
    [
        ("candidate.openvino_int8.steps.quantize.preset=performance", {"openvino_int8.quantize"}),
        ("candidate.onnxruntime_int8.steps.quantize.percentile=99", {"onnxruntime_int8.quantize"}),
        ("steps.calibrate.bins=512", {"calibrate"}),
        ("steps.export.opset=20", {"export"}),
        ("data.split_seed=1", {"samples"}),
        ("budget.size_mb=4", {"select"}),
        ("steps.benchmark.rounds=3", {"benchmark"}),
        ("artifacts_dir=elsewhere", set()),
        ("executor.jobs=1", set()),
    ],
)
def test_an_override_changes_the_keys_of_the_steps_it_concerns_and_no_others(
    tmp_path: Path, override: str, touched: set[str]
) -> None:
    before, after = _documents(memo=tmp_path / "m"), _documents(override, memo=tmp_path / "m")
    assert {name for name in before if key_of(before[name]) != key_of(after[name])} == touched


def test_explanation_names_the_field_and_both_values(tmp_path: Path) -> None:
    before, after = _documents(memo=tmp_path / "m"), _documents("steps.export.opset=20", memo=tmp_path / "m")
    assert explain(after["export"], before["export"]) == "field opset from 18 to 20"
    assert explain(after["export"], None) == "first run"
    assert explain(after["export"], after["export"]) == "result missing or corrupt"
    changed = {**after["export"], "source": {**after["export"]["source"], "compiler.stages.export": "0"}}
    assert explain(changed, after["export"]) == "source of compiler/stages/export.py changed"
    was = after["export"]["tools"]["torch"].split()
    newer = {**after["export"], "tools": {**after["export"]["tools"], "torch": f"9.9 {was[1]}"}}
    assert explain(newer, after["export"]) == f"torch {was[0]} to 9.9"
    other = {**after["export"], "tools": {**after["export"]["tools"], "torch": f"{was[0]} 00"}}
    assert explain(other, after["export"]) == f"torch {was[0]} to {was[0]} (other files)"
    fused = {**after["fuse"], "inputs": {"model": "1"}}
    assert explain(fused, after["fuse"], {"model": "export"}) == "input of export changed (and 1 more)"


def test_a_path_counts_by_its_content(tmp_path: Path) -> None:
    memo = Memo(tmp_path / "memo.json")
    (tmp_path / "a").write_text("x")
    (tmp_path / "b").write_text("x")
    assert content_digest(tmp_path / "a", memo) == content_digest(tmp_path / "b", memo)
    (tmp_path / "b").write_text("y")
    assert content_digest(tmp_path / "a", memo) != content_digest(tmp_path / "b", memo)


def test_a_folder_counts_by_names_content_and_what_is_not_a_file(tmp_path: Path) -> None:
    memo = Memo(tmp_path / "memo.json")
    folder = tmp_path / "data"
    (folder / "cat").mkdir(parents=True)
    (folder / "cat/1.png").write_text("x")
    first = content_digest(folder, memo)
    (folder / "cat/1.png").rename(folder / "cat/2.png")
    assert content_digest(folder, memo) != first
    (tmp_path / "outside.png").write_text("y")
    (folder / "cat/3.png").symlink_to(tmp_path / "outside.png")
    linked = content_digest(folder, memo)
    (tmp_path / "outside.png").write_text("another picture")
    changed = content_digest(folder, memo)
    os.mkfifo(folder / "cat/pipe")
    assert len({first, linked, changed, content_digest(folder, memo)}) == 4
    (folder / "loop").symlink_to(folder)
    assert content_digest(folder, memo) == content_digest(folder, memo)


def test_closure_covers_what_a_stage_imports_and_follows_a_users_own_module(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    memo = Memo(tmp_path / "memo.json")
    closure = source_closure(("compiler.stages.fuse",), memo)
    assert {"compiler.stages.fuse", "compiler.conversion", "compiler.stages._model_files", "compiler.errors"} <= set(
        closure
    )
    assert not {"compiler.runner", "compiler.backends.tflite"} & set(closure)
    monkeypatch.syspath_prepend(str(tmp_path))
    far = tmp_path / "far"
    (tmp_path / "my_package_x").mkdir()
    far.mkdir()
    monkeypatch.syspath_prepend(str(far))
    (tmp_path / "my_network_x.py").write_text(
        "import my_blocks_x\nfrom my_package_x import width\nimport my_far_x, numpy\n"
    )
    (tmp_path / "my_blocks_x.py").write_text("")
    (tmp_path / "my_package_x/__init__.py").write_text("width = 1\n")
    (far / "my_far_x.py").write_text("")
    found = set(source_closure(("my_network_x",), memo))
    assert found == {"my_network_x", "my_blocks_x", "my_package_x", "my_far_x"}


@given(st.integers(1, 9), st.floats(0.1, 2.0), st.sampled_from(["NCHW", "NHWC"]))
def test_stage_fields_survive_the_way_to_the_worker(crop: int, mean: float, layout: str) -> None:
    from compiler.stages.samples import Samples, SplitSizes

    stage = Samples(
        dataset="digits", root=Path("/x"), crop=crop, mean=(mean, mean, mean), layout=layout, splits=SplitSizes(train=3)
    )
    fields = json.loads(canonical.encode(stage))
    assert dataclasses.asdict(make(Samples, fields)) == dataclasses.asdict(stage)


@pytest.mark.parametrize("step", ["screen", "benchmark"])
def test_an_old_figure_is_a_miss_on_another_host_or_with_another_runtime_or_protocol(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    def key(*overrides: str) -> str:
        return key_of(_documents(*overrides, memo=tmp_path / "m")[step])

    here = key()
    assert key() == here
    assert key("steps.benchmark.min_calls=10") != here and key("target.threads=1") != here
    with monkeypatch.context() as patch:
        patch.setattr(Tools, "identities", lambda self, names: dict.fromkeys(names, "9.9"))
        assert key() != here
    with monkeypatch.context() as patch:
        patch.setattr(identity, "describe", lambda: {"fingerprint": "another host"})
        assert key() != here


def test_the_governor_is_part_of_the_hosts_fingerprint(monkeypatch: pytest.MonkeyPatch) -> None:
    before = host.describe()
    read = host._read
    monkeypatch.setattr(host, "_read", lambda path: "powersave" if path.endswith("scaling_governor") else read(path))
    after = host.describe()
    assert (after["governor"], after["fingerprint"] != before["fingerprint"]) == ("powersave", True)


def test_a_library_that_a_step_turned_out_to_load_decides_whether_its_result_is_reused(
    project: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As ai-edge-quantizer loads SciPy: no metadata says it."""
    installed, own, conf = tmp_path / "site-packages", tmp_path / "own", tmp_path / "conf"
    info = installed / "quietlib-1.0.dist-info"
    for folder in (info, own / "own_sly", conf / "candidate"):
        folder.mkdir(parents=True)
    (installed / "quietlib.py").write_text("")
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: quietlib\nVersion: 1.0\n")
    (info / "RECORD").write_text("quietlib.py,sha256=a,0\n")
    (own / "own_sly/__init__.py").write_text("")
    (own / "own_sly/sly.py").write_text(
        "import dataclasses, importlib\nfrom compiler.backends.null import Convert\n"
        "@dataclasses.dataclass(kw_only=True)\nclass Twist(Convert):\n    def convert(self, inputs, out):\n"
        "        importlib.import_module('quiet' + 'lib')\n        return super().convert(inputs, out)\n"
    )
    (conf / "candidate/sly.yaml").write_text(
        "{backend: own_sly.sly, runtime: 'null', precision: fp32, after: export, artifact: model.npz,"
        " steps: {twist: {}}}"
    )
    monkeypatch.setenv("EXTRA_PATH", f"{installed}:{own}")

    def build() -> Done:
        return project.build("--config-dir", conf, "candidates=[sly]")

    assert build().code == 0
    assert build().executed == []
    (info / "RECORD").write_text("quietlib.py,sha256=b,0\n")
    again = build()
    assert again.executed == ["sly.twist"]
    assert "sly.twist: running (quietlib 1.0 to 1.0 (other files))" in again.err


def test_what_stands_for_a_distribution_is_the_same_where_it_is_looked_for() -> None:
    from compiler.keys import tools
    from compiler.runtime import names

    assert tools.STANDS_FOR == names.STANDS_FOR


def test_a_distribution_that_stands_for_another_has_its_identity(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "tensorrt_cu12-10.16.1.dist-info"
    folder.mkdir()
    (folder / "METADATA").write_text("Name: tensorrt-cu12\nVersion: 10.16.1\n")
    (folder / "RECORD").write_text("tensorrt/__init__.py,sha256=x,1\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert Tools().version("tensorrt") == "10.16.1"
    assert Tools().identities(["tensorrt"])["tensorrt"].startswith("10.16.1 ")


def test_threads_that_ask_for_tools_at_the_same_time_see_all_of_them(monkeypatch: pytest.MonkeyPatch) -> None:
    listed = os.listdir

    def slow(folder: str) -> list[str]:
        time.sleep(0.02)
        return listed(folder)

    monkeypatch.setattr(os, "listdir", slow)
    tools = Tools()
    with ThreadPoolExecutor(4) as pool:
        assert "absent" not in list(pool.map(tools.version, ["numpy"] * 4))


def test_every_requirement_counts_whether_or_not_it_names_a_version(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    requires = {
        "firstlib": "Requires-Dist: secondlib\r\nRequires-Dist: thirdlib>=1\r\n"
        "Requires-Dist: fourthlib ; extra == 'more'\r\nRequires-Dist: fifthlib\r\n\r\nRequires-Dist: sixthlib\r\n",
        "secondlib": "Requires-Dist: seventhlib\n",
    }
    for name in ("firstlib", "secondlib", "thirdlib", "fourthlib", "fifthlib", "sixthlib", "seventhlib"):
        info = tmp_path / f"{name}-1.0.dist-info"
        info.mkdir()
        text = f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n{requires.get(name, '')}"
        (info / "METADATA").write_bytes(text.encode())
        (info / "RECORD").write_text(f"{name}.py,sha256=x,1\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    found = set(Tools().identities(["firstlib"]))
    assert found == {"firstlib", "secondlib", "thirdlib", "fifthlib", "seventhlib"}
