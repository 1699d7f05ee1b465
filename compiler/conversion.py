"""What every step that makes a model does after it: describe it, run it, and compare it with the step before.

A converter that "succeeds" may still return a different function. So each result carries its outputs on
the same probe (the first calibration samples), and the next step is judged against them.
"""

from __future__ import annotations

import dataclasses
import json
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from compiler.disk import write_array
from compiler.errors import ConfigError, StepError
from compiler.runtime.names import module_of
from compiler.stage import PREVIOUS, Stage, write_json
from compiler.uneven import uneven_layers

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

PROBE_SAMPLES = 64
PROBE = "probe.npy"
SIGNATURE = "signature.json"

MIN_COSINE = {"fp32": 0.9999, "fp16": 0.999, "bf16": 0.98, "dynamic_int8": 0.8, "int8": 0.8}
"""Least cosine of centred outputs by precision. Healthy int8 networks are above 0.97; a real conversion that
lost 58 points of accuracy was below 0.5."""
MIN_AGREEMENT = {"fp32": 0.97, "fp16": 0.95, "bf16": 0.9, "dynamic_int8": 0.6, "int8": 0.6}
"""Least share of samples with the same top-1 class, by precision."""
MAX_GAIN = {"fp32": 1.01, "fp16": 1.05, "bf16": 1.1, "dynamic_int8": 1.5, "int8": 1.5}
"""How many times larger or smaller the outputs may be. A halved input left a cosine of 0.9998 and every class right."""
MAX_OFFSET = {"fp32": 0.01, "fp16": 0.05, "bf16": 0.1, "dynamic_int8": 0.3, "int8": 0.3}
"""How far the classes' mean outputs may move, as a share of the outputs' spread. Healthy int8 networks: below 0.02."""
MAX_RELATIVE_ERROR = {"fp32": 0.01, "fp16": 0.05, "bf16": 0.2, "dynamic_int8": 0.9, "int8": 0.9}
"""Largest distance from the outputs before as a share of their size (L2 norms), for networks that answer every sample
nearly alike or have no trained weights: cosines of what is left after centring say nothing there. Zeros have 1, and so
had what OpenVINO's int8 made of mnasnet0_5 and efficientnet_b0; sound int8 files had 0.02 to 0.7 (MobileNetV2 on
ranges of four samples)."""
MAX_CLIPPED = 0.02
"""Share of real input values that may lie outside what a quantized input can hold: calibrators cut off less."""

BATCH = 3
"""At which every result is tried besides its own batch; not 2, which torch.export sees as its example."""
MAX_BATCH_ERROR = {"fp32": 1e-3, "fp16": 1e-2}
"""Largest difference between a sample's outputs in a batch and alone, as a share of the largest output; 0.1 for what
computes with less, where another order of sums can move a value to the next step of its grid."""


@dataclasses.dataclass(kw_only=True)
class Conversion(Stage):
    """A stage whose result is a model. Subclasses write it in `convert`; the check is here and cannot be skipped.

    `min_cosine` and `min_agreement` are what the result's outputs must keep of those of the step before, from 0 to 1:
    the cosine of the centred outputs, and the share of samples with the same top-1 class; null for what the precision
    allows (`MIN_COSINE`, `MIN_AGREEMENT`).
    """

    inputs: ClassVar[Mapping[str, str]] = {"model": PREVIOUS, "samples": "samples"}
    numeric: ClassVar[bool] = True
    artifact: ClassVar[str] = ""
    runtime: ClassVar[str] = ""
    runtime_options: ClassVar[Mapping[str, Any]] = {}

    min_cosine: float | None = None
    min_agreement: float | None = None

    def __post_init__(self) -> None:
        for name in ("min_cosine", "min_agreement"):
            value = getattr(self, name)
            if value is not None and not 0.0 <= value <= 1.0:
                raise ConfigError(f"{name} is {value:g}", fix="give 0 to 1, or null for the precision's own")

    @abstractmethod
    def convert(self, inputs: Mapping[str, Path], out: Path) -> dict[str, Any]:
        """Writes `artifact` into `out`; returns what is worth stating about it."""

    def precision(self) -> str:
        """The precision by which the result is judged."""
        return "fp32"

    def layout(self, before: str) -> str:
        """The layout of the result's input, given that of the step before."""
        return before

    def dynamic_modules(self) -> tuple[str, ...]:
        """The runtime that checks the result."""
        return (module_of(self.runtime),)

    def run(self, inputs: Mapping[str, Path], out: Path) -> dict[str, Any]:
        """See `Stage.run`. Raises StepError where the result computes something else than the step before."""
        import numpy as np

        facts = self.convert(inputs, out)
        before = json.loads((inputs["model"] / SIGNATURE).read_text())
        outputs, signature = probe(
            out / self.artifact, self.runtime, self.runtime_options, before, inputs["samples"],
            self.layout(before["inputs"][0]["layout"]),
        )  # fmt: skip
        reference = np.load(inputs["model"] / PROBE, allow_pickle=False)
        fidelity = compare(reference, outputs, self.precision())
        judge(
            fidelity, self.precision(), trained=before["trained"], min_cosine=self.min_cosine,
            min_agreement=self.min_agreement,
            reasons=uneven_layers(inputs.get("calibration")) if self.precision() == "int8" else (),
        )  # fmt: skip
        batches = before.get("dynamic_batch", True) and takes_batches(
            out / self.artifact, self.runtime, self.runtime_options, signature, inputs["samples"], outputs,
            self.precision(),
        )  # fmt: skip
        write_array(out / PROBE, outputs)
        write_json(out / SIGNATURE, {**signature, "dynamic_batch": batches})
        return {**facts, "dynamic_batch": batches, "fidelity": fidelity}


def probe(
    path: Path, runtime: str, options: Mapping[str, Any], before: Mapping[str, Any], samples: Path, layout: str
) -> tuple[NDArray[np.float32], dict[str, Any]]:
    """Runs the model at `path` on the probe; returns its logits, float32 (n, classes), and its signature."""
    import numpy as np

    from compiler.runtime.preprocess import decode, encode
    from compiler.runtime.session import open_model

    session = open_model(runtime, path, {"threads": 1, **options})
    signature = {**before, **session.signature()}
    for side in ("inputs", "outputs"):
        for entry in signature[side]:
            entry["layout"] = layout if side == "inputs" else "NC"
    values = encode(probe_images(samples), signature)
    check_range(probe_images(samples), signature)
    batch = signature["inputs"][0]["shape"][0]
    rows = [session.run([values[i : i + batch]])[0] for i in range(0, len(values) - batch + 1, batch)]
    return decode(np.concatenate(rows), signature["outputs"][0]), signature


def takes_batches(
    path: Path, runtime: str, options: Mapping[str, Any], signature: Mapping[str, Any], samples: Path,
    outputs: NDArray[np.float32], precision: str,
) -> bool:  # fmt: skip
    """Whether the model at `path` runs at any batch: opened at `BATCH`, it answers each sample as it does alone.

    `outputs` are its logits on the probe, float32 (n, classes), `signature` its own.
    """
    from compiler.runtime.preprocess import decode, encode
    from compiler.runtime.session import open_model

    if len(outputs) < BATCH:
        return False
    try:
        session = open_model(runtime, path, {"threads": 1, **options, "batch": BATCH})
        if session.signature()["inputs"][0]["shape"][0] != BATCH:
            return False  # a runtime that knows no batch
        rows = session.run([encode(probe_images(samples)[:BATCH], signature)])[0]
    except Exception:  # a private runtime's, or its library's: whatever it is, the batch was not run
        return False
    together = decode(rows, signature["outputs"][0])
    return same(outputs[:BATCH], together, MAX_BATCH_ERROR.get(precision, 0.1))


def same(alone: NDArray[np.float32], together: NDArray[np.float32], share: float) -> bool:
    """Whether both, (n, classes), differ by no more than `share` of the largest value of `alone`."""
    import numpy as np

    return together.shape == alone.shape and float(np.abs(alone - together).max()) <= share * float(np.abs(alone).max())


def check_range(images: NDArray[np.uint8], signature: Mapping[str, Any]) -> None:
    """Fails a model whose quantized input cannot hold what real samples are: its scale or zero point is wrong.

    Raises:
        StepError: more than `MAX_CLIPPED` of the values would be clipped by more than one step.
    """
    import numpy as np

    from compiler.runtime.preprocess import encode

    entry = signature["inputs"][0]
    dtype = np.dtype(entry["dtype"])
    if not np.issubdtype(dtype, np.integer) or "scale" not in entry:
        return
    values = encode(images, {**signature, "inputs": [{**entry, "dtype": "float32"}]})
    steps = values / np.float32(entry["scale"]) + entry["zero_point"]
    limits = np.iinfo(dtype)
    clipped = float(((steps < limits.min - 1) | (steps > limits.max + 1)).mean())
    if clipped > MAX_CLIPPED:
        raise StepError(
            f"the converted model's {dtype} input (scale {entry['scale']:g}, zero point {entry['zero_point']}) clips "
            f"{clipped:.0%} of the values of real samples",
            fix="the converter wrote a wrong scale or zero point, or calibrated on other data than the model gets",
        )


def probe_images(samples: Path) -> NDArray[np.uint8]:
    """The first calibration samples, uint8 (n, height, width, 3)."""
    import numpy as np

    images: NDArray[np.uint8] = np.load(samples / "calibration.npy", mmap_mode="r", allow_pickle=False)[:PROBE_SAMPLES]
    return images


def compare(reference: NDArray[np.float32], outputs: NDArray[np.float32], precision: str = "fp32") -> dict[str, Any]:
    """Fidelity of `outputs`, of that precision, to `reference`, both (n, classes).

    `cosine` is of the raw outputs, `centred_cosine` of the outputs less their mean over the samples: a network
    that answers everything alike keeps a high cosine and loses the centred one. `sqnr_db` is the signal-to-noise
    ratio in decibels, None where nothing differs. `gain` is the least-squares slope of the centred outputs over the
    reference's, and `offset` how far the classes' means moved, over the reference's spread (root mean squares): a wrong
    scale or bias, which neither cosine nor top-1 need show. `relative_error` is the distance over the reference's size,
    both L2 norms. `discriminates`: the reference tells samples apart.

    Raises:
        StepError: the shapes differ, or an output is NaN or infinite.
    """
    import numpy as np

    if reference.shape != outputs.shape:
        raise StepError(
            f"the conversion changed the output's shape from {reference.shape} to {outputs.shape}",
            fix="the model's output must be (batch, classes)",
        )
    if not np.isfinite(outputs).all():
        count = int((~np.isfinite(outputs)).any(axis=1).sum())
        raise StepError(
            f"the converted model returns NaN or infinity for {count} of {len(outputs)} samples",
            fix=advice(precision),
        )
    a, b = reference.astype(np.float64), outputs.astype(np.float64)
    centred_a, centred_b = a - a.mean(axis=0), b - b.mean(axis=0)
    noise = float(np.square(a - b).sum())
    signal = float(np.square(a).sum())
    moved = (b - a).mean(axis=0)
    power = float(np.square(centred_a).sum())
    spread = float(np.sqrt(power / a.size))
    size = float(np.sqrt(np.square(a).mean()))
    return {
        "max_abs_error": float(np.abs(a - b).max()),
        "cosine": _cosine(a, b),
        "centred_cosine": _cosine(centred_a, centred_b),
        "sqnr_db": round(float(10 * np.log10(signal / noise)), 2) if noise > 0 and signal > 0 else None,
        "gain": round(float((centred_a * centred_b).sum()) / power, 6) if power else 1.0,
        "offset": round(float(np.sqrt(np.square(moved).sum() * len(a) / power)), 6) if power else 0.0,
        "relative_error": round(float(np.sqrt(noise / signal)), 6) if signal else float(noise > 0),
        "top1_agreement": float((a.argmax(axis=1) == b.argmax(axis=1)).mean()),
        "discriminates": bool(spread > 1e-3 * size and spread > 1e-7),
        "n": len(a),
    }


def _cosine(a: NDArray[np.float64], b: NDArray[np.float64]) -> float:
    import numpy as np

    norms = float(np.linalg.norm(a) * np.linalg.norm(b))
    return round(float((a * b).sum()) / norms, 8) if norms > 0 else float(np.allclose(a, b))


def advice(precision: str) -> str:
    """What to do with a result of that precision that is wrong: only a quantizer's is the quantizer's fault."""
    if "int8" in precision:
        return "do not ship this candidate; try another quantizer, recipe or more calibration samples"
    if precision == "fp32":
        return "do not ship this candidate; nothing was rounded, so the step translates an operator wrongly: report it"
    return f"do not ship this candidate; the network's values may not fit {precision}: try another precision"


def judge(
    fidelity: Mapping[str, Any],
    precision: str,
    *,
    trained: bool,
    min_cosine: float | None = None,
    min_agreement: float | None = None,
    reasons: Sequence[str] = (),
    fix: str = "",
) -> None:
    """Fails a conversion that does not compute what the step before computed.

    Untrained weights answer every sample nearly alike, so cosine and top-1 say nothing of a lower precision: those
    networks are judged by their relative error. `min_cosine` and `min_agreement` stand in for the precision's own.
    `reasons`: what is known about the network that explains a failure. `fix`: what to do, where the step knows better
    than its precision.

    Raises:
        StepError: the outputs have collapsed.
    """
    if not fidelity["discriminates"] or (not trained and precision != "fp32"):
        error, limit = fidelity["relative_error"], MAX_RELATIVE_ERROR[precision]
        if error > limit:
            raise _otherwise(fidelity, precision, [f"relative error {error:.2g} (at most {limit:g})"], reasons, fix)
        return
    cosine, agreement = fidelity["centred_cosine"], fidelity["top1_agreement"]
    gain, offset = fidelity["gain"], fidelity["offset"]
    wrong = []
    least = MIN_COSINE[precision] if min_cosine is None else min_cosine
    if cosine < least:
        wrong.append(f"centred cosine {cosine:.4f} (at least {least:g})")
    least = MIN_AGREEMENT[precision] if min_agreement is None else min_agreement
    if trained and agreement < least:
        wrong.append(f"same top-1 class on {agreement:.0%} (at least {least:.0%})")
    if not 1 / MAX_GAIN[precision] <= gain <= MAX_GAIN[precision]:
        wrong.append(f"outputs {gain:.3g} times as large, as by a wrong scale ({MAX_GAIN[precision]:g} at most)")
    if offset > MAX_OFFSET[precision]:
        limit = MAX_OFFSET[precision]
        wrong.append(f"outputs moved by {offset:.2g} of their spread, as by a wrong bias ({limit:g} at most)")
    if wrong:
        raise _otherwise(fidelity, precision, wrong, reasons, fix)


def _otherwise(
    fidelity: Mapping[str, Any], precision: str, wrong: list[str], reasons: Sequence[str], fix: str
) -> StepError:
    if reasons:
        fix = (
            "no choice of ranges helps such layers: bring their channels to similar ranges before export (cross-layer "
            "equalization), or leave this candidate out"
        )
    return StepError(
        f"the converted model computes something else than the step before, by {fidelity['n']} samples: "
        f"{'; '.join(wrong)} for a {precision} result",
        fix=fix or advice(precision),
        details=list(reasons),
    )
