"""TensorRT 10.x and 11 behind one face: the only module that knows how they differ.

What differs, by NVIDIA's migration guide and by what the two versions' bindings list (`tests/tensorrt_api.json`):

- A network is strongly typed by a flag in 10, always in 11, where the flag is ignored and deprecated.
- The builder's precision flags (FP16, INT8, ...) and calibrators are gone in 11. They are used in neither: precision
  comes from the network.
- The memory of an engine's activations is `device_memory_size` in the first 10.x, `device_memory_size_v2` since.

Everything else below is the same in both, and is here so that the list of what we use is in one place.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from compiler.errors import MissingToolError

MAJORS = (10, 11)
SHOWN_LINES = 12


class Versions:
    """The TensorRT that is installed. `module` is the library; `log` what it says while this object is used."""

    def __init__(self, module: Any) -> None:
        self.module = module
        self.version = str(module.__version__)
        self.major = int(self.version.partition(".")[0])
        if self.major not in MAJORS:
            raise MissingToolError(
                f"TensorRT {self.version} is installed; 10.x and 11.x are known",
                fix="pip install 'tensorrt>=10.3,<12'",
            )
        self.log = _log(module)

    # -- building ------------------------------------------------------------------------------------

    def builder(self) -> Any:
        """A builder."""
        return self.module.Builder(self.log)

    def network(self, builder: Any) -> Any:
        """An empty strongly typed network."""
        if self.major == 10:
            return builder.create_network(1 << int(self.module.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
        return builder.create_network()

    def parse(self, network: Any, onnx: Path) -> list[str]:
        """Reads an ONNX file into `network`; returns the parser's errors, each with the node it is about."""
        parser = self.module.OnnxParser(network, self.log)
        if parser.parse_from_file(str(onnx)):
            return []
        found = [_sentence(parser.get_error(i)) for i in range(parser.num_errors)]
        return found or self.log.worst() or ["the parser gave no reason"]

    def config(self, builder: Any, optimization_level: int, workspace_mb: int) -> Any:
        """A builder's settings: full detail for the inspector, fp32 layers in fp32 (TF32 off)."""
        trt = self.module
        config = builder.create_builder_config()
        config.builder_optimization_level = optimization_level
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, workspace_mb << 20)
        config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
        config.clear_flag(trt.BuilderFlag.TF32)
        return config

    def add_profile(self, builder: Any, config: Any, shapes: dict[str, tuple[list[int], list[int], list[int]]]) -> bool:
        """Adds one optimization profile: for each input its least, its best and its largest shape."""
        profile = builder.create_optimization_profile()
        for name, (least, best, most) in shapes.items():
            profile.set_shape(name, tuple(least), tuple(best), tuple(most))
        return int(config.add_optimization_profile(profile)) >= 0

    def set_cache(self, config: Any, data: bytes) -> bool:
        """Gives the builder a timing cache, empty or as `cache` returned it; whether TensorRT took it."""
        return bool(config.set_timing_cache(config.create_timing_cache(data), False))

    def cache(self, config: Any) -> bytes:
        """The timing cache after a build."""
        return bytes(config.get_timing_cache().serialize())

    def build(self, builder: Any, network: Any, config: Any) -> bytes | None:
        """The engine, None where the builder gave up: `log.worst()` says why."""
        plan = builder.build_serialized_network(network, config)
        return None if plan is None else bytes(plan)

    def inputs(self, network: Any) -> list[tuple[str, list[int]]]:
        """Names and shapes of a network's inputs, -1 where a dimension is open."""
        found = [network.get_input(i) for i in range(network.num_inputs)]
        return [(str(tensor.name), [int(n) for n in tensor.shape]) for tensor in found]

    def precisions(self, network: Any) -> dict[str, int]:
        """How many layers of a network have outputs of each type: `fp32`, `fp16`, `bf16`, `int8`; by the network."""
        kind = self.module.DataType
        names = {kind.FLOAT: "fp32", kind.HALF: "fp16", kind.BF16: "bf16", kind.INT8: "int8"}
        found: dict[str, int] = {}
        for i in range(network.num_layers):
            layer = network.get_layer(i)
            for j in range(layer.num_outputs):
                name = names.get(layer.get_output(j).dtype)
                if name:
                    found[name] = found.get(name, 0) + 1
        return found

    # -- running -------------------------------------------------------------------------------------

    def load(self, plan: bytes) -> Any:
        """The engine in `plan`, None where TensorRT refuses it. Code for the host inside engines stays forbidden."""
        return self.module.Runtime(self.log).deserialize_cuda_engine(plan)

    def tensors(self, engine: Any) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
        """An engine's inputs and outputs: `name`, numpy `dtype`, `shape` with -1 where it is open, and for inputs
        `range`: the least and the largest first dimension.
        """
        trt = self.module
        sides: dict[Any, list[dict[str, Any]]] = {trt.TensorIOMode.INPUT: [], trt.TensorIOMode.OUTPUT: []}
        for i in range(engine.num_io_tensors):
            name = engine.get_tensor_name(i)
            mode = engine.get_tensor_mode(name)
            entry: dict[str, Any] = {
                "name": str(name),
                "dtype": trt.nptype(engine.get_tensor_dtype(name)),
                "shape": [int(n) for n in engine.get_tensor_shape(name)],
            }
            if mode == trt.TensorIOMode.INPUT and entry["shape"][:1] == [-1]:
                least, _best, most = engine.get_tensor_profile_shape(name, 0)
                entry["range"] = (int(least[0]), int(most[0]))
            sides[mode].append(entry)
        return sides[trt.TensorIOMode.INPUT], sides[trt.TensorIOMode.OUTPUT]

    def context(self, engine: Any, shapes: dict[str, Sequence[int]], addresses: dict[str, int]) -> list[str] | Any:
        """An execution context with the inputs' shapes and all tensors' addresses on the GPU; a list of reasons where
        TensorRT refuses one.
        """
        context = engine.create_execution_context()
        if context is None:
            return self.log.worst() or ["no execution context"]
        refused = [name for name, shape in shapes.items() if not context.set_input_shape(name, tuple(shape))]
        refused = refused or [str(name) for name in context.infer_shapes()]
        if refused:
            return [f"the shape of {name}" for name in refused]
        wrong = [name for name, address in addresses.items() if not context.set_tensor_address(name, address)]
        return [f"the address of {name}" for name in wrong] or context

    def shape_of(self, context: Any, name: str) -> list[int]:
        """A tensor's shape in a context whose inputs have theirs."""
        return [int(n) for n in context.get_tensor_shape(name)]

    def enqueue(self, context: Any, stream: int) -> bool:
        """Queues one inference on a CUDA stream."""
        return bool(context.execute_async_v3(stream))

    def information(self, engine: Any) -> str:
        """What the inspector says of all layers, as JSON text."""
        form = self.module.LayerInformationFormat.JSON
        return str(engine.create_engine_inspector().get_engine_information(form))

    def device_memory(self, engine: Any) -> int:
        """Bytes of the GPU's memory that one execution context takes."""
        if self.major == 10 and not hasattr(engine, "device_memory_size_v2"):
            return int(engine.device_memory_size)
        return int(engine.device_memory_size_v2)


def installed() -> Versions:
    """The TensorRT that is installed.

    Raises:
        ModuleNotFoundError: none is.
        MissingToolError: it is neither 10.x nor 11.x, or its libraries cannot be loaded.
    """
    try:
        import tensorrt
    except ModuleNotFoundError:
        raise
    except ImportError as error:
        raise MissingToolError(
            f"TensorRT's libraries cannot be loaded: {error}",
            fix="pip install 'target-model-compiler[tensorrt]' (with its libraries, from NVIDIA's index)",
        ) from error
    return Versions(tensorrt)


def is_full(lines: Sequence[str]) -> bool:
    """Whether the log says that the GPU's memory did not suffice: TensorRT returns nothing, and no status either."""
    said = " ".join(lines).lower()
    return any(word in said for word in ("outofmemory", "out of memory", "cuda failure: 2", "memory allocation failed"))


def _log(trt: Any) -> Any:
    """A logger that keeps warnings and errors: where TensorRT refuses something, only its log says why."""

    class Log(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.lines: list[tuple[int, str]] = []

        def log(self, severity: Any, msg: str) -> None:
            if int(severity) <= int(trt.ILogger.WARNING):
                self.lines.append((int(severity), msg))

        def worst(self) -> list[str]:
            errors = [text for level, text in self.lines if level <= int(trt.ILogger.ERROR)]
            return (errors or [text for _, text in self.lines])[-SHOWN_LINES:]

    return Log()


def _sentence(error: Any) -> str:
    node = f"{error.node_operator()} {error.node_name()!r}: " if error.node_operator() or error.node_name() else ""
    return f"{node}{error.desc()} ({_name_of(error.code())})"


def _name_of(code: Any) -> str:
    return str(getattr(code, "name", code))
