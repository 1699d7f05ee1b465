"""A mock of TensorRT's Python module that knows exactly the names of one version, by `tensorrt_api.json`.

Every name that the version does not list is refused: reading it raises AttributeError, as there, and so do arguments
that no listed signature takes. It reads ONNX by the onnx package and computes by ONNX Runtime, in the memory of
`mock_gpu.MockCudaRuntime`.
"""

from __future__ import annotations

import base64
import ctypes
import enum
import json
import types
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from mock_gpu import MockCudaRuntime

API = json.loads((Path(__file__).parent / "tensorrt_api.json").read_text())
MAGIC = b"mock engine "
REFUSED = {"NonZero": "NonZero has no place in this mock"}
TACTICS = {
    "HALF": "turing_fp16_s1688cudnn_fp16_128x64_ldg8_relu_f2f_exp_medium_nhwc_tn_v1",
    "INT8": "sm75_xmma_fprop_implicit_gemm_interleaved_i8i8_i8i32_f32_nchw_vect_c_tilesize96x32_tensor8x8x16",
    "FLOAT": "volta_scudnn_128x64_relu_xregs_large_nn_v1",
}
FORMATS = {
    "HALF": "Channel major FP16 format where channel % 8 == 0",
    "INT8": "Thirty-two wide channel vectorized row major Int8 format", "FLOAT": "Row major linear FP32",
}  # fmt: skip
TYPES = {1: "FLOAT", 10: "HALF", 16: "BF16", 3: "INT8", 2: "UINT8", 6: "INT32", 7: "INT64", 9: "BOOL"}
NUMPY = {"FLOAT": np.float32, "HALF": np.float16, "INT8": np.int8, "INT32": np.int32, "INT64": np.int64}


class Strict:
    """An object of the mock: public names and arguments are the version's, or there are none."""

    _members: ClassVar[dict[str, Any]] = {}

    def __getattribute__(self, name: str) -> Any:
        members = type(self)._members
        if not name.startswith("_") and members and name not in members:
            raise AttributeError(f"{type(self).__name__} of TensorRT has no {name!r}")
        value = object.__getattribute__(self, name)
        if not callable(value) or name.startswith("_") or not isinstance(members.get(name), list):
            return value
        return _checked(f"{type(self).__name__}.{name}", members[name], value)

    def __setattr__(self, name: str, value: Any) -> None:
        members = type(self)._members
        if not name.startswith("_") and members and members.get(name) != "property":
            raise AttributeError(f"{type(self).__name__} of TensorRT has no property {name!r}")
        object.__setattr__(self, name, value)


def _checked(what: str, signatures: list[list[str]], function: Any) -> Any:
    def call(*arguments: Any) -> Any:
        fits = any(
            sum(not name.endswith("?") for name in names) <= len(arguments) <= len(names) for names in signatures
        )
        if not fits:
            raise TypeError(f"{what}(): incompatible function arguments {arguments!r}; there are {signatures}")
        return function(*arguments)

    return call


class MockTensorRT(types.ModuleType):
    """`version` is "10" or "11"; `cuda` holds the memory that addresses point into."""

    def __init__(self, version: str, cuda: MockCudaRuntime) -> None:
        super().__init__("tensorrt")
        self._api = API[version]
        self._cuda = cuda
        self._flags: list[int] = []
        self._loaded: list[bytes] = []
        self._full = False
        self.__version__ = self._api["version"]
        for name, members in self._api["enums"].items():
            setattr(self, name, enum.IntEnum(name, {member: i for i, member in enumerate(members)}))
        for name in self._api["classes"]:
            base = globals().get(f"Mock{name}", Strict)
            setattr(self, name, type(name, (base,), {"_members": self._api["classes"][name], "_trt": self}))
        for name, value in (("INTERNAL_ERROR", 0), ("ERROR", 1), ("WARNING", 2), ("INFO", 3), ("VERBOSE", 4)):
            setattr(self.ILogger, name, value)
        # what is made from it in Python has names of its own, as there
        self.ILogger._members = {}

    def nptype(self, kind: Any) -> Any:
        return NUMPY[kind.name]

    def new(self, kind: str, **state: Any) -> Any:
        value = getattr(self, kind).__new__(getattr(self, kind))
        for name, item in state.items():
            object.__setattr__(value, name, item)
        return value


class MockILogger(Strict):
    def __init__(self) -> None:
        pass


class MockBuilder(Strict):
    def __init__(self, logger: Any) -> None:
        self._logger = logger

    def create_network(self, flags: int = 0) -> Any:
        self._trt._flags.append(flags)
        strong = self._trt._api["version"].startswith("11") or bool(
            flags >> int(self._trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED) & 1
        )
        return self._trt.new("INetworkDefinition", _strong=strong, _layers=[], _inputs=[], _onnx=b"")

    def create_builder_config(self) -> Any:
        return self._trt.new("IBuilderConfig", _profiles=[], _limits={}, _cleared=[], _cache=None, _built=0)

    def create_optimization_profile(self) -> Any:
        return self._trt.new("IOptimizationProfile", _shapes={})

    def build_serialized_network(self, network: Any, config: Any) -> Any:
        trt = self._trt
        if not network._strong:
            self._logger.log(1, "the mock builds strongly typed networks only")
            return None
        open_inputs = [t._name for t in network._inputs if -1 in t._shape]
        if open_inputs and (not config._profiles or set(open_inputs) - set(config._profiles[0]._shapes)):
            self._logger.log(1, f"IBuilder: network has dynamic inputs {open_inputs} without a profile")
            return None
        if trt._full:
            self._logger.log(1, "Error Code 2: OutOfMemory (no further information)")
            return None
        cache = config._cache
        cache._data = cache._data or b"timings"
        plan = {
            "onnx": base64.b64encode(network._onnx).decode(),
            "profile": config._profiles[0]._shapes if config._profiles else {},
            "layers": [(layer._name, layer._op, layer._outputs[0]._dtype.name) for layer in network._layers],
            "detailed": config.profiling_verbosity == trt.ProfilingVerbosity.DETAILED,
            "version": trt.__version__,
        }
        return trt.new("IHostMemory", _data=MAGIC + json.dumps(plan).encode())


class MockIHostMemory(Strict):
    def __bytes__(self) -> bytes:
        return self._data


class MockIBuilderConfig(Strict):
    def add_optimization_profile(self, profile: Any) -> int:
        self._profiles.append(profile)
        return len(self._profiles) - 1

    def set_memory_pool_limit(self, pool: Any, pool_size: int) -> None:
        self._limits[pool.name] = pool_size

    def clear_flag(self, flag: Any) -> None:
        self._cleared.append(flag.name)

    def create_timing_cache(self, serialized_timing_cache: bytes) -> Any:
        return self._trt.new("ITimingCache", _data=bytes(serialized_timing_cache))

    def set_timing_cache(self, cache: Any, ignore_mismatch: bool) -> bool:
        assert ignore_mismatch is False
        object.__setattr__(self, "_cache", cache)
        return cache._data in (b"", b"timings")

    def get_timing_cache(self) -> Any:
        return self._cache


class MockITimingCache(Strict):
    def serialize(self) -> Any:
        return self._trt.new("IHostMemory", _data=self._data)


class MockIOptimizationProfile(Strict):
    def set_shape(self, input: str, least: Any, best: Any, most: Any) -> None:
        self._shapes[input] = [list(least), list(best), list(most)]


class MockOnnxParser(Strict):
    def __init__(self, network: Any, logger: Any) -> None:
        self._network, self._errors = network, []

    def parse_from_file(self, model: str) -> bool:
        import onnx

        assert isinstance(model, str)
        trt, network = self._trt, self._network
        found = onnx.shape_inference.infer_shapes(onnx.load(model), strict_mode=True)
        known = {v.name: v for v in (*found.graph.value_info, *found.graph.input, *found.graph.output)}

        def tensor(name: str) -> Any:
            kind = known[name].type.tensor_type
            shape = [d.dim_value if d.HasField("dim_value") else -1 for d in kind.shape.dim]
            dtype = trt.DataType[TYPES[kind.elem_type]]
            return trt.new("ITensor", _name=name, _shape=shape, _dtype=dtype)

        object.__setattr__(network, "_onnx", Path(model).read_bytes())
        network._inputs.extend(tensor(value.name) for value in found.graph.input)
        for number, node in enumerate(found.graph.node):
            if node.op_type in REFUSED:
                self._errors.append(trt.new("ParserError", _node=node, _number=number))
                continue
            outputs = [tensor(name) for name in node.output if name in known]
            network._layers.append(trt.new("ILayer", _name=node.name, _op=node.op_type, _outputs=outputs))
        return not self._errors

    @property
    def num_errors(self) -> int:
        return len(self._errors)

    def get_error(self, index: int) -> Any:
        return self._errors[index]


class MockParserError(Strict):
    def code(self) -> Any:
        return types.SimpleNamespace(name="UNSUPPORTED_NODE")

    def desc(self) -> str:
        return REFUSED[self._node.op_type]

    def node(self) -> int:
        return self._number

    def node_name(self) -> str:
        return self._node.name

    def node_operator(self) -> str:
        return self._node.op_type


class MockINetworkDefinition(Strict):
    @property
    def num_inputs(self) -> int:
        return len(self._inputs)

    @property
    def num_layers(self) -> int:
        return len(self._layers)

    def get_input(self, index: int) -> Any:
        return self._inputs[index]

    def get_layer(self, index: int) -> Any:
        return self._layers[index]


class MockILayer(Strict):
    @property
    def num_outputs(self) -> int:
        return len(self._outputs)

    def get_output(self, index: int) -> Any:
        return self._outputs[index]


class MockITensor(Strict):
    @property
    def name(self) -> str:
        return self._name

    @property
    def shape(self) -> list[int]:
        return self._shape

    @property
    def dtype(self) -> Any:
        return self._dtype


class MockRuntime(Strict):
    def __init__(self, logger: Any) -> None:
        self._logger = logger

    def deserialize_cuda_engine(self, serialized_engine: bytes) -> Any:
        import onnxruntime

        trt = self._trt
        trt._loaded.append(serialized_engine)
        plan = json.loads(serialized_engine[len(MAGIC) :]) if serialized_engine.startswith(MAGIC) else {}
        if plan.get("version") != trt.__version__:
            self._logger.log(1, "Serialization assertion stdVersionRead == kSERIALIZATION_VERSION failed")
            return None
        session = onnxruntime.InferenceSession(base64.b64decode(plan["onnx"]), providers=["CPUExecutionProvider"])
        return trt.new("ICudaEngine", _plan=plan, _session=session)


class MockICudaEngine(Strict):
    @property
    def _tensors(self) -> list[Any]:
        return [*self._session.get_inputs(), *self._session.get_outputs()]

    def _tensor(self, name: str) -> Any:
        return next(t for t in self._tensors if t.name == name)

    @property
    def num_io_tensors(self) -> int:
        return len(self._tensors)

    @property
    def device_memory_size_v2(self) -> int:
        return 3 << 20

    def get_tensor_name(self, index: int) -> str:
        return str(self._tensors[index].name)

    def get_tensor_mode(self, name: str) -> Any:
        ours = name in [t.name for t in self._session.get_inputs()]
        return self._trt.TensorIOMode.INPUT if ours else self._trt.TensorIOMode.OUTPUT

    def get_tensor_shape(self, name: str) -> list[int]:
        return [n if isinstance(n, int) else -1 for n in self._tensor(name).shape]

    def get_tensor_dtype(self, name: str) -> Any:
        assert self._tensor(name).type == "tensor(float)"
        return self._trt.DataType.FLOAT

    def get_tensor_profile_shape(self, name: str, profile_index: int) -> Any:
        assert profile_index == 0
        return self._plan["profile"][name]

    def create_execution_context(self) -> Any:
        return self._trt.new("IExecutionContext", _engine=self, _shapes={}, _addresses={})

    def create_engine_inspector(self) -> Any:
        return self._trt.new("EngineInspector", _plan=self._plan)


class MockEngineInspector(Strict):
    def get_engine_information(self, format: Any) -> str:
        assert format == self._trt.LayerInformationFormat.JSON
        quantized = any(op == "QuantizeLinear" for _, op, _ in self._plan["layers"])
        layers = [
            {"Name": name, "LayerType": "CaskConvolution" if op == "Conv" else op, "TacticName": tactic,
             "Outputs": [{"Name": name, **self._kind(kind)}]}
            if self._plan["detailed"] else name
            for name, op, kind in self._plan["layers"]
            for tactic in [TACTICS.get("INT8" if quantized else kind, "") if op in ("Conv", "Gemm", "MatMul") else ""]
        ]  # fmt: skip
        return json.dumps({"Layers": layers, "I/O Tensors" if self._is_11() else "Bindings": []})

    def _is_11(self) -> bool:
        return str(self._trt.__version__).startswith("11")

    def _kind(self, kind: str) -> dict[str, str]:
        """One text in 10, two in 11, by NVIDIA's migration guide."""
        if self._is_11():
            return {"DataType": kind.capitalize(), "Format": FORMATS.get(kind, kind)}
        return {"Format/Datatype": FORMATS.get(kind, kind)}


class MockIExecutionContext(Strict):
    def set_input_shape(self, name: str, shape: Any) -> bool:
        least, _best, most = self._engine._plan["profile"].get(name, [list(shape)] * 3)
        if not least[0] <= shape[0] <= most[0] or list(shape[1:]) != least[1:]:
            return False
        self._shapes[name] = list(shape)
        return True

    def infer_shapes(self) -> list[str]:
        return [t.name for t in self._engine._session.get_inputs() if t.name not in self._shapes]

    def get_tensor_shape(self, name: str) -> list[int]:
        batch = next(iter(self._shapes.values()))[0]
        return [batch if n == -1 else n for n in self._engine.get_tensor_shape(name)]

    def set_tensor_address(self, name: str, memory: int) -> bool:
        self._addresses[name] = memory
        return memory in self._trt._cuda.blocks

    def execute_async_v3(self, stream_handle: int) -> bool:
        session = self._engine._session

        def work() -> None:
            feeds = {t.name: self._view(t.name).copy() for t in session.get_inputs()}
            for node, value in zip(session.get_outputs(), session.run(None, feeds), strict=True):
                self._view(node.name)[:] = value

        if len(self._addresses) < len(self._engine._tensors):
            return False
        self._trt._cuda.queue(stream_handle, work)
        return True

    def _view(self, name: str) -> Any:
        shape = self.get_tensor_shape(name)
        count = int(np.prod(shape))
        memory = (ctypes.c_float * count).from_address(self._addresses[name])
        return np.frombuffer(memory, np.float32).reshape(shape)
