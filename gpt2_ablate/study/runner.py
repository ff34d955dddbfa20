"""Carry out a plan: keep what is finished, resume what was interrupted, record what fails, then measure."""

from __future__ import annotations

import functools
from collections.abc import Iterator
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
from gpt2_ablate.utils import process
from gpt2_ablate.utils.io import make_folder, write_json

RUN = "gpt2_ablate.study.worker"

Record = dict[str, Any]


def run_study(plan: Plan, out: Path) -> list[Record]:
    """Train whatever of the plan is not trained yet, and leave reports/results.json.

    Returns:
        one record for each run of the plan, finished, or failed with an "error"; and those of `plan.also_report`
        that an earlier call has trained.

    Raises:
        UserError: the corpus or the output folder cannot be used, or another study is at work there.
    """
    process.prepare([RUN, measurements.MEASURE])
    with _only_study_in(out / "checkpoints" / plan.preset), Live(plan) as live:
        corpus = open_corpus(plan.data.get("corpus", "shakespeare"), plan.data.get("column", "text"))
        live.say(f"Corpus: {corpus.name}.")
        tokenise(corpus)
        _check(plan, out, live)
        fingerprints = [run.fingerprint(corpus.digest) for run in plan.runs]
        records = [_kept(out, run, f, live) for run, f in zip(plan.runs, fingerprints, strict=True)]
        live.begin([record is not None for record in records])
        todo = [n for n, record in enumerate(records) if record is None]
        trained = _train(plan, out, todo, fingerprints, live)
        done = [record or trained[n] for n, record in enumerate(records)]
        done += [r for run in plan.also_report if (r := _kept(out, run, run.fingerprint(corpus.digest), live)) is not None]
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


def _kept(out: Path, run: Run, fingerprint: str, live: Live) -> Record | None:
    """The record that an earlier study left of this very run, if it finished."""
    file = out / "checkpoints" / run.path / "record.json"
    try:
        record = read_record(file)
    except UserError as error:
        live.warn(f"{error}; {run.name} is done again.")
        file.unlink()
        return None
    if record is None or record.get("fingerprint") != fingerprint or record["status"] != "finished":
        return None
    weights = out / "checkpoints" / run.path / "model.safetensors"
    try:
        with safe_open(weights, framework="np"):
            pass  # opening it checks that it is whole
    except (OSError, SafetensorError) as error:
        live.warn(f"{weights}: is not whole ({error}); {run.name} is done again.")
        return None
    # What the YAML tells the reader may have changed without changing the run.
    return {**record, **run.description}


def _train(plan: Plan, out: Path, todo: list[int], fingerprints: list[str], live: Live) -> dict[int, Record]:
    """Train the runs of these numbers, as many side by side as the preset says; returns their records by number."""

    def jobs() -> Iterator[process.Job]:
        for n in todo:
            run = plan.runs[n]
            folder, logs = out / "checkpoints" / run.path, out / "reports" / "tensorboard" / run.path
            make_folder(folder)
            make_folder(logs)
            (folder / "record.json").unlink(missing_ok=True)
            live.start(n)
            args = (run, fingerprints[n], folder, logs, plan.at_once)
            yield process.Job(f"{RUN}:train_run", args, folder / "train.log", functools.partial(live.news, n), key=n)

    records = {}
    for job, result in process.run_side_by_side(jobs(), plan.at_once, live.tick):
        n, run = job.key, plan.runs[job.key]
        if isinstance(result, process.Failure):
            live.fail(n, f"{result}; see {job.log}")
            records[n] = run.record(fingerprints[n], "failed", error=str(result), metrics={}, environment={})
            write_json(out / "checkpoints" / run.path / "record.json", records[n])
            continue
        finished = read_record(out / "checkpoints" / run.path / "record.json")
        assert finished is not None
        live.finish(n, finished["metrics"]["validation_loss"])
        records[n] = finished
    return records


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
