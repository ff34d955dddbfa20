"""The console script `gpt2-ablate`. Each subcommand imports its room only when it runs."""

from __future__ import annotations

import os

# OpenMP's threads spin while they wait. On a machine that does anything else, that makes a step up to 20 times slower; on
# an idle one, sleeping costs nothing that can be measured. Has to be said before torch is imported.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
# And glibc returns every large tensor to the kernel at once, which hands it back page by page, zeroed: a tenth of a step.
# Read when a process starts: this reaches the children that train.
os.environ.setdefault("MALLOC_MMAP_THRESHOLD_", str(2**31 - 1))
os.environ.setdefault("MALLOC_TRIM_THRESHOLD_", str(2**31 - 1))

import argparse
import sys
from pathlib import Path

from gpt2_ablate import __version__
from gpt2_ablate.errors import UserError


def main(argv: list[str] | None = None) -> int:
    """Run one subcommand; returns the exit status: 0 done, 1 some runs failed, 2 a mistake that one line explains."""
    arguments = sys.argv[1:] if argv is None else argv
    try:
        if arguments[:1] == ["train"]:
            return _train(arguments[1:])  # LightningCLI has its own parser
        options = _parser().parse_args(arguments)
        return options.command(options)
    except UserError as error:
        print(f"gpt2-ablate: {error}", file=sys.stderr)
    except KeyboardInterrupt:
        print("gpt2-ablate: stopped; nothing is lost, the same command goes on from the last checkpoint", file=sys.stderr)
    return 2


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="gpt2-ablate",
        description="Train GPT-2 with every combination of rotary positions, grouped-query and sliding-window attention.",
    )
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")

    ablate = commands.add_parser("ablate", help="train all variants of a preset and write the report")
    ablate.add_argument("--preset", default="cpu", help="name in experiments/presets, or a YAML file (default: cpu)")
    ablate.add_argument("--variants", type=_names, default=[], help="names in experiments/variants (default: all)")
    ablate.add_argument("--seeds", type=_seeds, default=[], help="as 0,1,2 (default: the preset's)")
    _add_out(ablate)
    ablate.set_defaults(command=_ablate)

    commands.add_parser("train", help="train one model from a YAML, as every run of a study is (see train --help)")

    report = commands.add_parser("report", help="write the report again, from a results.json alone")
    report.add_argument("--results", type=Path, help="results.json to report (default: OUT/reports/results.json)")
    _add_out(report)
    report.set_defaults(command=_report)

    sample = commands.add_parser("sample", help="let a trained model continue a text")
    sample.add_argument("checkpoint", type=Path, help="folder of a finished run, as checkpoints/cpu/rope/seed-0")
    sample.add_argument("--prompt", default="KING HENRY\n", help="text to continue")
    sample.add_argument("--tokens", type=int, default=100, help="how many to add (default: 100)")
    sample.add_argument("--temperature", type=float, default=0.8, help="0 takes the likeliest token (default: 0.8)")
    sample.add_argument("--top-k", type=int, default=50, help="choose among this many (default: 50)")
    sample.add_argument("--seed", type=int, default=0, help="of the random choices (default: 0)")
    sample.set_defaults(command=_sample)
    return parser


def _add_out(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--out", type=Path, default=Path(), help="folder for reports/ and checkpoints/ (default: here)")


def _names(text: str) -> list[str]:
    return text.replace(",", " ").split()


def _seeds(text: str) -> list[int]:
    try:
        return [int(word) for word in _names(text)]
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a list of whole numbers; give for example 0,1,2") from None


def _ablate(options: argparse.Namespace) -> int:
    from gpt2_ablate.study.plan import load_plan
    from gpt2_ablate.study.runner import carry_out

    plan = load_plan(options.preset, options.variants, options.seeds)
    neighbours = load_plan(options.preset, seeds=options.seeds) if options.variants else None
    runs = carry_out(plan, options.out, neighbours)
    _write_report(runs, options.out)
    return 0 if all(run["status"] == "finished" for run in runs) else 1


def _report(options: argparse.Namespace) -> int:
    from gpt2_ablate.study.record import read_results, write_results

    runs = read_results(options.results or options.out / "reports" / "results.json")
    _write_report(runs, options.out)
    write_results(options.out / "reports" / "results.json", runs)
    return 0


def _write_report(runs: list[dict], out: Path) -> None:
    from gpt2_ablate.study.report import print_summary, write_report

    print_summary(runs, write_report(runs, out / "reports"))


def _train(arguments: list[str]) -> int:
    from gpt2_ablate.evaluation.cost import training_flops_per_token
    from gpt2_ablate.training.callbacks import Memory, Perplexity, Throughput
    from gpt2_ablate.training.trainer import build

    cli = build(arguments, [Perplexity(), Throughput(training_flops_per_token), Memory()])
    cli.trainer.fit(cli.model, cli.datamodule)
    return 0


def _sample(options: argparse.Namespace) -> int:
    import torch

    from gpt2_ablate.data.tokenizer import load_tokenizer
    from gpt2_ablate.model import generate
    from gpt2_ablate.weights.folder import load_model

    if not 0 <= options.seed < 2**63:
        raise UserError(f"--seed: {options.seed} is not a seed; give a whole number from 0 to {2**63 - 1}")
    model, tokenizer = load_model(options.checkpoint), load_tokenizer()
    ids = torch.tensor([tokenizer.encode_ordinary(options.prompt)])
    draw = torch.Generator().manual_seed(options.seed)
    text = generate(model, ids, options.tokens, options.temperature, options.top_k, draw)
    print(tokenizer.decode(text[0].tolist()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
