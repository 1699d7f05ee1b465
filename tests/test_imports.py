"""Nothing heavy is imported to plan, show, verify or do nothing; what ships to devices needs numpy alone."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT, First, Project, environment

HEAVY = {
    "torch", "torchvision", "tensorflow", "openvino", "nncf", "onnx", "onnxruntime", "onnxscript", "litert_torch",
    "ai_edge_litert", "ai_edge_quantizer", "sklearn", "scipy", "PIL", "safetensors", "numpy", "transformers",
    "tensorrt", "cuda", "torch_tensorrt",
}  # fmt: skip
PROBE = """
import json, sys
from compiler.__main__ import main
sys.argv = ["compiler", *sys.argv[1:]]
code = main()
sys.stdout.flush()
print("\\n" + json.dumps([code, sorted({name.partition(".")[0] for name in sys.modules})]))
"""


def _modules(*arguments: object) -> tuple[int, set[str]]:
    done = subprocess.run(
        [sys.executable, "-c", PROBE, *map(str, arguments)],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=environment(),
        check=True,
    )
    code, names = json.loads(done.stdout.strip().splitlines()[-1])
    return code, set(names)


def test_plan_imports_no_machine_learning_library(tmp_path: Path) -> None:
    code, names = _modules("plan", "target=xeon", f"artifacts_dir={tmp_path}")
    assert code == 0 and not HEAVY & names


def test_build_with_nothing_to_do_show_and_verify_import_no_machine_learning_library(built: Project) -> None:
    folder = built.latest
    for arguments in (built.base, ["show", folder], ["verify", folder], ["doctor", "target=xeon"], ["--help"]):
        code, names = _modules(*arguments)
        assert code == 0 and not HEAVY & names, arguments


def test_show_run_and_verify_need_neither_hydra_nor_the_build(first: First) -> None:
    folder = first.project.latest
    for arguments in (["show", folder], ["verify", folder]):
        _, names = _modules(*arguments)
        assert not {"hydra", "omegaconf"} & names


def test_runtime_opens_an_artifact_with_numpy_alone(first: First) -> None:
    folder = first.project.latest
    script = (
        "import sys, json, numpy as np\n"
        "class Only:\n"
        " def find_spec(self, name, path=None, target=None):\n"
        "  top = name.partition('.')[0]\n"
        "  if top not in ('compiler', 'numpy') and top not in sys.stdlib_module_names: raise ImportError(name)\n"
        "sys.meta_path.insert(0, Only())\n"
        "from compiler import runtime\n"
        "model = runtime.load(sys.argv[1])\n"
        "print(model.predict(np.zeros((2, 8, 8, 3), np.uint8)).shape)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, folder], capture_output=True, text=True, cwd=ROOT, env=environment(), check=False
    )
    assert done.stdout.strip() == "(2, 4)", done.stderr


@pytest.mark.parametrize("folder", ["compiler", "conf", "tests", "docs", "README.md", "Makefile", "requirements"])
def test_no_package_download_address_in_the_repository(folder: str) -> None:
    import re

    path = ROOT / folder
    files = [path] if path.is_file() else [p for p in path.rglob("*") if p.is_file() and "__pycache__" not in p.parts]
    pattern = re.compile(rb"https?://[^ \"\n]+\.(whl|tar\.gz|tgz|deb)|--(extra-)?index-url")
    assert [p for p in files if pattern.search(p.read_bytes())] == []
