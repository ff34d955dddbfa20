"""The made-up studies of tests/study/tiny.py as typed records."""

from gpt2_ablate.records import Record

from ..study import tiny
from ..study.tiny import FACTORS, VARIANTS

__all__ = ["FACTORS", "VARIANTS", "failed", "record", "records", "study"]


def records(runs):
    return [Record.model_validate(run) for run in runs]


def record(*args, **more):
    return Record.model_validate(tiny.record(*args, **more))


def failed(*args, **more):
    return Record.model_validate(tiny.failed(*args, **more))


def study(*args, **more):
    return records(tiny.study(*args, **more))
