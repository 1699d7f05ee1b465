"""What a network of the user's own is told before anything is made of it, in its own words and with its own line."""

from __future__ import annotations

import inspect
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import QUICK, ROOT, command
from torch import nn
from torch.nn import functional

from compiler.conversion import advice
from compiler.errors import ConfigError, StepError
from compiler.runtime import pytorch
from compiler.stages._trial import try_network
from compiler.stages.export import _traced
from compiler.user_code import is_own, own_line

EXAMPLE = torch.randn((3, 3, 24, 24), generator=torch.Generator().manual_seed(7))


class Head(nn.Module):
    """Mean over space and a linear layer: what the networks below do something wrong before, or after."""

    channels = 3

    def __init__(self, num_classes: int = 5) -> None:
        super().__init__()
        self.first = nn.Conv2d(self.channels, 6, 3, stride=2)
        self.last = nn.Linear(6, num_classes)

    def logits(self, x: torch.Tensor) -> torch.Tensor:
        answer: torch.Tensor = self.last(functional.relu(self.first(x)).mean((2, 3)))
        return answer

    def forward(self, x: torch.Tensor) -> Any:
        return self.logits(x)


class Defaults(Head):
    def forward(self, x: torch.Tensor, mask: Any = None, *more: Any, scale: float = 1.0, **rest: Any) -> Any:
        return self.logits(x) * scale


class Starred(Head):
    def forward(self, *images: torch.Tensor) -> Any:
        return self.logits(images[0])


class Three(Head):
    def forward(self, left: torch.Tensor, right: torch.Tensor, depth: torch.Tensor) -> Any:
        return self.logits(left + right + depth)


class Keyword(Head):
    def forward(self, x: torch.Tensor, *, age: torch.Tensor) -> Any:
        return self.logits(x) + age


class NoInput(Head):
    def forward(self) -> Any:
        return self.logits(EXAMPLE)


class Grey(Head):
    channels = 1


class Infrared(Head):
    channels = 4


class Raises(Head):
    def forward(self, x: torch.Tensor) -> Any:
        names = {"cat": 1}
        return self.logits(x) * names["dog"]  # the line that is at fault


class Dictionary(Head):
    def forward(self, x: torch.Tensor) -> Any:
        return {"scores": self.logits(x), "features": x}


class Pair(Head):
    def forward(self, x: torch.Tensor) -> Any:
        return self.logits(x), self.first(x)


class Map(Head):
    def forward(self, x: torch.Tensor) -> Any:
        return self.first(x)


class Classes(Head):
    def forward(self, x: torch.Tensor) -> Any:
        return self.logits(x).argmax(1, keepdim=True)


class Nothing(Head):
    def forward(self, x: torch.Tensor) -> Any:
        self.logits(x)


class Dropout(Head):
    def forward(self, x: torch.Tensor) -> Any:
        return self.logits(functional.dropout2d(x, 0.5, training=True))


class Noise(Head):
    def forward(self, x: torch.Tensor) -> Any:
        return self.logits(x + torch.rand(x.shape))


class PythonNoise(Head):
    def forward(self, x: torch.Tensor) -> Any:
        return self.logits(x) * float(np.random.uniform(1, 2))


class Counter(Head):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("seen", torch.zeros(1))

    def forward(self, x: torch.Tensor) -> Any:
        self.seen += 1
        return self.logits(x) + self.seen


class Average(Head):
    """Its state is a plain attribute, and deep inside."""

    def __init__(self) -> None:
        super().__init__()
        self.last = Running()  # type: ignore[assignment]


class Running(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.mean = 0.0

    def forward(self, x: torch.Tensor) -> Any:
        self.mean = 0.5 * self.mean + float(x.mean())
        return x - self.mean


class InPlace(Head):
    def forward(self, x: torch.Tensor) -> Any:
        return self.logits(x.sub_(0.25).clamp_(min=0).add_(0.5))


class ReluInPlace(Head):
    def forward(self, x: torch.Tensor) -> Any:
        return self.logits(nn.ReLU(inplace=True)(x))


class Mixes(Head):
    def forward(self, x: torch.Tensor) -> Any:
        return self.logits(x - x.mean())


class Branches(Head):
    def forward(self, x: torch.Tensor) -> Any:
        if x.sum() > 0:  # what torch.export cannot follow
            return self.logits(x)
        return self.logits(-x)


def _refused(network: type[Head]) -> ConfigError:
    with pytest.raises(ConfigError) as caught:
        try_network(network().eval(), EXAMPLE)
    return caught.value


def _line(network: type[Head], text: str) -> str:
    """Where the source of `network` has `text`, as messages name it."""
    lines, start = inspect.getsourcelines(network)
    return f"test_own_network.py:{start + next(n for n, line in enumerate(lines) if text in line)}, in forward"


@pytest.mark.parametrize("network", [Head, Defaults, Starred])
def test_network_that_takes_one_picture_is_taken_whatever_else_its_forward_names(network: type[Head]) -> None:
    trial = try_network(network().eval(), EXAMPLE)
    assert trial.any_batch and not trial.changes_input and trial.logits.shape == (1, 5)


@pytest.mark.parametrize(
    ("network", "said"),
    [
        (Three, "forward takes three inputs (left, right, depth); one image is supported"),
        (Keyword, "forward takes two inputs (x, age); one image is supported"),
        (NoInput, "forward takes no inputs; one image is supported"),
    ],
)
def test_forward_that_takes_something_else_than_one_image_is_told_so(network: type[Head], said: str) -> None:
    error = _refused(network)
    assert said in error.what and _line(network, "def forward") in error.what and "wrap the network" in error.fix


@pytest.mark.parametrize(("network", "fix"), [(Grey, "x.mean(1, keepdim=True)"), (Infrared, "takes 4 channels")])
def test_network_of_other_channels_is_told_which_pictures_it_was_given(network: type[Head], fix: str) -> None:
    error = _refused(network)
    assert "does not take the data's pictures (1, 3, 24, 24) float32: RuntimeError: Given groups=1" in error.what
    assert "test_own_network.py:" in error.what and "in logits" in error.what and fix in error.fix


def test_error_of_the_networks_own_is_told_with_its_line() -> None:
    error = _refused(Raises)
    assert "KeyError: 'dog'" in error.what and _line(Raises, "at fault") in error.what
    assert "library" not in error.fix and "quantizer" not in error.fix


@pytest.mark.parametrize(
    ("network", "said"),
    [
        (Dictionary, "a dict with scores, features"),
        (Pair, "a tuple of 2: a float32 tensor of shape (1, 5); a float32 tensor of shape (1, 6, 11, 11)"),
        (Map, "a float32 tensor of shape (1, 6, 11, 11)"),
        (Classes, "an int64 tensor of shape (1, 1)"),
        (Nothing, "nothing (None)"),
    ],
)
def test_output_that_is_not_logits_is_named_as_it_is(network: type[Head], said: str) -> None:
    error = _refused(network)
    assert f"one (batch, classes) tensor but {said}" in error.what and _line(network, "def forward") in error.what


@pytest.mark.parametrize(
    ("network", "line"), [(Dropout, "dropout2d"), (Noise, "torch.rand"), (PythonNoise, "def forward")]
)
def test_network_that_draws_random_numbers_is_told_where(network: type[Head], line: str) -> None:
    error = _refused(network)
    assert "answers the same picture differently each time: it draws random numbers" in error.what
    assert _line(network, line) in error.what and "self.training" in error.fix


@pytest.mark.parametrize(("network", "name"), [(Counter, "seen"), (Average, "last.mean")])
def test_network_that_remembers_earlier_calls_is_told_what_changed(network: type[Head], name: str) -> None:
    error = _refused(network)
    assert f"its answer depends on earlier calls: {name} changed in between" in error.what


@pytest.mark.parametrize("network", [InPlace, ReluInPlace])
def test_network_that_writes_into_its_input_keeps_its_open_batch_and_the_callers_array(
    network: type[Head], tmp_path: Path
) -> None:
    torch.manual_seed(3)
    model = network().eval()
    with torch.no_grad():
        expected = torch.cat([model(row[None].clone()) for row in EXAMPLE]).numpy()
    kept = EXAMPLE.clone()
    trial = try_network(model, EXAMPLE)
    assert trial.any_batch and trial.changes_input and torch.equal(EXAMPLE, kept)
    pytorch.save(model, (1, 3, 24, 24), 5, tmp_path / "m.safetensors", trial.any_batch, trial.changes_input)
    session = pytorch.open(
        tmp_path / "m.safetensors", {"architecture": f"test_own_network:{network.__name__}", "batch": 3}
    )
    array = EXAMPLE.numpy().copy()
    for _ in range(3):
        np.testing.assert_allclose(session.run([array])[0], expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(array, EXAMPLE.numpy())
    program = _traced(model, EXAMPLE[:1], None)
    assert not any("mutation" in spec.kind.name.lower() for spec in program.graph_signature.output_specs)


def test_network_that_leaves_its_input_alone_is_given_no_copy(tmp_path: Path) -> None:
    model = Head().eval()
    trial = try_network(model, EXAMPLE)
    pytorch.save(model, (1, 3, 24, 24), 5, tmp_path / "m.safetensors", trial.any_batch, trial.changes_input)
    module, _, _ = pytorch.load(tmp_path / "m.safetensors", "test_own_network:Head", None)
    assert not model._forward_pre_hooks and not module._forward_pre_hooks


def test_network_that_mixes_the_samples_of_a_batch_has_none() -> None:
    assert not try_network(Mixes().eval(), EXAMPLE).any_batch


def test_network_with_damaged_weights_is_no_network_that_answers_differently() -> None:
    model = Head().eval()
    with torch.no_grad():
        model.last.bias[0] = float("nan")
    assert not torch.isfinite(try_network(model, EXAMPLE).logits).all()


def test_network_that_cannot_be_traced_is_told_its_line_and_no_quantizer() -> None:
    with pytest.raises(StepError) as caught:
        _traced(Branches().eval(), EXAMPLE[:1], None)
    assert "torch.export cannot follow the network" in caught.value.what
    assert _line(Branches, "cannot follow") in caught.value.what and "quantizer" not in caught.value.fix


def test_only_a_quantizers_result_is_blamed_on_the_quantizer() -> None:
    assert [p for p in ("fp32", "fp16", "bf16", "dynamic_int8", "int8") if "quantizer" in advice(p)] == [
        "dynamic_int8", "int8",
    ]  # fmt: skip


def test_line_of_an_error_is_the_users_and_neither_ours_nor_a_librarys() -> None:
    assert is_own(__file__) and not is_own(torch.__file__) and not is_own(json.__file__)
    assert not is_own(pytorch.__file__) and not is_own("<string>")
    with pytest.raises(json.JSONDecodeError) as caught:
        json.loads("{")
    assert "in test_line_of_an_error" in str(own_line(caught.value))


def test_error_raised_by_a_library_because_of_the_users_is_traced_to_the_first() -> None:
    scope: dict[str, Any] = {}
    exec("def call(f):\n    try:\n        f()\n    except KeyError as e:\n        raise ValueError('x') from e", scope)
    with pytest.raises(ValueError, match="x") as caught:
        scope["call"](lambda: {}["a"])
    error = caught.value
    error.__traceback__ = error.__traceback__.tb_next if error.__traceback__ else None  # the library's own frame
    assert "<lambda>" in str(own_line(error))


@pytest.mark.real
def test_network_that_writes_into_its_input_is_built_with_an_open_batch_and_one_that_is_wrong_ends_with_2(
    tmp_path: Path,
) -> None:
    own = ["model=torchvision", "model.name=mine", "candidates=[tflite_fp32]", f"artifacts_dir={tmp_path}"]
    done = command(*QUICK, "target=rpi4", *own, "model.architecture=test_own_network:InPlace", cwd=ROOT / "tests")
    assert done.code == 0, done.err
    signatures = [json.loads(path.read_text()) for path in (tmp_path / ".store/objects").rglob("signature.json")]
    assert len(signatures) >= 3 and all(s["dynamic_batch"] for s in signatures)
    fidelity = [json.loads(path.read_text()).get("fidelity") for path in tmp_path.rglob("facts.json")]
    assert all(f["centred_cosine"] > 0.9999 for f in fidelity if f)
    wrong = command(*QUICK, "target=rpi4", *own, "model.architecture=test_own_network:Raises", cwd=ROOT / "tests")
    fix, cause = wrong.last_lines()
    assert wrong.code == 2 and _line(Raises, "at fault") in cause and "KeyError: 'dog'" in cause
    assert "library" not in fix and "quantizer" not in fix
