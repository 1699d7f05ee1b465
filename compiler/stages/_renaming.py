"""Names under which the same tensors are saved: prefixes of wrappers, and older or newer names of one layer."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

COUNTERS = ("n_averaged",)
"""Tensors of wrappers (`torch.optim.swa_utils.AveragedModel`) that belong to no layer."""

INNER = ("_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")
"""Parts of names that wrappers put in front of any module, not of the outermost alone."""
DEEPEST_PREFIX = 4

RENAMINGS: dict[str, tuple[tuple[str, str], ...]] = {
    "weight norm's newer names": (
        (".parametrizations.weight.original0", ".weight_g"), (".parametrizations.weight.original1", ".weight_v"),
    ),
    "weight norm's older names": (
        (".weight_g", ".parametrizations.weight.original0"), (".weight_v", ".parametrizations.weight.original1"),
    ),
    "spectral norm's newer names": (
        (".parametrizations.weight.original", ".weight_orig"), (".parametrizations.weight.0._u", ".weight_u"),
        (".parametrizations.weight.0._v", ".weight_v"),
    ),
    "spectral norm's older names": (
        (".weight_orig", ".parametrizations.weight.original"), (".weight_u", ".parametrizations.weight.0._u"),
        (".weight_v", ".parametrizations.weight.0._v"),
    ),
    "a norm's older names (gamma, beta)": ((".gamma", ".weight"), (".beta", ".bias")),
}  # fmt: skip
"""What it is called -> ends of names in the checkpoint, and what the network calls them."""


def prefixes_of(names: Iterable[str]) -> list[str]:
    """The dotted prefixes that all `names` share, the shortest first: `a.`, `a.b.` for a.b.w and a.b.c."""
    split = [name.split(".")[:-1] for name in names]
    shared: list[str] = []
    for parts in zip(*split, strict=False):
        if len(set(parts)) > 1:
            break
        shared.append(parts[0])
    return [".".join(shared[: i + 1]) + "." for i in range(len(shared))]


def variants(state: Mapping[str, Any], expected: Iterable[str]) -> Iterator[tuple[Mapping[str, Any], list[str]]]:
    """The state dict under every name that it may be meant for, likelier ones first, and what was changed, in words.

    `expected`: the network's own names. The first is the state dict as it is.
    """
    expected = list(expected)
    yield state, []
    counters = [name for name in state if name in COUNTERS and name not in expected]
    bare = _renamed(state, {name: name for name in state if name not in counters})
    notes = [f"the counter {name!r} of a wrapper was left out" for name in counters]
    if counters:
        yield bare, notes
    prefixed: list[tuple[Mapping[str, Any], list[str]]] = [(bare, notes)]
    for prefix in prefixes_of(bare):
        stripped = {name: name.removeprefix(prefix) for name in bare}
        prefixed.append((_renamed(bare, stripped), [*notes, f"the prefix {prefix!r} was removed from all names"]))
    inner, said = _without_inner(bare)
    if inner is not None:
        prefixed.append((inner, [*notes, *said]))
        for prefix in prefixes_of(inner):
            stripped = {name: name.removeprefix(prefix) for name in inner}
            removed = f"the prefix {prefix!r} was removed from all names"
            prefixed.append((_renamed(inner, stripped), [*notes, *said, removed]))
    for prefix in prefixes_of(expected):
        added = {name: prefix + name for name in bare}
        prefixed.append((_renamed(bare, added), [*notes, f"the prefix {prefix!r} was put before all names"]))
    yield from prefixed[1:]
    for named, said in prefixed:
        for title, ends in RENAMINGS.items():
            names = {name: _with_end(name, ends) for name in named}
            if any(name != new for name, new in names.items()) and len(set(names.values())) == len(names):
                yield _renamed(named, names), [*said, f"{title} were replaced by those of the network"]
    for named, said in prefixed:
        yield _renamed(named, {name: name for name in named}, versions=False), said


def _without_inner(state: Mapping[str, Any]) -> tuple[dict[str, Any] | None, list[str]]:
    """The state dict without the parts of names that wrappers put anywhere, where that gives each name once."""
    names = {name: ".".join(part for part in name.split(".") if part not in INNER) for name in state}
    found = [part for part in INNER if any(part in name.split(".") for name in state)]
    if not found or len(set(names.values())) < len(names):
        return None, []
    return _renamed(state, names), [f"{' and '.join(map(repr, found))} was removed wherever a name has it"]


def parts_of(state: Mapping[str, Any], expected: Iterable[str]) -> dict[str, dict[str, Any]]:
    """Prefix -> the tensors below it under the network's own names, for each prefix below which all of these are.

    It finds the network, or several, among other tensors: a loss with weights, averages in the same dictionary.
    """
    below: dict[str, dict[str, Any]] = {}
    for name, value in state.items():
        pieces = name.split(".")
        for cut in range(1, min(len(pieces), DEEPEST_PREFIX + 1)):
            below.setdefault(".".join(pieces[:cut]) + ".", {})[".".join(pieces[cut:])] = value
    wanted = set(expected)
    needed = {name for name in wanted if not name.endswith("num_batches_tracked")}
    return {prefix: part for prefix, part in below.items() if needed and needed <= part.keys() <= wanted}


def with_counters(state: Mapping[str, Any], own: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """Adds the network's own `num_batches_tracked`, which no inference reads, where the checkpoint leaves it out."""
    missing = [name for name in own if name.endswith("num_batches_tracked") and name not in state]
    note = [f"num_batches_tracked is missing for {len(missing)} norms; inference does not read it"] if missing else []
    return {**state, **{name: own[name] for name in missing}}, note


def _with_end(name: str, ends: tuple[tuple[str, str], ...]) -> str:
    dotted = "." + name
    for old, new in ends:
        if dotted.endswith(old):
            return (dotted.removesuffix(old) + new)[1:]
    return name


def _renamed(state: Mapping[str, Any], names: Mapping[str, str], *, versions: bool = True) -> dict[str, Any]:
    """Those of `state` that `names` lists, under their new names, with the modules' versions where there are any."""
    from collections import OrderedDict

    made: Any = OrderedDict((new, state[name]) for name, new in names.items())
    known = getattr(state, "_metadata", None)
    if versions and known is not None:
        old, new = next(iter(names.items()), ("", ""))
        removed = old.removesuffix(new) if old.endswith(new) else ""
        made._metadata = OrderedDict(
            ((f"{module}.".removeprefix(removed))[:-1] if removed else module, value) for module, value in known.items()
        )
    result: dict[str, Any] = made
    return result
