"""Weights as training leaves them: taken where PyTorch takes them, renamed where that explains all, else named."""

from __future__ import annotations

import argparse
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
from compiler.runtime.pytorch import network as made_by
from compiler.runtime.pytorch import save
from compiler.stages._checkpoint import read_sets
from compiler.stages._fit import fit
from compiler.stages._pickle_contents import contents_of


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


class Exotic:
    """Names its function by strings that the pickle reads back from its memo."""

    def __reduce__(self) -> Any:
        return (getattr(__import__("posix"), "system"), ("echo",))  # noqa: B009


def run_lines(lines: list[str], folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a user would, in the file's folder."""
    monkeypatch.chdir(folder)
    exec("\n".join(lines), {})


def test_file_that_calls_functions_is_refused_never_run_and_nobody_is_told_how_to_run_it(tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    torch.save({"state_dict": state_of(), "weight": Evil(canary)}, tmp_path / "evil.pt")
    (tmp_path / "plain.pt").write_bytes(pickle.dumps({"weight": Evil(canary)}))
    (tmp_path / "newer.pt").write_bytes(pickle.dumps(["posix", "system", Exotic()], protocol=4))
    for name in ("evil.pt", "plain.pt", "newer.pt"):
        with pytest.raises(ConfigError, match="whose code is never run here") as refused:
            read_sets(tmp_path / name)
        assert refused.value.details == [] and "do not open the file" in refused.value.fix
    assert "posix.system" in contents_of(tmp_path / "newer.pt").names
    assert not canary.exists()


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("key", ["", "model"])
def test_whole_networks_are_named_with_the_lines_that_save_their_state(
    key: str, legacy: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    network = Net(4)
    content = {"epoch": 3, key: network, "optimizer": {"state": {}}} if key else network
    torch.save(content, tmp_path / "w.pt", _use_new_zipfile_serialization=not legacy)
    with pytest.raises(ConfigError, match=r"whole pickled network.*Net\)") as refused:
        read_sets(tmp_path / "w.pt")
    assert not key or "keys epoch, model, optimizer" in refused.value.what
    run_lines(refused.value.details, tmp_path, monkeypatch)
    assert same(fitted(tmp_path / "w-state.pt", Net)[0], dict(network.state_dict()))


def test_settings_of_the_training_are_named_and_the_lines_take_the_weights_not_the_optimizers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    state, optimizer = state_of(), {"state": {0: {"exp_avg": torch.ones(3)}}, "param_groups": [], "step": torch.ones(1)}
    content = {"optimizer": optimizer, "args": argparse.Namespace(lr=1), "ema": state_of(2), "net": state}
    torch.save(content, tmp_path / "w.pt")
    (tmp_path / "p.pt").write_bytes(pickle.dumps(content))
    for name in ("w", "p"):
        with pytest.raises(ConfigError, match=r"argparse\.Namespace.*keys optimizer, args, ema, net") as refused:
            read_sets(tmp_path / f"{name}.pt")
        run_lines(refused.value.details, tmp_path, monkeypatch)
        assert same(fitted(tmp_path / f"{name}-state.pt", Net)[0], state)


@pytest.mark.parametrize(
    "opcodes",
    [
        b"\x80\x02" + b"}q\x00X\x01\x00\x00\x00ah\x00s.",  # a dictionary that holds itself
        b"\x80\x04" + b"(" * 3000 + b".",
        b"\x80\x02]h\x07.",  # a memo never filled
        b"\x80\x02cargparse\nNamespace\n)R}b" * 50 + b".",
        b"\x80\x05\x96" + b"\xff" * 8,  # a byte array of 2 ** 64 bytes
        b"\x80\x02r\xff\xff\xff\x7f.",
    ],
)
def test_damaged_and_hostile_pickles_are_followed_as_far_as_they_go(opcodes: bytes, tmp_path: Path) -> None:
    (tmp_path / "w.pt").write_bytes(opcodes)
    contents = contents_of(tmp_path / "w.pt")
    assert list(contents.networks()) == [] and len(list(contents.tensors())) == 0
    with pytest.raises(ConfigError):
        read_sets(tmp_path / "w.pt")


def test_the_usual_key_is_taken_before_others_that_fit_as_well(tmp_path: Path) -> None:
    right, old = state_of(1), state_of(2)
    torch.save({"backup": old, "last": old, "state_dict": right}, tmp_path / "w.pt")
    network, notes = fitted(tmp_path / "w.pt", Net)
    assert same(network, right) and "backup, last" in str(notes)


def test_names_that_wrappers_put_in_the_middle_are_removed(tmp_path: Path) -> None:
    state = state_of()
    wrapped = {f"model.{name.replace('norm.', 'norm._orig_mod.')}": value for name, value in state.items()}
    torch.save(wrapped, tmp_path / "w.pt")
    network, notes = fitted(tmp_path / "w.pt", Net)
    assert same(network, state) and "_orig_mod" in str(notes) and "'model.'" in str(notes)


@pytest.mark.parametrize("classes", [4, 9])
def test_averages_in_the_same_dictionary_are_told_from_the_network(
    classes: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    raw, averaged = state_of(1, classes), state_of(2, classes)
    torch.save({"state_dict": {**under("ema.module.", averaged), **under("model.", raw)}}, tmp_path / "w.ckpt")
    network, notes = fitted(tmp_path / "w.ckpt", Net)
    assert same(network, raw)
    line = notes[-1].partition(": ")[2].removesuffix(" makes a file of it")
    run_lines(["import torch", line], tmp_path, monkeypatch)
    assert same(fitted(tmp_path / "other.pt", Net)[0], averaged)


@pytest.mark.parametrize("name", ["w.ckpt", "w.safetensors"])
def test_tensors_next_to_the_networks_are_named_with_the_lines_that_leave_them_out(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = {**under("model.", state_of()), "criterion.weight": torch.ones(4)}
    if name.endswith("ckpt"):
        torch.save({"state_dict": state}, tmp_path / name)
    else:
        save_file(state, tmp_path / name)
    with pytest.raises(ConfigError, match=r"'model\.' are the network's, 1 other is not: criterion\.weight") as refused:
        fitted(tmp_path / name, Net)
    run_lines(refused.value.details, tmp_path, monkeypatch)
    assert same(fitted(tmp_path / "w-state.pt", Net)[0], state_of())


def takes_no_count(width: int) -> nn.Module:
    return Net(width)


def raises_inside(num_classes: int) -> nn.Module:
    raise TypeError("unexpected keyword argument 'num_classes'")  # what a wrong call would say


AN_INSTANCE = nn.Linear(1, 1)


def test_wrong_call_is_told_from_an_error_inside_the_function() -> None:
    for name in ("takes_no_count", "AN_INSTANCE"):
        with pytest.raises(ConfigError) as wrong:
            made_by(f"{__name__}:{name}", 4)
        assert "must take num_classes" in wrong.value.fix
    with pytest.raises(ConfigError, match=r"failed inside.*test_checkpoints\.py:\d+, in raises_inside") as inside:
        made_by(f"{__name__}:raises_inside", 4)
    assert "must take" not in inside.value.fix


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
        (b"\xef\xbb\xbf\r\n  <html><body>", "HTML page"),
        (b"404: Not Found\n", "plain text"),
        ("é".encode() * 600, "plain text"),
        (bytes(4) + b"TFL3" + bytes(99), "TFLite model"),
        (bytes(257) + b"ustar\x0000" + bytes(300), "tar archive"),
        (b"\xfd7zXZ\x00" + bytes(99), "compressed file"),
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


@pytest.mark.parametrize("key", ["optimized", "semantic_model", "schema", "lossless", "schedule_free", "netG"])
def test_keys_that_only_contain_a_word_of_training_hold_weights_like_others(key: str, tmp_path: Path) -> None:
    raw = state_of(1)
    torch.save({key: raw, "optimizer": {"model": state_of(2)}, "epoch": 3}, tmp_path / "w.pt")
    assert [each.key for each in read_sets(tmp_path / "w.pt")] == [key]
    network, notes = fitted(tmp_path / "w.pt", Net)
    assert same(network, raw) and notes == [f"the weights were found under {key!r}"]


@pytest.mark.parametrize(
    ("student", "teacher"),
    [(("student",), ("teacher",)), (("nets", "v1.0"), ("nets", "v1.1")), (("ema",), ("swa",))],
)
def test_two_equally_likely_sets_that_fit_are_not_chosen_between_and_a_line_makes_a_file_of_each(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, student: tuple[str, ...], teacher: tuple[str, ...]
) -> None:
    """Keys may hold dots."""
    monkeypatch.chdir(tmp_path)
    states = {student: state_of(1), teacher: state_of(2)}
    content: dict[str, Any] = {}
    for keys, state in states.items():
        place = content
        for key in keys[:-1]:
            place = place.setdefault(key, {})
        place[keys[-1]] = state
    torch.save(content, tmp_path / "w.pt")
    with pytest.raises(ConfigError, match="holds 2 sets of weights that fit") as refused:
        fitted(tmp_path / "w.pt", Net)
    for number, line in enumerate(refused.value.details[1:]):
        exec(line, {"torch": torch})
        network, notes = fitted(tmp_path / f"w-{number}.pt", Net)
        assert same(network, states[(student, teacher)[number]]) and notes == []
    content[teacher[0]] = content[student[0]] if len(teacher) == 1 else {"v1.0": state_of(1), "v1.1": state_of(1)}
    torch.save(content, tmp_path / "w.pt")
    assert same(fitted(tmp_path / "w.pt", Net)[0], state_of(1)), "the same weights twice are one choice"


@pytest.mark.parametrize("average", ["ema", "model_ema", "modelEMA", "emaModel", "swa_state", "averaged.model"])
def test_averages_are_told_by_whole_words_and_come_last(average: str, tmp_path: Path) -> None:
    raw = state_of(1)
    torch.save({average: state_of(2), "semantic": raw}, tmp_path / "w.pt")
    network, notes = fitted(tmp_path / "w.pt", Net)
    assert same(network, raw) and average in str(notes)


def test_archive_of_numpy_arrays_is_refused_with_lines_that_make_a_state_dict_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    raw = state_of(1)
    np.savez(tmp_path / "w.npz", **{name: value.numpy() for name, value in raw.items()})
    with pytest.raises(ConfigError, match="archive of NumPy arrays") as caught:
        read_sets(tmp_path / "w.npz")
    monkeypatch.chdir(tmp_path)
    exec("\n".join(caught.value.details), {})
    network, _ = fitted(tmp_path / "w-state.pt", Net)
    assert same(network, raw)


def test_onnx_model_is_named(tmp_path: Path) -> None:
    import onnx
    from onnx import helper

    for more in ({}, {"producer_name": "x"}):
        onnx.save(helper.make_model(helper.make_graph([], "g", [], []), **more), str(tmp_path / "w.pt"))
        with pytest.raises(ConfigError, match="is an ONNX model"):
            read_sets(tmp_path / "w.pt")
