"""Makes the results of steps: reuses what the store has, runs the rest in workers; the only caller of workers."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import sys
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any

from compiler import launch, results
from compiler.canonical import plain
from compiler.disk import explain_os_errors
from compiler.errors import CompilerError, ConfigError, DiskFullError, StepError
from compiler.identity import KeyMaker, explain, is_path_field, key_of, resolve_path
from compiler.lookup import reference
from compiler.outcome import Outcome, StepRecord, Watcher
from compiler.plan import Plan, Step
from compiler.runtime.control_group import usable_cores
from compiler.runtime.memory import total_mb
from compiler.store import Origin, Result, Store, TooSlow, locks
from compiler.store.objects import look
from compiler.turns import turn

MAX_JOBS = 4
MEMORY_SHARE = 0.95
LEAST_READING_S = 10.0
"""For reading a result there is what is left of the step's time limit, and at least this."""
AT_ONCE = threading.Event()
AT_ONCE.set()


class _Damaged(Exception):
    """The results of `sources`, which a step needs, did not verify and were set aside: it is run again.

    `alone`: with no other step running, which shows whether the step itself changes them.
    """

    def __init__(self, sources: list[str], alone: bool = False) -> None:
        super().__init__(*sources)
        self.sources = sources
        self.alone = alone


class _SpoilerError(StepError):
    """A step changed the results of `sources`, its inputs, which lie in the store."""

    sources: tuple[str, ...] = ()


Look = list[list[Any]]
"""What `compiler.store.look` says of a result's files: names, sizes, times and inodes."""


class Walker:
    """Walks one plan, as far as it is asked to."""

    def __init__(self, plan: Plan, store: Store, keys: KeyMaker, watcher: Watcher) -> None:
        self.plan = plan
        """May be given other inputs for a step before that step is made."""
        self._store = store
        self._keys = keys
        self._watcher = watcher
        self._cancel = threading.Event()
        self._intact: dict[str, Look] = {}
        self._alone: set[str] = set()
        self._looked_ahead = False
        self.outcome = Outcome()
        """All that was found out so far."""
        self._ahead: dict[str, tuple[launch.Worker, contextlib.ExitStack]] = {}
        config = plan.config
        cores = usable_cores()
        self._jobs = config.executor.jobs if config.executor.jobs > 0 else max(1, min(cores, MAX_JOBS))
        self._cores = cores
        self._caches = store.root.absolute() / "caches"
        self._variables = tuple(config.executor.environment)
        self._memory_limit_mb = config.executor.memory_limit_mb or MEMORY_SHARE * total_mb()
        self._store.objects.on_damage = watcher.note
        self._store.needs(self._scope())

    def ensure(self, names: list[str]) -> None:
        """Makes the results of `names` and of all they need, independent steps at the same time."""
        outcome = self.outcome
        pending = [n for n in self.plan.ancestors(names) if n not in outcome.results and n not in outcome.failures]
        self._watcher.planned(len(pending))
        running: dict[Future[Result], str] = {}
        with self._pool() as pool:
            while pending or running:
                self._start_ready(pending, running, pool)
                self._start_ahead(pending, running)
                if not running:
                    continue
                for future in wait(running, timeout=1.0, return_when=FIRST_COMPLETED).done:
                    name = running.pop(future)
                    try:
                        outcome.results[name] = future.result()
                    except _Damaged as damaged:
                        if damaged.alone:
                            self._alone.add(name)
                        self._make_again(damaged.sources, pending)
                        pending.insert(0, name)
                    except CompilerError as error:
                        self._failed(name, error)
                        if isinstance(error, _SpoilerError):
                            self._make_again(error.sources, pending)

    def _make_again(self, sources: Iterable[str], pending: list[str]) -> None:
        for source in sources:
            self.outcome.results.pop(source, None)
            self.outcome.records.pop(source, None)
            if source not in pending:
                pending.insert(0, source)

    def _runs_alone(self, name: str) -> bool:
        return self.plan.steps[name].stage.measures or name in self._alone

    @contextlib.contextmanager
    def _pool(self) -> Iterator[ThreadPoolExecutor]:
        pool = ThreadPoolExecutor(self._jobs)
        try:
            yield pool
        except BaseException:
            self._cancel.set()  # ends every worker; threads see it within a poll
            raise
        finally:
            pool.shutdown(wait=True, cancel_futures=True)
            for name in list(self._ahead):
                self._dismiss(name)

    def _start_ready(self, pending: list[str], running: dict[Future[Result], str], pool: ThreadPoolExecutor) -> None:
        outcome = self.outcome
        for name in sorted(pending, key=lambda n: n not in self._ahead):  # a started worker's step first
            step = self.plan.steps[name]
            lost = [role for role, source in step.inputs.items() if source in outcome.failures]
            if any(role not in step.optional for role in lost):
                pending.remove(name)
                self._watcher.ended(name, "left out", 0.0)
                outcome.failures[name] = StepError(f"{name} was not run: the step before it failed")
                continue
            sources = {role: source for role, source in step.inputs.items() if role not in lost}
            if any(source not in outcome.results for source in sources.values()):
                continue
            busy_alone = any(map(self._runs_alone, running.values()))
            document = self._keys.document(step, {role: outcome.results[s].digest for role, s in sources.items()})
            whole, known, _ = self._keys.find(self._store, document, self._store.take)
            if known is not None:
                pending.remove(name)
                self._dismiss(name)
                outcome.results[name] = known
                self._record(step, known, "reused", "same key")
                self._watcher.ended(name, "reused", 0.0)
                self._store_last(step, whole)
            elif len(running) < self._jobs and not busy_alone and not (self._runs_alone(name) and running):
                if not running and not self._looked_ahead:  # a build with nothing to do does without
                    self._looked_ahead = True
                    self._keys.check_ahead(self.plan.steps[other] for other in pending)
                pending.remove(name)
                if step.stage.measures:
                    for waiting in list(self._ahead):
                        self._dismiss(waiting)
                given = {source: outcome.results[source] for source in sources.values()}
                future = pool.submit(self._execute, step, document, dict(sources), given)
                running[future] = name

    def _start_ahead(self, pending: list[str], running: dict[Future[Result], str]) -> None:
        """Lets a worker import its libraries in a free slot while the step's inputs are still being made."""
        busy = set(running.values())
        if any(map(self._runs_alone, busy)):
            return
        for name in pending:
            step = self.plan.steps[name]
            waits_for = set(step.inputs.values()) - set(self.outcome.results)
            if len(busy) + len(self._ahead) >= self._jobs:
                return
            if name in self._ahead or not waits_for or not waits_for <= busy or not step.stage.preload():
                continue
            try:
                with turn(False, cancel=AT_ONCE):
                    pass  # not held: who holds the machine must not wait for anything
            except locks.Cancelled:  # another build measures, or is about to: nothing is begun ahead of time
                return
            stack = contextlib.ExitStack()
            folder = stack.enter_context(self._store.work_folder(step.name.replace("/", "_")))
            interpreter = self._keys.python(step) or sys.executable
            worker = launch.Worker(
                interpreter, folder, self._cores, self._variables, step.stage.preload(), self._caches
            )
            stack.callback(worker.end)
            self._ahead[name] = (worker, stack)

    def _dismiss(self, name: str) -> None:
        worker = self._ahead.pop(name, None)
        if worker is not None:
            worker[1].close()

    def _failed(self, name: str, error: CompilerError) -> None:
        """Keeps the failure of a step that only some candidates need; anything else ends the build."""
        step = self.plan.steps[name]
        self.outcome.records[name] = StepRecord(name, step.stage_name, "", "failed", 0.0, (), error.what)
        self._watcher.ended(name, "failed", 0.0)
        own = {s for c in self.plan.candidates.values() if c.id != self.plan.config.baseline for s in c.steps}
        if name not in own or not isinstance(error, StepError) or isinstance(error, DiskFullError):
            raise error
        self.outcome.failures[name] = error
        self._watcher.note(f"{error.what}; the candidates that need it are left out")
        for line in (*error.details[-6:], error.fix):
            self._watcher.note(f"  {line}")

    # -- one step --------------------------------------------------------------------------------------------------

    def _execute(
        self, step: Step, document: dict[str, Any], sources: dict[str, str], given: dict[str, Result]
    ) -> Result:
        """Makes one step's result. `given` are the results of `sources`, which others may take from the outcome."""
        key = key_of(document)

        def waiting(holder: str) -> None:
            self._watcher.note(f"{step.name}: waiting for another build that makes it ({holder})")

        try:
            with self._store.lock(key, waiting, self._cancel):
                return self._execute_locked(step, document, sources, given, key)
        except locks.Cancelled:
            raise StepError(f"{step.name} was ended with the build") from None

    def _execute_locked(
        self, step: Step, document: dict[str, Any], sources: dict[str, str], given: dict[str, Result], key: str
    ) -> Result:
        def waiting(what: str) -> None:
            self._watcher.note(f"{step.name}: {what}")

        with explain_os_errors(self._store.root):
            whole, known, outdated = self._keys.find(self._store, document, self._store.take)
            if known is not None:  # another build made it while we waited
                self._record(step, known, "reused", "made by another build")
                self._watcher.ended(step.name, "reused", 0.0)
                return known
            inputs, seen = {}, {}
            for role, source in sources.items():
                if not self._is_intact(source, given[source]):
                    raise _Damaged([source])
                inputs[role] = given[source].path
                seen[source] = self._intact[given[source].digest]
            why = explain(whole, self._store.last(self._scope(), step.name), step.inputs)
            if self._store.state(key_of(whole)) == "damaged":
                why = "result missing or corrupt"
            why = outdated or why
            self._watcher.started(step.name, why)
            with contextlib.ExitStack() as stack:
                stack.enter_context(turn(step.stage.measures, waiting, self._cancel))
                ahead = self._ahead.pop(step.name, None)
                if ahead is not None:
                    stack.push(ahead[1])
                    worker = ahead[0]
                else:
                    folder = stack.enter_context(self._store.work_folder(step.name.replace("/", "_")))
                    worker = launch.Worker(
                        self._keys.python(step) or sys.executable, folder, self._cores, self._variables,
                        caches=self._caches,
                    )  # fmt: skip
                    stack.callback(worker.end)
                whole, result = self._run_worker(step, document, given, seen, inputs, worker, key)
            self._record(step, result, "executed", why)
            self._store_last(step, whole)
            self._watcher.ended(step.name, "executed", result.seconds)
            return result

    def _run_worker(
        self,
        step: Step,
        document: dict[str, Any],
        given: Mapping[str, Result],
        seen: Mapping[str, Look],
        inputs: dict[str, Path],
        worker: launch.Worker,
        key: str,
    ) -> tuple[dict[str, Any], Result]:
        """Runs the step in `worker` and stores its result. `seen` is how its inputs looked when it was started."""
        roots, apart = self._keys.watched(step, document, self._store)
        job = launch.Job(
            name=step.name,
            stage=reference(type(step.stage)),
            fields=_worker_fields(step),
            inputs=inputs,
            modules=document["source"],
            roots=tuple(roots),
            apart=tuple(apart),
            interpreter=self._keys.python(step) or sys.executable,
            memory_limit_mb=self._memory_limit_mb,
            variables=self._variables,
            seed=self.plan.config.seed if step.stage.numeric else None,
            time_limit_s=min(self.plan.config.executor.time_limit_s, step.stage.time_limit_s),
            threads=self._cores,
            measures=step.stage.measures,
            after_crash=step.stage.after_crash(),
        )
        before = self._keys.stamps(step)
        try:
            seconds = worker.run(job, self._cancel, functools.partial(self._watcher.progressed, step.name))
            if (spoiler := self._spoiler(step, given, seen)) is not None:
                raise spoiler
            models = {c.spec.artifact for c in self.plan.candidates.values() if c.result == step.name}
            results.check(job, worker, sorted(models))
        except launch.Cancelled:
            raise StepError(f"{step.name} was ended with the build") from None
        except CompilerError as error:
            failure = self._spoiler(step, given, seen) or error  # it may have failed for what another did to its input
            self._keep_failure(failure, job, worker, key)
            raise failure from error.__cause__
        digests = {role: document["inputs"][role] for role in inputs}
        self._keys.look_again()
        if self._keys.stamps(step) != before or key_of(self._keys.document(step, digests)) != key:
            raise ConfigError(
                f"{step.name}: a file that the step reads was changed while it ran; its result was thrown away",
                fix="run again once nothing writes to the inputs",
            )
        origin = Origin(step.name, self._scope(), self._keys.loaded(step, worker.answer.loaded, document))
        whole = self._keys.with_reads(document, worker.answer.reads, worker.answer.libraries)
        until = max(worker.deadline, time.monotonic() + LEAST_READING_S)
        try:
            result = self._store.commit(key_of(whole), whole, worker.folder / "out", seconds, origin, until)
        except TooSlow:
            slow = launch.past_time_limit(job, ["it ended, but its result could not be read within the limit"])
            self._keep_failure(slow, job, worker, key)
            raise slow from None
        if whole is not document:
            self._store.remember_reads(key, list(whole.get("reads", {})))
        return whole, result

    def _keep_failure(self, error: CompilerError, job: launch.Job, worker: launch.Worker, key: str) -> None:
        """Keeps what a failed step left, and says in the error where, and how to run it again."""
        if isinstance(error, StepError):
            kept = self._store.keep_failure(key, worker.folder)
            error.details.append(f"reproduce: {launch.reproduce_command(job, kept)}")
            error.details.append(f"log: {kept / 'log.txt'}")

    def _is_intact(self, source: str, result: Result) -> bool:
        """Whether a result that a step needs is as it was stored: every byte of it, where any file looks otherwise."""
        seen = _look(result)
        if seen is not None and self._intact.get(result.digest) == seen:
            return True
        if seen is None or not self._store.verify_fully(result):
            self._watcher.note(f"the stored result of {source} does not match its digest: set aside, made again")
            return False
        self._intact[result.digest] = seen
        return True

    def _spoiler(self, step: Step, given: Mapping[str, Result], seen: Mapping[str, Look]) -> CompilerError | None:
        """Return the error of a step that changed one of the results it was given, or None if it changed none.

        An input that is intact now may have been damaged while the step ran, and remade for another step meanwhile:
        so each is compared with how it looked when the step was started.

        Raises:
            _Damaged: an input was changed, and a step that ran at the same time may have done it.
        """
        touched = [source for source in sorted(given) if _look(given[source]) != seen[source]]
        damaged = [source for source in touched if not self._is_intact(source, given[source])]
        if not touched:
            return None
        if not self._runs_alone(step.name):
            raise _Damaged(touched, alone=True)
        if not damaged:
            return None
        error = _SpoilerError(
            f"{step.name} changed its input, the result of {', '.join(damaged)}",
            fix="a step reads its inputs, and writes into the folder of its own result alone",
        )
        error.sources = tuple(damaged)
        return error

    def _record(self, step: Step, result: Result, status: str, why: str) -> None:
        outputs = tuple(entry.sha256 for entry in result.entries)
        self.outcome.records[step.name] = StepRecord(
            step.name, step.stage_name, result.key, status, result.seconds, outputs, why
        )

    def _scope(self) -> str:
        return f"{self.plan.config.model.name}/{self.plan.config.target.name}"

    def _store_last(self, step: Step, document: dict[str, Any]) -> None:
        with contextlib.suppress(OSError):  # only explanations hang on it
            self._store.remember_last(self._scope(), step.name, document)


def _look(result: Result) -> Look | None:
    """How the files of a stored result look, without reading them; None if they cannot be looked at."""
    try:
        return look(result.path)
    except (OSError, ValueError):
        return None


def _worker_fields(step: Step) -> dict[str, Any]:
    """The stage's fields for the worker: paths made absolute, everything else as it is."""
    fields: dict[str, Any] = {}
    for item in dataclasses.fields(step.stage):
        value = getattr(step.stage, item.name)
        if value is not None and is_path_field(type(step.stage), item.name):
            value = resolve_path(str(value))
        fields[item.name] = plain(value)
    return fields
