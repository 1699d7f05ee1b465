"""run: inference with a built artifact, its tuned options applied.

  python -m compiler run PATH --input photo.jpg --output logits.npy         read, turned, resized, cropped as recorded
  python -m compiler run PATH --input images.npy --output logits.npy        pre- and postprocessing included
  python -m compiler run PATH --input tensor.npy --output out.npy --raw     the model's own tensors, in and out

Any number of samples, (n, ...); as many at a time as the artifact was tuned for, or --batch.
"""

from __future__ import annotations

import io
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from compiler.commands.arguments import add_trust_flags, parser, policy_of
from compiler.errors import ConfigError
from compiler.outputs import check_output_file, write_output
from compiler.pictures import SUFFIXES

if TYPE_CHECKING:
    from compiler.runtime import Model

ARCHIVE = ".npz"


def run(arguments: list[str]) -> int:
    """Reads arrays, runs the selected model over them, writes what it answers."""
    options = parser("run", __doc__ or "")
    options.add_argument("path", help="a version's folder, .../latest, or a reference")
    options.add_argument(
        "--input", type=Path, required=True,
        help="a picture; .npy: uint8 RGB images (n, height, width, 3), or the tensor that the signature says; "
        ".npz: an array for each input, by its name",
    )  # fmt: skip
    options.add_argument(
        "--output", type=Path, required=True,
        help=".npy: float32 logits (n, classes) for images, else the model's first output; .npz: every output, by its "
        "name",
    )  # fmt: skip
    kind = options.add_mutually_exclusive_group()
    kind.add_argument("--images", action="store_true", help="the input is images (meant for uint8 (n, h, w, 3))")
    kind.add_argument("--raw", action="store_true", help="the input is the model's own tensors (meant for all else)")
    options.add_argument("--batch", type=int, help="samples a call (default: as tuned)")
    options.add_argument("--runtime", action="append", default=[], metavar="MODULE", help="allow a runtime of your own")
    add_trust_flags(options)
    given = options.parse_args(arguments)
    check_output_file(given.output)

    import numpy as np

    from compiler.runtime import load

    model = load(given.path, runtimes=tuple(given.runtime), batch=given.batch, policy=policy_of(given))
    values = _read(given.input, model)
    first = values[0]
    if given.images and (len(values) != 1 or first.dtype != np.uint8):
        raise ConfigError(
            f"{given.input} holds no images",
            fix="give one array, uint8 RGB (n, height, width, 3), or leave --images out",
        )
    images = given.images or (not given.raw and len(values) == 1 and first.dtype == np.uint8 and first.ndim == 4)
    results = [model.predict(first)] if images else model.run_batch(values)
    shown = results if given.output.suffix == ARCHIVE else results[:1]
    written = io.BytesIO()
    if given.output.suffix == ARCHIVE:
        _write_archive(written, dict(zip(model.names("outputs"), results, strict=False)))
    else:
        np.save(written, results[0])
    write_output(given.output, written.getvalue())
    print(f"{given.output}: {', '.join(f'{value.dtype} {tuple(value.shape)}' for value in shown)}")
    return 0


def _read(file: Path, model: Model) -> list[Any]:
    """The arrays in the order of the model's inputs."""
    from compiler.runtime.inert import load_array, load_arrays

    names = model.names("inputs")
    if file.suffix.lower() in SUFFIXES:
        return [model.read_pictures([file])]
    try:
        if file.suffix != ARCHIVE:
            return [load_array(file)]
        found = load_arrays(file)
    except ValueError as error:
        raise ConfigError(f"cannot read {file}: {error}", fix="give a .npy file of numbers") from None
    if set(found) != set(names):
        raise ConfigError(
            f"{file} holds the arrays {', '.join(sorted(found)) or 'none'}", fix=f"name them {', '.join(names)}"
        )
    return [found[name] for name in names]


def _write_archive(file: io.BytesIO, arrays: dict[str, Any]) -> None:
    """As `numpy.savez`, which takes no name for granted: an output may be called `file`."""
    import zipfile

    import numpy as np

    with zipfile.ZipFile(file, "w") as archive:
        for name, array in arrays.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as stream:
                np.save(SimpleNamespace(write=stream.write), array)
