"""`plan` says what a build would refuse later: functions, files, weights, values. It imports nothing heavy for it."""

from __future__ import annotations

import dataclasses
import json
import re
import sys
from pathlib import Path
from typing import Annotated, Any

import pytest
from conftest import command
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from compiler import typed
from compiler.commands.plan import run
from compiler.errors import ConfigError
from compiler.keys.functions import _names, check
from compiler.keys.sources import source_of
from compiler.limits import Between, OneOf
from compiler.plan import make_stage
from compiler.stages._architectures import architectures
from compiler.stages.quantize import Quantize
from compiler.stages.samples import Samples

SOURCE = """
import functools
from torch import nn as layers

class Net(layers.Module):
    def method(self):
        inner = 1

if True:
    def chosen(num_classes): ...
aliased = functools.partial(Net)
first, (second, *rest) = 1, (2, 3)
for counted in range(2):
    with open("x") as opened:
        ...
"""


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A module `ahead_of` of the user's own, in the working folder; importing it would fail."""
    (tmp_path / "ahead_of.py").write_text(SOURCE + "raise SystemExit\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.chdir(tmp_path)
    source_of.cache_clear()  # it remembers where the module of another test lies
    _names.cache_clear()
    return tmp_path


@pytest.mark.parametrize(
    "name", ["Net", "chosen", "aliased", "first", "second", "rest", "counted", "opened", "layers", "functools"]
)
def test_name_that_a_module_binds_is_found_without_importing_it(module: Path, name: str) -> None:
    check("model.architecture", f"ahead_of:{name}")


@pytest.mark.parametrize("name", ["method", "inner", "nett", "x"])
def test_name_that_a_module_does_not_bind_is_refused(module: Path, name: str) -> None:
    with pytest.raises(ConfigError, match=rf"data\.metric 'ahead_of:{name}': ahead_of\.py has no '{name}'"):
        check("data.metric", f"ahead_of:{name}")


@pytest.mark.parametrize(
    "line",
    [
        "from os.path import *",
        "globals()['made'] = 1",
        "def __getattr__(name): ...",
        "exec('made = 1')",
        "def register(name):\n    globals()[name] = 1\nregister('made')",
        "def bind():\n    global made\n    made = 1\nbind()",
        "import sys\nsys.modules[__name__].made = 1",
        "from sys import modules\nsetattr(modules[__name__], 'made', 1)",
        "vars().update(made=1)",
        "register.__dict__['made'] = 1",
    ],
)
def test_module_that_makes_names_while_it_is_imported_is_left_to_the_import(module: Path, line: str) -> None:
    (module / "ahead_of.py").write_text(f"{line}\n")
    check("model.architecture", "ahead_of:made")


def test_modules_own_use_of_common_words_hides_no_wrong_name(module: Path) -> None:
    """`eval` and `modules` are methods of every network."""
    (module / "ahead_of.py").write_text("def net(n):\n    made.eval()\n    return list(made.modules())\n")
    with pytest.raises(ConfigError, match="has no 'made'"):
        check("model.architecture", "ahead_of:made")


def test_modules_without_source_are_left_to_the_import() -> None:
    check("data.metric", "math:sqrt")
    check("data.metric", "_bz2:anything")


def test_module_that_is_not_there_or_not_python_is_named_with_its_line(module: Path) -> None:
    with pytest.raises(ConfigError, match="there is no module 'ahead_off'"):
        check("model.architecture", "ahead_off:net")
    (module / "ahead_of.py").write_text("x = 1\ndef net(:\n")
    with pytest.raises(ConfigError, match=r"ahead_of\.py:2 is not Python"):
        check("model.architecture", "ahead_of:net")


def _refused(capsys: pytest.CaptureFixture[str], tmp_path: Path, *words: str) -> ConfigError:
    with pytest.raises(ConfigError) as refused:
        run(["target=host", f"artifacts_dir={tmp_path}/artifacts", *words])
    assert capsys.readouterr().out == "" and not (tmp_path / "artifacts").exists()
    return refused.value


OWN = ("model=torchvision", "model.name=mine", "data=digits", "model.architecture=ahead_of:Net")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ((*OWN[:3], "model.architecture=ahead_of:Nett"), "has no 'Nett'; did you mean 'Net'"),
        ((*OWN, "data.metric=ahead_of:topp"), "has no 'topp'"),
        ((*OWN[:3], "model.architecture=resnet188"), "unknown architecture 'resnet188'; did you mean 'resnet18'"),
        ((*OWN, "model.weights=page.pt"), "is an HTML page"),
        ((*OWN, "model.weights=empty.pt"), "an empty file"),
        ((*OWN, "model.weights=folder"), "cannot be read: Is a directory"),
        ((*OWN, "model.weights=pointer.safetensors"), "is a Git LFS pointer"),
        (("model=mobilenetv3", "data=imagefolder", "data.root=page.pt"), "is not a folder"),
        (("model=mobilenetv3", "data=imagefolder", "data.root=folder"), "there are no images below"),
        (("model=mobilenetv3", "data=imagefolder", "data.root=high"), "is one level too high"),
        (("model=mobilenetv3", "data=imagefolder", "data.root=high/all"), "has 3 samples, and the splits ask for more"),
        (("model=mobilenetv3", "data=imagefolder", "data.root=high/all", "data.num_classes=2"), "the data has 1 class"),
        (("model=mobilenetv3", "data.splits.report=2000"), "has 1797 samples"),
        (("model=mobilenetv3", "data.splits.selection=0"), "selection is 0, and must be at least 1"),
        (("model=mobilenetv3", "data.resize=-1"), "resize is -1, and must be at least 0"),
        (("model=mobilenetv3", "data.crop=0"), "crop is 0"),
        (("model=mobilenetv3", "data.std=[1,0,1]"), r"std\[1\] is 0.0, and must be above 0"),
        (("model=mobilenetv3", "data.mean=[0.5]"), "mean has 1 value, and must have 3"),
        (
            ("model=mobilenetv3", "data.background=[1,2,256]"),
            r"background\[2\] is 256.0, and must be at least 0",
        ),
        (("model=mobilenetv3", "data.orientation=exf"), "one of exif, stored; did you mean 'exif'"),
        (("model=mobilenetv3", "data.unreadable=skp"), "must be one of error, skip; did you mean 'skip'"),
        (("model=mobilenetv3", "model.num_classes=0"), "num_classes is 0"),
        (("model=mobilenetv3", "steps.export.opset=12"), "opset is 12, and must be at least 13"),
        (("model=mobilenetv3", "steps.benchmark.min_calls=0"), "min_calls is 0"),
        (("model=mobilenetv3", "steps.calibrate.bins=1"), "bins is 1"),
        (("model=mobilenetv3", "objective=throughput", "steps.sweep.max_batch=5000"), "max_batch is 5000"),
        (("model=mobilenetv3", "candidate.openvino_int8.steps.quantize.preset=mixd"), "did you mean 'mixed'"),
        (("model=mobilenetv3", "candidate.onnxruntime_int8.steps.quantize.percentile=50"), "percentile is 50.0"),
        (("model=mobilenetv3", "candidate.onnxruntime_int8.steps.quantize.ranges=entropy"), "unknown ranges"),
        (("model=mobilenetv3", "seed=-1"), "seed is -1"),
        (("model=mobilenetv3", "budget.latency_p95_ms=0"), "budget.latency_p95_ms is 0.0"),
        (("model=mobilenetv3", "budget.size_mb=-3"), "budget.size_mb is -3.0"),
        (("model=mobilenetv3", "budget.accuracy_min=101"), "budget.accuracy_min is 101.0"),
        (("model=mobilenetv3", "model.accuracy=101"), "model.accuracy is 101.0"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_plan_refuses_what_no_build_could_do(
    module: Path, capsys: pytest.CaptureFixture[str], words: tuple[str, ...], said: str
) -> None:
    (module / "page.pt").write_text("<!DOCTYPE html><html></html>")
    (module / "empty.pt").touch()
    (module / "pointer.safetensors").write_text("version https://git-lfs.github.com/spec/v1\n")
    (module / "folder").mkdir()
    pictures = module / "high" / "all" / "cat"
    pictures.mkdir(parents=True)
    for number in range(3):
        Image.new("RGB", (4, 4)).save(pictures / f"{number}.png")
    error = _refused(capsys, module, *words)
    assert error.exit_code == 2
    assert re.search(said, error.what), error.what


def test_what_is_in_the_store_already_is_not_looked_at_again(built: Any) -> None:
    assert {row["state"] for row in built.plan().values()} <= {"hit", "on demand", "pending"}


def test_plan_that_looks_ahead_imports_nothing_heavy(tmp_path: Path) -> None:
    done = command(
        "plan", "target=host", "model=mobilenetv3", f"artifacts_dir={tmp_path}", "--json",
        env={"PYTHONPATH": str(Path(__file__).parent.parent), "PYTHONPROFILEIMPORTTIME": "1", "PATH": "/usr/bin:/bin"},
    )  # fmt: skip
    imported = {line.rpartition("|")[2].strip() for line in done.err.splitlines() if line.startswith("import time:")}
    assert done.code == 0 and json.loads(done.out)["steps"]
    assert "compiler.stages._checkpoint" in imported
    assert not imported & {"torch", "torchvision", "numpy", "sklearn", "PIL", "onnx", "openvino", "tensorflow"}


def test_names_of_architectures_are_torchvisions_own() -> None:
    import torchvision

    assert architectures() == sorted(torchvision.models.list_models(module=torchvision.models))
    assert "torchvision" in sys.modules


# -- limits ------------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(kw_only=True)
class Fields:
    """Fields of every kind that limits stand at."""

    share: Annotated[float, Between(0, 1)] = 0.5
    count: Annotated[int, Between(0, above=True)] | None = None
    each: tuple[Annotated[int, Between(-2, 2)], ...] = ()
    way: Annotated[str, OneOf("fast", "slow")] = "fast"


@given(st.floats(allow_nan=False))
def test_numbers_pass_exactly_within_their_limits(value: float) -> None:
    try:
        assert typed.make(Fields, {"share": value}).share == value and 0 <= value <= 1
    except typed.TypeMismatch as error:
        assert not 0 <= value <= 1 and "must be at least 0 and at most 1" in str(error)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"count": 0}, "count is 0, and must be above 0"),
        ({"each": [1, 3]}, r"each\[1\] is 3, and must be at least -2 and at most 2"),
        ({"way": "fats"}, "way is 'fats', and must be one of fast, slow; did you mean 'fast'"),
        ({"share": "2"}, "share is 2.0"),
    ],
)
def test_limits_hold_below_optional_and_listed_values(values: dict[str, Any], said: str) -> None:
    with pytest.raises(typed.TypeMismatch, match=said):
        typed.make(Fields, values)
    assert typed.make(Fields, {"count": None, "each": [-2, 2]}).each == (-2, 2)


def test_every_default_of_our_own_stages_lies_within_its_limits() -> None:
    made = make_stage(Samples, {"dataset": "digits"}, "samples")
    again = make_stage(Samples, dataclasses.asdict(made), "samples")  # type: ignore[call-overload]
    assert made == again
    quantize = make_stage(Quantize, {}, "quantize")
    assert make_stage(Quantize, dataclasses.asdict(quantize), "quantize") == quantize  # type: ignore[call-overload]


def test_build_looks_at_all_that_it_will_run_before_it_runs_anything(module: Path) -> None:
    """The architecture's name would come out after the samples were read."""
    done = command(
        "target=host", "model=torchvision", "model.name=mine", "model.architecture=resnet188", "data=digits",
        f"artifacts_dir={module}/artifacts",
    )  # fmt: skip
    assert done.code == 2 and "did you mean 'resnet18'" in done.err and done.executed == []
