"""doctor: checks this host for what builds need, and prints the install line for what lacks."""

from __future__ import annotations

import json
import os
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

from compiler import deferral
from compiler.commands.arguments import parse_config_arguments
from compiler.config import compose
from compiler.errors import ConfigError
from compiler.keys.tools import tool_version
from compiler.overrides import options
from compiler.plan import Plan, make_plan
from compiler.runtime import host, signatures
from compiler.schema import Config

LEAST_FREE_MB = 2048
NATIVE = "this host is the target: figures taken here are native"
PROXY = "this host is not the target: latency taken here is a proxy, and gates on it stay unproven"
INSTALL = "pip install 'target-model-compiler[build]'"


def run(arguments: list[str]) -> int:
    """Prints one line a check; exit 4 if something that is needed lacks."""
    given = parse_config_arguments("doctor", __doc__ or "", arguments)
    if given.multirun:
        raise ConfigError("doctor takes no --multirun", fix="name one target, or none to check all")
    named = any(o.startswith("target=") for o in given.overrides)
    targets = (
        [given.overrides]
        if named
        else [[f"target={t}", *given.overrides] for t in options("target", given.config_dirs)]
    )
    machine = host.describe()
    checks: list[dict[str, Any]] = [_python()]
    tools: set[str] = set()
    for overrides in targets:
        config = compose(overrides, given.config_dirs)
        plan = make_plan(config)
        lacks = deferral.lacking(plan)
        tools.update(_tools(plan, bool(lacks)))
        t = config.target
        native = host.is_target(
            machine, t.arch, t.isa, t.cores, t.memory_mb, t.match.cpu_model, t.match.this_host, t.match.gpu,
            t.match.compute_capability,
        )  # fmt: skip
        checks.append({
            "check": f"target {t.name}", "ok": True, "needed": False,
            "says": NATIVE if native else PROXY,
        })  # fmt: skip
        checks += _lacks(config, lacks)
        for name, chain in config.toolchains.items():
            found = shutil.which(chain.python) is not None
            checks.append(
                {
                    "check": f"toolchain {name}",
                    "ok": found,
                    "needed": True,
                    "says": chain.python
                    if found
                    else f"{chain.python} is missing: create the environment or correct toolchains.{name}.python",
                }
            )
    checks += [_tool(name) for name in sorted(tools)]
    ok, says = signatures.available()
    checks.append({"check": "signatures", "ok": ok, "needed": False, "says": says})
    checks.append(_writable(Path(compose(targets[0], given.config_dirs).artifacts_dir)))
    if given.json:
        print(json.dumps({"host": machine, "checks": checks}, indent=1))
    else:
        print(
            f"host: {machine['cpu_model']}, {machine['arch']}, {machine['cores']} cores, {machine['memory_mb']} MB, "
            f"{_limits(machine)}{machine['os']}, {_gpu(machine)}fingerprint {machine['fingerprint']}"
        )
        for check in checks:
            print(f"{'ok  ' if check['ok'] else 'LACK'}  {check['check']}: {check['says']}")
    return 4 if any(c["needed"] and not c["ok"] for c in checks) else 0


def _limits(machine: dict[str, Any]) -> str:
    """What a container may use of the machine."""
    quota, memory = machine["cpu_quota"], machine["memory_limit_mb"]
    parts = [f"CPU quota of {quota:g} cores"] if quota else []
    parts += [f"memory limit of {memory} MB"] if memory else []
    return f"{' and '.join(parts)} by its control group, " if parts else ""


def _gpu(machine: dict[str, Any]) -> str:
    if not machine["gpu"]:
        return ""
    capability, memory = machine["gpu_compute_capability"], machine["gpu_memory_mb"]
    return f"{machine['gpu']} (compute capability {capability}, {memory} MB, driver {machine['driver']}), "


def _tools(plan: Plan, deferred: bool) -> set[str]:
    """What the steps call; of a build that is deferred here, those that run here."""
    names = plan.ancestors(deferral.here(plan)) if deferred else list(plan.steps)
    return {tool for name in names for tool in plan.steps[name].stage.used_tools()}


def _lacks(config: Config, lacks: dict[str, list[deferral.Lack]]) -> list[dict[str, Any]]:
    """A line for each thing that a target's candidates need and this host has not."""
    wanted: dict[deferral.Lack, list[str]] = {}
    for name, items in lacks.items():
        for lack in items:
            wanted.setdefault(lack, []).append(name)
    rows = [
        {
            "check": f"{config.target.name}: {lack.what}",
            "ok": False,
            "needed": not config.defer,
            "says": f"{lack.install}; for {', '.join(names)}",
        }
        for lack, names in wanted.items()
    ]
    if rows and config.defer:
        says = "what can be made here is prepared; finish completes it on a host that has what lacks (defer=true)"
        rows.append(
            {"check": f"{config.target.name}: builds here end deferred", "ok": True, "needed": False, "says": says}
        )
    return rows


def _python() -> dict[str, Any]:
    version = ".".join(map(str, sys.version_info[:3]))
    ok = (3, 11) <= sys.version_info[:2] <= (3, 13)
    return {
        "check": "python",
        "ok": ok,
        "needed": True,
        "says": version if ok else f"{version}: install Python 3.11, 3.12 or 3.13",
    }


def _tool(name: str) -> dict[str, Any]:
    version = tool_version(name)
    ok = version != "absent"
    return {"check": name, "ok": ok, "needed": True, "says": version if ok else f"not installed: {INSTALL}"}


def _writable(folder: Path) -> dict[str, Any]:
    existing = next(p for p in (folder.absolute(), *folder.absolute().parents) if p.exists())
    free = shutil.disk_usage(existing).free // (1 << 20)
    try:
        with tempfile.TemporaryFile(dir=existing):
            writable = os.access(existing, os.W_OK)
    except OSError:
        writable = False
    ok = writable and free >= LEAST_FREE_MB
    says = (
        f"{folder}: {free} MB free"
        if ok
        else f"{folder}: {free} MB free, {'writable' if writable else 'not writable'}: "
        f"set artifacts_dir to a folder with {LEAST_FREE_MB} MB"
    )
    return {"check": "artifacts folder", "ok": ok, "needed": True, "says": says}
