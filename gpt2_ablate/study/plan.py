"""From YAML to runs: a study is a preset times its variants times its seeds."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from gpt2_ablate.errors import UserError

EXPERIMENTS = Path(__file__).parents[2] / "experiments"
VARIANT_KEYS = {"order", "title", "factors", "model", "paper", "idea", "in_numbers", "challenges", "worth"}
PRESET_KEYS = {
    "title", "seeds", "sizes", "prompt", "model", "data", "trainer", "evaluation_tokens", "at_once", "init", "uptraining",
}  # fmt: skip
UPTRAINING = 0.05  # share of the training budget that Ainslie et al. 2305.13245 (section 2.1) spend on a converted checkpoint
TEXTS = ("title", "paper", "idea", "in_numbers", "challenges", "worth")


@dataclass(frozen=True)
class Run:
    """One training run.

    Attributes:
        config: what it does, as `gpt2-ablate train --config` reads it.
        prompt: what its sample continues.
        evaluation_tokens: how much of the validation and test text is scored at the end; None: all of it.
        factors: the changes that the variant is made of.
        texts: what the variant's YAML tells the reader of the report.
        order: where the variant stands in tables.
        init_digest: of the weights that it starts from; None: it starts from random ones.
        asked: how the study was asked for: preset, init and at_once.
    """

    preset: str
    variant: str
    seed: int
    config: dict[str, Any]
    prompt: str = "The"
    evaluation_tokens: int | None = None
    factors: tuple[str, ...] = ()
    texts: dict[str, str] = field(default_factory=dict)
    order: int = 0
    init_digest: str | None = None
    asked: dict[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return f"{self.variant} seed {self.seed}"

    @property
    def path(self) -> Path:
        """Where it lives below checkpoints/ and reports/tensorboard/."""
        return Path(self.preset, self.variant, f"seed-{self.seed}")

    @property
    def max_steps(self) -> int:
        return self.config["trainer"]["max_steps"]

    def fingerprint(self, corpus_digest: str) -> str:
        """Changes when anything that decides the record of the run does."""
        decisive = [self.config, self.prompt, self.evaluation_tokens, corpus_digest, self.init_digest]
        return hashlib.sha256(json.dumps(decisive, sort_keys=True).encode()).hexdigest()[:16]


@dataclass(frozen=True)
class Plan:
    """All runs of a study, variants in the order of the report, and what holds for all of them.

    Attributes:
        file: the preset's.
        at_once: how many runs are trained side by side, each with its share of the cores: a small model trains faster on
            one core than on two halves of its time.
    """

    preset: str
    title: str
    runs: list[Run]
    at_once: int = 1
    file: Path = Path("experiments")

    @property
    def data(self) -> dict[str, Any]:
        return self.runs[0].config["data"]


def load_plan(
    preset: str = "cpu",
    variants: Iterable[str] = (),
    seeds: Iterable[int] = (),
    experiments: Path = EXPERIMENTS,
    init: str | None = None,
    out: Path = Path(),
) -> Plan:
    """Read a preset and its variants.

    Args:
        preset: a name in experiments/presets, or the path of a YAML file.
        variants: names in experiments/variants; none means all of them.
        seeds: instead of the preset's own.
        experiments: the folder of both.
        init: a checkpoint that all variants start from, each converted to what it is; None: what the preset says.
        out: a path in `init` is looked for below this folder first.

    Raises:
        UserError: a name, key or value that does not exist or fit, naming file and key.
    """
    file = Path(preset) if preset.endswith((".yaml", ".yml")) else _find(experiments / "presets", preset, "preset")
    wanted = _read(file, PRESET_KEYS)
    for key in ("model", "data", "trainer", "seeds"):
        if key not in wanted:
            raise UserError(f"{file}: the key {key!r} is missing; see experiments/presets/cpu.yaml")
    for key, kind, what in (("seeds", list, "a list of whole numbers"), ("model", dict, "keys and values"),
                            ("data", dict, "keys and values"), ("trainer", dict, "keys and values")):  # fmt: skip
        if not isinstance(wanted[key], kind) or not wanted[key]:
            raise UserError(f"{file}: {key}: {wanted[key]!r} should be {what}")
    names = list(variants) or sorted(f.stem for f in (experiments / "variants").glob("*.yaml"))
    chosen = list(seeds) or wanted["seeds"]
    for seed in chosen:
        if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed < 2**32:
            raise UserError(f"{file}: seeds: {seed!r} is not a seed; give whole numbers from 0 to {2**32 - 1}")
    for key in ("max_steps", "val_check_interval"):
        if not _is_count(value := wanted["trainer"].get(key)):
            raise UserError(f"{file}: trainer.{key}: {value!r} is not a number of steps; give a whole number from 1")
    if not _is_count(value := wanted.get("evaluation_tokens", 1)):
        raise UserError(f"{file}: evaluation_tokens: {value!r} is not a number of tokens; give a whole number from 1")
    if not _is_count(value := wanted.get("at_once", 1)):
        raise UserError(f"{file}: at_once: {value!r} is not a number of runs; give a whole number from 1")
    for key, value in (("prompt", wanted.get("prompt", "The")), ("title", wanted.get("title", file.stem)),
                       ("data.corpus", wanted["data"].get("corpus", "shakespeare"))):  # fmt: skip
        if not isinstance(value, str) or not value:
            raise UserError(f"{file}: {key}: {value!r} should be a text")
    value = wanted.get("uptraining", UPTRAINING)
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= 1:
        raise UserError(f"{file}: uptraining: {value!r} is not a share of the training; give a number above 0, up to 1")
    if not isinstance(value := wanted.get("init", ""), str):
        raise UserError(f"{file}: init: {value!r} is not a checkpoint; give a folder, a file or a hub name")
    _require_mapping(file, "sizes", wanted.get("sizes") or {})
    _require_mapping(file, "model.config", wanted["model"].get("config") or {})
    name, digest = file.stem, None
    if source := init or wanted.get("init"):
        found = str(out / source) if os.path.exists(out / source) else source
        if not init and not os.path.exists(found):
            raise UserError(f"{file}: init: {found} is not there; train it first (make ablate-all), or give another as INIT")
        wanted, digest = uptrained(wanted, found)
        if init:  # what the preset trains from nothing must not be overwritten
            name = f"{file.stem}-uptrained"

    runs = [
        run
        for variant in dict.fromkeys(names)
        for run in _runs_of_variant(_find(experiments / "variants", variant, "variant"), file, wanted, dict.fromkeys(chosen))
    ]
    # Seed by seed, so that a study stopped early is a whole study with fewer seeds.
    runs.sort(key=lambda run: (list(chosen).index(run.seed), run.order, run.variant))
    asked = {"preset": preset, "init": init, "at_once": wanted.get("at_once", 1)}
    runs = [dataclasses.replace(run, preset=name, init_digest=digest, asked=asked) for run in runs]
    return Plan(name, str(wanted.get("title", file.stem)), runs, wanted.get("at_once", 1), file)


def _runs_of_variant(file: Path, preset_file: Path, preset: dict, seeds: Iterable[int]) -> list[Run]:
    from gpt2_ablate.model.config import GPT2Config  # torch takes a second to import; --help does not need it

    variant = _read(file, VARIANT_KEYS)
    _require_mapping(file, "model", variant.get("model") or {})
    _require_mapping(file, "model.config", (variant.get("model") or {}).get("config") or {})
    sizes = preset.get("sizes") or {}
    changes = _fill_in((variant.get("model") or {}), sizes, file, preset_file)
    model = {**preset["model"], **changes}
    model["config"] = {**(preset["model"].get("config") or {}), **(changes.get("config") or {})}
    known = {f.name for f in dataclasses.fields(GPT2Config)}
    for key in model["config"]:
        if key not in known:
            where = file if key in (changes.get("config") or {}) else preset_file
            raise UserError(f"{where}: model.config: there is no {key!r}; give one of {', '.join(sorted(known))}")
    try:
        GPT2Config(**model["config"])
    except UserError as error:
        raise UserError(f"{file} with {preset_file}: model.config.{error}") from error
    factors = variant.get("factors", [] if file.stem == "baseline" else [file.stem])
    if not isinstance(factors, list) or not all(isinstance(factor, str) for factor in factors):
        raise UserError(f"{file}: factors: {factors!r} should be a list of names")
    order = variant.get("order", 1000)
    if not isinstance(order, int):
        raise UserError(f"{file}: order: {order!r} should be a whole number")
    return [
        Run(
            preset=preset_file.stem,
            variant=file.stem,
            seed=seed,
            config={
                "seed_everything": seed,
                "model": model,
                "data": preset["data"],
                "trainer": preset["trainer"],
            },
            prompt=preset.get("prompt", "The"),
            evaluation_tokens=preset.get("evaluation_tokens"),
            factors=tuple(factors),
            texts={key: str(variant[key]) for key in TEXTS if key in variant},
            order=order,
        )
        for seed in seeds
    ]


def uptrained(preset: dict[str, Any], source: str) -> tuple[dict[str, Any], str]:
    """A preset that continues a checkpoint for a share of its training; and a digest of the checkpoint's weights.

    Raises:
        UserError: the checkpoint cannot be loaded.
    """
    from gpt2_ablate.weights import load_pretrained  # slow to import; few studies start from a checkpoint

    start = load_pretrained(source)
    digest = hashlib.sha256()
    for tensor_name, weight in start.named_parameters():
        digest.update(tensor_name.encode())
        digest.update(weight.detach().numpy().tobytes())
    model, trainer = preset["model"], preset["trainer"]
    share = preset.get("uptraining", UPTRAINING)
    steps = max(1, round(share * trainer["max_steps"]))
    # The loss is looked at four times or fewer, and at the end.
    interval = min(n for n in range(1, steps + 1) if steps % n == 0 and 4 * n >= steps)
    return {
        **preset,
        "model": {
            **model, "init": source, "config": dataclasses.asdict(start.config),
            "warmup_steps": min(model.get("warmup_steps", steps), max(1, steps // 5)),
        },
        "trainer": {
            **trainer, "max_steps": steps, "val_check_interval": interval,
            "log_every_n_steps": min(trainer.get("log_every_n_steps", 10), max(1, interval // 2)),
        },
    }, digest.hexdigest()  # fmt: skip


def _fill_in(value: Any, sizes: dict[str, Any], file: Path, preset_file: Path) -> Any:
    """Replace every "${name}" by the size of that name in the preset."""
    if isinstance(value, dict):
        return {k: _fill_in(v, sizes, file, preset_file) for k, v in value.items()}
    if isinstance(value, str) and value.startswith("${") and value.endswith("}"):
        if value[2:-1] not in sizes:
            raise UserError(f"{preset_file}: sizes: {value[2:-1]!r} is missing, and {file} needs it")
        return sizes[value[2:-1]]
    return value


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def _require_mapping(file: Path, key: str, value: Any) -> None:
    if not isinstance(value, dict):
        raise UserError(f"{file}: {key}: {value!r} should be keys and values")


def _find(folder: Path, name: str, kind: str) -> Path:
    file = folder / f"{name}.yaml"
    if not os.path.exists(file):  # Path.exists raises for a name that is too long
        known = ", ".join(sorted(f.stem for f in folder.glob("*.yaml")))
        raise UserError(f"{kind}: there is no {name!r} in {folder}; give one of {known}")
    return file


def _read(file: Path, known: set[str]) -> dict[str, Any]:
    try:
        content = yaml.safe_load(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{file}: cannot be read ({error.strerror}); give the path of a YAML file") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{file}: is not YAML ({' '.join(str(error).split())}); mend it") from error
    if not isinstance(content, dict):
        raise UserError(f"{file}: should be keys and values, as in experiments/presets/cpu.yaml")
    for key in content:
        if key not in known:
            raise UserError(f"{file}: there is no key {key!r}; give one of {', '.join(sorted(known))}")
    return content
