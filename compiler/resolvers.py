"""What a YAML file may ask for: this host, and what a candidate needs to know of the target."""

from __future__ import annotations

from typing import Any


def register_resolvers() -> None:
    """`${host:cores}` and its like, and what a candidate may ask about the target."""
    from omegaconf import OmegaConf

    from compiler.runtime.host import profile

    if not OmegaConf.has_resolver("host"):
        OmegaConf.register_new_resolver("host", lambda name: profile()[name])
        OmegaConf.register_new_resolver("target_without_vnni", _without_vnni)
        OmegaConf.register_new_resolver("largest_batch", _largest_batch)
        OmegaConf.register_new_resolver(
            "batch_or_any", lambda *, _root_: None if _largest_batch(_root_=_root_) > 1 else 1
        )


def _without_vnni(*, _root_: Any) -> bool:
    """uint8 x int8 products saturate in 16 bits on x86 CPUs without VNNI: weights then use 7 bits."""
    target = _root_.target
    return bool(target.arch == "x86_64" and not any("vnni" in feature for feature in target.isa))


def _largest_batch(*, _root_: Any) -> int:
    """The largest batch that an engine must take: what the sweep tries; 1, which runs fastest, without one."""
    sweep = _root_.steps.get("sweep") or {}
    return int(sweep.get("max_batch", 64)) if _root_.objective == "throughput" else 1
