"""The analysis, written from records alone: an answer, the numbers behind it, and how far they can be trusted."""

from __future__ import annotations

import itertools
import shlex
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from gpt2_ablate.errors import UserError
from gpt2_ablate.study import statistics, warm_start
from gpt2_ablate.study.prose import bytes_, interval, listing, number, percent_change, signed, table, verdict
from gpt2_ablate.study.record import write_text
from gpt2_ablate.study.statistics import BASELINE, CLASSIC_FACTORS

Record = dict[str, Any]

CLASSIC_VARIANTS = {"-".join(made_of) or BASELINE for n in range(4) for made_of in itertools.combinations(CLASSIC_FACTORS, n)}


class Study:
    """Everything that the sections of a report ask for, computed once.

    Args:
        records: of one preset, whatever their status.

    Raises:
        UserError: the records are of several presets, or the same run stands there twice.
    """

    benchmarks = False  # whether there is a benchmark report beside this one

    def __init__(self, records: list[Record]):
        presets = list(dict.fromkeys(str(r.get("preset", "unnamed")) for r in records))
        if len(presets) > 1:
            raise UserError(f"results: runs of several presets ({', '.join(presets)}); report one preset at a time")
        keys = [(r["variant"], r["seed"]) for r in records]
        if twice := [key for key in dict.fromkeys(keys) if keys.count(key) > 1]:
            raise UserError(f"results: {twice[0][0]} seed {twice[0][1]} stands there twice; keep one of them")
        self.records = records
        self.preset = presets[0] if presets else "unnamed"
        self.runs = statistics.finished(records)
        self.others = [r for r in records if r not in self.runs]
        self.names = statistics.variants(self.runs)
        self.seeds = sorted({r["seed"] for r in self.runs})
        self.first = {name: next(r for r in self.runs if r["variant"] == name) for name in self.names}
        self.factors = statistics.factors_of(self.runs)
        if self.runs:
            self.losses = statistics.means(self.runs)
            self.differences = statistics.differences(self.runs)
            self.effects = statistics.effects(self.runs)
            self.beyond_parts = statistics.beyond_parts(self.runs)
            self.noise = statistics.noise(self.runs)
            self.recoveries = warm_start.recoveries(self.runs)

    def metric(self, name: str) -> dict[str, float]:
        """variant -> mean of a metric over its seeds, where it has it."""
        return statistics.by_variant(self.runs, name)

    def value(self, variant: str, metric: str) -> float | None:
        return self.metric(metric).get(variant)

    def config(self, variant: str) -> dict[str, Any]:
        """The model's configuration; empty where the record has none."""
        return ((self.first[variant].get("config") or {}).get("model") or {}).get("config") or {}

    def text(self, variant: str, key: str) -> str:
        """What the variant's YAML says."""
        return (self.first[variant].get("texts") or {}).get(key, "")

    def title(self, variant: str) -> str:
        return self.text(variant, "title") or variant

    @property
    def factor_names(self) -> dict[str, str]:
        """factor -> how to call it in a sentence."""
        return {f[0]: self.title(name) for name, f in self.factors.items() if len(f) == 1}


def write_report(records: list[Record], folder: Path) -> Path:
    """Write analysis.md and figures/ into a folder.

    Raises:
        UserError: the records cannot be reported together, or the folder cannot be written.
    """
    study = Study(records)
    study.benchmarks = (folder / "benchmarks.md").exists()
    try:
        figures = _draw(study, folder / "figures")
    except OSError as error:
        raise UserError(
            f"{folder}: cannot be written ({error.strerror}); free some space, or give another folder as OUT"
        ) from error
    sections: Iterable[Callable[[Study, set[str]], str]] = (
        _answer, _missing, _main_table, _from_checkpoint, _effects, _quality, _cost, _changes, _samples, _limits, _setting,
    )  # fmt: skip
    if not study.runs:
        sections = (_answer, _missing)
    file = folder / "analysis.md"
    write_text(file, "\n\n".join(text for section in sections if (text := section(study, figures))) + "\n")
    return file


def _draw(study: Study, folder: Path) -> set[str]:
    """Draw what the records allow; returns the names of the figures that there are. Those of an earlier report go."""
    from gpt2_ablate.study import figures

    for stale in folder.glob("*.png"):
        if not stale.name.startswith("bench_"):
            stale.unlink()
    if not study.runs:
        return set()
    drawn = {
        "loss_curves": figures.loss_curves(study.runs, folder / "loss_curves.png"),
        "conversion": figures.conversion_and_recovery(study.recoveries, folder / "conversion.png"),
        "effects": figures.effects_with_intervals(study.effects, folder / "effects.png"),
        "quality_against_cost": figures.quality_against_cost(study.runs, study.losses, folder / "quality_against_cost.png"),
        "cost_against_context": figures.cost_against_context(study.runs, folder / "cost_against_context.png"),
        "loss_by_position": figures.loss_by_position(study.runs, folder / "loss_by_position.png"),
    }
    return {name for name, done in drawn.items() if done}


def _figure(name: str, caption: str, figures: set[str]) -> str:
    return f"![{caption}](figures/{name}.png)\n\n*{caption}*" if name in figures else ""


def _paragraphs(*parts: str) -> str:
    return "\n\n".join(part for part in parts if part)


def _bullets(lines: Iterable[str]) -> str:
    return "\n".join(f"- {line}" for line in lines if line)


# ---------------------------------------------------------------------------------------------------------- the answer


def _answer(study: Study, figures: set[str]) -> str:
    head = f"# GPT-2, one change at a time and all together: preset `{study.preset}`"
    if not study.runs:
        return _paragraphs(head, "**No run finished, so there is nothing to compare.**")
    return _paragraphs(head, "## In short", _bullets([*_best(study), *_effect_sentences(study), *_savings(study), _scope(study)]))


def _best(study: Study) -> list[str]:
    best = min(study.names, key=lambda name: study.losses[name].value)
    loss = f"{study.losses[best].value:.3f} nats per token"
    if len(study.names) == 1:
        return [f"**{best}** reaches a validation loss of {loss}; there is nothing to compare it with."]
    if best == BASELINE:
        return [f"**No change improved on the baseline** here, which has the lowest mean validation loss ({loss})."]
    if BASELINE not in study.names:
        return [
            f"**{best}** has the lowest mean validation loss ({loss}); the baseline is missing, so nothing is said about "
            "differences."
        ]
    difference = study.differences[best]
    if not difference.is_clear:
        return [
            f"**No variant is clearly better than the baseline.** {best} has the lowest mean validation loss ({loss}), but its "
            f"difference of {signed(difference.value)} to the baseline "
            + ("comes without an interval." if difference.low is None else f"has the interval {interval(difference)}.")
        ]
    rivals = statistics.differences(study.runs, reference=best)
    close = [name for name in study.names if name not in (best, BASELINE) and not rivals[name].is_clear]
    return [
        f"**{best} has the lowest validation loss**: {loss}, {abs(difference.value):.3f} below the baseline (interval "
        f"{interval(difference)})." + (f" {listing(close)} cannot be told from it." if close else "")
    ]


def _effect_sentences(study: Study) -> list[str]:
    main = [e for e in study.effects if len(e.factors) == 1]
    sentences = []
    for effect in main:
        name = study.factor_names.get(effect.factors[0], effect.factors[0])
        sentences.append(f"**{name}**, averaged over the other changes: " + _lower_first(verdict(effect.estimate, "it")))
    interactions = [e for e in study.effects if len(e.factors) > 1]
    clear = [e for e in interactions if e.estimate.is_clear]
    if clear:
        parts = [f"{e.name} ({signed(e.estimate.value)}, interval {interval(e.estimate)})" for e in clear]
        sentences.append(f"The changes are not independent: {listing(parts)}.")
    elif interactions and interactions[0].estimate.low is not None:
        sentences.append(
            "No interaction is clear: what the changes do together is within chance of the sum of what they do alone."
        )
    return sentences


def _lower_first(text: str) -> str:
    return text[:1].lower() + text[1:]


def _savings(study: Study) -> list[str]:
    """What the single changes save, largest first."""
    sentences = []
    for name in study.names:
        if len(study.factors[name]) != 1 or BASELINE not in study.names:
            continue
        parts = []
        for metric, what in (
            ("parameters_total", "parameters"), ("training_flops_per_token", "training FLOPs per token"),
            ("kv_bytes_per_token", "cache per token"), ("kv_bytes_full", "cache at full context"),
        ):  # fmt: skip
            value, reference = study.value(name, metric), study.value(BASELINE, metric)
            if value is not None and reference and abs(value - reference) / reference > 0.0005:
                parts.append(f"{what} {percent_change(value, reference)}")
        if parts:
            sentences.append(f"Cost of {name} against the baseline: {listing(parts)}.")
    return sentences


def _scope(study: Study) -> str:
    config = study.config(study.names[0])
    data = (study.runs[0].get("config") or {}).get("data") or {}
    size = (
        f"a model of {number(study.value(study.names[0], 'parameters_total'))} parameters"
        if study.value(study.names[0], "parameters_total")
        else "one model size"
    )
    tokens = _training_tokens(study)
    budget = f"{number(tokens)} tokens of training" if tokens else "one budget"
    context = f"{config['block_size']} tokens of context" if config.get("block_size") else "one context length"
    text = (
        f"All of this holds for {size}, {budget} on `{data.get('corpus', 'one corpus')}` and {context}, {len(study.seeds)} seed"
    )
    return text + ("s" if len(study.seeds) > 1 else "") + "; what it leaves open stands under [Limits](#limits)."


def _training_tokens(study: Study) -> int | None:
    config = study.runs[0].get("config") or {}
    try:
        steps = config["trainer"]["max_steps"] * config["trainer"].get("accumulate_grad_batches", 1)
        return steps * config["data"]["batch_size"] * config["model"]["config"]["block_size"]
    except KeyError:
        return None


def _missing(study: Study, figures: set[str]) -> str:
    if not study.others:
        return ""
    lines = [
        f"**{r['variant']}, seed {r['seed']}**: {r['status'] if r['status'] != 'finished' else 'without a validation loss'}"
        + (f" ({r['error']})" if r.get("error") else "")
        for r in study.others
    ]
    absent = sorted({r["variant"] for r in study.others} - set(study.names))
    note = f"Nothing is said about {listing(absent)}." if absent else ""
    return _paragraphs("## Missing", f"{len(study.others)} of {len(study.records)} runs have no result:", _bullets(lines), note)


# ------------------------------------------------------------------------------------------------------------ numbers


def main_rows(study: Study) -> tuple[list[str], list[list[str]]]:
    """Head and rows of the main table, one row a variant, for the report and for the terminal."""
    head = [
        "variant", "parameters", "training FLOPs/token", "KV cache/token", "KV cache, full context", "peak memory",
        "training tokens/s", "validation loss", "perplexity", "bits/byte", "difference to baseline",
    ]  # fmt: skip
    rows = []
    for name in study.names:
        loss, difference = study.losses[name], study.differences.get(name)
        half = "" if loss.low is None or loss.high is None else f" ± {(loss.high - loss.low) / 2:.3f}"
        perplexity = study.value(name, "validation_perplexity")
        bits = study.value(name, "validation_bits_per_byte")
        rows.append([
            name,
            number(study.value(name, "parameters_total")),
            number(study.value(name, "training_flops_per_token")),
            bytes_(study.value(name, "kv_bytes_per_token")),
            bytes_(study.value(name, "kv_bytes_full")),
            bytes_(study.value(name, "training_peak_bytes")),
            number(study.value(name, "training_tokens_per_second")),
            f"{loss.value:.3f}{half}",
            "–" if perplexity is None else f"{perplexity:.1f}",
            "–" if bits is None else f"{bits:.3f}",
            "" if difference is None else f"{signed(difference.value)} {interval(difference)}",
        ])  # fmt: skip
    return head, rows


def _main_table(study: Study, figures: set[str]) -> str:
    head, rows = main_rows(study)
    measured = (
        "Speed and memory were measured apart from training, with nothing else running: medians of rounds in which all "
        "variants took turns in one process, and what the tensors took at their peak, median of fresh processes."
        if study.metric("training_tokens_per_second")
        else "Speed and memory were not measured."
    )
    if study.benchmarks:
        measured += " [Benchmarks](benchmarks.md) set them beside transformers and the limits of the machine."
    return _paragraphs(
        "## Results",
        table(head, rows),
        f"Validation loss in nats per token, ± half of a 95 % interval for other seeds. {_interval_note(study)} {measured} "
        "The cache is counted in fp32, as trained.",
        _figure("loss_curves", "Validation loss while training, mean over seeds. All variants see the same batches.", figures),
    )


def _interval_note(study: Study) -> str:
    if study.noise is None:
        return (
            "One run of each variant says nothing about chance, so differences come without intervals and none is claimed; "
            "add seeds (`SEEDS=0,1,2`)."
        )
    deviation, freedom = study.noise
    return (
        f"Differences are within seeds, which share batches and initial weights; intervals are 95 % for the whole column at "
        f"once (Bonferroni), from a residual standard deviation of {deviation:.4f} nats with {freedom} degrees of freedom."
    )


def _from_checkpoint(study: Study, figures: set[str]) -> str:
    caption = "Loss right after conversion (dot) and after uptraining (arrow head). The line is the control."
    return warm_start.section(study.recoveries, study.runs[0], _figure("conversion", caption, figures))


def _effects(study: Study, figures: set[str]) -> str:
    if not study.effects:
        return ""
    rows = [
        [e.name, "main effect" if len(e.factors) == 1 else "interaction", signed(e.estimate.value), interval(e.estimate),
         "yes" if e.estimate.is_clear else "no"]
        for e in study.effects
    ]  # fmt: skip
    factors = [e.factors[0] for e in study.effects if len(e.factors) == 1]
    return _paragraphs(
        "## Effects",
        f"The runs hold every combination of {listing(factors)}: a 2^{len(factors)} factorial. A main effect is the mean loss "
        "of all runs with a change minus that of all runs without it. An interaction is how much the effect of one change "
        "differs with the other from what it is without. Below zero is better.",
        table(["effect", "kind", "nats", "95 % interval", "clear"], rows, left=2),
        _figure("effects", "Effects on validation loss with simultaneous 95 % intervals; grey ones contain zero.", figures),
        "**What the intervals cover**: how results vary with the seed, that is with the order of the data and the draw of the "
        "initial weights, for this model, corpus and budget, taking that variation to be alike for all variants. "
        "**What they do not cover**: other corpora, sizes, budgets, learning rates and windows; the choice of the validation "
        "text; and that all variants use one learning rate, which may suit some better than others.",
    )


def _quality(study: Study, figures: set[str]) -> str:
    against_cost = "Loss against cost; lower left is better. Bars are 95 % intervals of the mean."
    by_position = "Loss over the place in the context. The line marks the trained length; dotted are windows of twice that."
    drawn = [_figure("quality_against_cost", against_cost, figures), _figure("loss_by_position", by_position, figures)]
    return _paragraphs("## Quality against cost", *drawn) if any(drawn) else ""


def _cost(study: Study, figures: set[str]) -> str:
    tables = {name: study.first[name].get("cost_by_context") for name in study.names}
    known = {name: rows for name, rows in tables.items() if rows}
    if not known:
        return ""
    contexts = [row["context"] for row in next(iter(known.values()))]
    flops = [[name, *(number(row["forward_flops_per_token"]) for row in rows)] for name, rows in known.items()]
    cache = [[name, *(bytes_(row["kv_bytes"]) for row in rows)] for name, rows in known.items()]
    head = ["context", *(f"{context:,}" for context in contexts)]
    return _paragraphs(
        "## Cost against context",
        "Forward FLOPs per token:",
        table(head, flops),
        "Bytes of the key/value cache of one text (fp32):",
        table(head, cache),
        _figure(
            "cost_against_context", "Compute and cache over context length; variants that cost the same share a line.", figures
        ),
        "FLOPs are those of matrix products: of full causal attention all T x T scores, by the usual convention, and of a "
        "sliding window the blocks that its kernel computes. Where a kernel skips the hidden half of full attention, a window "
        "saves less than it looks here.",
    )


# -------------------------------------------------------------------------------------------------- one change at a time


def _changes(study: Study, figures: set[str]) -> str:
    if BASELINE not in study.names or len(study.names) == 1:
        return ""
    sections = [_change(study, name) for name in study.names if name != BASELINE]
    return _paragraphs("## Each change and each combination", *sections)


def _change(study: Study, name: str) -> str:
    paper, title = study.text(name, "paper"), study.title(name)
    quality = verdict(study.differences[name], "It") + _parts_sentence(study, name) + _late_sentence(study, name)
    points = {
        "Size and compute": _size_and_compute(study, name),
        "Speed": _speed(study, name),
        "Quality": quality,
        "Challenges": " ".join(filter(None, [*_challenges(study, name), study.text(name, "challenges")])),
        "Worth it?": " ".join(filter(None, [_trade(study, name), study.text(name, "worth")])),
    }
    return _paragraphs(
        f"### {title}" + (f" (`{name}`)" if title != name else ""),
        study.text(name, "idea") + (f" ({paper}.)" if paper else ""),
        _bullets(f"**{point}{'' if point.endswith('?') else '.'}** {text}" for point, text in points.items() if text),
    )


def _size_and_compute(study: Study, name: str) -> str:
    phrases = []
    for metric, what, form in (
        ("parameters_total", "parameters", number),
        ("parameters_attention", "of them in attention", number),
        ("training_flops_per_token", "training FLOPs per token", number),
        ("kv_bytes_per_token", "of cache per token", bytes_),
        ("kv_bytes_full", "of cache at full context", bytes_),
    ):
        value, reference = study.value(name, metric), study.value(BASELINE, metric)
        if value is not None and reference:
            phrases.append(f"{form(value)} {what} ({percent_change(value, reference)})")
    return (f"{listing(phrases)}, against the baseline." if phrases else "") + _memory(study, name)


def _memory(study: Study, name: str) -> str:
    """A difference is told only where it is a percent or more, and the ranges of several processes are apart."""
    ranges = [[study.value(v, f"training_peak_bytes{end}") for end in ("", "_low", "_high")] for v in (name, BASELINE)]
    (own, low, high), (theirs, their_low, their_high) = ranges
    if None in ranges[0] + ranges[1]:
        return ""
    apart = abs(own - theirs) >= 0.01 * theirs and (low > their_high or high < their_low)  # type: ignore[operator]
    word = "not clearly different from" if not apart else "more than" if own > theirs else "less than"  # type: ignore[operator]
    return (
        f" Training peaks at {bytes_(own)} of memory ({bytes_(low)} to {bytes_(high)}), {word} the baseline's {bytes_(theirs)} "
        f"({bytes_(their_low)} to {bytes_(their_high)})."
    )


def _speed(study: Study, name: str) -> str:
    sentences = []
    for what, verb in (("training", "trains"), ("decoding", "generates")):
        keys = [f"{what}_speed_ratio{end}" for end in ("", "_low", "_high")]
        ratio, low, high = (study.value(name, key) for key in keys)
        if ratio is None or low is None or high is None:
            continue
        measured = f"{ratio:.2f} times the baseline's tokens/s, interval [{low:.2f}, {high:.2f}]"
        if low > 1:
            sentences.append(f"It {verb} faster than the baseline: {measured}.")
        elif high < 1:
            sentences.append(f"It {verb} slower than the baseline: {measured}.")
        else:
            sentences.append(f"That it {verb} faster or slower than the baseline is not clear: {measured}.")
    return " ".join(sentences)


def _parts_sentence(study: Study, name: str) -> str:
    gap = study.beyond_parts.get(name)
    if gap is None or gap.low is None:
        return ""
    if not gap.is_clear:
        return (
            " That is within chance of what its changes do one at a time, added up "
            f"(gap {signed(gap.value)}, interval {interval(gap)})."
        )
    word = "better" if gap.value < 0 else "worse"
    return (
        f" That is {abs(gap.value):.3f} nats {word} than what its changes do one at a time, added up (interval {interval(gap)})."
    )


def _late_sentence(study: Study, name: str) -> str:
    runs = statistics.finished(study.runs, "validation_loss_late")
    if len(runs) < len(study.runs):
        return ""
    return " In the last quarter of the context: " + _lower_first(
        verdict(statistics.differences(runs, "validation_loss_late")[name], "it", "the loss there")
    )


def _shares(config: dict[str, Any]) -> int:
    """How many query heads share a key/value head."""
    heads = config.get("n_head", 1)
    return heads // (config.get("n_kv_head") or heads)


def _challenges(study: Study, name: str) -> list[str]:
    """What the records say of the difficulties."""
    config = study.config(name)
    if not config:
        return []
    context, sentences = config.get("block_size"), _window(study, name, config)
    if _shares(config) > 1:
        sentences.append(f"{_shares(config)} query heads share each key/value head.")
    if config.get("positions", "learned") == "learned":
        sentences.append(f"It cannot read past its {context} learned positions.")
    else:
        inside, beyond = study.value(name, "validation_loss_late"), study.value(name, "validation_loss_beyond")
        if inside is not None and beyond is not None:
            sentences.append(
                f"In windows of twice the trained length, tokens past position {context} are predicted at {beyond:.3f} nats, "
                f"where the last quarter of the trained context has {inside:.3f}."
            )
    sentences += [_compatibility(study, name), _stock(study.first[name])]
    return [s for s in sentences if s]


def _window(study: Study, name: str, config: dict[str, Any]) -> list[str]:
    """What a window hides, and what its kernel pays."""
    context, window, places = config.get("block_size"), config.get("window"), config.get("global_tokens")
    if not window or not context:
        return []
    if isinstance(window, list) or places or config.get("dilation", 1) != 1:
        windows = window if isinstance(window, list) else [window]
        said = "windows from the first layer on, repeated: " + listing("all" if w is None else f"{w} tokens" for w in windows)
        if config.get("dilation", 1) != 1:
            said += f"; dilation {config['dilation']}"
        if places:
            said += f"; global tokens at {listing(map(str, places))}"
        sentences = [f"Its {said}."]
    else:
        sentences = [f"A layer sees {window} of {context} tokens ({100 * window / context:.1f} %)."]
        if study.first[name].get("kernels") == ["sliding"]:
            sentences.append(
                "Its kernel computes each block of queries against two blocks of keys, so each query pays for "
                f"{min(2 * window, context)} scores to use at most {window}."
            )
    field = study.value(name, "receptive_field")
    if field and not places:
        sentences.insert(
            1,
            f"Through all layers a prediction can depend on {field:g} tokens, {100 * field / context:.0f} % of the context; "
            "nothing further back can reach it."
            if field < context
            else f"Through all layers a prediction can depend on {field:g} tokens, more than the whole context.",
        )
    return sentences


def _compatibility(study: Study, name: str) -> str:
    """How much of a baseline checkpoint fits as it is."""
    theirs, ours = study.first[BASELINE].get("tensors"), study.first[name].get("tensors")
    if not theirs or not ours:
        return ""

    def size(shape: list[int]) -> int:
        product = 1
        for n in shape:
            product *= n
        return product

    total = sum(map(size, theirs.values()))
    fits = sum(size(shape) for tensor, shape in theirs.items() if ours.get(tensor) == shape)
    if fits == total:
        return "Every weight of a baseline checkpoint fits as it is."
    return (
        f"Of a baseline checkpoint {100 * fits / total:.1f} % of the weights fit as they are; the rest has to be converted "
        "or dropped."
    )


def _stock(run: Record) -> str:
    if "stock" not in run:
        return ""
    if run["stock"]:
        return f"transformers computes the same function as `{run['stock']}`."
    return "No stock architecture of transformers computes the same function, so it cannot be exported."


def _trade(study: Study, name: str) -> str:
    """Quality against savings, in one sentence."""
    difference = study.differences[name]
    saved = _saved(study, name)
    if saved is None:
        return ""
    if difference.low is None:
        return f"Here {saved}; whether quality pays for it these runs cannot tell."
    if not difference.is_clear:
        return f"Here {saved}, and what it does to quality is not clear."
    if difference.value < 0:
        return f"Here {saved}, and predicts better."
    return f"Here {saved}, at a price of {difference.value:.3f} nats."


def _saved(study: Study, name: str) -> str | None:
    """What it saves of the baseline's cache and compute; None where the records do not say."""
    savings, known = [], False
    for metric, what in (("kv_bytes_full", "cache"), ("training_flops_per_token", "training compute")):
        value, reference = study.value(name, metric), study.value(BASELINE, metric)
        if value is not None and reference:
            known = True
            if value < 0.9995 * reference:
                savings.append(f"{100 * (1 - value / reference):.1f} % of the {what}")
    if not known:
        return None
    return f"it saves {listing(savings)}" if savings else "it saves neither cache nor compute"


def _samples(study: Study, figures: set[str]) -> str:
    texts = [(name, study.first[name]["sample"]) for name in study.names if study.first[name].get("sample")]
    if not texts:
        return ""
    blocks = [f"**{name}**\n\n```text\n{text.replace('```', 'ʼʼʼ').strip()}\n```" for name, text in texts]
    return _paragraphs(
        "## Samples",
        "The same prompt, the same random numbers, temperature 0.8, the 50 likeliest tokens, first seed of each variant. "
        "They show what a loss sounds like; they do not rank the variants.",
        *blocks,
    )


# ------------------------------------------------------------------------------------------------------ trust in it


def _limits(study: Study, figures: set[str]) -> str:
    parameters, tokens = study.value(study.names[0], "parameters_total"), _training_tokens(study)
    lines = []
    if study.recoveries:
        lines.append("One checkpoint was converted. Another, or one trained for longer, may lose and recover other shares.")
    elif parameters and tokens:
        lines.append(
            f"The models saw {tokens / parameters:.3g} tokens per parameter; compute-optimal training sees about 20 (Hoffmann et "
            "al. 2203.15556). How fast a variant learns at first weighs more here than where it would end."
        )
    lines += [
        "All variants use the hyperparameters of the baseline. A change that wants another learning rate is at a disadvantage.",
        "One validation text, of the kind that was trained on: nothing here measures transfer or tasks.",
        "Speeds hold for this machine and these kernels. What a variant saves in FLOPs and bytes is the same everywhere; what "
        "that is worth in seconds is not.",
    ]
    return _paragraphs("## Limits", _bullets(lines))


def _setting(study: Study, figures: set[str]) -> str:
    run = study.runs[0]
    config, environment = run.get("config") or {}, run.get("environment") or {}
    lines = []
    if config:
        lines += [f"`{key}`: {_flat(config[key])}" for key in ("model", "data", "trainer") if key in config]
    lines.append(f"Seeds: {listing(str(seed) for seed in study.seeds)}.")
    if run.get("precision"):
        lines.append(f"Precision: {run['precision']}.")
    if environment:
        machines = dict.fromkeys(_machine(r) for r in study.runs)
        lines += [f"Machine: {machine}." for machine in machines if machine]
    kernels = {name: listing(run["kernels"]) for name, run in study.first.items() if run.get("kernels")}
    if kernels:
        lines.append("Attention kernels: " + "; ".join(f"{name} {of}" for name, of in kernels.items()) + ".")
    seconds = [r["metrics"]["run_seconds"] for r in study.runs if statistics.is_number(r["metrics"].get("run_seconds"))]
    if seconds:
        at_once = (run.get("asked") or {}).get("at_once", 1)
        side_by_side = f", {at_once} side by side" if at_once > 1 else ""
        lines.append(f"Time: {sum(seconds) / 60:.1f} minutes of training for {len(seconds)} runs{side_by_side}.")
    if (config.get("model") or {}).get("compile") and (first := study.value(study.names[0], "run_first_batch_seconds")):
        lines.append(f"torch.compile: the first batch, which waits for it, took {first:.0f} s of a run of {study.names[0]}.")
    return _paragraphs(
        "## Setting",
        _bullets(lines),
        "All numbers stand in `results.json` beside this file. To do it again:",
        f"```sh\n{_command(study)}\n```",
    )


def _command(study: Study) -> str:
    """What was typed, as far as it decides what these records are."""
    asked = study.runs[0].get("asked") or {}
    wanted = {"PRESET": asked.get("preset") or study.preset, "INIT": asked.get("init")}
    if set(study.factors) != CLASSIC_VARIANTS:
        wanted["VARIANTS"] = ",".join(study.names)
    wanted["SEEDS"] = ",".join(str(seed) for seed in study.seeds)
    return " ".join(["make ablate-all", *(f"{key}={shlex.quote(str(value))}" for key, value in wanted.items() if value)])


def _machine(run: Record) -> str:
    e = run.get("environment") or {}
    packages = ", ".join(f"{name} {version}" for name, version in (e.get("packages") or {}).items())
    commit = f", commit {e['git_commit']}" if e.get("git_commit") else ""
    known = (("hardware", ""), ("cores", " cores"), ("threads", " threads"), ("python", " (Python)"))
    parts = [f"{e[key]}{unit}" for key, unit in known if e.get(key)]
    return ", ".join(filter(None, [*parts, packages])) + commit


def _flat(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{k} {_flat(v)}" if not isinstance(v, dict) else _flat(v) for k, v in value.items())
    return str(value)


# ------------------------------------------------------------------------------------------------------- the terminal


def print_summary(records: list[Record], file: Path) -> None:
    """The main table on the terminal, and where the report is."""
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False)
    console.width = max(console.width, 96)  # a line that wraps in a narrow terminal still says more than one cut off
    study = Study(records)
    if study.runs:
        head, rows = main_rows(study)
        short = {
            "variant": "variant", "training FLOPs/token": "FLOPs/tok", "KV cache, full context": "KV cache",
            "training tokens/s": "tok/s", "validation loss": "val. loss", "perplexity": "ppl",
            "difference to baseline": "to baseline",
        }  # fmt: skip
        view = Table(box=None, padding=(0, 1, 0, 0))
        for title in short.values():
            view.add_column(title, justify="left" if title == "variant" else "right", no_wrap=True)
        for row in rows:
            view.add_row(*(row[head.index(title)] for title in short))
        console.print(view)
    for record in study.others:
        console.print(
            f"{record['variant']} seed {record['seed']}: {record['status']} {record.get('error', '')}", style="red", markup=False
        )
    console.print(f"Report: {file}", soft_wrap=True)
