"""Weights as training leaves them: taken where PyTorch takes them, renamed where that explains all, else named."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torch.nn.utils import parametrizations, parametrize

from compiler.errors import ConfigError
from compiler.runtime.pytorch import load as reload
from compiler.runtime.pytorch import save
from compiler.stages._checkpoint import read_sets
from compiler.stages._file_kinds import imported_names
from compiler.stages._fit import fit


class Net(nn.Module):
    """Its head comes first, and is a matrix of (features, classes)."""

    def __init__(self, num_classes: int, features: int = 5) -> None:
        super().__init__()
        self.projection = nn.Parameter(torch.randn(features, num_classes))
        self.stem = nn.Conv2d(3, features, 3, bias=False)
        self.norm = nn.BatchNorm2d(features)
        self.scale = torch.ones(1).sum().item()  # fails on the meta device

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(n, 3, height, width) to (n, classes)."""
        return self.norm(self.stem(x)).mean((2, 3)) @ self.projection * self.scale


def weight_norm(num_classes: int) -> nn.Module:
    """With the parametrization of today."""
    return nn.Sequential(parametrizations.weight_norm(nn.Linear(4, 6)), nn.ReLU(), nn.Linear(6, num_classes))


def hooked_norm(num_classes: int) -> nn.Module:
    """With the hook of before."""
    return nn.Sequential(torch.nn.utils.weight_norm(nn.Linear(4, 6)), nn.ReLU(), nn.Linear(6, num_classes))


def fitted(path: Path, build: Callable[[int], nn.Module], classes: int = 4, infer: bool = True) -> Any:
    """The network and the notes."""
    return fit(build, read_sets(path), classes, path, "own:net", infer=infer)


def state_of(seed: int = 1, classes: int = 4) -> dict[str, torch.Tensor]:
    torch.manual_seed(seed)
    return dict(Net(classes).state_dict())


def under(prefix: str, state: dict[str, Any]) -> dict[str, Any]:
    return {prefix + name: value for name, value in state.items()}


def same(network: Any, state: dict[str, torch.Tensor]) -> bool:
    own = network.state_dict()
    return all(torch.equal(own[name], value) for name, value in state.items())


@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.", "net.", "_orig_mod.module.", "student.backbone."])
def test_prefixes_of_wrappers_are_removed_and_said(prefix: str, tmp_path: Path) -> None:
    state = state_of()
    torch.save(under(prefix, state), tmp_path / "w.ckpt")
    network, notes = fitted(tmp_path / "w.ckpt", Net)
    assert same(network, state) and (prefix in str(notes) if prefix else notes == [])


def test_wrapped_network_takes_the_weights_of_what_it_wraps(tmp_path: Path) -> None:
    state = state_of()
    save_file(state, tmp_path / "w.bin")  # safetensors, whatever it is called

    def wrapped(num_classes: int) -> nn.Module:
        return nn.ModuleDict({"body": Net(num_classes)})

    network, notes = fitted(tmp_path / "w.bin", wrapped)
    assert same(network, under("body.", state)) and "'body.' was put before" in str(notes)


def test_counters_of_wrappers_and_missing_counters_of_norms_are_no_misfit(tmp_path: Path) -> None:
    state = state_of()
    torch.save({"n_averaged": torch.tensor(7), **under("module.", state)}, tmp_path / "swa.pt")
    network, notes = fitted(tmp_path / "swa.pt", Net)
    assert same(network, state) and "n_averaged" in str(notes)
    bare = Net(4).state_dict()  # with its modules' versions, which say that a counter belongs there
    del bare["norm.num_batches_tracked"]
    torch.save(bare, tmp_path / "bare.pt")
    network, notes = fitted(tmp_path / "bare.pt", Net)
    assert same(network, bare) and "num_batches_tracked is missing" in str(notes)


def test_a_state_dict_is_found_under_any_key_and_averages_are_named(tmp_path: Path) -> None:
    raw, averaged = state_of(1), state_of(2)
    optimizer = {"state": {0: {"exp_avg": torch.ones(3)}}, "param_groups": []}
    torch.save({"epoch": 3, "net": raw, "optimizer": optimizer}, tmp_path / "net.pth")
    network, notes = fitted(tmp_path / "net.pth", Net)
    assert same(network, raw) and "'net'" in str(notes)
    torch.save({"model_ema": {"ema": averaged}, "state_dict": under("module.", raw)}, tmp_path / "both.pth")
    network, notes = fitted(tmp_path / "both.pth", Net)
    assert same(network, raw) and "model_ema.ema" in str(notes) and "['model_ema']['ema']" in str(notes)


@pytest.mark.parametrize("classes", [3, 4, 9])
def test_classes_are_the_datas_or_what_the_tensors_tell(classes: int, tmp_path: Path) -> None:
    state = state_of(classes=classes)
    torch.save(under("module.", state), tmp_path / "w.pt")
    network, _ = fitted(tmp_path / "w.pt", Net)
    assert same(network, state) and network.projection.shape[1] == classes
    if classes != 4:
        with pytest.raises(ConfigError, match="does not fit"):
            fitted(tmp_path / "w.pt", Net, infer=False)


def test_network_that_cannot_be_built_for_another_count_still_loads_and_still_says_what_does_not_fit(
    tmp_path: Path,
) -> None:
    def only_four(num_classes: int) -> nn.Module:
        if num_classes != 4:
            raise RuntimeError("four it is")
        return Net(4)

    torch.save(state_of(), tmp_path / "w.pt")
    assert same(fitted(tmp_path / "w.pt", only_four)[0], state_of())
    torch.save(state_of(classes=7), tmp_path / "seven.pt")
    with pytest.raises(ConfigError, match="does not fit own:net") as failed:
        fitted(tmp_path / "seven.pt", only_four)
    assert "projection: checkpoint (5, 7), network (5, 4)" in str(failed.value.details)


@pytest.mark.parametrize(
    ("saved", "wanted"), [(a, b) for a in (weight_norm, hooked_norm) for b in (weight_norm, hooked_norm)]
)
@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_both_names_of_weight_norm_load_into_both_networks(
    saved: Callable[[int], nn.Module], wanted: Callable[[int], nn.Module], tmp_path: Path
) -> None:
    torch.manual_seed(3)
    before = saved(4).eval()
    torch.save(dict(before.state_dict()), tmp_path / "w.pt")
    network, _ = fitted(tmp_path / "w.pt", wanted)
    x = torch.randn(2, 4)
    assert torch.allclose(network.eval()(x), before(x), atol=1e-6)
    assert saved is not weight_norm or parametrize.is_parametrized(before[0])


def test_network_whose_load_failed_halfway_holds_nothing_of_the_first_set(tmp_path: Path) -> None:
    """PyTorch copies what fits before it raises."""
    wrong = state_of(5) | {"norm.running_mean": torch.full((5,), 9.0), "norm.num_batches_tracked": torch.tensor(99)}
    del wrong["projection"]
    right = state_of(6)
    del right["norm.num_batches_tracked"]
    torch.save({"a_first": wrong, "second": right}, tmp_path / "w.pt")
    network, _ = fitted(tmp_path / "w.pt", Net)
    assert same(network, right) and int(network.norm.num_batches_tracked) == 0


def test_modules_that_ask_for_a_version_load_from_safetensors(tmp_path: Path) -> None:
    """torchvision's MNASNet raises where a state dict has no version, and safetensors keeps none."""
    from torchvision.models import mnasnet0_5

    torch.manual_seed(0)
    state = mnasnet0_5(num_classes=4).state_dict()
    save_file({name: value.contiguous() for name, value in state.items()}, tmp_path / "w.safetensors")
    network, notes = fitted(tmp_path / "w.safetensors", lambda n: mnasnet0_5(num_classes=n))
    assert same(network, state) and notes == []
    save(network, (1, 3, 32, 32), 4, tmp_path / "module.safetensors")
    assert same(reload(tmp_path / "module.safetensors", "mnasnet0_5", None)[0], state)


class Evil:
    """Runs a command when it is unpickled by a careless loader."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> Any:
        return (Path.touch, (self.canary,))


def test_checkpoint_with_code_is_refused_its_code_is_never_run_and_the_lines_that_save_it_are_told(
    tmp_path: Path,
) -> None:
    canary = tmp_path / "canary"
    torch.save({"weight": Evil(canary)}, tmp_path / "evil.pt")
    (tmp_path / "plain.pt").write_bytes(pickle.dumps({"weight": Evil(canary)}))
    torch.save(Net(4), tmp_path / "whole.pt")
    for name in ("evil.pt", "plain.pt", "whole.pt"):
        with pytest.raises(ConfigError, match="whose code is never run here") as refused:
            read_sets(tmp_path / name)
        assert "weights_only=False" in str(refused.value.details)
    assert not canary.exists()
    assert any("Net" in name for name in imported_names(tmp_path / "whole.pt"))


def test_numpy_values_are_named_with_the_lines_that_leave_them_out(tmp_path: Path) -> None:
    torch.save({"best": np.float64(91.5), "state_dict": state_of()}, tmp_path / "w.pth")
    with pytest.raises(ConfigError, match="holds NumPy values") as refused:
        read_sets(tmp_path / "w.pth")
    code = "\n".join(refused.value.details).replace("'w.pth'", repr(str(tmp_path / "w.pth")))
    code = code.replace("'w-state.pt'", repr(str(tmp_path / "w-state.pt")))
    exec(code, {})
    assert same(fitted(tmp_path / "w-state.pt", Net)[0], state_of())


def test_programs_are_named_with_the_line_that_makes_a_state_dict_of_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    network = Net(4).eval()
    torch.jit.save(torch.jit.trace(network, torch.zeros(1, 3, 8, 8)), tmp_path / "a.pt")  # type: ignore[no-untyped-call]
    torch.export.save(torch.export.export(network, (torch.zeros(1, 3, 8, 8),)), tmp_path / "b.pt")
    monkeypatch.chdir(tmp_path)
    for name, words in (("a", "TorchScript"), ("b", r"torch\.export")):
        with pytest.raises(ConfigError, match=words) as refused:
            read_sets(tmp_path / f"{name}.pt")
        exec("\n".join(refused.value.details), {})
        assert same(fitted(tmp_path / f"{name}-state.pt", Net)[0], dict(network.state_dict()))


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "Git LFS pointer"),
        (b"<!DOCTYPE html><html>not found</html>", "HTML page"),
        (b"\x89HDF\r\n\x1a\n" + bytes(99), "HDF5"),
        (b"\x93NUMPY\x01\x00", "NumPy array"),
        (b"", "empty file"),
        (bytes(1000), "not known"),
    ],
)
def test_what_is_no_checkpoint_is_named_by_its_content(content: bytes, words: str, tmp_path: Path) -> None:
    (tmp_path / "w.pth").write_bytes(content)
    with pytest.raises(ConfigError, match=words):
        read_sets(tmp_path / "w.pth")


@pytest.mark.parametrize("name", ["w.safetensors", "w.pt"])
@pytest.mark.parametrize("damage", ["truncated", "garbage", "empty"])
def test_corrupt_checkpoint_is_said_to_be_corrupt(tmp_path: Path, name: str, damage: str) -> None:
    path = tmp_path / name
    tensors = {"a": torch.ones(300)}
    if name.endswith("safetensors"):
        save_file(tensors, path)
    else:
        torch.save(tensors, path)
    data = path.read_bytes()
    path.write_bytes({"truncated": data[: len(data) // 2], "garbage": b"\x93" * 500, "empty": b""}[damage])
    with pytest.raises(ConfigError, match="is corrupt"):
        read_sets(path)


def test_what_holds_no_tensors_and_what_is_missing_is_said(tmp_path: Path) -> None:
    torch.save([1, 2], tmp_path / "list.pt")
    with pytest.raises(ConfigError, match="no named tensors: it is a list"):
        read_sets(tmp_path / "list.pt")
    torch.save({"epoch": 3, "lr": 0.1}, tmp_path / "none.pt")
    with pytest.raises(ConfigError, match="keys epoch, lr"):
        read_sets(tmp_path / "none.pt")
    with pytest.raises(ConfigError, match="cannot be read: No such file"):
        read_sets(tmp_path / "missing.pt")
