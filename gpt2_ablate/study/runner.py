"""Carry out a plan: keep what is finished, resume what was interrupted, record what fails, then measure."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from safetensors import SafetensorError, safe_open

from gpt2_ablate.benchmarks import measurements
from gpt2_ablate.data.corpora import open_corpus
from gpt2_ablate.data.tokens import tokenise
from gpt2_ablate.errors import UserError
from gpt2_ablate.records import read_record, write_results
from gpt2_ablate.study.live import Live
from gpt2_ablate.study.plan import Plan, Run
from gpt2_ablate.study.rates import at_best_rates
from gpt2_ablate.utils import process
from gpt2_ablate.utils.io import make_folder, write_json

RUN = "gpt2_ablate.study.worker"

Record = dict[str, Any]


def run_study(plan: Plan, out: Path) -> list[Record]:
    """Train whatever of the plan is not trained yet, and leave reports/results.json.

    Returns:
        one record for each run of the plan, finished, or failed with an "error"; where it tries learning rates, also of the
        comparison at each variant's best one, which follows from these; and those of `plan.also_report` that an earlier call
        has trained.

    Raises:
        UserError: the corpus or the output folder cannot be used, or another study is at work there.
    """
    process.prepare([RUN, measurements.MEASURE])
    with _only_study_in(out / "checkpoints" / plan.preset), Live(plan) as live:
        corpus = open_corpus(plan.data.get("corpus", "shakespeare"), plan.data.get("column", "text"))
        live.say(f"Corpus: {corpus.name}.")
        tokenise(corpus)
        _check(plan, out, live)
        if plan.tuning:
            live.say(f"Learning rates are tried with seed {plan.tuning[0].seed}, which the comparison does not use.")
        work = _Work(plan, out, corpus.digest, live)
        done = work.carry_out([*plan.runs, *plan.tuning])
        done += work.done_before(plan.also_report)
        if plan.tuning:
            at_best = at_best_rates([*plan.runs, *plan.also_report], done)
            mine = [run for run in at_best if run.variant in {own.variant for own in plan.runs}]
            done += work.carry_out(mine, first=live.at_best_rates(mine))
            done += work.done_before(run for run in at_best if run not in mine)
        _add_measurements(plan, out, done, live)
        write_results(out / "reports" / "results.json", done)
    return done


def _check(plan: Plan, out: Path, live: Live) -> None:
    """Parse every configuration before anything is trained: a typo should not cost an hour."""
    different = {run.variant: run for run in plan.runs}
    try:
        log = out / "checkpoints" / plan.preset / "check.log"
        process.run_in_child(f"{RUN}:check_runs", list(different.values()), log=log, on_progress=live.say, tick=live.tick)
    except process.Failure as failure:
        raise UserError(str(failure)) from None


class _Work:
    """What one call keeps and trains, in one stage or in several."""

    def __init__(self, plan: Plan, out: Path, corpus_digest: str, live: Live):
        self.out, self.corpus_digest, self.at_once, self.live = out, corpus_digest, plan.at_once, live
        self.records: dict[Path, Record] = {}  # of the runs that this call has dealt with

    def carry_out(self, runs: list[Run], first: int = 0) -> list[Record]:
        """The records of these runs: kept from an earlier call or stage, or else trained now.

        Args:
            first: the number of the first one in the live table.
        """
        for run in runs:
            if run.path not in self.records and (record := self._kept(run)) is not None:
                self.records[run.path] = record
        self.live.begin([run.path in self.records for run in runs], first)
        self._train({n: run for n, run in enumerate(runs, first) if run.path not in self.records})
        return [_reported(run, self.records[run.path]) for run in runs]

    def done_before(self, runs: Iterable[Run]) -> list[Record]:
        """The records of those of these runs that an earlier call has trained."""
        return [_reported(run, record) for run in runs if (record := self._kept(run)) is not None]

    def _kept(self, run: Run) -> Record | None:
        """The record that an earlier study left of this very run, if it finished."""
        file = self.out / "checkpoints" / run.path / "record.json"
        try:
            record = read_record(file)
        except UserError as error:
            self.live.warn(f"{error}; {run.name} is done again.")
            file.unlink()
            return None
        fingerprint = run.fingerprint(self.corpus_digest)
        if record is None or record.get("fingerprint") != fingerprint or record["status"] != "finished":
            return None
        weights = self.out / "checkpoints" / run.path / "model.safetensors"
        try:
            with safe_open(weights, framework="np"):
                pass  # opening it checks that it is whole
        except (OSError, SafetensorError) as error:
            self.live.warn(f"{weights}: is not whole ({error}); {run.name} is done again.")
            return None
        return record

    def _train(self, todo: dict[int, Run]) -> None:
        """Train these runs, by their numbers in the live table, as many side by side as the preset says."""
        fingerprints = {n: run.fingerprint(self.corpus_digest) for n, run in todo.items()}

        def jobs() -> Iterator[process.Job]:
            for n, run in todo.items():
                folder, logs = self.out / "checkpoints" / run.path, self.out / "reports" / "tensorboard" / run.path
                make_folder(folder)
                make_folder(logs)
                (folder / "record.json").unlink(missing_ok=True)
                self.live.start(n)
                args = (run, fingerprints[n], folder, logs, self.at_once)
                yield process.Job(f"{RUN}:train_run", args, folder / "train.log", functools.partial(self.live.news, n), key=n)

        for job, result in process.run_side_by_side(jobs(), self.at_once, self.live.tick):
            n, run = job.key, todo[job.key]
            file = self.out / "checkpoints" / run.path / "record.json"
            if isinstance(result, process.Failure):
                self.live.fail(n, f"{result}; see {job.log}")
                self.records[run.path] = run.record(fingerprints[n], "failed", error=str(result), metrics={}, environment={})
                write_json(file, self.records[run.path])
                continue
            finished = read_record(file)
            assert finished is not None
            self.live.finish(n, finished["metrics"]["validation_loss"])
            self.records[run.path] = finished


def _reported(run: Run, record: Record) -> Record:
    """The record, with what may have changed without changing the run: what the YAML tells the reader, and what it is for."""
    return {**record, **run.description, **({"stage": run.stage} if run.stage != "common" else {})}


def _add_measurements(plan: Plan, out: Path, records: list[Record], live: Live) -> None:
    """Add speed and memory of its variant to every finished record, measured now or by an earlier call."""
    finished = [record for record in records if record["status"] == "finished"]
    configs = {record["variant"]: record["config"]["model"]["config"] for record in finished}
    if not configs:
        return
    batch_size = plan.data.get("batch_size", 8)
    file = measurements.file_of(out, plan.preset)
    # The benchmark's own, where it has measured these models: two reports, one set of numbers.
    found = measurements.earlier(out / "reports" / "benchmarks.json", configs, batch_size, "variants")
    found = found or measurements.earlier(file, configs, batch_size)
    if found is None:
        live.say("Measuring speed and memory, with nothing else going on.")
        log = file.with_name("measure.log")
        try:
            measured = measurements.measure(configs, batch_size, log, live.measuring, live.tick)
        except process.Failure as failure:
            live.warn(f"Speed and memory could not be measured: {failure}; see {log}")
            return
        write_json(file, measured)
        found = measured["variants"]
    for record in finished:
        record["metrics"] |= found[record["variant"]]


@contextmanager
def _only_study_in(folder: Path) -> Iterator[None]:
    make_folder(folder)
    lock = FileLock(folder / ".lock")
    try:
        lock.acquire(timeout=5)
    except Timeout:
        raise UserError(f"{folder}: another study is at work here; wait for it, or give another folder as OUT") from None
    except OSError as error:
        raise UserError(f"{folder}: cannot be written ({error.strerror}); give another folder as OUT") from error
    try:
        yield
    finally:
        lock.release()
