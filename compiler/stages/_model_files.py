"""Saves models without traces of the machine and the process that made them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

PROTOBUF_LIMIT = (1 << 31) - (1 << 20)


def save_program(program: Any, path: Path) -> None:
    """Writes a torch.export.ExportedProgram: without stack traces (source paths) and node histories (addresses)."""
    import torch

    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)
        node.meta.pop("from_node", None)
    torch.export.save(program, path)


def save_onnx(model: Any, path: Path) -> None:
    """Writes an onnx.ModelProto: metadata (absolute source paths, class names) and doc strings removed.

    Weights stay inside the file up to protobuf's 2 GiB and go to `<name>.data` beyond.
    """
    import onnx

    del model.metadata_props[:]
    model.doc_string = ""
    _strip(model.graph)
    for function in model.functions:
        del function.metadata_props[:]
        for node in function.node:
            del node.metadata_props[:]
            node.doc_string = ""
    large = model.ByteSize() > PROTOBUF_LIMIT
    onnx.save(model, str(path), save_as_external_data=large, location=f"{path.name}.data" if large else None)


def _strip(graph: Any) -> None:
    graph.doc_string = ""
    del graph.metadata_props[:]
    for collection in (graph.node, graph.input, graph.output, graph.value_info, graph.initializer):
        for item in collection:
            del item.metadata_props[:]
            item.doc_string = ""
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("g"):
                _strip(attribute.g)
