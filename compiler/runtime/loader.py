"""Opens a built artifact as one object: verified, tuned options applied, shapes and dtypes checked."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from compiler.errors import CompilerError, ConfigError, IntegrityError
from compiler.registries.reference import is_reference, parse
from compiler.runtime import claims, preprocess
from compiler.runtime.host import profile
from compiler.runtime.names import SHIPPED
from compiler.runtime.session import Array, Session, open_model
from compiler.runtime.trust import Policy, check
from compiler.runtime.verify import check_selected, read_manifest


class Model:
    """An artifact that is ready to run. `manifest` is what is claimed about it, `batch` how much a run takes."""

    def __init__(
        self, folder: Path, manifest: dict[str, Any], runtimes: tuple[str, ...] = (), batch: int | None = None
    ) -> None:
        claims.check(manifest)
        chosen = next(c for c in manifest["candidates"] if c["id"] == manifest["selected"])
        self.manifest = manifest
        self.labels: list[str] | None = manifest["labels"]
        self._signature = {**copy.deepcopy(manifest["signature"]), "preprocessing": manifest["preprocessing"]}
        file = next(f["path"] for f in manifest["files"] if f["role"] == "model")
        options = allowed_options(chosen, runtimes)
        claims.check_format(chosen["runtime"], file)
        self._runtime = str(chosen["runtime"])
        # tuned on another machine perhaps: never more threads than there are cores here
        options["threads"] = max(1, min(int(options.get("threads", 1)), profile()["cores"]))
        if batch is not None:
            options["batch"] = batch
        streams = max(1, min(int(options.get("streams", 1)), profile()["cores"] // options["threads"]))
        self._sessions = [_open(self._runtime, folder / file, options) for _ in range(streams)]
        if options.get("batch") is not None:
            for entry in (*self._signature["inputs"], *self._signature["outputs"]):
                entry["shape"] = [options["batch"], *entry["shape"][1:]]
        self.batch = int(self._signature["inputs"][0]["shape"][0])
        claims.check_session(self._sessions[0], self._signature)

    def names(self, kind: str) -> list[str]:
        """The names of the signature's `inputs` or `outputs`, in order."""
        return [entry["name"] for entry in self._signature[kind]]

    def run(self, inputs: list[Array], stream: int = 0) -> list[Array]:
        """One inference, by one of the streams, on tensors of exactly the signature's shapes and dtypes.

        Raises:
            ConfigError: a tensor is missing, or has another shape or dtype than the signature says; or the library
                cannot run the model.
        """
        expected = self._signature["inputs"]
        if len(inputs) != len(expected):
            raise ConfigError(f"{len(inputs)} inputs were given", fix=f"the model takes {len(expected)}")
        for value, entry in zip(inputs, expected, strict=True):
            wanted = f"{entry['dtype']} of shape {tuple(entry['shape'])}"
            if value.dtype != np.dtype(entry["dtype"]) or tuple(value.shape) != tuple(entry["shape"]):
                raise ConfigError(
                    f"input {entry['name']!r} is {value.dtype} of shape {value.shape}", fix=f"it must be {wanted}"
                )
        try:
            outputs = self._sessions[stream].run([np.ascontiguousarray(value) for value in inputs])
        except CompilerError:
            raise
        except Exception as error:  # the libraries' own classes have no other base
            raise ConfigError(
                f"{self._runtime} cannot run the model", fix=UNRUNNABLE, details=claims.words(error)
            ) from error
        if any(value.ndim == 0 or len(value) != self.batch for value in outputs):
            raise IntegrityError("the model's output has another batch than its input", fix=claims.FIX)
        return outputs

    def run_batch(self, values: Array | Sequence[Array]) -> list[Array]:
        """Any number of samples, (n, ...) in the signature's dtype, in order, as many at a time as a run takes; a list
        of such arrays where the model has several inputs.

        Where the artifact was tuned for several streams, so many runs are under way at the same time.

        What the last run lacks is filled with its last sample, and left out of the result.

        Raises:
            ConfigError: the samples do not have the signature's shape or dtype.
        """
        given = [values] if isinstance(values, np.ndarray) else list(values)
        expected = self._signature["inputs"]
        if len(given) != len(expected):
            raise ConfigError(f"{len(given)} inputs were given", fix=f"the model takes {len(expected)}")
        count = len(given[0]) if given[0].ndim else 0
        for value, entry in zip(given, expected, strict=True):
            if value.shape[1:] != tuple(entry["shape"][1:]) or not count or value.shape[0] != count:
                wanted = ", ".join(["n", *(str(n) for n in entry["shape"][1:])])
                raise ConfigError(
                    f"input {entry['name']!r} has the shape {tuple(value.shape)}",
                    fix=f"it must be ({wanted}) with n at least 1 and the same for every input",
                )
        lacking = -count % self.batch
        if lacking:
            given = [np.concatenate([value, np.repeat(value[-1:], lacking, axis=0)]) for value in given]
        chunks = [[value[i : i + self.batch] for value in given] for i in range(0, count, self.batch)]
        parts: list[list[Array]] = [[] for _ in chunks]

        def work(stream: int) -> None:
            for i in range(stream, len(chunks), len(self._sessions)):
                parts[i] = self.run(chunks[i], stream)

        with ThreadPoolExecutor(len(self._sessions)) as pool:
            list(pool.map(work, range(len(self._sessions))))
        return [np.concatenate(column)[:count] for column in zip(*parts, strict=True)]

    def predict(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Logits, float32 (n, classes), of uint8 RGB images (n, height, width, 3): pre- and postprocessing included."""
        outputs = self.run_batch(preprocess.encode(images, self._signature))
        return preprocess.decode(outputs[0], self._signature["outputs"][0])

    def read_pictures(self, paths: Sequence[Path]) -> NDArray[np.uint8]:
        """Picture files as images for `predict`, uint8 RGB (n, height, width, 3): turned, resized, cropped as recorded.

        Raises:
            ConfigError: a file is not a picture that can be read, or is smaller than the crop.
            MissingToolError: Pillow is not installed.
        """
        from compiler.pictures import read_picture

        return np.stack([read_picture(Path(path), self._signature["preprocessing"]) for path in paths])


UNRUNNABLE = "its files match their digests: check the library's version against the manifest's, or fetch it again"


def _open(runtime: str, file: Path, options: dict[str, Any]) -> Session:
    try:
        return open_model(runtime, file, options)
    except CompilerError:
        raise
    except Exception as error:  # the libraries' own classes have no other base
        raise ConfigError(f"{runtime} cannot open {file.name}", fix=UNRUNNABLE, details=claims.words(error)) from error


def allowed_options(chosen: dict[str, Any], runtimes: tuple[str, ...]) -> dict[str, Any]:
    """A manifest is data: it may choose among our runtimes and their settings, and never name code to be imported."""
    runtime, options = str(chosen["runtime"]), dict(chosen["options"])
    if runtime in runtimes:
        return options
    if runtime not in SHIPPED:
        raise IntegrityError(
            f"the manifest names the runtime {runtime!r}, which is not one that artifacts may ask for",
            fix=f"only you can allow one of your own: load(path, runtimes=({runtime!r},)), or --runtime {runtime}",
        )
    stray = sorted(set(options) - SHIPPED[runtime])
    if stray:
        raise IntegrityError(
            f"the manifest gives the runtime {runtime} the option {stray[0]!r}", fix="do not use this artifact"
        )
    return options


def load(
    path: str | Path, runtimes: tuple[str, ...] = (), batch: int | None = None, policy: Policy | None = None
) -> Model:
    """Opens the artifact at `path` after verifying every file.

    `path` is a version's folder, `.../latest`, or a reference (`oci://host/repository:tag`, `file:dir@sha256:...`):
    what it means is fetched into the user's cache if it is not there. One with a digest means the same for ever.

    `runtimes` names modules of your own that the manifest may ask for besides the project's. `batch`: how many samples
    a run takes; without it as many as the artifact was tuned for, which is 1 unless the manifest's options say more.
    `policy` says whose signature is demanded, and more; without it that of MODEL_COMPILER_POLICY.

    Raises:
        IntegrityError: something does not match the manifest, or the policy refuses the artifact.
        ConfigError: nothing is there, the artifact has no selected candidate, or it cannot be run at the batch.
        StepError: the registry cannot be reached.
        MissingToolError: the library that the format needs, or one for signatures, is not installed.
    """
    if is_reference(str(path)):
        from compiler.runtime.fetch import cached

        pulled = cached(parse(str(path)), policy)
        folder, manifest = pulled.folder, pulled.manifest
    else:
        folder, _ = read_manifest(Path(path))
        manifest = check(folder, policy).manifest
    check_selected(manifest, path)
    return Model(folder, manifest, runtimes, batch)
