"""Loads a checkpoint's tensors into a network: PyTorch decides whether they fit, under the names that it may mean."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from compiler.errors import CompilerError, ConfigError
from compiler.stages._checkpoint import TensorSet, likelihood
from compiler.stages._renaming import parts_of, variants, with_counters


def fit(
    build: Callable[[int], Any], sets: Sequence[TensorSet], count: int, path: Path, architecture: str, *, infer: bool
) -> tuple[Any, list[str]]:
    """Return a network with the tensors of the first of `sets` that fits, and notes on what was done to load them.

    `build` makes a network for a number of classes. `count` is tried first; with `infer`, then the number of classes
    that the tensors themselves tell.

    Raises:
        ConfigError: no set fits, and the error compares the names and shapes of the likeliest; or several fit, and
            nothing says which is meant.
    """
    network = build(count)
    sets = _split(sets, network.state_dict())
    for each in sets:
        notes = load(network, each.tensors)
        if notes is not None:
            _check_choice(lambda: build(count), each, sets, path)
            return network, [*notes, *_choice(each, sets, path)]
    for each in sets if infer else ():
        told = classes_told(build, each.tensors, count)
        if told is None or told == count:
            continue
        try:
            larger = build(told)
        except ConfigError:
            continue  # the count was a guess: what does not fit says more
        notes = load(larger, each.tensors)
        if notes is not None:
            _check_choice(lambda told=told: build(told), each, sets, path)  # type: ignore[misc]
            return larger, [*notes, *_choice(each, sets, path)]
    raise _misfit(network.state_dict(), sets, path, architecture)


def load(network: Any, state: Mapping[str, Any]) -> list[str] | None:
    """Loads `state` strictly, as it is or renamed; what was changed, in words, or None where nothing fits.

    A network whose loading failed holds a mixture of tensors, so its own are put back before each attempt.
    """
    from compiler.runtime.pytorch import with_versions

    own = {name: value.clone() if hasattr(value, "clone") else value for name, value in network.state_dict().items()}
    for named, notes in variants(state, own):
        filled, added = with_counters(named, own)
        attempts: list[tuple[Any, list[str]]] = [(named, notes), (with_versions(named, network), notes)]
        if added:
            attempts.append((with_versions(filled, network), [*notes, *added]))
        for attempt, said in attempts:
            if not _alike(attempt, own):
                continue
            try:
                network.load_state_dict(attempt, strict=True)
            except Exception:  # a module's own hooks may raise anything
                network.load_state_dict(with_versions(own, network))
            else:
                return said
    return None


def _alike(state: Mapping[str, Any], own: Mapping[str, Any]) -> bool:
    """Whether half of the names are the network's or the numbers of names are close: what hooks rename still passes."""
    shared = sum(name in own for name in state)
    return 2 * shared >= min(len(state), len(own)) or abs(len(state) - len(own)) * 2 <= len(own)


def classes_told(build: Callable[[int], Any], state: Mapping[str, Any], guess: int) -> int | None:
    """The number of classes that the shapes in `state` tell, or None where they do not.

    Tensors that differ between networks for `guess` and `guess + 1` classes grow with the number; all must agree.
    """
    try:
        one = {name: tuple(value.shape) for name, value in build(guess).state_dict().items()}
        two = {name: tuple(value.shape) for name, value in build(guess + 1).state_dict().items()}
        for named, _ in variants(state, one):
            votes = Counter(_votes(named, one, two, guess))
            if len(votes) == 1:
                return next(iter(votes))
    except (CompilerError, RuntimeError, ValueError, TypeError, AttributeError):
        return None  # a guess: that it fails says nothing about the checkpoint
    return None


def _votes(
    state: Mapping[str, Any], one: Mapping[str, tuple[int, ...]], two: Mapping[str, tuple[int, ...]], guess: int
) -> list[int]:
    found = []
    for name, shape in one.items():
        other = two.get(name, shape)
        given = tuple(state[name].shape) if name in state else None
        if given is None or len(other) != len(shape) or len(given) != len(shape):
            continue
        axes = [axis for axis, (a, b) in enumerate(zip(shape, other, strict=True)) if a != b]
        if len(axes) == 1:
            step = other[axes[0]] - shape[axes[0]]
            count, rest = divmod(given[axes[0]] - shape[axes[0]], step)
            found.append(guess + count if rest == 0 and guess + count > 0 else 0)
    return [] if 0 in found else found


def _check_choice(build: Callable[[], Any], taken: TensorSet, sets: Sequence[TensorSet], path: Path) -> None:
    """Refuses a choice between sets that are equally likely by their keys, such as a student's and a teacher's.

    Raises:
        ConfigError: another one fits as well and holds other values.
    """
    equals = [
        each
        for each in sets
        if each is not taken and _rank(each) == _rank(taken) and not _same(each.tensors, taken.tensors)
    ]
    also = [each for each in equals if load(build(), each.tensors) is not None]
    if not also:
        return
    both = [taken, *also]
    raise ConfigError(
        f"the checkpoint {path.name} holds {len(both)} sets of weights that fit: {', '.join(e.place() for e in both)}",
        fix="make a file of the one that is meant by a line above, and give it as model.weights",
        details=[
            "import torch, safetensors.torch",
            *(
                f"torch.save({each.expression(path)}, {f'{path.stem}-{number}.pt'!r})"
                for number, each in enumerate(both)
            ),
        ],
    )


def _rank(each: TensorSet) -> tuple[object, ...]:
    """How likely a set is by its key and prefix, without the names themselves."""
    return (*likelihood(each.key)[:2], *likelihood(each.prefix.rstrip("."))[:2])


def _same(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Whether two sets hold the same tensors under the same names."""
    import torch

    return one.keys() == other.keys() and all(torch.equal(value, other[name]) for name, value in one.items())


def _choice(taken: TensorSet, sets: Sequence[TensorSet], path: Path) -> list[str]:
    """What is said of a file with several sets."""
    others = [each for each in sets if each is not taken and len(each.tensors) > 1]
    if not others:
        return [f"the weights were found under {taken.key!r}"] if taken.key not in ("", "state_dict") else []
    return [
        f"the weights under {taken.place() or 'the top level'!r} were taken; {path.name} also holds "
        f"{', '.join(each.place() or 'the top level' for each in others)}: "
        f"torch.save({others[0].expression(path)}, 'other.pt') makes a file of it"
    ]


def _split(sets: Sequence[TensorSet], expected: Mapping[str, Any]) -> list[TensorSet]:
    """The sets, with one that holds the network several times, under prefixes and nothing else, as several sets."""
    found: list[TensorSet] = []
    for each in sets:
        parts = parts_of(each.tensors, expected)
        if len(parts) > 1 and sum(map(len, parts.values())) == len(each.tensors):
            prefixes = sorted(parts, key=lambda prefix: likelihood(prefix.rstrip(".")))
            found += [TensorSet(each.keys, parts[prefix], prefix) for prefix in prefixes]
        else:
            found.append(each)
    return found


def _misfit(expected: Mapping[str, Any], sets: Sequence[TensorSet], path: Path, architecture: str) -> ConfigError:
    """Names the first few keys that are missing, unknown or of another shape, in the set with most names in common."""
    best = max(
        ((named, each, notes) for each in sets for named, notes in variants(each.tensors, expected)),
        key=lambda row: sum(name in expected for name in row[0]) - sum(name not in expected for name in row[0]),
    )
    state, taken, notes = best
    missing = [name for name in expected if name not in state]
    unknown = [name for name in state if name not in expected]
    shapes = [
        f"{name}: checkpoint {tuple(state[name].shape)}, network {tuple(expected[name].shape)}"
        for name in expected
        if name in state and tuple(state[name].shape) != tuple(expected[name].shape)
    ]
    details = [
        f"{title} ({len(names)}): {'; '.join(names[:4])}{' ...' if len(names) > 4 else ''}"
        for title, names in (("missing", missing), ("unknown", unknown), ("other shape", shapes))
        if names
    ]
    if notes and set(state) & set(expected):
        details.insert(0, f"compared after {'; '.join(notes)}")
    if len(sets) > 1 or taken.key:
        found = ", ".join(f"{each.place() or 'top level'} ({len(each.tensors)} tensors)" for each in sets)
        details.append(f"sets of tensors in the file: {found}")
    for each in sets:
        for prefix, part in parts_of(each.tensors, expected).items():
            others = [name for name in each.tensors if not name.startswith(prefix)]
            if others:
                return _among_others(TensorSet(each.keys, part, prefix), others, path, architecture)
    return ConfigError(
        f"the checkpoint {path.name} does not fit {architecture}",
        fix="check model.architecture and model.num_classes against what was trained",
        details=details,
    )


def _among_others(part: TensorSet, others: Sequence[str], path: Path, architecture: str) -> ConfigError:
    """The error for a set that holds all of the network below one prefix, and tensors that are not the network's."""
    count = f"{len(others)} other{' is' if len(others) == 1 else 's are'} not"
    named = f"{'; '.join(others[:4])}{' ...' if len(others) > 4 else ''}"
    return ConfigError(
        f"the checkpoint {path.name} does not fit {architecture} as a whole: the names that begin with {part.prefix!r} "
        f"are the network's, {count}: {named}",
        fix="make a file of the network's own by the lines above, and give it as model.weights",
        details=[
            "import torch, safetensors.torch",
            f"torch.save({part.expression(path)}, {path.stem + '-state.pt'!r})",
        ],
    )
