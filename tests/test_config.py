"""Every YAML composes, every target goes with every model, and what a user adds is treated like ours."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from conftest import CONF, command
from hypothesis import given, settings
from hypothesis import strategies as st

from compiler.config import compose, expand_sweep
from compiler.errors import ConfigError
from compiler.overrides import conf_dir, options
from compiler.plan import make_plan


@pytest.mark.parametrize("target", options("target"))
@pytest.mark.parametrize("model", [m for m in options("model") if m != "torchvision"])
def test_every_target_plans_with_every_model(target: str, model: str) -> None:
    plan = make_plan(compose([f"target={target}", f"model={model}"]))
    assert set(plan.candidates) == {plan.config.baseline, *plan.config.candidates}
    for step in plan.steps.values():
        assert set(step.inputs.values()) <= set(plan.steps)


@pytest.mark.parametrize("candidate", [c for c in options("candidate") if c != "pytorch_fp32"])
def test_every_candidate_plans(candidate: str) -> None:
    plan = make_plan(compose(["target=host", f"candidates=[{candidate}]"]))
    assert plan.candidates[candidate].spec.artifact


def test_engines_take_the_batches_that_are_swept_and_one_where_none_is() -> None:
    def fields(*overrides: str) -> list[object]:
        plan = make_plan(compose(["target=t4", *overrides]))
        engine, compiled = plan.steps["tensorrt_int8.engine"].stage, plan.steps["cuda_fp16.compile"].stage
        return [engine.min_batch, engine.opt_batch, engine.max_batch, compiled.batch]  # type: ignore[attr-defined]

    assert fields() == [1, 1, 1, 1]
    assert fields("objective=throughput") == [1, 64, 64, None]
    assert fields("objective=throughput", "steps.sweep.max_batch=16") == [1, 16, 16, None]
    own = "candidate.tensorrt_int8.steps.engine.max_batch=8"
    assert fields(own) == [1, 1, 8, 1]


@pytest.mark.parametrize("budget", options("budget"))
def test_every_budget_composes_and_the_command_line_wins_over_the_targets_choice(budget: str) -> None:
    assert compose(["target=rpi4", f"budget={budget}", "budget.size_mb=3"]).budget.size_mb == 3.0
    assert compose(["target=rpi4"]).budget.latency_p95_ms == 500


def test_every_yaml_is_reached_by_these_tests() -> None:
    groups = {path.parent.name for path in conf_dir().rglob("*.yaml")} - {conf_dir().name}
    assert groups == {"target", "model", "data", "budget", "candidate", "pipeline"}


def test_any_torchvision_name_is_a_model() -> None:
    config = compose(["target=rpi4", "model=efficientnet_b0"])
    assert (config.model.name, config.model.architecture, config.model.weights) == (
        "efficientnet_b0",
        "efficientnet_b0",
        None,
    )


def test_target_files_are_short() -> None:
    for path in (conf_dir() / "target").glob("*.yaml"):
        assert 10 <= len(path.read_text().splitlines()) <= 25, path


def test_weights_without_vnni_use_seven_bits() -> None:
    def reduced(*overrides: str) -> bool:
        plan = make_plan(compose(["target=xeon", *overrides]))
        return bool(plan.steps["onnxruntime_int8.quantize"].stage.reduce_range)  # type: ignore[attr-defined]

    assert not reduced()
    assert reduced("target.isa=[avx2]")


def test_sweep_expands_in_order() -> None:
    assert expand_sweep(["target=xeon,rpi4", "seed=1"]) == [["target=xeon", "seed=1"], ["target=rpi4", "seed=1"]]


def test_hydras_own_flags_work_and_write_nothing(tmp_path: Path) -> None:
    done = command("target=rpi4", "--cfg", "job", cwd=tmp_path)
    assert done.code == 0 and "mobilenet_v3_small" in done.out
    assert command("target=rpi4", "--info", "searchpath", cwd=tmp_path).code == 0
    assert command("target=nope", "--cfg", "job", cwd=tmp_path).code == 2
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "words",
    [
        ("--cfg", "job", "target=rpi4", "model.name=abc"), ("target=rpi4", "-c", "job", "model.name=abc"),
        ("plan", "target=rpi4", "--cfg=job", "model.name=abc"), ("--cfg", "job", "target=rpi4", "--", "model.name=abc"),
        ("--config-dir", "tests/conf", "-cd", "tests/conf/more", "--cfg", "job", "target=rpi4", "model.name=abc"),
    ],
)  # fmt: skip
def test_cfg_may_stand_anywhere(words: tuple[str, ...], tmp_path: Path) -> None:
    (tmp_path / "more").mkdir()
    done = command(*(word.replace("tests/conf/more", str(tmp_path / "more")) for word in words))
    assert done.code == 0 and "name: abc" in done.out, done.err


def test_cfg_of_a_multirun_shows_each_job() -> None:
    done = command("--multirun", "--cfg", "job", "target=rpi4,xeon", "--package", "target.name")
    assert done.code == 0 and "rpi4" in done.out and "xeon" in done.out, done.err


@pytest.mark.parametrize(
    ("words", "what"),
    [
        (("--cfg",), "expected one argument"), (("--cfg", "jobs"), "invalid choice"),
        (("--info", "x"), "invalid choice"),
        (("--cfg", "job", "target=rpi5"), "did you mean 'rpi4'"), (("--cfg", "job", "nokey=1"), "unknown key 'nokey'"),
        (("--cfg", "job", "--multirun", "target=rpi4,nope"), "unknown target 'nope'"),
        (("--cfg", "job", "--bogus", "target=rpi4"), "unknown flag '--bogus'"),
        (("--info", "all", "target=rpi4", "model.name=${x"), "no viable alternative"),
    ],
)  # fmt: skip
def test_hydras_flags_fail_with_the_codes_and_lines_of_every_verb(words: tuple[str, ...], what: str) -> None:
    done = command(*words)
    fix, cause = done.last_lines()
    assert done.code == 2 and what in cause and fix.startswith("try: ") and "Traceback" not in done.err, done.err


TEXTS = [
    "a b",
    "a=b,c",
    "~/x",
    "1e5",
    "0x10",
    "true",
    "[x]",
    "{a: b}",
    "it's",
    'say "hi"',
    "a\\b",
    "ends\\",
    "größe 零",
    "a\tb",
    "#x",
]


@pytest.mark.parametrize("text", TEXTS)
def test_text_on_the_command_line_is_taken_as_it_is(text: str) -> None:
    from compiler.config import compose

    config = compose(["target=rpi4", f"model.weights={text}", f"target.description={text}", f"artifacts_dir={text}"])
    assert (config.model.weights, config.target.description, config.artifacts_dir) == (text, text, text)


@given(st.text(st.characters(codec="utf-8", exclude_categories=["Cc", "Cs"]), min_size=1, max_size=20))
@settings(max_examples=30, deadline=None)
def test_any_text_without_an_interpolation_reaches_the_configuration(text: str) -> None:
    from compiler.overrides import as_text

    if "${" in text or text[0] in "'\"" or text == "null":
        return
    from hydra.core.override_parser.overrides_parser import OverridesParser

    parsed = OverridesParser.create().parse_override(as_text(f"model.weights={text}"))
    assert str(parsed.value()) == text


def test_what_is_no_text_keeps_its_grammar() -> None:
    from compiler.overrides import as_text

    for word in ("data.mean=[0.5,0.5,0.5]", "candidates=[a,b]", "budget.size_mb=1e1", "model.weights=null", "seed=3",
                 "model.weights='quoted, already'", "steps.fuse.x=1", "~model.weights", "target=rpi4"):  # fmt: skip
        assert as_text(word) == word
    assert as_text("model.name=a,b", sweep=True) == "model.name=a,b"
    assert as_text("+toolchains.old.python=/opt/my python") == "+toolchains.old.python='/opt/my python'"


def test_users_own_target_in_their_own_folder(tmp_path: Path) -> None:
    (tmp_path / "target").mkdir()
    (tmp_path / "target/kiosk.yaml").write_text(
        "defaults:\n  - override /budget@_global_.budget: edge\nname: kiosk\narch: aarch64\ncandidates: [tflite_int8]\n"
    )
    done = command("plan", "--json", "--config-dir", tmp_path, "target=kiosk")
    assert done.code == 0, done.err
    assert json.loads(done.out)["target"] == "kiosk"
    assert compose(["target=kiosk"], [tmp_path]).budget.latency_p95_ms == 500


def test_config_dir_that_does_not_exist_is_an_error() -> None:
    with pytest.raises(ConfigError, match="not a folder"):
        compose(["target=rpi4"], [CONF / "nothing"])
