"""What identifies a step: the document its key is the digest of, and one line on why that changed."""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from compiler.canonical import digest, plain
from compiler.errors import IntegrityError
from compiler.keys import Memo, content_digest, foreign_versions, interpreter, source_closure, tool_version
from compiler.lookup import reference
from compiler.plan import Plan, Step
from compiler.runtime.host import describe
from compiler.schema import Config
from compiler.stage import Stage

KEY_VERSION = 1


class KeyMaker:
    """Makes key documents for the steps of one build."""

    def __init__(self, config: Config, memo: Memo) -> None:
        self._config = config
        self._memo = memo
        self._host: str | None = None

    def document(self, step: Step, inputs: Mapping[str, str]) -> dict[str, Any]:
        """What the step's key is the digest of. `inputs` maps roles to the digests of the results that fill them."""
        tools = sorted(set(step.stage.used_tools()))
        python = self.python(step)
        if python is None:
            versions = {name: tool_version(name) for name in tools}
            runs_on = interpreter()
        else:
            versions, runs_on = foreign_versions(python, tuple(tools))
        document: dict[str, Any] = {
            "key_version": KEY_VERSION,
            "stage": reference(type(step.stage)),
            "fields": {f.name: self._field(step.stage, f.name) for f in dataclasses.fields(step.stage)},
            "inputs": dict(sorted(inputs.items())),
            "source": self.modules(step),
            "tools": versions,
            "interpreter": runs_on,
        }
        if step.stage.on_host:
            self._host = self._host or describe()["fingerprint"]
            document["host"] = self._host
        return document

    def check_inputs(self, plan: Plan) -> None:
        """Reads every file that a step names, before any step runs.

        Raises:
            ConfigError: one is not there.
            IntegrityError: the weights are not those that the configuration pins.
        """
        for step in plan.steps.values():
            for item in dataclasses.fields(step.stage):
                if is_path_field(type(step.stage), item.name):
                    self._field(step.stage, item.name)

    def modules(self, step: Step) -> dict[str, str]:
        """The first-party modules behind a step and the digests of their source."""
        roots = ("compiler.worker", type(step.stage).__module__, *step.stage.dynamic_modules())
        return source_closure(roots, self._memo)

    def python(self, step: Step) -> str | None:
        """The interpreter of the step's toolchain, or None for ours."""
        return self._config.toolchains[step.toolchain].python if step.toolchain else None

    def save(self) -> None:
        """Keeps what was read for the next run."""
        self._memo.save()

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


def key_of(document: Mapping[str, Any]) -> str:
    """The key of a step: the digest of its document."""
    return digest(document)


def is_path_field(cls: type[Stage], name: str) -> bool:
    """Whether a field names something outside the store."""
    hint = typing.get_type_hints(cls)[name]
    return hint is Path or Path in typing.get_args(hint)


def resolve_path(value: str) -> Path:
    """Where a path of the configuration lies: `zoo://` is the project's own weights, else from the working folder."""
    if value.startswith("zoo:/"):
        return Path(__file__).resolve().parent / "zoo" / value.removeprefix("zoo:").lstrip("/")
    return Path(value).expanduser().absolute()


def explain(document: Mapping[str, Any], last: Mapping[str, Any] | None) -> str:
    """One line: why a step with this key document runs, given the document it had last."""
    if last is None or not all(isinstance(last.get(name), dict) for name in ("fields", "tools", "inputs", "source")):
        return "first run"
    for title, name in (("field", "fields"), ("tool", "tools")):
        new, old = _leaves(document[name]), _leaves(last[name])
        for key in sorted({*new, *old}):
            if new.get(key) != old.get(key):
                if key.endswith(".content") and key in new and key in old:
                    return f"the content of {key.removesuffix('.content')} changed"
                return f"{title} {key}: {_short(old.get(key))} -> {_short(new.get(key))}"
    for role in sorted({*document["inputs"], *last["inputs"]}):
        if document["inputs"].get(role) != last["inputs"].get(role):
            return f"input {role} changed"
    for module in sorted({*document["source"], *last["source"]}):
        if document["source"].get(module) != last["source"].get(module):
            return f"source of {module} changed"
    for name in ("interpreter", "host", "stage", "key_version"):
        if document.get(name) != last.get(name):
            return f"{name} changed: {_short(last.get(name))} -> {_short(document.get(name))}"
    return "result missing or damaged"


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
