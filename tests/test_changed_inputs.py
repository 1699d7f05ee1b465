"""A step whose input was changed while it ran runs again, also when the input has been remade since."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from conftest import CONF, Project

from compiler.config import compose
from compiler.identity import KeyMaker
from compiler.keys.memo import Memo
from compiler.plan import make_plan
from compiler.progress import PlainWatcher
from compiler.store import Store
from compiler.store.objects import look
from compiler.walker import Walker, _Damaged


def test_input_that_was_remade_while_a_step_ran_makes_the_step_run_again(built: Project) -> None:
    config = compose(["target=nulltarget", "model=nullmodel", f"artifacts_dir={built.artifacts}"], [Path(CONF)])
    plan = make_plan(config)
    with Store(built.artifacts / ".store") as store:
        keys = KeyMaker(config, Memo(store.root / "memo.json", store.write))
        walker = Walker(plan, store, keys, PlainWatcher())
        result = store.take(built.plan()["samples"]["key"])
        assert result is not None
        step, given, seen = plan.steps["export"], {"samples": result}, {"samples": look(result.path)}
        assert walker._spoiler(step, given, seen) is None

        copy = built.artifacts / "copy"  # the same bytes in other files: damaged, set aside and made again meanwhile
        shutil.copytree(result.path, copy)
        shutil.rmtree(result.path)
        copy.rename(result.path)
        with pytest.raises(_Damaged) as damaged:
            walker._spoiler(step, given, seen)
        assert damaged.value.sources == ["samples"] and damaged.value.alone

        walker._alone.add(step.name)
        assert walker._spoiler(step, given, seen) is None, "touched, and not changed, with nothing else running"
        (next(result.path.glob("*.npy"))).chmod(0o644)
        next(result.path.glob("*.npy")).write_bytes(b"")
        error = walker._spoiler(step, given, seen)
        assert error is not None and error.what == "export changed its input, the result of samples"
