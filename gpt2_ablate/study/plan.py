"""From YAML to runs: a study is a preset times its variants times its seeds."""

from __future__ import annotations

import hashlib
import itertools
import json
import os
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gpt2_ablate.errors import UserError
from gpt2_ablate.records import SCHEMA
from gpt2_ablate.study.matching import as_many_flops, as_many_parameters
from gpt2_ablate.study.schemas import Preset, read
from gpt2_ablate.study.variants import BASELINE, EXPERIMENTS, Library, Variant


@dataclass(frozen=True)
class Run:
    """One training run.

    Attributes:
        invocation: how the study was started: preset, init, experiments, at_once, and the variants that it has where none
            are chosen.
    """

    preset: str
    variant: str
    seed: int
    config: dict[str, Any]  # what it does, as `gpt2-ablate train --config` reads it
    source: str = ""  # the files that all this was read from, for messages
    prompt: str = "The"  # what its sample continues
    evaluation_tokens: int | None = None  # how much of the validation and test text is scored at the end; None: all of it
    factors: tuple[str, ...] = ()  # the changes that the variant is made of
    texts: dict[str, str] = field(default_factory=dict)  # what the variant's YAML tells the reader of the report
    order: int = 0  # where the variant stands in tables
    init_digest: str | None = None  # of the weights that it starts from; None: it starts from random ones
    invocation: dict[str, Any] = field(default_factory=dict)
    learning_rate: float | None = None  # instead of the preset's or the variant's own; see gpt2_ablate.study.rates
    stage: str = "common"  # what it is trained for, as in `gpt2_ablate.records.Record`

    @property
    def name(self) -> str:
        return f"{self.variant} seed {self.seed}" + (f" rate {self.learning_rate:g}" if self.learning_rate else "")

    @property
    def path(self) -> Path:
        """Where it lives below checkpoints/ and reports/tensorboard/."""
        rate = [f"rate-{self.learning_rate!r}"] if self.learning_rate else []
        return Path(self.preset, self.variant, *rate, f"seed-{self.seed}")

    @property
    def max_steps(self) -> int:
        return self.config["trainer"]["max_steps"]

    @property
    def description(self) -> dict[str, Any]:
        """What its record says of it beside its results; a run whose texts alone have changed is not trained again."""
        return {"factors": list(self.factors), "texts": self.texts, "order": self.order, "invocation": self.invocation}

    def record(self, fingerprint: str, status: str, **found: Any) -> dict[str, Any]:
        """Its record, as `gpt2_ablate.records.Record` reads it."""
        return {
            "schema": SCHEMA, "fingerprint": fingerprint, "preset": self.preset, "variant": self.variant, "seed": self.seed,
            "status": status, "config": self.config, **self.description, **found,
        }  # fmt: skip

    def fingerprint(self, corpus_digest: str) -> str:
        """Changes when anything that decides the record of the run does; not when a part's file is moved as it is."""
        from gpt2_ablate.model.parts import part_files

        decisive = [self.config, self.prompt, self.evaluation_tokens, corpus_digest, self.init_digest]
        files = part_files(self.config["model"].get("config") or {})
        text = json.dumps(decisive + [hashlib.sha256(file.read_bytes()).hexdigest() for file in files], sort_keys=True)
        for file in files:
            text = text.replace(json.dumps(str(file))[1:-1], file.name)
        return hashlib.sha256(text.encode()).hexdigest()[:16]


@dataclass(frozen=True)
class Plan:
    """All runs of a study, variants in the order of the report, and what holds for all of them.

    Attributes:
        at_once: how many runs are trained side by side, each with its share of the cores: a small model trains faster on
            one core than on two halves of its time.
    """

    preset: str
    title: str
    runs: list[Run]
    at_once: int = 1
    file: Path = Path("experiments")  # the preset's
    also_report: list[Run] = field(default_factory=list)  # runs of other variants that an earlier call may have trained
    learning_rate: Any = None  # the preset's, which all variants share that set none of their own
    tuning: list[Run] = field(default_factory=list)  # runs that find each variant's best learning rate

    @property
    def data(self) -> dict[str, Any]:
        return self.runs[0].config["data"]


def load_plan(
    preset: str = "cpu",
    variants: Iterable[str] = (),
    seeds: Iterable[int] = (),
    built_in: Path = EXPERIMENTS,
    experiments: Path | None = None,
    init: str | None = None,
    out: Path = Path(),
) -> Plan:
    """Read a preset and those variants that the study has.

    Args:
        preset: the name of one, or the path of a YAML file.
        variants: names of changes, or of several joined by "-"; none means what the preset says: all combinations of its
            `factorial` (of RoPE, GQA and SWA where it says nothing), and its further `variants`. If `experiments` has variants
            and the preset names none of them, none means the baseline and all of those.
        seeds: instead of the preset's own.
        built_in: the folder of the package's variants/ and presets/.
        experiments: a folder of further variants, each a YAML file and the Python file of its part.
        init: a checkpoint that all variants start from, each converted to what it is; None: what the preset says.
        out: a path in `init` is looked for below this folder first.

    Raises:
        UserError: a name, key or value that does not exist or fit, naming file and key.
    """
    library, chosen, seeds = Library(built_in, experiments), list(variants), list(seeds)
    file = library.preset(preset)
    content = read(file, Preset, **({"seeds": seeds} if seeds else {}))
    library.factors = content.changes
    listed = _listed(content)
    named = {change for name in listed for change in (name, *library.split(name))}
    default = [BASELINE, *library.own] if library.own and named.isdisjoint(library.own) else list(listed)
    content, digest = _started_from(init, content, file, out)
    name = f"{file.stem}-uptrained" if init else file.stem  # what the preset trains from nothing must not be overwritten
    place = experiments and str(experiments)
    invocation = {"preset": preset, "init": init, "experiments": place, "at_once": content.at_once, "variants": default}

    def runs_of(wanted: str) -> list[Run]:
        variant = library.variant(wanted, "variant" if chosen else f"{file}: factorial and variants")
        if (factors := listed.get(variant.name)) and factors != variant.factors:
            raise UserError(f"{variant.source}: factors: {list(variant.factors)} should be {list(factors)}, as {file} joins them")
        order = list(listed).index(variant.name) if variant.name in listed else 1000
        config, texts = _config(variant, content, file)
        return [
            Run(
                name, variant.name, seed, {"seed_everything": seed, **config}, f"{variant.source} with {file}", content.prompt,
                content.evaluation_tokens, variant.factors, texts, order, digest, invocation,
            )
            for seed in dict.fromkeys(content.seeds)
        ]  # fmt: skip

    runs = {run.path: run for wanted in chosen or default for run in runs_of(wanted)}
    also_report: list[Run] = []
    for folder in sorted((out / "checkpoints" / name).glob("*/")) if chosen else ():
        with suppress(UserError):  # what is no longer there, or not this study's, is no fault of what is asked for
            also_report += [run for run in runs_of(folder.name) if run.path not in runs]
    # Seed by seed, so that a study stopped early is a whole study with fewer seeds.
    ordered = sorted(runs.values(), key=lambda run: (content.seeds.index(run.seed), run.order, run.variant))
    return Plan(name, content.title or file.stem, ordered, content.at_once, file, also_report, content.model.get("learning_rate"))


def _listed(preset: Preset) -> dict[str, tuple[str, ...] | None]:
    """The variants that a preset names, in the order of the report; of those of its factorial also the changes."""
    subsets = [c for k in range(len(preset.changes) + 1) for c in itertools.combinations(preset.changes, k)]
    factorial = {"-".join(changes) or BASELINE: changes for changes in subsets}
    return {**dict.fromkeys([*factorial, *preset.variants]), **factorial}


def _config(variant: Variant, preset: Preset, file: Path) -> tuple[dict[str, Any], dict[str, str]]:
    """A run's configuration but for the seed, and what the report's reader is told of the variant.

    Raises:
        UserError: a size is missing, values do not fit together, or the variant cannot be matched with the baseline.
    """
    model, texts = _model(variant, preset, file), variant.texts
    trainer: dict[str, Any] = {**preset.trainer}
    if variant.matched:
        baseline = _baseline(preset)
        try:
            if variant.matched == "parameters":
                model["config"], sentence = as_many_parameters(model["config"], baseline)
            else:
                trainer, sentence = as_many_flops(trainer, model["config"], baseline)
        except UserError as error:
            raise UserError(f"{variant.source} with {file}: {error}") from error
        texts = {**texts, "in_numbers": f"{texts.get('in_numbers', '')}\n\n{sentence}".strip()}
    return {"model": model, "data": preset.data, "trainer": trainer}, texts


def _model(variant: Variant, preset: Preset, file: Path) -> dict[str, Any]:
    """The `model` of a run's configuration: the preset's with what the variant changes.

    Raises:
        UserError: a size is missing, or the values do not fit together.
    """
    from gpt2_ablate.model.config import GPT2Config  # torch takes a second to import; --help does not need it
    from gpt2_ablate.model.parts import BUILT_IN, resolve

    changes = _fill_in(variant.model, preset.sizes, variant.source, file)
    model = {**preset.model, **changes}
    model["config"] = {**_baseline(preset), **changes.get("config", {})}
    try:
        config = GPT2Config(**model["config"])
        for kind in BUILT_IN:
            resolve(kind, getattr(config, kind))
    except UserError as error:
        raise UserError(f"{variant.source} with {file}: model.config.{error}") from error
    return model


def _baseline(preset: Preset) -> dict[str, Any]:
    """The fields of the baseline's GPT2Config: the preset's, with the vocabulary of its tokenizer."""
    vocabulary = preset.data.get("vocab_size")
    return {**({} if vocabulary is None else {"vocab_size": vocabulary}), **preset.model.get("config", {})}


def _fill_in(value: Any, sizes: dict[str, Any], source: str, preset_file: Path) -> Any:
    """Replace every "${name}" by the size of that name in the preset."""
    if isinstance(value, dict):
        return {k: _fill_in(v, sizes, source, preset_file) for k, v in value.items()}
    if isinstance(value, list):
        return [_fill_in(v, sizes, source, preset_file) for v in value]
    if isinstance(value, str) and value.startswith("${") and value.endswith("}"):
        if value[2:-1] not in sizes:
            raise UserError(f"{preset_file}: sizes: {value[2:-1]!r} is missing, and {source} needs it")
        return sizes[value[2:-1]]
    return value


def _started_from(init: str | None, preset: Preset, file: Path, out: Path) -> tuple[Preset, str | None]:
    """The preset as it is where it starts from nothing; else continuing the checkpoint that `init` or it names."""
    source = init or preset.init
    if not source:
        return preset, None
    found = str(out / source) if os.path.exists(out / source) else source
    if not init and not os.path.exists(found):
        raise UserError(f"{file}: init: {found} is not there; train it first (make ablate-all), or give another as INIT")
    return uptrained(preset, found)


def uptrained(preset: Preset, source: str) -> tuple[Preset, str]:
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
    model: dict[str, Any] = {**preset.model}
    data = {key: value for key, value in preset.data.items() if key != "vocab_size"}  # the checkpoint's
    trainer: dict[str, Any] = {**preset.trainer}
    steps = max(1, round(preset.uptraining * trainer["max_steps"]))
    # The loss is looked at four times or fewer, and at the end.
    interval = min(n for n in range(1, steps + 1) if steps % n == 0 and 4 * n >= steps)
    model |= {
        "init": source, "config": start.config.to_dict(),
        "warmup_steps": min(model.get("warmup_steps", steps), max(1, steps // 5)),
    }  # fmt: skip
    trainer |= {
        "max_steps": steps, "val_check_interval": interval,
        "log_every_n_steps": min(trainer.get("log_every_n_steps", 10), max(1, interval // 2)),
    }  # fmt: skip
    return preset.model_copy(update={"model": model, "data": data, "trainer": trainer}), digest.hexdigest()
