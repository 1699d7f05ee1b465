"""What of a manifest decides how an artifact is run, checked before a library sees it: a manifest is data.

Files that match their digests prove who was copied, not that what they say is sane.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from compiler.errors import IntegrityError
from compiler.pictures import ORIENTATIONS
from compiler.runtime.names import FORMATS, MAX_BATCH, check_id
from compiler.runtime.session import Session

DTYPES = ("float16", "float32", "float64", "int8", "uint8", "int16", "int32", "int64", "bool")
LARGEST_TENSOR = 1 << 30
"""Bytes of an input or output that a manifest may ask memory for; whoever gives a batch may ask for more."""
MOST_THREADS = 4096
LARGEST_SIDE = 1 << 14
"""Pixels of a side that a picture is resized or cropped to."""
NO_MANIFEST = (LookupError, TypeError, ValueError, AttributeError, ArithmeticError, RecursionError)


def check(manifest: Mapping[str, Any]) -> None:
    """Refuses a manifest whose ids, signature, preprocessing, labels or selected options no build writes.

    Raises:
        IntegrityError: with what is wrong.
    """
    try:
        for row in manifest["candidates"]:
            check_id(row["id"])
        row = next(row for row in manifest["candidates"] if row["id"] == manifest["selected"])
        batch = _count(row["options"].get("batch"), "batch", MAX_BATCH)
        _count(row["options"].get("threads"), "threads", MOST_THREADS)
        _count(row["options"].get("streams"), "streams", MOST_THREADS)
        _check_tensors(manifest["signature"], batch)
        _check_preprocessing(manifest["preprocessing"])
        _check_labels(manifest["labels"])
    except NO_MANIFEST as error:
        raise IntegrityError(f"the manifest is not one that builds write ({error!r})"[:300], fix=FIX) from None


def check_signature(signature: Mapping[str, Any]) -> None:
    """Checks what a build's step says of its model, which the manifest takes over: so that `check` takes it later.

    Raises:
        ValueError: with what is wrong.
    """
    try:
        _check_tensors(signature, 1)
        _check_preprocessing(signature["preprocessing"])
        _check_labels(signature["labels"])
        for name, kind in (("trained", bool), ("demo", bool), ("claim", str)):
            if not isinstance(signature[name], kind):
                raise TypeError(f"{name} is {signature[name]!r}"[:100])
        _check_labels(signature.get("notes"))
    except LookupError as error:
        raise ValueError(f"{error} is missing"[:300]) from None
    except NO_MANIFEST as error:
        raise ValueError(str(error)[:300]) from None


FIX = "do not use this artifact; build or fetch it again"


def check_format(runtime: str, file: str) -> None:
    """Refuses a file that is not of the runtime's one format: libraries read others too, by code nobody asked for.

    Raises:
        IntegrityError: with the file.
    """
    suffix = FORMATS.get(runtime)
    if suffix is not None and not file.endswith(suffix):
        raise IntegrityError(f"{file} is no {suffix} file, as the runtime {runtime} takes", fix=FIX)


def check_session(session: Session, signature: Mapping[str, Any]) -> None:
    """Refuses a model whose own inputs and outputs are not those of the signature (shapes of outputs may be open).

    Raises:
        IntegrityError: with the tensor.
    """
    found = session.signature()
    for kind in ("inputs", "outputs"):
        ours, theirs = signature[kind], found[kind]
        if len(ours) != len(theirs):
            raise IntegrityError(f"the model has {len(theirs)} {kind}, the manifest says {len(ours)}", fix=FIX)
        for entry, actual in zip(ours, theirs, strict=True):
            same = entry["dtype"] == actual["dtype"] and len(entry["shape"]) == len(actual["shape"])
            if not same or (kind == "inputs" and list(entry["shape"]) != list(actual["shape"])):
                raise IntegrityError(
                    f"{kind[:-1]} {entry['name']!r} of the model is {_said(actual)}, the manifest says {_said(entry)}",
                    fix=FIX,
                )


def _said(entry: Mapping[str, Any]) -> str:
    return f"{entry['dtype']} of shape {tuple(entry['shape'])}"


def _count(value: Any, what: str, most: int) -> int:
    if value is None:
        return 1
    if type(value) is not int or not 1 <= value <= most:
        raise ValueError(f"{what} is {value!r}"[:100])
    return value


def _check_tensors(signature: Mapping[str, Any], batch: int) -> None:
    if not signature["inputs"] or not signature["outputs"]:
        raise ValueError("a signature needs inputs and outputs")
    for entry in (*signature["inputs"], *signature["outputs"]):
        _check_tensor(entry, batch)


def _check_labels(labels: Any) -> None:
    if labels is not None and not (isinstance(labels, list) and all(isinstance(name, str) for name in labels)):
        raise TypeError("labels are not strings")


def _check_tensor(entry: Mapping[str, Any], batch: int) -> None:
    if entry["dtype"] not in DTYPES:
        raise ValueError(f"the dtype {entry['dtype']!r}"[:100])
    shape = entry["shape"]
    if not isinstance(entry["name"], str) or not isinstance(entry["layout"], str) or not isinstance(shape, list):
        raise TypeError("a tensor's name, layout or shape")
    if not shape or len(shape) > 16 or not all(type(n) is int and n >= 1 for n in shape):
        raise ValueError(f"the shape {shape!r}"[:100])
    if math.prod(shape[1:]) * max(batch, shape[0]) * np.dtype(entry["dtype"]).itemsize > LARGEST_TENSOR:
        raise ValueError(f"the shape {shape!r} at batch {batch}"[:100])
    _number(entry.get("scale", 1.0))
    if type(entry.get("zero_point", 0)) is not int:
        raise TypeError("zero_point is no whole number")


def _check_preprocessing(how: Mapping[str, Any]) -> None:
    for name in ("mean", "std"):
        values = how[name]
        if not isinstance(values, list) or len(values) != 3:
            raise ValueError(f"{name} is not three numbers")
        for value in values:
            if _number(value) <= 0 and name == "std":
                raise ValueError("std is not positive")
    for name, least in (("resize", 0), ("crop", 1)):
        if type(how[name]) is not int or not least <= how[name] <= LARGEST_SIDE:
            raise ValueError(f"{name} is {how[name]!r}"[:100])
    if how.get("orientation", "stored") not in ORIENTATIONS:
        raise ValueError("the orientation is neither exif nor stored")
    behind = how.get("background")
    if behind is not None and (len(behind) != 3 or not all(0 <= _number(value) <= 255 for value in behind)):
        raise ValueError("the background is not a colour")


def _number(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise TypeError(f"{value!r} is no number"[:100])
    return float(value)


def words(error: Exception) -> Sequence[str]:
    """A library's own message, as a line or two."""
    return [line[:300] for line in str(error).splitlines()[:2]] or [type(error).__name__]
