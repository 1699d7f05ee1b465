"""What identifies a step: the document its key is the digest of, and one line on why that changed."""

from __future__ import annotations

import dataclasses
import functools
import sys
import sysconfig
import typing
from collections.abc import Callable, Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

from compiler.canonical import digest, plain
from compiler.errors import ConfigError, IntegrityError, StepError
from compiler.keys import files, functions
from compiler.keys.environment import build_isa, deciding, interpreter
from compiler.keys.foreign import foreign_identities
from compiler.keys.memo import Memo, Stamp, content_digest, full_digest, stamps
from compiler.keys.sources import foreign_imports, source_closure, source_of
from compiler.keys.tools import Tools
from compiler.launch import settings
from compiler.lookup import reference
from compiler.plan import Plan, Step
from compiler.reads import ABSENT
from compiler.runtime.control_group import usable_cores
from compiler.runtime.host import describe
from compiler.schema import Config
from compiler.stage import Stage
from compiler.store import Result, Store

KEY_VERSION = 2


class KeyMaker:
    """Makes key documents for the steps of one build."""

    def __init__(self, config: Config, memo: Memo) -> None:
        self._config = config
        self._memo = memo

    def document(self, step: Step, inputs: Mapping[str, str]) -> dict[str, Any]:
        """What the step's key is the digest of. `inputs` maps roles to the digests of the results that fill them."""
        tools, runs_on = self._tools(step)
        document: dict[str, Any] = {
            "key_version": KEY_VERSION,
            "stage": reference(type(step.stage)),
            "fields": {f.name: self._field(step.stage, f.name) for f in dataclasses.fields(step.stage)},
            "inputs": dict(sorted(inputs.items())),
            "source": self.modules(step),
            "tools": tools,
            "interpreter": runs_on,
            "environment": {**settings(), **deciding(self._config.executor.environment)},
        }
        if step.stage.numeric:
            document["numeric"] = {
                "seed": self._config.seed,
                "threads": usable_cores(),
                "isa": self._memo.once("isa", "", build_isa),
            }
        if step.stage.on_host:
            document["host"] = self._memo.once("host", "", lambda: describe()["fingerprint"])
        return document

    def find(
        self, store: Store, document: dict[str, Any], take: Callable[[str], Result | None]
    ) -> tuple[dict[str, Any], Result | None, str]:
        """Return the step's whole key document, its stored result (`take` gives that of a key), and why it is outdated.

        Which files own code reads is known only once it ran: the store remembers that under the key of `document`, and
        the whole document holds what these files hold now.
        """
        known = files.roots(document["source"])
        whole = [
            {**document, "reads": files.states(names, known)} for names in store.read_sets(key_of(document)) if names
        ]
        why = ""
        for candidate in [*whole, document]:
            found = take(key_of(candidate))
            if found is not None:
                outdated = self.outdated(found)
                if not outdated:
                    return candidate, found, ""
                why = why or outdated
        return (whole[0] if whole else document), None, why

    def watched(self, step: Step, document: Mapping[str, Any], store: Store) -> tuple[list[str], list[str]]:
        """Return the folders below which own code's reads count, and what of them does not: it is covered otherwise."""
        own = files.roots(document["source"])
        sources = [str(path) for name in document["source"] if (path := source_of(name)) is not None] if own else []
        apart = [str(store.root), str(Path(__file__).parent), sys.prefix, sysconfig.get_path("stdlib")]
        apart += [*sources, *map(str, _paths(step.stage).values())]
        return sorted(map(str, own.values())), apart

    def with_reads(
        self, document: dict[str, Any], paths: Mapping[str, str], libraries: Mapping[str, str]
    ) -> dict[str, Any]:
        """Return the whole key document of a step that read `paths`, and loaded source of `libraries` without metadata.

        Raises:
            ConfigError: one of them has changed since.
        """
        known = files.roots(document["source"])
        found = files.named(paths, known)
        for path, value in libraries.items():
            one = files.named({path: value}, files.tops_on_path([path]))
            if not one:  # found by a path that this process does not have: nobody could say what it is now
                raise StepError(
                    f"the step loaded modules that its key does not cover: {path}",
                    fix="put the folder on PYTHONPATH, or name the module in the stage's dynamic_modules()",
                )
            found |= one
        now = files.states(found, known)
        for name, value in sorted(found.items()):
            if now[name] != value:
                raise ConfigError(f"{name} was changed while a step read it", fix="run again once nothing writes to it")
        return {**document, "reads": dict(sorted(found.items()))} if found else document

    def loaded(self, step: Step, modules: Iterable[str], document: Mapping[str, Any]) -> dict[str, str]:
        """Identities of the distributions that bring the top-level `modules`, and that the step's key does not cover.

        Libraries import further ones where they find them, which no metadata says.
        """
        if step.toolchain:
            return {}
        tools = self._installed()
        return tools.own(name for name in tools.owners(modules) if name not in document["tools"])

    def outdated(self, result: Result) -> str:
        """What a result was made with, in another version than is installed now; in words, empty if nothing is."""
        now = self._installed().own(result.loaded)
        for name, old in sorted(result.loaded.items()):
            if now[name] != old:
                return f"{name} {_version(old)} to {_version(now[name], old)}"
        return ""

    def check_inputs(self, plan: Plan) -> None:
        """Reads every file that a step names, and looks for the functions of the user's own, before any step runs.

        Raises:
            ConfigError: one is not there.
            IntegrityError: the weights are not those that the configuration pins.
        """
        for step in plan.steps.values():
            for item in dataclasses.fields(step.stage):
                if is_path_field(type(step.stage), item.name):
                    self._field(step.stage, item.name)
            for setting, name in step.stage.functions().items() if step.toolchain is None else ():
                functions.check(setting, name)

    def check_ahead(self, steps: Iterable[Step]) -> None:
        """Look at what `steps`, which are to run, name outside the store: what would end one of them later.

        Raises:
            ConfigError: see `Stage.check_files`.
        """
        for step in steps:
            if step.toolchain is None:  # else what is installed here says nothing
                dataclasses.replace(step.stage, **_paths(step.stage)).check_files()

    def outside(self, plan: Plan, names: Collection[str] | None = None) -> dict[str, dict[str, str]]:
        """What steps (`names`; all) read from outside the store: `step.field` -> `path` as configured, `sha256`."""
        found = {}
        for step in [s for s in plan.steps.values() if names is None or s.name in names]:
            for name, path in _paths(step.stage).items():
                digest_ = content_digest(path, self._memo)
                found[f"{step.name}.{name}"] = {"path": str(getattr(step.stage, name)), "sha256": digest_}
        return dict(sorted(found.items()))

    def check_fully(self, plan: Plan) -> None:
        """Hashes every outside file in full, whatever is remembered of it.

        Raises:
            IntegrityError: one has other content than its size and times say.
        """
        seen: set[Path] = set()
        for step in plan.steps.values():
            for path in _paths(step.stage).values():
                if path not in seen and full_digest(path) != content_digest(path, self._memo):
                    raise IntegrityError(
                        f"{path} has other content than when it was last read, though its size and times are the same",
                        fix="check the disk, restore the file, then: python -m compiler store fsck --repair",
                    )
                seen.add(path)

    def stamps(self, step: Step) -> dict[str, Stamp]:
        """Size, times and inode of every outside file that the step reads: equal before and after, nobody wrote."""
        return {name: seen for path in _paths(step.stage).values() for name, seen in stamps(path).items()}

    def modules(self, step: Step) -> dict[str, str]:
        """The first-party modules behind a step and the digests of their source."""
        return source_closure(_roots(step), self._memo)

    def python(self, step: Step) -> str | None:
        """The interpreter of the step's toolchain, or None for ours."""
        return self._config.toolchains[step.toolchain].python if step.toolchain else None

    def look_again(self) -> None:
        """Source and tools are looked at anew from here on."""
        self._memo.forget("closure", "foreign", "tools", "owners", "identities")
        source_of.cache_clear()
        foreign_identities.cache_clear()

    def save(self) -> None:
        """Keeps what was read for the next run."""
        self._memo.save()

    def _tools(self, step: Step) -> tuple[dict[str, str], str]:
        """Identities of the distributions behind the step, and what it runs on."""
        names = tuple(sorted(set(step.stage.used_tools())))
        python = self.python(step)
        if python is not None:
            return foreign_identities(python, names)
        tools = self._installed()
        imports = foreign_imports(_roots(step), self._memo)
        if imports:
            names += tuple(self._memo.once("owners", "|".join(imports), lambda: tools.owners(imports)))
        found: dict[str, str] = self._memo.once("identities", "|".join(names), lambda: tools.identities(names))
        return found, self._memo.once("interpreter", "", interpreter)

    def _installed(self) -> Tools:
        tools: Tools = self._memo.once("tools", "", lambda: Tools(self._memo.get))
        return tools

    def _field(self, stage: Stage, name: str) -> Any:
        """A path counts by its content, everything else by its value."""
        value = plain(getattr(stage, name))
        if value is None or not is_path_field(type(stage), name):
            return value
        path = resolve_path(str(value))
        found = content_digest(path, self._memo)
        wanted = getattr(stage, "sha256", None) if name == "weights" else None
        if wanted and wanted.lower() != found:
            raise IntegrityError(
                f"the checkpoint {path} has the SHA-256 {found}, the configuration says {wanted}",
                fix="fetch the file again, or set model.sha256 to the digest of the file that you trust",
            )
        return {"content": found}


def _roots(step: Step) -> tuple[str, ...]:
    return ("compiler.worker", type(step.stage).__module__, *step.stage.dynamic_modules())


def _paths(stage: Stage) -> dict[str, Path]:
    """The fields of a stage that name something outside the store, and where that lies."""
    values = {f.name: getattr(stage, f.name) for f in dataclasses.fields(stage) if is_path_field(type(stage), f.name)}
    return {name: resolve_path(str(value)) for name, value in values.items() if value is not None}


def key_of(document: Mapping[str, Any]) -> str:
    """The key of a step: the digest of its document."""
    return digest(document)


def is_path_field(cls: type[Stage], name: str) -> bool:
    """Whether a field names something outside the store."""
    return name in _path_fields(cls)


@functools.cache
def _path_fields(cls: type[Stage]) -> frozenset[str]:
    hints = typing.get_type_hints(cls)
    names = [f.name for f in dataclasses.fields(cls)]
    return frozenset(n for n in names if hints[n] is Path or Path in typing.get_args(hints[n]))


def resolve_path(value: str) -> Path:
    """Where a path of the configuration lies: `zoo://` is the project's own weights, else from the working folder."""
    if value.startswith("zoo:/"):
        return Path(__file__).resolve().parent / "zoo" / value.removeprefix("zoo:").lstrip("/")
    return Path(value).expanduser().absolute()


def explain(
    document: Mapping[str, Any], last: Mapping[str, Any] | None, sources: Mapping[str, str] | None = None
) -> str:
    """One line: why a step with this key document runs, given the document it had last.

    `sources` names for each role of an input the step that fills it.
    """
    if last is None or not all(isinstance(last.get(name), dict) for name in ("fields", "tools", "inputs", "source")):
        return "first run"
    if document["stage"] != last.get("stage"):  # fields of two stages do not compare
        return f"stage from {_short(last.get('stage'))} to {document['stage']}"
    found = _changes(document, last, sources or {})
    if not found:
        return "result missing or corrupt"
    return found[0] + (f" (and {len(found) - 1} more)" if len(found) > 1 else "")


def _changes(document: Mapping[str, Any], last: Mapping[str, Any], sources: Mapping[str, str]) -> list[str]:
    """Everything in which two key documents differ, what a person is likeliest to have changed first."""

    def differing(name: str) -> list[tuple[str, Any, Any]]:
        new, old = _leaves(document.get(name, {})), _leaves(last.get(name, {}))
        return [(key, old.get(key), new.get(key)) for key in sorted({*new, *old}) if new.get(key) != old.get(key)]

    found = []
    for key, old, new in differing("fields"):
        content = key.endswith(".content") and old is not None and new is not None
        what = f"the content of {key.removesuffix('.content')} changed" if content else ""
        found.append(what or f"field {key} from {_short(old)} to {_short(new)}")
    found += [f"{key} {_version(old)} to {_version(new, old)}" for key, old, new in differing("tools")]
    found += [f"input of {sources.get(role, role)} changed" for role, _, _ in differing("inputs")]
    found += [f"source of {_file(module)} changed" for module, _, _ in differing("source")]
    seen = "reads" in document  # else nobody knows yet what this step reads
    found += [f"{_read_name(name)} {_became(old, new)}" for name, old, new in differing("reads") if name and seen]
    found += [f"environment variable {name} changed" for name, _, _ in differing("environment")]
    for key, old, new in differing("numeric"):
        found.append("the CPU's features changed" if key == "isa" else f"{key} from {_short(old)} to {_short(new)}")
    for name in ("interpreter", "host", "key_version"):
        if document.get(name) != last.get(name):
            found.append(f"{name} from {_short(last.get(name))} to {_short(document.get(name))}")
    return found


def _read_name(name: str) -> str:
    """What own code read, as a path from the folder of its module."""
    path = name.partition(":")[2]
    return f"the list of files in {path}" if path.endswith("/") or not path else f"the file {path}"


def _became(old: str | None, new: str | None) -> str:
    if old is None or new is None:
        return "is read now" if old is None else "is not read any more"
    return "is gone" if new == ABSENT else "is there now" if old == ABSENT else "changed"


def _version(identity: str | None, before: str | None = None) -> str:
    """A distribution's version; where it is that of before, the files are other ones."""
    if identity is None:
        return "absent"
    version = identity.partition(" ")[0]
    return f"{version} (other files)" if before is not None and version == before.partition(" ")[0] else version


def _file(module: str) -> str:
    """Where a module's source lies, as one would say it."""
    found = source_of(module)
    inside = "/__init__" if found is not None and found.name == "__init__.py" else ""
    return f"{module.replace('.', '/')}{inside}.py"


def _leaves(node: Any, prefix: str = "") -> dict[str, Any]:
    """Nested mappings as one, with dotted keys."""
    if not isinstance(node, dict) or not node:
        return {prefix: node}
    return {
        k: v for name, item in node.items() for k, v in _leaves(item, f"{prefix}.{name}" if prefix else name).items()
    }


def _short(value: object) -> str:
    text = str(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
