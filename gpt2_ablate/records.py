"""What is kept of a run: one JSON file each, and one with all of them that a report is made from."""

from __future__ import annotations

import math
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Annotated, Any, Literal, TypeGuard

from pydantic import AliasChoices, BaseModel, ConfigDict, Field, PlainValidator, ValidationError, model_validator

from gpt2_ablate.errors import UserError
from gpt2_ablate.utils.io import first_problem, read_json, write_json

SCHEMA = 1
PACKAGES = ("torch", "lightning", "torchmetrics", "tiktoken", "datasets", "fvcore", "numpy", "transformers")


def is_number(value: Any) -> TypeGuard[float]:
    """Whether it can be calculated with: finite, and neither a bool nor a text."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _number(value: Any) -> Any:
    if not isinstance(value, int | float) or isinstance(value, bool):
        raise ValueError("Input should be a number")
    return value


def _window(value: Any) -> Any:
    """One window for all layers, or one for each; None is full attention."""
    for window in value if isinstance(value, list) else [value]:
        if window is not None and (not isinstance(window, int) or isinstance(window, bool) or window < 1):
            raise ValueError("Input should be a whole number from 1")
    return value


Number = Annotated[float, PlainValidator(_number)]
Count = Annotated[int, Field(ge=1)]


class Section(BaseModel):
    """Keys that the report reads, with their types; all other keys are kept as they are."""

    model_config = ConfigDict(strict=True, extra="allow", populate_by_name=True)

    def as_json(self) -> dict[str, Any]:
        """As it is stored: the keys that it was given, known or not."""
        return self.model_dump(by_alias=True, exclude_unset=True)


class ModelConfig(Section):
    """Of a model; 0 stands for what the record does not say."""

    block_size: Count = 0
    n_head: Count = 0
    n_kv_head: Count | None = None
    window: Annotated[Any, PlainValidator(_window)] = None


class ModelSection(Section):
    config: ModelConfig = ModelConfig()
    init: str | None = None
    compile: Any = False
    learning_rate: Any = None


class DataSection(Section):
    corpus: str | None = None
    batch_size: Count = 0


class TrainerSection(Section):
    max_steps: Count = 0
    accumulate_grad_batches: Count = 1


class Config(Section):
    """What `gpt2-ablate train --config` reads."""

    model: ModelSection = ModelSection()
    data: DataSection = DataSection()
    trainer: TrainerSection = TrainerSection()

    @property
    def learning_rate(self) -> float | None:
        """None where the record does not say, or says no number."""
        try:
            return float(self.model.learning_rate)
        except (TypeError, ValueError):
            return None

    @property
    def tokens_per_step(self) -> int:
        """0 where the record does not say."""
        return self.model.config.block_size * self.data.batch_size * self.trainer.accumulate_grad_batches

    @property
    def tokens(self) -> int:
        """Of the whole training; 0 where the record does not say."""
        return self.tokens_per_step * self.trainer.max_steps


class Environment(Section):
    packages: dict[str, Any] = {}


class Invocation(Section):
    """How the study was started."""

    at_once: Count = 1  # how many runs were trained side by side
    variants: list[str] | None = None  # those that the preset trains where nobody chooses some


class PositionLoss(Section):
    """Mean loss in nats over the positions `start` (inclusive) to `to` of the context."""

    start: Number = Field(alias="from")
    to: Number
    loss: Number | None = None


class ContextCost(Section):
    """At a context of so many tokens: forward FLOPs per token, and bytes of the key/value cache."""

    context: Number
    forward_flops_per_token: Number
    kv_bytes: Number


class Record(Section):
    """One run. Only variant, seed and status are required, and of a finished run metrics.validation_loss (nats per token).

    Attributes:
        stage: what it was trained for: "common", to compare variants at one learning rate; "tuning", to find each variant's best
            rate; "best", to compare them at these.
        curves: {"train" | "validation": [[step, nats]], "learning_rate": [[step, rate]],
            "context_gain": [[step, nats]]}.
        hf_architecture: the class of transformers that computes the same function; None: there is none.
    """

    variant: str
    seed: int
    status: Literal["finished", "failed", "missing"]
    preset: str = "unnamed"
    stage: Literal["common", "tuning", "best"] = "common"
    config: Config = Config()
    metrics: dict[str, Any] = {}
    environment: Environment = Environment()
    texts: dict[str, str] = {}  # what the variant's YAML tells the reader
    factors: list[str] | None = None  # the changes that the variant is made of; None: the report goes by its name
    order: int = 1000  # where the variant stands in tables
    curves: dict[str, list[Annotated[list[Number | None], Field(min_length=2, max_length=2)]]] = {}
    loss_by_position: list[PositionLoss] = []
    loss_by_position_beyond: list[PositionLoss] = []
    cost_by_context: list[ContextCost] = []
    tensors: dict[str, list[int]] = {}  # name -> shape
    sample: str = ""
    kernels: list[str] = []
    error: str = ""
    precision: str = ""
    hf_architecture: str | None = Field(None, validation_alias=AliasChoices("hf_architecture", "stock"))
    invocation: Invocation = Field(Invocation(), validation_alias=AliasChoices("invocation", "asked"))

    @model_validator(mode="before")
    @classmethod
    def _null_is_absent(cls, record: Any) -> Any:
        if not isinstance(record, dict):
            return record
        return {key: value for key, value in record.items() if value is not None or key in ("hf_architecture", "stock")}

    @model_validator(mode="after")
    def _finished_has_a_loss(self) -> Record:
        if self.status == "finished" and not is_number(loss := self.metrics.get("validation_loss")):
            raise ValueError(f"metrics.validation_loss: {loss!r} should be a number, as the run is finished")
        return self


def read_record(file: Path) -> dict[str, Any] | None:
    """The record of one run; None where there is none.

    Raises:
        UserError: the file is broken.
    """
    if not file.exists():
        return None
    content = _of_this_schema(file)
    return _validated(content, str(file)).as_json()


def read_results(file: Path) -> list[dict[str, Any]]:
    """The runs in a results.json, whoever wrote it.

    Raises:
        UserError: the file is missing, broken, or of another schema.
    """
    runs = _of_this_schema(file).get("runs")
    if not isinstance(runs, list):
        raise UserError(f"{file}: runs: should be a list of records")
    return [_validated(run, f"{file}: runs[{n}]").as_json() for n, run in enumerate(runs)]


def write_results(file: Path, runs: list[dict[str, Any]], facts: dict[str, Any] | None = None) -> None:
    """All records in one file, which the report is made from; and the facts that it came to, for other programs."""
    write_json(file, {"schema": SCHEMA, **({"facts": facts} if facts else {}), "runs": runs})


def _of_this_schema(file: Path) -> dict[str, Any]:
    content = read_json(file)
    if content.get("schema") != SCHEMA:
        raise UserError(f"{file}: schema: {content.get('schema')!r} is not {SCHEMA}, which this version reads")
    return content


def _validated(content: Any, where: str) -> Record:
    try:
        return Record.model_validate(content)
    except ValidationError as error:
        raise first_problem(error, where) from None


def environment() -> dict[str, Any]:
    """The machine, the versions and the commit that a run was made with."""
    from gpt2_ablate.utils import system  # the report is made without torch

    packages = {name: v for name in PACKAGES if (v := _version(name))}
    return {**system.describe(), "python": platform.python_version(), "packages": packages, "git_commit": _git_commit()}


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
