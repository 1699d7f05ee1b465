"""Measures what planning, reusing and looking up cost as models, targets and stored results become many.

    python benchmarks/store.py                     # 100 models x 3 targets, up to 100,000 stored results
    python benchmarks/store.py --models 20 --objects 10000

Prints seconds. The models are real configurations of rpi4, xeon and host whose results are put into the store by hand
(a few bytes each): what is measured is the compiler's own work, in one process, as `--multirun` does it. Composition is
Hydra's and is told apart.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from compiler.canonical import digest
from compiler.commands.plan import rows
from compiler.config import compose
from compiler.identity import KeyMaker, key_of
from compiler.keys.memo import Memo
from compiler.plan import Plan, make_plan
from compiler.schema import Config
from compiler.store import Result, Store

TARGETS = ("rpi4", "xeon", "host")
ARCHITECTURES = ("mobilenet_v3_small", "mobilenet_v2", "resnet18", "resnet50", "shufflenet_v2_x1_0")
LOOKUPS = 2000


def timed(what: Callable[[], Any]) -> tuple[float, Any]:
    began = time.perf_counter()
    found = what()
    return time.perf_counter() - began, found


def models(folder: Path, count: int) -> Path:
    """A folder of YAML as a user would have it: `count` models with weights of their own."""
    (folder / "model").mkdir(parents=True)
    for number in range(count):
        weights = folder / f"weights{number}.safetensors"
        weights.write_bytes(os.urandom(64))
        (folder / "model" / f"m{number}.yaml").write_text(
            f"name: m{number}\narchitecture: {ARCHITECTURES[number % len(ARCHITECTURES)]}\n"
            f"weights: {weights}\nnum_classes: {10 + number}\n"
        )
    return folder


def fill(plan: Plan, store: Store, keys: KeyMaker) -> int:
    """Puts a result of a few bytes under the key of every step of a plan, as if it had been built."""
    results: dict[str, Result] = {}
    for step in plan.steps.values():
        if any(source not in results for source in step.inputs.values()):
            continue
        document = keys.document(step, {role: results[s].digest for role, s in step.inputs.items()})
        key = key_of(document)
        known = store.lookup(key)
        results[step.name] = known or put(store, key, document)
    return len(results)


def put(store: Store, key: str, document: dict[str, Any]) -> Result:
    with store.work_folder("fill") as work:
        (work / "out").mkdir()
        for name in ("facts.json", "model.bin"):
            (work / "out" / name).write_text(json.dumps({"key": key, "name": name}))
        return store.commit(key, document, work / "out", 0.0)


def reuse(plan: Plan, store: Store, keys: KeyMaker) -> int:
    """What a build with nothing to do does: the key of every step, its result taken and verified."""
    results: dict[str, Result] = {}
    for step in plan.steps.values():
        if all(source in results for source in step.inputs.values()):
            document = keys.document(step, {role: results[s].digest for role, s in step.inputs.items()})
            found = store.take(key_of(document))
            assert found is not None, step.name
            results[step.name] = found
    return len(results)


def many_models(folder: Path, count: int) -> dict[str, Any]:
    conf = models(folder / "conf", count)
    names = [(f"m{number}", target) for number in range(count) for target in TARGETS]

    def composed() -> list[Config]:
        return [compose([f"model={model}", f"target={target}"], [conf]) for model, target in names]

    composition, configs = timed(composed)
    with Store(folder / "artifacts" / ".store") as store:

        def planned() -> int:
            memo, total = Memo(store.root / "memo.json", store.write), 0
            for config in configs:
                keys, plan = KeyMaker(config, memo), make_plan(config)
                keys.check_inputs(plan)
                total += len(rows(plan, store, keys))
            memo.save()
            return total

        first, steps = timed(planned)
        memo = Memo(store.root / "memo.json", store.write)
        filling, _ = timed(lambda: [fill(make_plan(config), store, KeyMaker(config, memo)) for config in configs])
        memo.save()
        again, _ = timed(planned)

        def nothing() -> int:
            fresh = Memo(store.root / "memo.json", store.write)
            return sum(reuse(make_plan(config), store, KeyMaker(config, fresh)) for config in configs)

        noop, reused = timed(nothing)
    return {
        "models": count, "targets": len(TARGETS), "plans": len(names), "steps": steps, "composition_s": composition,
        "planning_empty_store_s": first, "planning_full_store_s": again, "reusing_s": noop, "reused": reused,
        "filling_s": filling,
    }  # fmt: skip


def many_objects(folder: Path, sizes: list[int]) -> list[dict[str, Any]]:
    """Look-ups in a store of so many results: hits that were verified before, and misses."""
    found = []
    generator = random.Random(0)
    with Store(folder / ".store") as store:
        keys: list[str] = []
        for size in sizes:
            filling, _ = timed(lambda size=size: keys.extend(_more(store, len(keys), size)))
            sample = [generator.choice(keys) for _ in range(LOOKUPS)]
            hits, _ = timed(lambda sample=sample: [store.take(key) for key in sample])
            again, _ = timed(lambda sample=sample: [store.take(key) for key in sample])
            misses, _ = timed(lambda: [store.take(digest(["no", n])) for n in range(LOOKUPS)])
            us = 1e6 / LOOKUPS
            found.append(
                {
                    "results": size,
                    "hit_us": us * hits,
                    "again_us": us * again,
                    "miss_us": us * misses,
                    "filling_s": filling,
                }
            )
    return found


def _more(store: Store, have: int, wanted: int) -> list[str]:
    documents = [{"number": number} for number in range(have, wanted)]
    return [put(store, digest(document), document).key for document in documents]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=int, default=100)
    parser.add_argument("--objects", type=int, default=100_000)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        for count in sorted({max(1, given.models // 4), max(1, given.models // 2), given.models}):
            figures = many_models(Path(name) / f"models{count}", count)
            print(
                f"{figures['models']:>4} models x {figures['targets']} targets ({figures['steps']} steps): composition "
                f"{figures['composition_s']:.2f} s, plan of an empty store {figures['planning_empty_store_s']:.2f} s, "
                f"of a full one {figures['planning_full_store_s']:.2f} s, reusing {figures['reused']} results "
                f"{figures['reusing_s']:.2f} s",
                flush=True,
            )
        sizes = sorted({given.objects // 100, given.objects // 10, given.objects})
        for row in many_objects(Path(name) / "objects", [size for size in sizes if size]):
            print(
                f"{row['results']:>7} results: a hit {row['hit_us']:.0f} us, the same again {row['again_us']:.0f} us, "
                f"a miss {row['miss_us']:.0f} us (put there in {row['filling_s']:.0f} s)",
                flush=True,
            )


if __name__ == "__main__":
    main()
