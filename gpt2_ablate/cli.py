"""The console script `gpt2-ablate`. Each subcommand imports its room only when it runs."""

from __future__ import annotations

import os

# OpenMP's threads wait for each other hundreds of times in a step. If they spin all that time, a machine that does anything
# else makes a step up to 20 times slower; if they sleep at once, waking makes it a fifth slower. So they spin for a moment,
# then sleep. Has to be said before torch is imported.
if "OMP_WAIT_POLICY" not in os.environ:
    os.environ["OMP_WAIT_POLICY"] = "PASSIVE"
    os.environ.setdefault("GOMP_SPINCOUNT", "2000")  # for GNU's OpenMP, which torch brings along on Linux

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gpt2_ablate import __version__
from gpt2_ablate.errors import UserError

if TYPE_CHECKING:
    from gpt2_ablate.evaluation.lambada import LambadaScore
    from gpt2_ablate.evaluation.strided import TextScore
    from gpt2_ablate.model import GPT2

CHECKPOINT = "folder, file or name on the hub"

PUBLISHED_SCORES = """\
Table 3 of the GPT-2 paper, its first model (117M there, 124M counted), and the line of the output to compare:
  LAMBADA      35.13, 45.99 %  evaluate gpt2 --lambada lambada_test.jsonl           by last token
  WikiText2    29.41           evaluate gpt2 --text wiki.test.tokens --stride 1024  perplexity per word
  PTB          65.85           evaluate gpt2 --text ptb.test.txt --stride 1024      perplexity per word
  enwik8       1.16            evaluate gpt2 --text enwik8.test --stride 1024       bits per byte
  text8        1.17            evaluate gpt2 --text text8.test --stride 1024        bits per character
  WikiText103  37.50           evaluate gpt2 --text wiki.test.tokens --stride 1024  perplexity per word
  1BW          75.20           evaluate gpt2 --text 1bw.test.txt --stride 1024      perplexity per word
Do not expect equal numbers. The paper undid the tokenisation of these texts ("@-@", " ,", "<unk>") by programs that were
never published and that it says gain 2.5 to 5 in perplexity; here a file is scored as it is. It names no stride either.
On wiki.test.raw, which has the words in place of <unk>, others report 29.9 per token and 37.4 per word for these weights.
LAMBADA is meant in OpenAI's own file, which keeps the punctuation."""


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
        resumes = "; nothing is lost, the same command goes on from the last checkpoint" if arguments[:1] == ["ablate"] else ""
        print(f"gpt2-ablate: stopped{resumes}", file=sys.stderr)
    except BrokenPipeError:
        # Whoever read our output has seen enough. Nothing more can be printed, not even by the interpreter as it ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 2


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="gpt2-ablate",
        description="Train GPT-2 with every combination of rotary positions, grouped-query and sliding-window attention.",
    )
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    out = argparse.ArgumentParser(add_help=False)
    out.add_argument("--out", type=Path, default=Path(), help="folder for reports/ and checkpoints/ (default: here)")
    _add_studies(commands, out)
    _add_models(commands, out)
    bench = commands.add_parser(
        "bench", parents=[out], help="measure speed and memory beside transformers, and write reports/benchmarks.md"
    )
    bench.add_argument("--quick", action="store_true", help="fewer sizes and rounds, in three minutes")
    bench.set_defaults(command=_bench)
    return parser


def _add_studies(commands: Any, out: argparse.ArgumentParser) -> None:
    ablate = commands.add_parser("ablate", parents=[out], help="train all variants of a preset and write the report")
    ablate.add_argument("--preset", default="cpu", help="name in experiments/presets, or a YAML file (default: cpu)")
    ablate.add_argument(
        "--variants", type=_names, default=[],
        help="as rope,gqa,rope-gqa,swa@128 (default: the preset's; with --experiments the baseline and what that folder holds)",
    )  # fmt: skip
    ablate.add_argument("--experiments", type=Path, help="folder of modifications of your own, a .yaml and a .py each")
    ablate.add_argument("--seeds", type=_seeds, default=[], help="as 0,1,2 (default: the preset's)")
    ablate.add_argument(
        "--learning-rates",
        type=_names,
        help="as 1e-3,2e-3,4e-3: compare each variant at its best one too (default: the preset's)",
    )
    ablate.add_argument("--init", help="checkpoint to convert and continue, instead of training from nothing")
    ablate.set_defaults(command=_ablate)

    commands.add_parser("train", help="train one model from a YAML, as every run of a study is (see train --help)")

    report = commands.add_parser("report", parents=[out], help="write the report again, from a results.json alone")
    report.add_argument("--results", type=Path, help="results.json to report (default: OUT/reports/results.json)")
    report.set_defaults(command=_report)


def _add_models(commands: Any, out: argparse.ArgumentParser) -> None:
    checkpoint = argparse.ArgumentParser(add_help=False)
    checkpoint.add_argument("checkpoint", help=f"{CHECKPOINT}, as checkpoints/cpu/rope/seed-0 or gpt2")

    sample = commands.add_parser("sample", parents=[checkpoint], help="let a model continue a text")
    sample.add_argument("--prompt", default="KING HENRY\n", help="text to continue")
    sample.add_argument("--tokens", type=int, default=100, help="how many to add, if the text does not end before (default: 100)")
    sample.add_argument("--temperature", type=float, default=0.8, help="0 takes the likeliest token (default: 0.8)")
    sample.add_argument("--top-k", type=int, default=50, help="choose among this many (default: 50)")
    sample.add_argument("--top-p", type=float, help="and among those that together have this probability (default: all)")
    sample.add_argument("--samples", type=int, default=1, help="how many continuations (default: 1)")
    sample.add_argument("--seed", type=int, default=0, help="of the first one's random choices, each has the next (default: 0)")
    sample.set_defaults(command=_sample)

    verify = commands.add_parser("verify", parents=[out], help="check that the model is GPT-2, against transformers")
    default = "checkpoints/gpt2, or gpt2 from the hub's cache, or random weights of that size"
    verify.add_argument("checkpoint", nargs="?", help=f"{CHECKPOINT} (default: {default})")
    verify.set_defaults(command=_verify)

    evaluate = commands.add_parser(
        "evaluate", parents=[checkpoint], help="score a model on a text, or on LAMBADA", epilog=PUBLISHED_SCORES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    evaluate.add_argument("--text", type=Path, help="text file in UTF-8: loss, perplexity, bits per byte")
    evaluate.add_argument("--window", type=int, help="tokens that are read at a time (default: the model's context)")
    evaluate.add_argument("--stride", type=int, help="tokens from one window to the next (default: half a window)")
    evaluate.add_argument("--lambada", type=Path, help='file of JSON lines {"text": ...}: score of the last word')
    evaluate.set_defaults(command=_evaluate)

    convert = commands.add_parser("convert", parents=[checkpoint], help="turn trained weights into the start of another variant")
    convert.add_argument("out", type=Path, help="folder to make")
    convert.add_argument("--n-kv-head", type=int, help="key/value heads; has to divide those that there are")
    convert.add_argument("--how", default="mean", help="make each of the mean of several, the first, or random (default: mean)")
    convert.add_argument("--seed", type=int, default=0, help="of --how random (default: 0)")
    convert.add_argument("--positions", help="rotary, in place of learned ones")
    convert.add_argument("--window", type=int, help="tokens that a sliding window shows")
    convert.set_defaults(command=_convert)

    export = commands.add_parser("export", parents=[checkpoint], help="write a trained model as a folder that transformers opens")
    export.add_argument("out", type=Path, help="folder to make")
    export.set_defaults(command=_export)


def _names(text: str) -> list[str]:
    return text.replace(",", " ").split()


def _seeds(text: str) -> list[int]:
    try:
        return [int(word) for word in _names(text)]
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a list of whole numbers; give for example 0,1,2") from None


def _ablate(options: argparse.Namespace) -> int:
    from gpt2_ablate.study.plan import load_plan
    from gpt2_ablate.study.rates import parse_rates, with_rates

    rates = None if options.learning_rates is None else parse_rates(options.learning_rates)
    plan = load_plan(
        options.preset, options.variants, options.seeds, experiments=options.experiments, init=options.init, out=options.out
    )
    plan = with_rates(plan, rates) if rates else plan
    from gpt2_ablate.study.runner import run_study  # imports torch, which a mistake above need not wait for

    runs = run_study(plan, options.out)
    _write_report(runs, options.out)
    return 0 if all(run["status"] == "finished" for run in runs) else 1


def _report(options: argparse.Namespace) -> int:
    from gpt2_ablate.records import read_results

    _write_report(read_results(options.results or options.out / "reports" / "results.json"), options.out)
    return 0


def _bench(options: argparse.Namespace) -> int:
    from gpt2_ablate.benchmarks.run import run_benchmarks
    from gpt2_ablate.report.render import write_benchmarks
    from gpt2_ablate.study.plan import Plan, load_plan
    from gpt2_ablate.utils.io import write_text

    def configs(plan: Plan) -> dict[str, dict]:
        return {run.variant: run.config["model"]["config"] for run in plan.runs}

    cpu, gpt2_small = (load_plan(preset, seeds=[0]) for preset in ("cpu", "gpt2-small"))
    results = run_benchmarks(options.out, options.quick, configs(cpu), cpu.data["batch_size"], configs(gpt2_small))
    file = options.out / "reports" / "benchmarks.md"
    write_text(file, write_benchmarks(results, file.parent / "figures"))
    print(f"Report: {file}")
    return 0


def _write_report(runs: list[dict], out: Path) -> None:
    from gpt2_ablate.report.render import print_summary, write_report

    print_summary(runs, write_report(runs, out / "reports"))


def _train(arguments: list[str]) -> int:
    from gpt2_ablate.evaluation.flops import training_flops_per_token
    from gpt2_ablate.training.callbacks import Memory, Perplexity, Throughput
    from gpt2_ablate.training.trainer import build, fit
    from gpt2_ablate.utils.system import keep_freed_memory

    keep_freed_memory()
    fit(build(arguments, [Perplexity(), Throughput(training_flops_per_token), Memory()]))
    return 0


def _open(checkpoint: str) -> GPT2:
    """A model in evaluation mode, on the GPU if there is one."""
    import torch

    from gpt2_ablate.weights import load_pretrained

    return load_pretrained(checkpoint).to("cuda" if torch.cuda.is_available() else "cpu")


def _sample(options: argparse.Namespace) -> int:
    from gpt2_ablate.evaluation.sampling import continuation

    if options.samples < 1:
        raise UserError(f"--samples: {options.samples} is no number of continuations; give 1 or more")
    model = _open(options.checkpoint)
    for n in range(options.samples):
        pieces = continuation(
            model, options.prompt, options.tokens, options.temperature, options.top_k, options.top_p, options.seed + n
        )  # refuses what it has to before anything is printed
        if options.samples > 1:
            print(f"--- {n + 1} of {options.samples}, seed {options.seed + n}")
        print(options.prompt, end="", flush=True)
        for piece in pieces:
            print(piece, end="", flush=True)
        print()
    return 0


def _verify(options: argparse.Namespace) -> int:
    from gpt2_ablate.evaluation.hf_reference import open_pair
    from gpt2_ablate.evaluation.verification import passed, verify
    from gpt2_ablate.records import environment
    from gpt2_ablate.report.render import verification
    from gpt2_ablate.utils.io import write_text

    pair = open_pair(options.checkpoint)
    checks = verify(pair)
    file = options.out / "reports" / "verification.md"
    write_text(file, verification(pair.weights, checks, environment()))
    print(f"Report: {file}")
    return 0 if passed(checks) else 1


def _evaluate(options: argparse.Namespace) -> int:
    from rich.console import Console

    from gpt2_ablate.data.tokenizer import load_tokenizer
    from gpt2_ablate.evaluation.lambada import encode, read_passages, score_passages
    from gpt2_ablate.evaluation.strided import read_text, score_text
    from gpt2_ablate.utils.progress import watch

    if options.text is None and options.lambada is None:
        raise UserError("evaluate: there is nothing to score on; give --text FILE or --lambada FILE")
    # Read before the model: a file that is wrong is found at once.
    text = read_text(options.text) if options.text else ""
    passages = read_passages(options.lambada) if options.lambada else []
    model, console = _open(options.checkpoint), Console(stderr=True, highlight=False)
    load_tokenizer(model.config.vocab_size)  # refuses a vocabulary that is not GPT-2's
    if text:
        _print(score_text(model, text, options.window, options.stride, watch("windows", console)))
    if passages:
        _print(
            score_passages(model, [encode(passage, model.config.vocab_size) for passage in passages], watch("passages", console))
        )
    return 0


def _print(score: TextScore | LambadaScore) -> None:
    for name, value in score.rows():
        print(f"{name:36} {value}")


def _convert(options: argparse.Namespace) -> int:
    from dataclasses import replace

    from gpt2_ablate.weights import convert, load_pretrained
    from gpt2_ablate.weights.folder import save_new_model

    model = load_pretrained(options.checkpoint)
    changes = {name: getattr(options, name) for name in ("n_kv_head", "positions", "window")}
    config = replace(model.config, **{name: value for name, value in changes.items() if value is not None})
    save_new_model(convert(model, config, options.how, options.seed), options.out)
    print(f"Wrote {options.out}")
    return 0


def _export(options: argparse.Namespace) -> int:
    from gpt2_ablate.records import read_record
    from gpt2_ablate.weights import export_huggingface, load_pretrained

    model = load_pretrained(options.checkpoint)
    record = read_record(Path(options.checkpoint) / "record.json")
    export_huggingface(model, options.out, record if record and record["status"] == "finished" else None)
    print(f"Wrote {options.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
