"""What is kept of a run: one JSON file each, and one with all of them that a report is made from."""

from __future__ import annotations

import json
import math
import os
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from gpt2_ablate.errors import UserError

SCHEMA = 1
STATUSES = ("finished", "failed", "missing")
OPTIONAL: dict[str, type] = {
    "preset": str, "config": dict, "metrics": dict, "environment": dict, "texts": dict, "factors": list, "order": int,
    "curves": dict, "loss_by_position": list, "loss_by_position_beyond": list, "cost_by_context": list, "tensors": dict,
    "sample": str, "kernels": list, "error": str, "precision": str, "stock": str, "asked": dict,
}  # fmt: skip
# What the rows of tables need, where there are any.
ROWS = {
    "loss_by_position": ("from", "to", "loss"), "loss_by_position_beyond": ("from", "to", "loss"),
    "cost_by_context": ("context", "forward_flops_per_token", "kv_bytes"),
}  # fmt: skip
# What the report reckons with, where it is there.
COUNTS = {
    "config.model.config": ("block_size", "n_head", "n_kv_head", "window"), "config.data": ("batch_size",),
    "config.trainer": ("max_steps", "accumulate_grad_batches"), "asked": ("at_once",),
}  # fmt: skip
PACKAGES = ("torch", "lightning", "torchmetrics", "tiktoken", "datasets", "fvcore", "numpy", "transformers")


def make_folder(folder: Path) -> None:
    """Make a folder for output, if it is not there.

    Raises:
        UserError: it cannot be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{folder}: cannot be made ({error.strerror}); give another folder as OUT") from error


def write_text(file: Path, text: str) -> None:
    """`write_bytes` of text in UTF-8."""
    write_bytes(file, text.encode())


def write_bytes(file: Path, content: bytes) -> None:
    """Write a file whole or not at all: to a temporary name, then renamed.

    Raises:
        UserError: the disk is full, or the place cannot be written.
    """
    partial = file.with_name(f".{file.name}.partial")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with open(partial, "wb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        partial.replace(file)
    except BaseException as error:
        if partial.parent.is_dir():
            partial.unlink(missing_ok=True)
        if not isinstance(error, OSError):
            raise
        raise UserError(
            f"{file}: cannot be written ({error.strerror}); free some space, or give another folder as OUT"
        ) from error


def write_json(file: Path, content: Any) -> None:
    """`write_text` of JSON; numbers that are not finite become null, because JSON has no word for them."""
    write_text(file, json.dumps(_finite(content), indent=1, allow_nan=False) + "\n")


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _finite(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def read_record(file: Path) -> dict[str, Any] | None:
    """The record of one run; None where there is none.

    Raises:
        UserError: the file is broken.
    """
    if not file.exists():
        return None
    record = _parse(file)
    _check_run(record, str(file))
    if record.get("schema") != SCHEMA:
        raise UserError(f"{file}: schema: {record.get('schema')!r} is not {SCHEMA}, which this version reads")
    return record


def read_results(file: Path) -> list[dict[str, Any]]:
    """The runs in a results.json, whoever wrote it.

    Raises:
        UserError: the file is missing, broken, or of another schema.
    """
    results = _parse(file)
    if results.get("schema") != SCHEMA:
        raise UserError(f"{file}: schema: {results.get('schema')!r} is not {SCHEMA}, which this version reads")
    if not isinstance(results.get("runs"), list):
        raise UserError(f"{file}: runs: should be a list of records")
    for n, run in enumerate(results["runs"]):
        _check_run(run, f"{file}: runs[{n}]")
    return results["runs"]


def write_results(file: Path, runs: list[dict[str, Any]]) -> None:
    """All records in one file; the report is made from it alone."""
    write_json(file, {"schema": SCHEMA, "runs": runs})


def _parse(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{file}: cannot be read ({error.strerror}); give the path of a results.json") from error
    except ValueError as error:
        raise UserError(f"{file}: is not whole JSON ({error}); it was cut off or edited, so write it anew") from error
    if not isinstance(content, dict):
        raise UserError(f"{file}: should be a JSON object with the key schema")
    return content


def _check_run(run: Any, where: str) -> None:
    if not isinstance(run, dict):
        raise UserError(f"{where}: should be a JSON object")
    for key, kind in (("variant", str), ("seed", int), ("status", str)):
        if not isinstance(run.get(key), kind):
            raise UserError(f"{where}: {key}: {run.get(key)!r} should be a {kind.__name__}")
    if run["status"] not in STATUSES:
        raise UserError(f"{where}: status: {run['status']!r} should be one of {', '.join(STATUSES)}")
    for key, wanted in OPTIONAL.items():
        if run.get(key) is not None and not isinstance(run[key], wanted):
            raise UserError(f"{where}: {key}: {run[key]!r} should be a {wanted.__name__}")
    for name, text in (run.get("texts") or {}).items():
        if not isinstance(text, str):
            raise UserError(f"{where}: texts.{name}: {text!r} should be a text")
    if not all(isinstance(factor, str) for factor in run.get("factors") or []):
        raise UserError(f"{where}: factors: {run['factors']!r} should be a list of names")
    for name, shape in (run.get("tensors") or {}).items():
        if not isinstance(shape, list) or not all(isinstance(size, int) for size in shape):
            raise UserError(f"{where}: tensors.{name}: {shape!r} should be a list of sizes")
    packages = (run.get("environment") or {}).get("packages") or {}
    if not isinstance(packages, dict):
        raise UserError(f"{where}: environment.packages: {packages!r} should be a dict")
    for name, curve in (run.get("curves") or {}).items():
        if not isinstance(curve, list) or not all(_are_numbers(point) and len(point) == 2 for point in curve):
            raise UserError(f"{where}: curves.{name}: should be a list of [step, value]")
    for key, columns in ROWS.items():
        for row in run.get(key) or []:
            if not _is_row(row, columns):
                raise UserError(f"{where}: {key}: {row!r} should have numbers for {', '.join(columns)}")
    config = run.get("config") or {}
    sections = {f"config.{key}": config.get(key, {}) for key in ("model", "data", "trainer")} | {"asked": run.get("asked") or {}}
    if isinstance(sections["config.model"], dict):
        sections["config.model.config"] = sections["config.model"].get("config", {})
    for key, section in sections.items():
        if not isinstance(section, dict):
            raise UserError(f"{where}: {key}: {section!r} should be a dict")
        for name in COUNTS.get(key, ()):
            if not _is_setting(name, section.get(name, 1)):
                raise UserError(f"{where}: {key}.{name}: {section[name]!r} should be a whole number from 1")
    loss = (run.get("metrics") or {}).get("validation_loss")
    if run["status"] == "finished" and not (isinstance(loss, int | float) and math.isfinite(loss)):
        raise UserError(f"{where}: metrics.validation_loss: {loss!r} should be a number, as the run is finished")


def _is_setting(name: str, value: Any) -> bool:
    """Whether a model or a trainer can have it: some may be left open, and a window may differ from layer to layer."""
    if name == "window" and isinstance(value, list):
        return all(_is_setting(name, v) for v in value)
    if value is None:
        return name in ("n_kv_head", "window")
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def _is_row(row: Any, columns: tuple[str, ...]) -> bool:
    """Whether it has a number in each column; a loss that was not finite is null."""
    return isinstance(row, dict) and all(
        isinstance(row.get(c), int | float) or (c == "loss" and row.get(c, 0) is None) for c in columns
    )


def _are_numbers(values: Any) -> bool:
    return isinstance(values, list) and all(isinstance(v, int | float) or v is None for v in values)


def environment() -> dict[str, Any]:
    """The machine, the versions and the commit that a run was made with."""
    from gpt2_ablate import machine  # the report is made without torch

    packages = {name: v for name in PACKAGES if (v := _version(name))}
    return {**machine.describe(), "python": platform.python_version(), "packages": packages, "git_commit": _git_commit()}


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _git_commit() -> str | None:
    """The commit of this source, marked where files differ from it; None outside a git checkout."""
    here = Path(__file__).parent

    def git(*args: str) -> str:
        return subprocess.run(["git", "-C", here, *args], capture_output=True, text=True, check=True).stdout.strip()

    try:
        return git("rev-parse", "HEAD") + (" (modified)" if git("status", "--porcelain", "--", "..") else "")
    except (OSError, subprocess.CalledProcessError):
        return None
