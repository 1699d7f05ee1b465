"""Makes every step whose result must not depend on who makes it: no measuring, nothing packaged, no version written.

    python tests/portable.py [--config-dir DIR] KEY=VALUE ...

Prints JSON: for each step its `key`, the digest of its result (`object`), whether it was `executed` or `reused`, `why`,
the steps that fill its inputs, and the modules whose source its key covers. Builds are compared by it, step by step.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

sys.path[0] = str(Path.cwd())  # as for `python -m compiler`, and as for the workers

from compiler.commands.arguments import parse_config_arguments  # noqa: E402
from compiler.config import compose  # noqa: E402
from compiler.errors import CompilerError  # noqa: E402
from compiler.identity import KeyMaker  # noqa: E402
from compiler.keys.memo import Memo  # noqa: E402
from compiler.plan import Plan, check_tools, make_plan  # noqa: E402
from compiler.progress import PlainWatcher  # noqa: E402
from compiler.runner import Runner  # noqa: E402
from compiler.store import Store  # noqa: E402


def portable(plan: Plan) -> list[str]:
    """The steps that neither measure nor need one that does."""
    measures = {name for name, step in plan.steps.items() if step.stage.measures or step.stage.on_host}
    return [name for name in plan.steps if not measures & set(plan.ancestors([name]))]


def main(arguments: list[str]) -> int:
    options = parse_config_arguments("build", __doc__ or "", arguments)
    config = compose(options.overrides, options.config_dirs)
    with Store(Path(config.artifacts_dir).absolute() / ".store") as store:
        keys = KeyMaker(config, Memo(store.root / "memo.json", store.write))
        plan = make_plan(config)
        names = portable(plan)
        keys.check_inputs(plan)
        check_tools(plan, names)
        try:
            outcome = Runner(plan, store, keys, PlainWatcher()).make(names)
        finally:
            keys.save()
        found = {
            name: {
                "key": record.key,
                "object": outcome.results[name].digest,
                "status": record.status,
                "why": record.why,
                "inputs": sorted(plan.steps[name].inputs.values()),
                "modules": sorted(keys.modules(plan.steps[name])),
            }
            for name, record in outcome.records.items()
        }
    print(json.dumps(found, indent=1))
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except CompilerError as error:
        print(f"try: {error.fix}\nerror: {error.what}", file=sys.stderr)
        sys.exit(error.exit_code)
