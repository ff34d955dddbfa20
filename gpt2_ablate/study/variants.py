"""The variants at hand, by name: single changes, each a file; changes at another size, "swa@128"; and combinations of them,
"rope-swa@128". The last two need no file."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from gpt2_ablate.errors import UserError
from gpt2_ablate.study.schemas import VariantFile, read

BASELINE = "baseline"
EXPERIMENTS = (Path(__file__).parents[1] / "experiments").resolve()  # in a checkout a link to the folder at its top


@dataclass(frozen=True)
class Variant:
    """What a variant changes in the baseline."""

    name: str
    factors: tuple[str, ...]  # the changes that it is made of
    model: dict[str, Any]  # what it says of the preset's `model`, where "${name}" stands for a size
    texts: dict[str, str]  # what the report's reader is told
    matched: str | None  # what it has as much of as the baseline
    files: tuple[Path, ...]  # where all this was read

    @property
    def source(self) -> str:
        return " and ".join(map(str, self.files))


class Library:
    """Variants and presets by name; a file is read only when it is asked for.

    Args:
        built_in: a folder with variants/ and presets/.
        experiments: a folder of one's own with variants in it, and presets, if any, in its presets/.

    Attributes:
        own: names of the variants of one's own folder.
        factors: changes in the order in which a combination names them; others follow in that of the alphabet.

    Raises:
        UserError: the folder is not there, or it has a name that is built in.
    """

    def __init__(self, built_in: Path = EXPERIMENTS, experiments: Path | None = None):
        if experiments is not None and not experiments.is_dir():
            raise UserError(f"experiments: {experiments} is no folder; give one that holds variants, each a YAML file")
        self.experiments = experiments
        own = _yaml_files(experiments)
        self.variants = _together(_yaml_files(built_in / "variants"), own, "variant")
        self.presets = _together(
            _yaml_files(built_in / "presets"), _yaml_files(experiments and experiments / "presets"), "preset"
        )
        self.own, self.factors = list(own), list[str]()
        if experiments is not None and not own and not (experiments / "presets").is_dir():
            raise UserError(f"experiments: {experiments} holds no YAML file of a variant; give a folder that does")

    def preset(self, name: str) -> Path:
        """The file of a preset: of this name, or at this path."""
        if not name.endswith((".yaml", ".yml")):
            return self.presets[name] if name in self.presets else _refuse("preset", name, self.presets)
        file = Path(name)
        if self.experiments and file.resolve().parent == self.experiments.resolve():
            self.own.remove(file.stem)  # it lies among the variants, but is none
        return file

    def variant(self, name: str, key: str = "variant") -> Variant:
        """The variant of a name: of a file with a `model`, of one at another size, or of the changes whose names it joins by "-".

        Args:
            key: where the name was said.

        Raises:
            UserError: there is none, its file is wrong, or its changes cannot be joined.
        """
        file = self.variants.get(name)
        content = read(file, VariantFile) if file else VariantFile()
        if content.model is None and (changes := self.split(name)):
            return self._combination(changes)
        if file is None and self._is_change(name):
            return _at_size(self.variant(name.partition("@")[0]), name, key)
        if file is None:
            return _refuse(key, name, self.variants, ", one of them at another size (swa@128), or several joined by -")
        factors = content.factors if content.factors is not None else [] if name == BASELINE else [name]
        return Variant(name, tuple(factors), dict(content.model or {}), content.texts, content.matched, (file,))

    def _is_change(self, name: str) -> bool:
        """Whether it is the name of a file, or that of one at another size."""
        return name.partition("@")[0] in self.variants.keys() - {BASELINE}

    def split(self, name: str) -> tuple[str, ...]:
        """The changes that a name joins, as many as it can be; none where it joins none, or one of them twice."""
        for n in (n for n, letter in enumerate(name) if letter == "-" and self._is_change(name[:n])):
            rest = name[n + 1 :]
            further = self.split(rest) or ((rest,) if self._is_change(rest) else ())
            if further and name[:n] not in further:
                return (name[:n], *further)
        return ()

    def _combination(self, changes: tuple[str, ...]) -> Variant:
        known = {factor: n for n, factor in enumerate(self.factors)}
        factors = sorted(changes, key=lambda change: (known.get(change.partition("@")[0], len(known)), change))
        name, parts = "-".join(factors), [self.variant(factor) for factor in factors]
        own = self.variants.get(name)
        content = read(own, VariantFile) if own else VariantFile()
        if content.model is not None:  # somebody has joined these by hand
            return self.variant(name)
        texts = {"title": " + ".join(part.texts.get("title", part.name) for part in parts)}
        if numbers := [part.texts["in_numbers"] for part in parts if "in_numbers" in part.texts]:
            texts["in_numbers"] = " ".join(numbers)
        files = tuple(file for part in parts for file in part.files)
        matched = next((part.matched for part in parts if part.matched), None)
        return Variant(name, tuple(factors), _joined(parts), {**texts, **content.texts}, matched, files)


def _at_size(change: Variant, name: str, key: str) -> Variant:
    """A change whose one size is not the preset's but what the name says after "@".

    Raises:
        UserError: it has no size, or several; or what the name says is no value.
    """
    sizes = {value for value in _leaves(change.model) if isinstance(value, str) and value.startswith("${")}
    try:
        value = yaml.safe_load(name.partition("@")[2])
    except yaml.YAMLError:
        value = None
    if len(sizes) != 1 or value is None:
        problem = f"{change.source} has {len(sizes) or 'no'} sizes" if len(sizes) != 1 else "there is no size after @"
        raise UserError(f"{key}: {name!r}: {problem}; give a change that has one, and a value, as in swa@128")
    (size,) = sizes

    def filled(found: Any) -> Any:
        if isinstance(found, dict):
            return {k: filled(v) for k, v in found.items()}
        return [filled(v) for v in found] if isinstance(found, list) else value if found == size else found

    texts = {**change.texts, "title": f"{change.texts.get('title', change.name)}, {size[2:-1]} {value}"}
    return Variant(name, (name,), filled(change.model), texts, change.matched, change.files)


def _leaves(value: Any) -> list[Any]:
    below = value.values() if isinstance(value, dict) else value if isinstance(value, list) else None
    return [value] if below is None else [leaf for v in below for leaf in _leaves(v)]


def _joined(parts: list[Variant]) -> dict[str, Any]:
    """What all of them say of the preset's `model`.

    Raises:
        UserError: two say different things of one key.
    """
    said: dict[str, tuple[Any, Variant]] = {}
    for part in parts:
        for key, value in _flat(part.model).items():
            before, first = said.setdefault(key, (value, part))
            if before != value:
                raise UserError(
                    f"{first.source} and {part.source}: model.{key}: {before!r} and {value!r} cannot be joined; "
                    f"leave {first.name} or {part.name} out"
                )
    model: dict[str, Any] = {"config": {}}
    for key, (value, _) in said.items():
        section = model["config"] if key.startswith("config.") else model
        section[key.removeprefix("config.")] = value
    return model


def _flat(model: dict[str, Any]) -> dict[str, Any]:
    config = {f"config.{key}": value for key, value in model.get("config", {}).items()}
    return {**{key: value for key, value in model.items() if key != "config"}, **config}


def _yaml_files(folder: Path | None) -> dict[str, Path]:
    return {file.stem: file for file in sorted(folder.glob("*.yaml"))} if folder else {}


def _together(built_in: dict[str, Path], own: dict[str, Path], kind: str) -> dict[str, Path]:
    for name in sorted(built_in.keys() & own.keys()):
        raise UserError(f"{own[name]}: there is a {kind} {name!r} already, {built_in[name]}; give it another name")
    return {**built_in, **own}


def _refuse(key: str, name: str, known: Iterable[str], more: str = "") -> Any:
    raise UserError(f"{key}: there is no {name!r}; give one of {', '.join(sorted(known))}{more}")
