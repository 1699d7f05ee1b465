"""Several builders of the same steps, each a process of its own, all started at the same moment.

    python builders.py COUNT LOGS STEP,STEP [--config-dir DIR ...] OVERRIDE ...

Each writes `LOGS/<n>.txt`: its process, then what a build says, each line behind the time by the clock that all
processes share, and at its end `made {step: digest}`. They are forked from one process that has imported everything,
so that twenty of them are no more work than what they build.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path

from compiler.commands.arguments import parse_config_arguments
from compiler.config import compose
from compiler.identity import KeyMaker
from compiler.keys.memo import Memo
from compiler.plan import make_plan
from compiler.progress import PlainWatcher
from compiler.runner import Runner
from compiler.schema import Config
from compiler.store import Store


class Timed(PlainWatcher):
    """Says when it was told."""

    def note(self, text: str) -> None:
        super().note(f"{time.monotonic():.3f} {text}")


def build(config: Config, steps: list[str]) -> None:
    """Makes `steps` and what they need, and says with what outcome."""
    watcher = Timed()
    watcher.note(f"process {os.getpid()}")
    with Store(Path(config.artifacts_dir) / ".store") as store:
        keys = KeyMaker(config, Memo(store.root / "memo.json", store.write))
        outcome = Runner(make_plan(config), store, keys, watcher).make(steps)
        keys.save()
    watcher.note("made " + json.dumps({name: result.digest for name, result in sorted(outcome.results.items())}))


def main() -> int:
    """Returns how many builders ended with an error; those that were killed are none."""
    count, logs, steps = int(sys.argv[1]), Path(sys.argv[2]), sys.argv[3].split(",")
    options = parse_config_arguments("build", "", sys.argv[4:])
    config = compose(options.overrides, options.config_dirs)
    make_plan(config)
    children = []
    for number in range(count):
        child = os.fork()
        if child:
            children.append(child)
            continue
        log = os.open(logs / f"{number}.txt", os.O_WRONLY | os.O_CREAT, 0o644)
        os.dup2(log, 1)
        os.dup2(log, 2)
        status = 1
        try:
            build(config, steps)
            status = 0
        finally:
            sys.stderr.flush()
            os._exit(status)
    return sum(
        os.WIFEXITED(status) and os.WEXITSTATUS(status) != 0 for _, status in (os.waitpid(c, 0) for c in children)
    )


if __name__ == "__main__":
    sys.exit(main())
