"""What a worker says of its step: its answer, how far it is, the facts of its result.

Code of anybody's may have written it, in any way: it is read within limits, checked, and its words steer no terminal.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from compiler.errors import CompilerError, from_json
from compiler.foreign_json import parse_json, read_json
from compiler.words import lines, words

ANSWER, PROGRESS = "answer.json", "progress.json"
LARGEST_ANSWER = 1 << 30
"""Own code may read a million files; the store keeps records of the same size."""
LARGEST_PROGRESS = 4 << 10
LARGEST_FACTS = 16 << 20
"""Of a step's facts, as UTF-8. Larger data belongs in a file of the result."""
DEEPEST_FACTS = 64
"""How deeply a step's facts may be nested."""
LARGEST_INDENTED = (DEEPEST_FACTS + 3) * LARGEST_FACTS
"""Of the file with a step's facts: each value may stand on a line of its own, indented by its depth."""


@dataclass(frozen=True)
class Answer:
    """What a worker answered: `error` where its step failed, else what the step used."""

    error: CompilerError | None = None
    errno: int | None = None
    loaded: tuple[str, ...] = ()
    """Top-level names of the installed modules that it had loaded."""
    reads: Mapping[str, str] = field(default_factory=dict)
    """The files that own code read, with what they held."""
    libraries: Mapping[str, str] = field(default_factory=dict)
    """Source of libraries without metadata that it had loaded, with digests."""


def read_answer(folder: Path) -> Answer:
    """The answer of the worker whose folder this is.

    Raises:
        OSError: the file is missing or cannot be opened.
        ValueError: the file does not hold an answer as a worker writes it.
    """
    record = _mapping("it", read_json(folder / ANSWER, LARGEST_ANSWER))
    if record.get("ok") is True:
        return Answer(
            loaded=tuple(_text("loaded", item) for item in _list("loaded", record.get("loaded"))),
            reads=_texts("reads", record.get("reads")),
            libraries=_texts("libraries", record.get("libraries")),
        )
    if record.get("ok") is not False:
        raise ValueError("ok is neither true nor false")
    number = record.get("errno")
    return Answer(error=_error(record), errno=number if type(number) is int else None)


def read_progress(file: Path) -> tuple[int, int, str] | None:
    """How far a step is (done, of how many, what), None where nothing, or nothing of sense, is said of it."""
    try:
        record = _mapping("it", read_json(file, LARGEST_PROGRESS))
    except (OSError, ValueError):
        return None
    done, total, what = record.get("done"), record.get("total"), record.get("what")
    if type(done) is not int or type(total) is not int or not isinstance(what, str):
        return None
    return (done, total, words(what, 80)) if 0 <= done < 1 << 63 and 0 <= total < 1 << 63 else None


def check_facts(facts: object) -> dict[str, Any]:
    """Checks that facts are what every reader of them understands: a mapping of JSON types, finite, within limits.

    Raises:
        ValueError: they are not.
    """
    if not isinstance(facts, dict):
        raise ValueError(f"a {type(facts).__name__}, not a mapping of names to values")
    if _depth(facts) > DEEPEST_FACTS:
        raise ValueError(f"nested deeper than {DEEPEST_FACTS} levels, or in a circle")
    try:
        data = json.dumps(facts, ensure_ascii=False).encode()
    except TypeError as error:
        raise ValueError(str(error)) from None
    if len(data) > LARGEST_FACTS:
        raise ValueError(f"larger than {LARGEST_FACTS} bytes: write a file of the result instead")
    parsed: dict[str, Any] = parse_json(data)
    _check_known(parsed)
    return parsed


def read_checked_facts(file: Path) -> dict[str, Any]:
    """The facts in a file that a step had in its hands.

    Raises:
        OSError: the file cannot be opened.
        ValueError: the file does not hold valid facts.
    """
    return check_facts(read_json(file, LARGEST_INDENTED))


def _error(record: Mapping[str, Any]) -> CompilerError:
    what = words(record.get("what") or "") or "the step failed without a word"
    found = from_json({"error": record.get("error"), "what": what, "fix": words(record.get("fix") or "")})
    found.details = lines(record.get("details"))
    return found


def _check_known(facts: Mapping[str, Any]) -> None:
    """The facts that manifests take over, and whose form others rely on."""
    fidelity, bound_to = facts.get("fidelity"), facts.get("bound_to")
    if fidelity is not None and not _all_of(fidelity, (int, float, bool, type(None))):
        raise ValueError("fidelity is not a mapping of names to numbers")
    if "bound_to" in facts and not _all_of(bound_to, (str,)):
        raise ValueError("bound_to is not a mapping of names to strings")


def _all_of(value: object, kinds: tuple[type, ...]) -> bool:
    return isinstance(value, dict) and all(isinstance(item, kinds) for item in value.values())


def _depth(value: object) -> int:
    """How many collections lie in each other, counted as far as one more than is allowed."""
    depth, level = 0, [value]
    while level and depth <= DEEPEST_FACTS:
        collections = [one for one in level if isinstance(one, dict | list | tuple)]
        inner = [item for one in collections for item in (one.values() if isinstance(one, dict) else one)]
        level = list({id(item): item for item in inner}.values())
        depth += 1
    return depth


def _mapping(name: str, value: object) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ValueError(f"{name} is not a mapping")
    return value


def _list(name: str, value: object) -> list[Any]:
    if not isinstance(value, list):
        raise ValueError(f"{name} is not a list")
    return value


def _texts(name: str, value: object) -> dict[str, str]:
    return {_text(name, key): _text(name, item) for key, item in _mapping(name, value).items()}


def _text(name: str, value: object) -> str:
    """A text that can be written as UTF-8: JSON can hold halves of characters."""
    try:
        if isinstance(value, str) and value.encode():
            return value
    except UnicodeEncodeError:
        pass
    raise ValueError(f"{name} holds a value that is not a string")
