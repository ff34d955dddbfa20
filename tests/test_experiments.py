"""The shipped experiments, as they are: complete, comparable, explained, and all of one size class."""

import re
import shutil
import subprocess

import pytest
import torch
import yaml

from gpt2_ablate.evaluation.flops import count_parameters
from gpt2_ablate.model import GPT2, GPT2Config
from gpt2_ablate.study.plan import load_plan

from .study.tiny import FACTORS, REPOSITORY, VARIANTS

CONTENTS = {f.stem: yaml.safe_load(f.read_text()) for f in sorted((REPOSITORY / "experiments" / "presets").glob("*.yaml"))}
PRESETS = [name for name, content in CONTENTS.items() if "init" not in content]
FILES = sorted((REPOSITORY / "experiments").glob("*/*.yaml"))

each_preset = pytest.mark.parametrize("preset", PRESETS)


def models(preset):
    return {run.variant: GPT2Config(**run.config["model"]["config"]) for run in load_plan(preset).runs}


@each_preset
def test_every_preset_holds_all_combinations(preset):
    plan = load_plan(preset)
    assert {run.variant: run.factors for run in plan.runs} == VARIANTS
    assert plan.runs[0].variant == "baseline"
    assert len(plan.runs) % 8 == 0 and plan.title


@each_preset
def test_each_change_changes_its_one_thing(preset):
    found = models(preset)
    base = found["baseline"]
    assert (base.positions, base.n_kv_head, base.window) == ("learned", None, None)
    for name, made_of in VARIANTS.items():
        model = found[name]
        assert (model.positions == "rotary") == ("rope" in made_of)
        assert (model.kv_heads < model.n_head) == ("gqa" in made_of)
        assert (model.window is not None and model.window < model.block_size) == ("swa" in made_of)
        same = ("vocab_size", "block_size", "n_layer", "n_head", "n_embd", "dropout", "attention", "mlp", "norm")
        assert all(getattr(model, field) == getattr(base, field) for field in same)


@each_preset
def test_every_variant_can_be_built_and_none_is_larger_than_the_baseline(preset):
    sizes = {}
    for name, config in models(preset).items():
        with torch.device("meta"):
            sizes[name] = count_parameters(GPT2(config))["total"]
    assert max(sizes.values()) == sizes["baseline"]
    assert sizes["rope"] < sizes["baseline"] and sizes["gqa"] < sizes["baseline"] and sizes["swa"] == sizes["baseline"]
    assert min(sizes.values()) > 0.8 * sizes["baseline"]


@each_preset
def test_losses_are_looked_at_and_states_are_kept_within_a_run(preset):
    trainer = load_plan(preset).runs[0].config["trainer"]
    assert trainer["max_steps"] % trainer["val_check_interval"] == 0
    assert trainer.get("log_every_n_steps", 10) <= trainer["val_check_interval"] < trainer["max_steps"]


def test_uptraining_continues_the_default_study_on_the_same_text():
    cpu, uptrain = CONTENTS["cpu"], CONTENTS["uptrain"]
    assert uptrain["init"] == "checkpoints/cpu/baseline/seed-0" and cpu["seeds"][0] == 0
    for key in ("sizes", "data", "prompt", "evaluation_tokens", "trainer"):
        assert uptrain[key] == cpu[key], key


def test_uptraining_needs_a_checkpoint_and_says_so(tmp_path, refused, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with refused("checkpoints/cpu/baseline/seed-0"):
        load_plan("uptrain")


def test_the_default_study_has_the_seeds_that_intervals_need():
    assert len({run.seed for run in load_plan("cpu").runs}) >= 2


def test_gpt2_small_is_gpt2():
    assert models("gpt2-small")["baseline"] == GPT2Config()


@pytest.mark.parametrize("name", FACTORS)
def test_each_change_is_explained_with_its_paper(name):
    texts = load_plan("smoke", [name]).runs[0].texts
    assert set(texts) == {"title", "paper", "idea", "in_numbers", "challenges", "worth"}
    assert re.search(r"\d{4}\.\d{5}", texts["paper"])
    assert all("\n" not in text.strip() for key, text in texts.items() if key != "in_numbers")


@pytest.mark.parametrize("file", FILES, ids=[file.stem for file in FILES])
def test_files_are_short_and_end_with_a_newline(file):
    text = file.read_text()
    assert text.endswith("\n") and len(text.splitlines()) < 40 and yaml.safe_load(text)


class TestMakefile:
    def make(self, *arguments):
        done = subprocess.run(
            ["make", "--no-print-directory", *arguments], cwd=REPOSITORY, capture_output=True, text=True, check=False
        )
        return done.returncode, done.stdout, done.stderr

    def dry(self, *arguments):
        """What would be done on a machine that is set up."""
        status, out, err = self.make("--dry-run", "--old-file=.venv/installed", *arguments)
        assert status == 0, err
        return out

    def test_help_names_every_target(self):
        status, out, _ = self.make()
        assert status == 0
        phony = re.search(r"^\.PHONY: (.*)$", (REPOSITORY / "Makefile").read_text(), re.MULTILINE)[1].split()
        assert all(re.search(rf"^  {target} ", out, re.MULTILINE) for target in phony)

    def test_a_study_gets_what_the_variables_say(self):
        out = self.dry("ablate-all", "PRESET=smoke", "VARIANTS=baseline,rope", "SEEDS=0,1", "OUT=my folder")
        for words in ('--preset "smoke"', '--variants "baseline,rope"', '--seeds "0,1"', '--out "my folder"'):
            assert words in out

    def test_by_default_all_variants_of_cpu_with_its_own_seeds(self):
        out = self.dry("ablate-all")
        assert '--preset "cpu"' in out and "--variants" not in out and "--seeds" not in out

    @pytest.mark.parametrize(
        ("arguments", "words"),
        [
            (("ablate-all", "INIT=checkpoints/gpt2"), '--init "checkpoints/gpt2"'),
            (("sample", "CHECKPOINT=gpt2", "PROMPT=Hello, my"), 'sample "gpt2" --prompt "Hello, my"'),
            (("sample", "VARIANT=rope", "OUT=there"), 'sample "there/checkpoints/cpu/rope/seed-0"'),
            (("verify", "CHECKPOINT=gpt2"), 'verify "gpt2" --out "."'),
            (("bench", "QUICK=1"), "--quick"),
        ],
        ids=lambda value: value[0] if isinstance(value, tuple) else None,
    )
    def test_other_targets_get_what_the_variables_say(self, arguments, words):
        assert words in self.dry(*arguments)

    def test_one_variant(self):
        assert '--variants "rope-gqa"' in self.dry("ablate", "VARIANT=rope-gqa")

    def test_clean_removes_what_studies_leave_and_nothing_else(self, tmp_path):
        kept = (
            "checkpoints/README.md",
            "checkpoints/gpt2/model.safetensors",
            "reports/README.md",
            "reports/reference/analysis.md",
            ".venv/installed",
            "my.txt",
        )
        left = ("checkpoints/cpu/rope/seed-0/record.json", "reports/analysis.md", "reports/results.json", "reports/figures/a.png")
        for name in (*kept, *left, "checkpoints/cpu/.lock", "reports/tensorboard/cpu/events"):
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_text("")
        shutil.copy(REPOSITORY / "Makefile", tmp_path)
        subprocess.run(["make", "--directory", tmp_path, "clean"], check=True, capture_output=True)
        files = {str(file.relative_to(tmp_path)) for file in tmp_path.rglob("*") if file.is_file()}
        assert files == {*kept, "Makefile"}
