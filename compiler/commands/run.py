"""run: inference with a built artifact, its tuned options applied."""

from __future__ import annotations

from pathlib import Path

from compiler.commands.arguments import add_trust_flags, parser, policy_of
from compiler.errors import ConfigError
from compiler.stage import write_array


def run(arguments: list[str]) -> int:
    """Reads an array, runs the selected model over it, writes an array."""
    options = parser("run", __doc__ or "")
    options.add_argument("path", help="a version's folder, .../latest, or a reference")
    options.add_argument(
        "--input",
        type=Path,
        required=True,
        help=".npy: uint8 RGB images (n, height, width, 3), or tensors as the signature says",
    )
    options.add_argument(
        "--output",
        type=Path,
        required=True,
        help=".npy: float32 logits (n, classes) for images, else the model's own output",
    )
    options.add_argument("--runtime", action="append", default=[], metavar="MODULE", help="allow a runtime of your own")
    add_trust_flags(options)
    given = options.parse_args(arguments)

    import numpy as np

    from compiler.runtime import load

    model = load(given.path, runtimes=tuple(given.runtime), policy=policy_of(given))
    try:
        values = np.load(given.input, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise ConfigError(f"cannot read {given.input}: {error}", fix="give a .npy file of numbers") from None
    if not isinstance(values, np.ndarray):
        raise ConfigError(f"{given.input} is an archive of arrays", fix="give a .npy file with one array")
    images = values.dtype == np.uint8 and values.ndim == 4
    result = model.predict(values) if images else model.run_batch(values)[0]
    try:
        write_array(given.output, result)
    except OSError as error:
        raise ConfigError(f"cannot write {given.output}: {error.strerror}", fix="choose another place") from None
    print(f"{given.output}: {result.dtype} {tuple(result.shape)}")
    return 0
