"""The typed form of a build's configuration: what every YAML file and override is checked against.

The dataclasses must not be frozen: Hydra cannot compose onto read-only nodes.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass
class Match:
    """How to tell on a host that it is the target; what is null is not asked for."""

    cpu_model: str | None = None
    """Regular expression found in the CPU's model name; without one no host is taken for the target."""
    this_host: bool = False
    """The target is whatever machine the build runs on."""
    gpu: str | None = None
    """Regular expression found in the name of the GPU."""
    compute_capability: str | None = None
    """Of the GPU, such as "7.5"."""


@dataclass
class Target:
    """The hardware an artifact is for."""

    name: str
    description: str = ""
    arch: str = "x86_64"
    isa: list[str] = field(default_factory=list)
    """CPU features that may be relied on, in /proc/cpuinfo's spelling."""
    cores: int = 1
    memory_mb: int = 1024
    threads: int = 1
    match: Match = field(default_factory=Match)
    candidates: list[str] = field(default_factory=list)
    baseline: str = "pytorch_fp32"
    """The uncompiled candidate that every other is compared with."""
    defer: bool = False
    """What `defer` is unless a build says otherwise."""


@dataclass
class Model:
    """Where the network comes from."""

    name: str
    architecture: str
    weights: str | None = None
    sha256: str | None = None
    num_classes: int | None = None
    accuracy: float | None = None
    """Percent that training reported, by `data.metric` (top1 or top5); a baseline clearly below it proves nothing."""


@dataclass
class Splits:
    """Samples per split; null takes the rest."""

    train: int | None = 0
    calibration: int | None = 100
    selection: int | None = 100
    report: int | None = None


@dataclass
class Data:
    """Where the samples come from and how they become the network's input."""

    dataset: str
    root: str | None = None
    classes: str | None = None
    num_classes: int | None = None
    resize: int = 256
    crop: int = 224
    mean: list[float] = field(default_factory=lambda: [0.5, 0.5, 0.5])
    std: list[float] = field(default_factory=lambda: [0.5, 0.5, 0.5])
    orientation: str = "exif"
    """`exif`: pictures are turned as their EXIF entry says, as a viewer shows them; `stored`: they are not."""
    background: list[float] | None = field(default_factory=lambda: [255.0, 255.0, 255.0])
    """Colour behind transparent pixels, 0 to 255; null keeps the colours that are stored there."""
    unreadable: str = "error"
    """`error`: an image that cannot be read ends the build; `skip`: it is left out, and the record says so."""
    layout: str = "NCHW"
    splits: Splits = field(default_factory=Splits)
    split_seed: int = 0
    metric: str = "top1"
    """`top1`, `top5`, or `package.module:function` of the user's own (see `compiler.metrics`)."""


@dataclass
class Budget:
    """What an artifact must meet; null is not asked for."""

    latency_p95_ms: float | None = None
    latency_p99_ms: float | None = None
    first_answer_ms: float | None = None
    """From the start of a process to its first answer."""
    accuracy_drop: float | None = None
    accuracy_min: float | None = None
    accuracy_gate: str = "point"
    size_mb: float | None = None
    peak_memory_mb: float | None = None
    arrival_rate_per_s: float | None = None
    """Requests a second, at random moments, at which `load_p99_ms` must hold."""
    load_p99_ms: float | None = None


@dataclass
class Executor:
    """How steps are run."""

    jobs: int = 0
    """Steps that run at the same time; 0: as many as there are cores, four at most."""
    time_limit_s: float = 3600.0
    """Of one step."""
    memory_limit_mb: float = 0.0
    """Of one step with all that it starts; 0: 95 % of what the machine, or its control group, has."""
    environment: list[str] = field(default_factory=list)
    """Names of environment variables that steps get besides the settings of every step; keys cover their values."""


@dataclass
class Signing:
    """With what an artifact is signed when it is published."""

    key: str | None = None
    """Private key (PEM); the password of an encrypted one is in MODEL_COMPILER_KEY_PASSWORD."""
    certificates: list[str] = field(default_factory=list)
    """The key's certificate, then those above it (PEM)."""


@dataclass
class Toolchain:
    """An environment of its own for steps that cannot live in ours."""

    python: str


@dataclass
class Candidate:
    """A backend at a precision with a quantization recipe: a chain of steps behind a step of the pipeline."""

    backend: str
    """Module in `compiler.backends` (or a dotted module of your own) whose stages the steps may name."""
    precision: str
    artifact: str
    """File that is opened, in the result of the last step."""
    after: str = "fuse"
    runtime: str | None = None
    """Module in `compiler.runtime`, or a dotted one; null: named like the backend."""
    options: dict[str, Any] = field(default_factory=dict)
    """What the runtime is told besides the number of threads."""
    steps: dict[str, dict[str, Any]] = field(default_factory=dict)
    """In order; each takes the result of the one before."""


@dataclass
class Config:
    """The whole of a build's configuration."""

    target: Target
    model: Model
    data: Data
    budget: Budget
    candidates: list[str]
    baseline: str
    steps: dict[str, Any]
    candidate: dict[str, Candidate] = field(default_factory=dict)
    objective: str = "latency"
    evaluate: str = "on_demand"
    seed: int = 0
    strict: bool = False
    defer: bool = False
    """Where candidates need a GPU or a tool that this host has not: build what can be built here, for `finish` to
    complete where it is there. False: such a build fails before any work."""
    artifacts_dir: str = "artifacts"
    executor: Executor = field(default_factory=Executor)
    registry: str = ""
    """Where `publish` sends the artifact: `file:PATH` or `oci://HOST/REPOSITORY`."""
    publish: bool = False
    force: bool = False
    """Publishes although the budget is not met; the published manifest says so."""
    signing: Signing = field(default_factory=Signing)
    toolchains: dict[str, Toolchain] = field(default_factory=dict)
