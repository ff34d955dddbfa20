"""The YAML files: presets and variants, read and checked; an error is one line that names file and key."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import BaseModel, ConfigDict, Field, StrictInt, StrictStr, ValidationError, field_validator

from gpt2_ablate.errors import UserError
from gpt2_ablate.utils.io import first_problem

EXPERIMENTS = Path(__file__).parents[1] / "experiments"
UPTRAINING = 0.05  # share of the training budget that Ainslie et al. 2305.13245 (section 2.1) spend on a converted checkpoint
TEXTS = ("title", "paper", "idea", "in_numbers", "challenges", "worth")

Count = Annotated[StrictInt, Field(ge=1)]
Seed = Annotated[StrictInt, Field(ge=0, lt=2**32)]
Text = Annotated[StrictStr, Field(min_length=1)]
Names = list[StrictStr]
Settings = dict[StrictStr, Any]


class _File(BaseModel):
    model_config = ConfigDict(extra="forbid")


class ModelSettings(BaseModel):
    """What `LanguageModel` takes: the model's configuration, and how it is trained."""

    model_config = ConfigDict(extra="allow")
    config: Settings = {}


class DataSettings(BaseModel):
    model_config = ConfigDict(extra="allow")
    corpus: Text = "shakespeare"


class TrainerSettings(BaseModel):
    model_config = ConfigDict(extra="allow")
    max_steps: Count
    val_check_interval: Count


class Preset(_File):
    """A size of study: model, data, budget, seeds, and which variants it has."""

    title: Text | None = None
    factorial: Names = ["rope", "gqa", "swa"]
    variants: Names = []
    seeds: Annotated[list[Seed], Field(min_length=1)]
    sizes: Settings | None = None
    prompt: Text = "The"
    model: ModelSettings
    data: DataSettings
    trainer: TrainerSettings
    evaluation_tokens: Count | None = None
    at_once: Count = 1
    init: StrictStr | None = None
    uptraining: Annotated[float, Field(gt=0, le=1, strict=True)] = UPTRAINING

    @field_validator("title")
    @classmethod
    def _some_title(cls, title: str | None) -> str | None:
        if title is None:
            raise ValueError("should be a text")
        return title


class Variant(_File):
    """A change, or (without a model) the texts of a combination of changes.

    Attributes:
        order: where it comes in tables.
        factors: the changes that it is made of, where it is written out; default its own name.
        model: what it changes in the baseline.
        in_numbers: sentences with placeholders for fields of the configuration and metrics, see `gpt2_ablate.report`.
    """

    order: StrictInt | None = None
    factors: Names | None = None
    model: ModelSettings | None = None
    title: str = ""
    paper: str = ""
    idea: str = ""
    in_numbers: str = ""
    challenges: str = ""
    worth: str = ""

    @property
    def texts(self) -> dict[str, str]:
        return {key: text for key in TEXTS if (text := getattr(self, key))}


class Library:
    """The presets and variants that can be named.

    Args:
        experiments: a folder with presets/ and variants/.
        modifications: a folder of one's own, with variants in it and perhaps presets/; None: there is none.

    Raises:
        UserError: the folder is not there, or has a variant of a name that is taken.
    """

    def __init__(self, experiments: Path = EXPERIMENTS, modifications: Path | None = None):
        self.presets = {file.stem: file for file in sorted((experiments / "presets").glob("*.yaml"))}
        self.variants = {file.stem: file for file in sorted((experiments / "variants").glob("*.yaml"))}
        self.own: list[str] = []
        if modifications is None:
            return
        if not modifications.is_dir():
            raise UserError(f"experiments: {modifications} is not a folder; give one that holds YAML files of variants")
        self.presets |= {file.stem: file for file in sorted((modifications / "presets").glob("*.yaml"))}
        for file in sorted(modifications.glob("*.yaml")):
            if file.stem in self.variants:
                raise UserError(f"{file}: {self.variants[file.stem]} has this name already; give the file another one")
            self.variants[file.stem] = file
            self.own.append(file.stem)
        if not self.own and not (modifications / "presets").is_dir():
            raise UserError(f"experiments: {modifications} holds no YAML file of a variant; give a folder that does")

    def preset(self, name: str) -> tuple[Path, Preset]:
        """By its name, or by the path of its file."""
        file = Path(name) if name.endswith((".yaml", ".yml")) else self.presets.get(name)
        if file is None:
            raise UserError(f"preset: there is no {name!r}; give one of {', '.join(self.presets)}, or a YAML file")
        return file, _read(file, Preset)

    def variant(self, name: str) -> tuple[Path, Variant]:
        file = self.variants[name]
        return file, _read(file, Variant)

    def changes_of(self, name: str) -> list[str]:
        """The changes that a variant is made of: those in its name, which hyphens join.

        Raises:
            UserError: there is no such variant.
        """
        if name in self.variants and (name == "baseline" or self.variant(name)[1].model is not None):
            return [name]
        if (found := self._split(name)) is None and name in self.variants:
            raise UserError(f"{self.variants[name]}: model: is missing; say what the variant changes in model.config")
        if found is None:
            known = ", ".join(sorted(self.variants))
            raise UserError(f"variant: there is no {name[:80]!r}; give one of {known}, or several changes joined by hyphens")
        return found

    def _split(self, name: str) -> list[str] | None:
        for known in self.variants:
            if known == "baseline" or not (name + "-").startswith(known + "-") or self.variant(known)[1].model is None:
                continue
            if name == known:
                return [known]
            if (rest := self._split(name[len(known) + 1 :])) is not None:
                return [known, *rest]
        return None


def _read(file: Path, kind: type[Any]) -> Any:
    try:
        content = yaml.safe_load(file.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise UserError(f"{file}: cannot be read ({error.strerror}); give the path of a YAML file") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{file}: is not YAML ({' '.join(str(error).split())}); mend it") from error
    if not isinstance(content, dict):
        raise UserError(f"{file}: should be keys and values, as in experiments/presets/cpu.yaml")
    try:
        return kind.model_validate(content)
    except ValidationError as error:
        raise first_problem(error, file) from error


def fill_in(value: Any, sizes: dict[str, Any], file: Path, preset_file: Path) -> Any:
    """Replace every "${name}" by the size of that name in the preset.

    Raises:
        UserError: the preset has no such size.
    """
    if isinstance(value, dict):
        return {k: fill_in(v, sizes, file, preset_file) for k, v in value.items()}
    if isinstance(value, str) and value.startswith("${") and value.endswith("}"):
        if value[2:-1] not in sizes:
            raise UserError(f"{preset_file}: sizes: {value[2:-1]!r} is missing, and {file} needs it")
        return sizes[value[2:-1]]
    return value


def with_part_files(config: dict[str, Any], file: Path) -> dict[str, Any]:
    """A model's configuration with the files of its parts, which are beside `file`, as absolute paths."""
    from gpt2_ablate.model.config import KINDS  # torch takes a second to import; --help does not need it

    def absolute(part: Any) -> Any:
        if isinstance(part, dict):
            return {**part, "name": absolute(part.get("name"))}
        path, _, name = part.rpartition(":") if isinstance(part, str) else ("", "", "")
        return f"{os.path.abspath(file.parent / Path(path).expanduser())}:{name}" if path.endswith(".py") else part

    return {key: absolute(value) if key in KINDS else value for key, value in config.items()}
