"""What a preset's and a variant's YAML may hold; whatever else is there is refused in one line that names file and key."""

from __future__ import annotations

from pathlib import Path
from typing import (
    Annotated,
    Any,
    Literal,
    Required,  # that of `typing` cannot be validated before Python 3.12
    TypeVar,
)

import yaml
from jinja2 import TemplateError
from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, WrapValidator
from pydantic_core import PydanticCustomError
from typing_extensions import TypedDict

from gpt2_ablate.errors import UserError
from gpt2_ablate.utils.io import first_problem
from gpt2_ablate.utils.markdown import sandbox

EXAMPLE = "experiments/presets/cpu.yaml"
CHANGES = ["rope", "gqa", "swa"]  # what a preset that names no variants studies
UPTRAINING = 0.05  # share of the training budget that Ainslie et al. 2305.13245 (section 2.1) spend on a converted checkpoint
TEXTS = ("title", "paper", "idea", "in_numbers", "challenges", "worth")


def _described(what: str) -> WrapValidator:
    """Refuses with what would be right, in place of the first rule of pydantic's that a value breaks."""

    def check(value: Any, validate: Any) -> Any:
        try:
            return validate(value)
        except ValidationError:
            raise PydanticCustomError("described", f"Input should be {what}") from None  # type: ignore[arg-type]

    return WrapValidator(check)


def _all_different(names: list[str]) -> list[str]:
    if len(set(names)) < len(names):
        raise ValueError
    return names


def _compiles(text: str) -> str:
    try:
        sandbox().compile(text)
    except TemplateError as error:
        raise PydanticCustomError("template", f"Input should be a template: {error.message}") from None  # type: ignore[arg-type]
    return text


_NONE_IS_EMPTY = BeforeValidator(lambda value: {} if value is None else value)

Count = Annotated[int, Field(ge=1, strict=True), _described("a whole number from 1")]
Seed = Annotated[int, Field(ge=0, lt=2**32), _described(f"a whole number from 0 to {2**32 - 1}")]
Share = Annotated[float, Field(gt=0, le=1), _described("a number above 0, up to 1")]
Text = Annotated[str, Field(min_length=1), _described("a text")]
Template = Annotated[Text, AfterValidator(_compiles)]
Names = Annotated[list[Text], AfterValidator(_all_different), _described("a list of different names")]
Mapping = Annotated[dict[str, Any], _NONE_IS_EMPTY, _described("keys and values")]


Matched = Annotated[Literal["parameters", "flops"], _described("parameters or flops")]


class ModelSection(TypedDict, total=False):
    """`model` of either: the fields of a GPT2Config, and beside them the optimizer's settings."""

    __pydantic_config__ = ConfigDict(extra="allow")  # type: ignore[misc]
    config: Mapping


class DataSection(TypedDict, total=False):
    __pydantic_config__ = ConfigDict(extra="allow")  # type: ignore[misc]
    corpus: Text


class TrainerSection(TypedDict, total=False):
    __pydantic_config__ = ConfigDict(extra="allow")  # type: ignore[misc]
    max_steps: Required[Count]
    val_check_interval: Required[Count]


class Schema(BaseModel):
    """A file; every key that it has is known."""

    model_config = ConfigDict(strict=True, extra="forbid", hide_input_in_errors=True)


class Preset(Schema):
    """One size of study."""

    model: ModelSection
    data: DataSection
    trainer: TrainerSection
    seeds: Annotated[list[Seed], Field(min_length=1)]
    title: Text | None = None
    sizes: Mapping = {}  # what a variant's "${name}" stands for
    prompt: Text = "The"
    evaluation_tokens: Count | None = None  # how much of the validation and test text is scored at the end; None: all of it
    at_once: Count = 1  # how many runs are trained side by side
    init: Text | None = None  # a checkpoint that all variants start from
    uptraining: Share = UPTRAINING  # the share of the steps that are then trained
    factorial: Names | None = None  # changes, all combinations of which are studied
    variants: Names = []  # further ones

    @property
    def changes(self) -> list[str]:
        """Those of the factorial."""
        return (self.factorial or []) if self.factorial is not None or self.variants else CHANGES


class VariantFile(Schema):
    """What a change does to the baseline, and what the report's reader is told of it; of a combination, the texts alone."""

    model: Annotated[ModelSection, _NONE_IS_EMPTY] | None = None
    factors: Names | None = None  # the changes that it is made of; None: it is a change by itself
    matched: Matched | None = None  # what it has as much of as the baseline, see gpt2_ablate.study.matching
    title: Text | None = None
    paper: Text | None = None
    idea: Text | None = None
    in_numbers: Template | None = None
    challenges: Text | None = None
    worth: Text | None = None

    @property
    def texts(self) -> dict[str, str]:
        return {key: getattr(self, key) for key in TEXTS if getattr(self, key) is not None}


S = TypeVar("S", bound=Schema)


def read(file: Path, schema: type[S], **instead: Any) -> S:
    """What a YAML file holds.

    Args:
        instead: values that take the place of the file's.

    Raises:
        UserError: it cannot be read, or holds a key or value that does not fit.
    """
    try:
        content = yaml.safe_load(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{file}: cannot be read ({error.strerror}); give the path of a YAML file") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        mark, problem = getattr(error, "problem_mark", None), getattr(error, "problem", None) or " ".join(str(error).split())
        raise UserError(f"{file}{f':{mark.line + 1}' if mark else ''}: is not YAML ({problem}); correct it") from error
    if not isinstance(content, dict):
        raise UserError(f"{file}: should be keys and values, as in {EXAMPLE}")
    for key in content:
        if key not in schema.model_fields:
            raise UserError(f"{file}: there is no key {key!r}; give one of {', '.join(sorted(schema.model_fields))}")
    try:
        found = schema.model_validate({**content, **instead})
    except ValidationError as error:
        raise first_problem(error, file) from None
    _check_model(file, getattr(found, "model", None) or {})
    return found


def _check_model(file: Path, model: dict[str, Any]) -> None:
    """Refuse a field that no model has, and say of each part where its file is."""
    from gpt2_ablate.model.config import KINDS, GPT2Config  # torch takes a second to import; --help does not need it

    known = GPT2Config.__dataclass_fields__
    config = model.get("config", {})
    for key, value in config.items():
        if key not in known:
            raise UserError(f"{file}: model.config: there is no {key!r}; give one of {', '.join(sorted(known))}")
        if key in KINDS:
            config[key] = _with_absolute_path(value, file, key)


def _with_absolute_path(part: Any, file: Path, kind: str) -> Any:
    """A part of a file beside this YAML, "alibi.py:ALiBi", with the whole path of that file; any other as it is."""
    if isinstance(part, dict) and "name" in part:
        return {**part, "name": _with_absolute_path(part["name"], file, kind)}
    path, colon, name = part.rpartition(":") if isinstance(part, str) else ("", "", "")
    if not path.endswith(".py"):
        return part
    place = (file.parent / path).resolve()
    if not place.is_file():
        raise UserError(
            f"{file}: model.config.{kind}: {place} is not there; give the path of a Python file, from this YAML's folder"
        )
    return f"{place}{colon}{name}"
