"""Eager PyTorch, the uncompiled baseline: the network's own module with its weights from a safetensors file.

The file's metadata holds the number of classes, the input's shape, whether the network takes other batches and
whether it writes into its input. Which
module it is comes from the options, that is, from local configuration: a file never names code to be run.
"""

from __future__ import annotations

import importlib
import inspect
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from compiler.errors import ConfigError, unknown_name
from compiler.runtime.session import Array, batch_of, fixed_batch, tensor

INIT_WEIGHTS = ("googlenet", "inception_v3")  # these ask to be told that random weights are wanted


class PytorchSession:
    """See `compiler.runtime.session.Session`."""

    def __init__(self, path: Path, threads: int, architecture: str, batch: int | None) -> None:
        import torch

        torch.set_num_threads(threads)
        self._torch = torch
        self._module, self._shape, self._classes = load(path, architecture, batch)

    def run(self, inputs: Sequence[Array]) -> list[Array]:
        """One inference, in inference mode."""
        with self._torch.inference_mode():
            return [self._module(*(self._torch.from_numpy(value) for value in inputs)).numpy()]

    def signature(self) -> dict[str, list[dict[str, Any]]]:
        """One image input, one output of logits."""
        return {
            "inputs": [tensor("input", "float32", self._shape)],
            "outputs": [tensor("logits", "float32", [self._shape[0], self._classes])],
        }


def load(path: Path, architecture: str, batch: int | None) -> tuple[Any, list[int], int]:
    """The network with its weights, its input's shape at `batch`, and the number of its classes.

    Raises:
        ConfigError: there is no such architecture, or the network cannot be run at the batch.
    """
    from safetensors import safe_open

    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
        state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
    facts = json.loads(metadata["network"])
    classes, shape = int(facts["num_classes"]), [int(n) for n in facts["input_shape"]]
    if batch is not None and batch != shape[0]:
        if not facts.get("any_batch", True):
            raise fixed_batch(path, shape[0], batch)
        shape[0] = batch
    module = network(architecture, classes)
    module.load_state_dict(with_versions(state, module))
    module.eval()
    if facts.get("changes_input"):
        feed_copies(module)
    return module, shape, classes


def with_versions(state: Mapping[str, Any], module: Any) -> Any:
    """Return `state` as an OrderedDict with the versions of today's modules, which safetensors files do not hold.

    Modules read the versions when they load: torchvision's MNASNet refuses a state dict without one.
    """
    versioned = module.state_dict()  # has them in `_metadata`, which an OrderedDict keeps
    versioned.clear()
    versioned.update(state)
    return versioned


def feed_copies(module: Any) -> None:
    """Lets the module be called with a copy of its inputs: it writes into them, and they are the caller's.

    The copy is part of what is timed, as such a network cannot be called twice without it.
    """
    module.register_forward_pre_hook(lambda _, inputs: tuple(value.clone() for value in inputs))


def network(architecture: str, classes: int) -> Any:
    """A torch.nn.Module with random weights: torchvision's by name, or what `package.module:function` returns.

    Raises:
        ConfigError: there is no such architecture.
    """
    if ":" in architecture:
        module, _, name = architecture.partition(":")
        try:
            factory = getattr(importlib.import_module(module), name)
        except (ImportError, AttributeError, SyntaxError, ValueError) as error:
            raise ConfigError(
                f"model.architecture {architecture!r} cannot be loaded: {error}",
                fix="name it package.module:function, importable from the working folder",
            ) from error
        _check_call(architecture, factory)
        try:
            module_ = factory(num_classes=classes)
        except Exception as error:
            from compiler.user_code import own_line

            line = own_line(error)
            raise ConfigError(
                f"{architecture}(num_classes={classes}) failed inside: {type(error).__name__}: {error}"
                f"{f' ({line})' if line else ''}",
                fix="it was called as it should be: correct that line, or set model.num_classes to a count it takes",
            ) from error
        if not hasattr(module_, "named_parameters"):
            raise ConfigError(
                f"{architecture} returned {type(module_).__name__}", fix="it must return a torch.nn.Module"
            )
        return module_
    import torchvision

    known = torchvision.models.list_models(module=torchvision.models)
    if architecture not in known:
        raise unknown_name("architecture", architecture, known)
    extra = {"init_weights": True} if architecture in INIT_WEIGHTS else {}
    return torchvision.models.get_model(architecture, weights=None, num_classes=classes, **extra)


def _check_call(architecture: str, factory: Any) -> None:
    """Raises ConfigError where `factory` cannot be called with `num_classes` alone; it is not called."""
    fix = "it must take num_classes and return a torch.nn.Module"
    if not callable(factory) or (hasattr(factory, "state_dict") and not isinstance(factory, type)):
        raise ConfigError(f"{architecture} is a {type(factory).__name__} object, not a function or class", fix=fix)
    try:
        signature = inspect.signature(factory)
    except (TypeError, ValueError):
        return  # not a function of Python's: calling it will tell
    try:
        signature.bind(num_classes=1)
    except TypeError as error:
        raise ConfigError(
            f"{architecture}{str(signature)[:160]} cannot be called with num_classes: {error}", fix=fix
        ) from None


def save(
    module: Any, shape: Sequence[int], classes: int, path: Path, any_batch: bool = True, changes_input: bool = False
) -> None:
    """Writes a module's weights as `open` reads them; `shape` is the input's, with the batch.

    `any_batch`: the module runs at other batches, and answers each sample as it does alone. `changes_input`: it writes
    into its input, and is given a copy.
    """
    from safetensors.torch import save_file

    state = {name: value.detach().clone().contiguous() for name, value in module.state_dict().items()}
    facts = {"input_shape": list(shape), "num_classes": classes, "any_batch": any_batch}
    if changes_input:
        facts["changes_input"] = True
    save_file(
        state, path, metadata={"network": json.dumps(facts)}
    )  # one entry: safetensors writes several in any order


def open(path: Path, options: Mapping[str, Any]) -> PytorchSession:
    """Opens a `.safetensors` file. `options`: `threads`, `batch`, `architecture` (required).

    Raises:
        ConfigError: no architecture is named, or the network cannot be run at the batch.
    """
    return PytorchSession(path, int(options.get("threads", 1)), architecture_of(options), batch_of(options))


def architecture_of(options: Mapping[str, Any]) -> str:
    """The architecture that the options name.

    Raises:
        ConfigError: they name none.
    """
    if "architecture" not in options:
        raise ConfigError("the pytorch runtime is not told the architecture", fix="set it in the candidate's options")
    return str(options["architecture"])
