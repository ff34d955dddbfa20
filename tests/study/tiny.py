"""What the tests of this room share: a study that takes seconds, made-up records, and the console script as a process."""

from __future__ import annotations

import atexit
import contextlib
import functools
import itertools
import json
import math
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil
import pytest
import yaml

import gpt2_ablate

FACTORS = ("rope", "gqa", "swa")
VARIANTS = {"-".join(made_of) or "baseline": made_of for k in range(4) for made_of in itertools.combinations(FACTORS, k)}
REPOSITORY = Path(gpt2_ablate.__file__).parents[1]
# What differs from one time to the next even where the outcome is the same.
OF_THE_MOMENT = {"run_seconds", "run_first_batch_seconds", "run_tokens_per_second", "run_peak_bytes"}


def refusal(raised):
    """The message of a caught UserError, which is one line."""
    message = str(raised.value)
    assert message and "\n" not in message
    return message


# ------------------------------------------------------------------------------------------------------ experiments


def preset(corpus="corpus.txt", **changes):
    """The content of a preset with 2 layers of width 16; changes to trainer, data and so on are merged."""
    content = {
        "title": "Tiny",
        "seeds": [0, 1],
        "sizes": {"n_kv_head": 1, "window": 8},
        "prompt": "the king",
        "model": {
            "config": {"n_layer": 2, "n_head": 2, "n_embd": 16, "block_size": 32}, "learning_rate": 2e-3, "warmup_steps": 2,
        },
        "data": {"corpus": str(corpus), "batch_size": 2, "validation_tokens": 128},
        "trainer": {"max_steps": 8, "val_check_interval": 4, "log_every_n_steps": 2},
        "evaluation_tokens": 256,
    }  # fmt: skip
    return merge(content, changes)


def merge(content, changes):
    both = {
        k: merge(content[k], v) if isinstance(v, dict) and isinstance(content.get(k), dict) else v for k, v in changes.items()
    }
    return {**content, **both}


def write_corpus(file, lines=600):
    words = "the king and queen of a far land went to see what storm had done with all ships that lay in harbour".split()
    draw = random.Random(0)
    file.write_text("\n".join(" ".join(draw.choices(words, k=12)) + "." for _ in range(lines)))
    return file


def write_preset(file, corpus, **changes):
    file.write_text(yaml.safe_dump(preset(corpus, **changes)))
    return file


def write_variant(experiments, name, content):
    (experiments / "variants" / f"{name}.yaml").write_text(content if isinstance(content, str) else yaml.safe_dump(content))


def make_checkout(folder):
    """A folder from which the console script runs this source with experiments of its own."""
    folder.mkdir()
    (folder / "gpt2_ablate").symlink_to(REPOSITORY / "gpt2_ablate")
    shutil.copytree(REPOSITORY / "experiments", folder / "experiments")
    return folder


# -------------------------------------------------------------------------------------------------------- processes


@functools.cache
def cache_home():
    """A cache folder for these tests, apart from the user's."""
    folder = tempfile.mkdtemp(prefix="gpt2-ablate-tests-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


def start(folder, *arguments):
    """The console script in a process group of its own, which Ctrl-C reaches even if these tests run in the background."""
    return subprocess.Popen(
        [sys.executable, "-m", "gpt2_ablate.cli", *map(str, arguments)],
        cwd=folder, env={**os.environ, "XDG_CACHE_HOME": cache_home()}, stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip


def finish(process, timeout=400):
    """Exit status, stdout, stderr; whatever is left of the process group ends here."""
    try:
        out, err = process.communicate(timeout=timeout)
    finally:
        kill_group(process)
    return process.returncode, out, err


def cli(folder, *arguments):
    return finish(start(folder, *arguments))


def kill_group(process):
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


def members(process):
    """Processes of the group that are still alive."""
    alive = []
    for other in psutil.process_iter():
        with contextlib.suppress(psutil.Error, ProcessLookupError):
            if os.getpgid(other.pid) == process.pid and other.status() != psutil.STATUS_ZOMBIE:
                alive.append(other)
    return alive


def wait_until(true, seconds=300):
    """The first result of true() that counts as true."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if result := true():
            return result
        time.sleep(0.005)
    raise AssertionError(f"did not happen within {seconds} s")


def checkpoint_in(folder, process):
    """Wait for a training run below the folder, of a study started as `process`, to have written a whole checkpoint."""
    size = {}

    def whole():
        assert process.poll() is None, f"ended before it was seen to write a checkpoint in {folder}: {finish(process)}"
        for file in folder.rglob("*.ckpt"):
            with contextlib.suppress(FileNotFoundError):
                now = file.stat().st_size
                if now and size.get(file) == now:
                    return file
                size[file] = now
        return None

    return wait_until(whole)


# ---------------------------------------------------------------------------------------------------- a real study


def trained_study(tmp_path_factory):
    """A folder with corpus.txt, tiny.yaml and, in out/, a finished study of baseline and rope; made once per session."""
    folder = tmp_path_factory.getbasetemp() / "trained"
    if (folder / "stdout").exists():
        return folder
    folder.mkdir()
    write_corpus(folder / "corpus.txt")
    write_preset(folder / "tiny.yaml", "corpus.txt")
    status, out, err = cli(folder, "ablate", "--preset", "tiny.yaml", "--variants", "baseline,rope", "--out", "out")
    assert status == 0, out + err
    (folder / "stdout").write_text(out)
    (folder / "stderr").write_text(err)
    return folder


def outcome(record):
    """What must not depend on the machine's mood."""
    kept = {k: v for k, v in record.items() if k != "environment"}
    kept["metrics"] = {k: v for k, v in record["metrics"].items() if k not in OF_THE_MOMENT}
    return kept


def record_of(out, variant, seed=0):
    return json.loads((out / "checkpoints" / "tiny" / variant / f"seed-{seed}" / "record.json").read_text())


def results_of(out):
    return json.loads((out / "reports" / "results.json").read_text())


# ---------------------------------------------------------------------------------------------------- made-up records


def record(variant, seed, loss, preset="made-up", **more):
    """The least that the schema asks for, and more."""
    return {
        "variant": variant, "seed": seed, "preset": preset, "status": "finished", "config": {},
        "metrics": {"validation_loss": loss}, "environment": {}, **more,
    }  # fmt: skip


def failed(variant, seed, **more):
    return {**record(variant, seed, None), "status": "failed", "metrics": {}, "error": "killed by SIGKILL", **more}


def study(effects=None, noise=0.02, seeds=(0, 1, 2), draw=0, variants=VARIANTS, seed_shift=0.0):
    """Records of a factorial with planted effects: {("rope",): -0.2, ("rope", "gqa"): 0.05, ...} are added to the loss of
    every variant that has those changes (all of them), and noise to every run."""
    random_ = random.Random(draw)
    found = []
    for seed in seeds:
        shift = random_.gauss(0, seed_shift) if seed_shift else 0.0
        for name in variants:
            loss = 6.0 + shift + sum(v for made_of, v in (effects or {}).items() if set(made_of) <= set(VARIANTS[name]))
            found.append(record(name, seed, loss + random_.gauss(0, noise)))
    return found


def rated(best, seeds=(0, 1, 2), rates=(1e-3, 2e-3, 4e-3), common=2e-3, curvature=0.2, noise=0.002, base=None, draw=0):
    """Records of a study at several learning rates: the loss of each variant is a parabola in log(rate) with its least, 6 or what
    `base` says, at its best rate {variant: rate}. The trials' seed follows those of the comparison."""

    def run(name, seed, rate, **more):
        luck = random.Random(f"{draw} {name} {seed} {rate}").gauss(0, noise)  # one run has one loss, wherever it stands
        loss = (base or {}).get(name, 6.0) + curvature * math.log(rate / best[name]) ** 2 + luck
        return record(name, seed, loss, config={"model": {"learning_rate": rate}}, **more)

    return [
        *(run(name, seed, common) for seed in seeds for name in best),
        *(run(name, max(seeds) + 1, rate, stage="tuning") for name in best for rate in rates),
        *(run(name, seed, min(max(best[name], rates[0]), rates[-1]), stage="best") for seed in seeds for name in best),
    ]


def results(runs, schema=1):
    return {"schema": schema, "runs": runs}


FULL_CONFIG = {
    "model": {"config": {"n_layer": 2, "n_head": 2, "n_embd": 16, "block_size": 32}, "learning_rate": 0.002},
    "data": {"corpus": "corpus.txt", "batch_size": 2},
    "trainer": {"max_steps": 10},
}


def full(runs, ratio=None):
    """The same records with everything that a report can show; ratio: variant -> (speed ratio, low, high)."""
    for run in runs:
        loss, made_of = run["metrics"]["validation_loss"], VARIANTS.get(run["variant"], ())
        changes = {
            **({"positions": "rotary"} if "rope" in made_of else {}), **({"n_kv_head": 1} if "gqa" in made_of else {}),
            **({"window": 8} if "swa" in made_of else {}),
        }  # fmt: skip
        speed, low, high = (ratio or {}).get(run["variant"], (1.0, 1.0, 1.0))
        cache = (256 if "gqa" in made_of else 512) * (8 if "swa" in made_of else 32)
        run["config"] = merge(FULL_CONFIG, {"model": {"config": changes}})
        run["metrics"] |= {
            "validation_perplexity": 2.718281828**loss, "validation_bits_per_byte": loss / 2.8,
            "validation_loss_late": loss - 0.1,
            "parameters_total": 800_000 - 500 * len(made_of), "parameters_attention": 2000, "kv_bytes_full": cache,
            "kv_bytes_per_token": 256 if "gqa" in made_of else 512, "training_flops_per_token": 5e6, "run_seconds": 2.0,
            "training_peak_bytes": 10_000_000, "training_tokens_per_second": 4000 * speed, "training_speed_ratio": speed,
            "training_speed_ratio_low": low, "training_speed_ratio_high": high,
        }  # fmt: skip
        run["curves"] = {"train": [[1, 7.0], [2, loss]], "validation": [[5, loss + 1], [10, loss]]}
        run["loss_by_position"] = [{"from": 0, "to": 16, "loss": loss + 0.1}, {"from": 16, "to": 32, "loss": loss - 0.1}]
        run["cost_by_context"] = [{"context": c, "forward_flops_per_token": 1e6 + c, "kv_bytes": cache * c} for c in (256, 512)]
        run["sample"] = "the king and the queen"
    return runs


# ---------------------------------------------------------------------------------------------------- reading a report


def numbers_in(text):
    """All numbers, typographic minus signs included."""
    return [float(word.replace("−", "-")) for word in re.findall(r"[+−-]?\d+(?:\.\d+)?", text)]


def intervals_in(text):
    return [tuple(numbers_in(inside)) for inside in re.findall(r"\[([+−-]?\d+\.\d+, [+−-]?\d+\.\d+)\]", text)]


def sentences(text):
    return [s.strip() for s in re.split(r"(?<=[.!?])\s+|\n", text) if s.strip()]


def table_under(text, heading):
    """Rows of the first table under a heading, as lists of cells."""
    section = text.split(f"\n{heading}\n", 1)[1]
    lines = itertools.dropwhile(lambda line: not line.startswith("|"), section.splitlines())
    rows = [line.strip("| ").split(" | ") for line in itertools.takewhile(lambda line: line.startswith("|"), lines)]
    return [[cell.strip(" |") for cell in row] for row in rows[2:]]


skip_unless_root = pytest.mark.skipif(os.name != "posix" or os.geteuid() != 0, reason="mounting a small disk takes root")
