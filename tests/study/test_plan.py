"""From YAML to runs: all variants under equal conditions, and what cannot be meant refused in one line."""

import shutil

import pytest
import torch
import yaml

from gpt2_ablate.errors import UserError
from gpt2_ablate.evaluation.flops import training_flops_per_token
from gpt2_ablate.model import GPT2, GPT2Config
from gpt2_ablate.study.plan import load_plan

from .tiny import REPOSITORY, VARIANTS, preset, refusal, write_variant


@pytest.fixture
def experiments(tmp_path):
    """A copy of the shipped experiments, and a tiny preset among them."""
    folder = tmp_path / "experiments"
    shutil.copytree(REPOSITORY / "experiments", folder)
    (folder / "presets" / "tiny.yaml").write_text(yaml.safe_dump(preset()))
    return folder


def plan(experiments, *variants, seeds=()):
    return load_plan("tiny", variants, seeds, experiments)


def fingerprints(experiments, corpus="a corpus"):
    return {run.name: run.fingerprint(corpus) for run in plan(experiments).runs}


def edit(file, change):
    content = yaml.safe_load(file.read_text())
    change(content)
    file.write_text(yaml.safe_dump(content))


def concerned(experiments, file, change):
    """Variants whose fingerprint a change to a YAML changes."""
    before = fingerprints(experiments)
    edit(experiments / file, change)
    after = fingerprints(experiments)
    return {name.partition(" ")[0] for name in before if before[name] != after[name]}


class TestRuns:
    def test_all_combinations_times_all_seeds(self, experiments):
        runs = plan(experiments).runs
        assert {(run.variant, run.seed) for run in runs} == {(name, seed) for name in VARIANTS for seed in (0, 1)}
        assert len(runs) == 16
        assert {run.variant: run.factors for run in runs} == VARIANTS

    def test_the_baseline_comes_first_and_seeds_one_after_the_other(self, experiments):
        runs = plan(experiments).runs
        assert [run.seed for run in runs] == 8 * [0] + 8 * [1]
        for seed in (0, 1):
            names = [run.variant for run in runs if run.seed == seed]
            assert names[:4] == ["baseline", "rope", "gqa", "swa"] and names[-1] == "rope-gqa-swa"

    def test_variants_differ_in_the_model_and_in_nothing_else(self, experiments):
        runs = plan(experiments).runs
        for run in runs:
            assert run.config["data"] == preset()["data"] and run.config["trainer"] == preset()["trainer"]
            assert run.config["seed_everything"] == run.seed
            optimizer = {k: v for k, v in run.config["model"].items() if k != "config"}
            assert optimizer == {"learning_rate": 2e-3, "warmup_steps": 2}
            sizes = {k: run.config["model"]["config"][k] for k in preset()["model"]["config"]}
            assert sizes == preset()["model"]["config"]

    def test_each_change_is_what_its_name_says(self, experiments):
        for run in plan(experiments).runs:
            model = run.config["model"]["config"]
            assert (model.get("positions") == "rotary") == ("rope" in run.factors)
            assert model.get("n_kv_head") == (1 if "gqa" in run.factors else None)
            assert model.get("window") == (8 if "swa" in run.factors else None)

    def test_a_choice_of_variants_and_seeds(self, experiments):
        chosen = plan(experiments, "rope", "baseline", "rope", seeds=[7, 3, 7])
        assert [run.name for run in chosen.runs] == ["baseline seed 7", "rope seed 7", "baseline seed 3", "rope seed 3"]

    def test_a_run_is_the_same_alone_and_among_others(self, experiments):
        everything = fingerprints(experiments)
        assert plan(experiments, "rope", seeds=[1]).runs[0].fingerprint("a corpus") == everything["rope seed 1"]

    def test_a_preset_can_be_a_file_of_ones_own(self, experiments, tmp_path):
        shutil.move(experiments / "presets" / "tiny.yaml", tmp_path / "mine.yml")
        own = load_plan(str(tmp_path / "mine.yml"), built_in=experiments)
        assert own.preset == "mine" and len(own.runs) == 16 and own.runs[0].prompt == "the king"

    def test_every_run_has_a_place_of_its_own(self, experiments):
        paths = [str(run.path) for run in plan(experiments).runs]
        assert len(set(paths)) == 16 and "tiny/rope-gqa/seed-1" in paths


class TestOwnVariant:
    ALIBI = {
        "title": "Linear biases",
        "model": {"config": {"window": "${window}"}},
        "factors": ["alibi"],
        "idea": "Far is faint.",
    }

    def test_a_file_is_a_variant_once_the_preset_names_it(self, experiments):
        write_variant(experiments, "alibi", self.ALIBI)
        assert len(plan(experiments).runs) == 16
        edit(
            experiments / "presets" / "tiny.yaml",
            lambda content: content.update(factorial=["rope", "gqa", "swa"], variants=["alibi"]),
        )
        runs = [run for run in plan(experiments).runs if run.variant == "alibi"]
        assert len(plan(experiments).runs) == 18 and [run.seed for run in runs] == [0, 1]
        assert runs[0].config["model"]["config"]["window"] == 8
        assert runs[0].texts == {"title": "Linear biases", "idea": "Far is faint."}
        assert plan(experiments).runs[8].variant == "alibi"  # after the factorial

    def test_it_leaves_the_other_runs_alone(self, experiments):
        before = fingerprints(experiments)
        write_variant(experiments, "alibi", self.ALIBI)
        after = fingerprints(experiments)
        assert {name: after[name] for name in before} == before

    def test_a_variant_can_have_a_learning_rate_of_its_own(self, experiments):
        write_variant(experiments, "fast", {"model": {"learning_rate": 0.5}})
        fast = plan(experiments, "fast").runs[0].config["model"]
        assert fast["learning_rate"] == 0.5 and fast["config"]["n_embd"] == 16

    def test_sizes_of_ones_own(self, experiments):
        edit(experiments / "presets" / "tiny.yaml", lambda content: content["sizes"].update(heads=4))
        write_variant(experiments, "many", {"model": {"config": {"n_head": "${heads}"}}})
        assert plan(experiments, "many").runs[0].config["model"]["config"]["n_head"] == 4

    def test_a_variant_without_factors_is_not_taken_for_the_baseline(self, experiments):
        """The report knows a variant by its factors: with none, its runs would be those without any change."""
        write_variant(experiments, "alibi", {"model": {"config": {"window": 4}}})
        assert plan(experiments, "alibi").runs[0].factors != plan(experiments, "baseline").runs[0].factors


class TestFingerprint:
    def test_it_is_the_same_every_time(self, experiments):
        assert fingerprints(experiments) == fingerprints(experiments)

    def test_no_two_runs_share_one(self, experiments):
        assert len(set(fingerprints(experiments).values())) == 16

    def test_a_changed_variant_concerns_itself(self, experiments):
        change = concerned(experiments, "variants/rope.yaml", lambda c: c["model"]["config"].update(rope_base=500.0))
        assert change == {name for name in VARIANTS if "rope" in name}

    def test_a_changed_size_concerns_the_variants_that_use_it(self, experiments):
        change = concerned(experiments, "presets/tiny.yaml", lambda c: c["sizes"].update(window=4))
        assert change == {name for name in VARIANTS if "swa" in name}

    @pytest.mark.parametrize(
        ("section", "key", "value"),
        [("trainer", "max_steps", 11), ("data", "batch_size", 3), ("model", "learning_rate", 1e-3), ("trainer", "precision", 32)],
    )
    def test_a_changed_preset_concerns_all(self, experiments, section, key, value):
        change = concerned(experiments, "presets/tiny.yaml", lambda c: c[section].update({key: value}))
        assert change == set(VARIANTS)

    @pytest.mark.parametrize("change", [{"evaluation_tokens": 64}, {"prompt": "the queen"}], ids=["tokens", "prompt"])
    def test_what_is_scored_and_how_samples_begin_concerns_all(self, experiments, change):
        """Losses over 256 and over 64 tokens must not stand in one table, nor samples from two prompts under one heading."""
        assert concerned(experiments, "presets/tiny.yaml", lambda c: c.update(change)) == set(VARIANTS)

    def test_a_changed_corpus_concerns_all(self, experiments):
        before, after = fingerprints(experiments), fingerprints(experiments, "another corpus")
        assert not set(before.values()) & set(after.values())

    @pytest.mark.parametrize("key", ["title", "paper", "idea", "challenges", "worth"])
    def test_texts_concern_none(self, experiments, key):
        assert concerned(experiments, "variants/rope.yaml", lambda c: c.update({key: "other words"})) == set()
        texts = plan(experiments, "rope").runs[0].texts
        assert texts[key] == "other words"

    def test_titles_concern_none(self, experiments):
        assert concerned(experiments, "presets/tiny.yaml", lambda c: c.update(title="Other")) == set()

    def test_another_seed_concerns_none_of_the_old_runs(self, experiments):
        before = fingerprints(experiments)
        edit(experiments / "presets" / "tiny.yaml", lambda c: c["seeds"].append(2))
        after = fingerprints(experiments)
        assert len(after) == 24 and {name: after[name] for name in before} == before


class TestFactorial:
    def test_four_changes_make_sixteen_variants(self, experiments):
        write_variant(experiments, "narrow", {"model": {"config": {"mlp": "mlp"}}, "in_numbers": "{{ n_embd }} wide."})
        edit(experiments / "presets" / "tiny.yaml", lambda content: content.update(factorial=["rope", "gqa", "swa", "narrow"]))
        found = plan(experiments, seeds=[0]).runs
        assert len({run.variant for run in found}) == len(found) == 16
        assert found[-1].variant == "rope-gqa-swa-narrow" and found[-1].factors == ("rope", "gqa", "swa", "narrow")
        assert {run.variant: run.factors for run in found if "narrow" not in run.factors} == VARIANTS
        texts = next(run.texts for run in found if run.variant == "gqa-narrow")
        assert texts["title"] == "Grouped-query attention (GQA) + narrow" and "share each" in texts["in_numbers"]
        assert texts["in_numbers"].endswith("{{ n_embd }} wide.")

    def test_combinations_that_are_not_listed_can_be_named(self, experiments):
        edit(experiments / "presets" / "tiny.yaml", lambda content: content.update(factorial=["rope"]))
        assert [run.variant for run in plan(experiments, seeds=[0]).runs] == ["baseline", "rope"]
        (run,) = plan(experiments, "swa-gqa", seeds=[0]).runs  # in one order, whichever is asked for: it is one variant
        assert run.variant == "gqa-swa" and run.factors == ("gqa", "swa") and run.config["model"]["config"]["window"] == 8

    def test_changes_of_one_key_cannot_be_joined(self, experiments, refused):
        write_variant(experiments, "other", {"model": {"config": {"positions": "learned"}}})
        with refused("rope.yaml", "other.yaml", "model.config.positions", "cannot be joined"):
            plan(experiments, "rope-other")
        edit(experiments / "presets" / "tiny.yaml", lambda content: content.update(factorial=["rope", "other"]))
        with refused("rope.yaml", "other.yaml", "model.config.positions"):
            plan(experiments)

    def test_a_factorial_of_something_unknown(self, experiments, refused):
        edit(experiments / "presets" / "tiny.yaml", lambda content: content.update(factorial=["rope", "alibi"]))
        with refused("alibi"):
            plan(experiments)

    def test_what_is_not_named_is_not_read(self, experiments):
        (experiments / "variants" / "broken.yaml").write_text("model: {")
        assert len(plan(experiments).runs) == 16


class TestLadders:
    """A change at another size, alone and in combinations; the preset's sizes are 1 key/value head of 2 and a window of 8."""

    @pytest.mark.parametrize(
        ("name", "factors", "fields"),
        [
            ("swa@5", ("swa@5",), {"window": 5}),
            ("gqa@2", ("gqa@2",), {"n_kv_head": 2}),
            ("rope-swa@5", ("rope", "swa@5"), {"positions": "rotary", "window": 5}),
            ("swa@5-gqa@2", ("gqa@2", "swa@5"), {"n_kv_head": 2, "window": 5}),
            ("alternate@5", ("alternate@5",), {"window": [None, 5]}),
        ],
    )
    def test_another_size(self, experiments, name, factors, fields):
        (run,) = plan(experiments, name, seeds=[0]).runs
        assert run.variant == "-".join(factors) and run.factors == factors
        assert fields.items() <= run.config["model"]["config"].items()
        for factor in factors:
            assert "@" not in factor or factor.partition("@")[2] in run.texts["title"]

    def test_in_a_preset(self, experiments):
        edit(experiments / "presets" / "tiny.yaml", lambda c: c.update(factorial=["swa"], variants=["swa@5", "nope"]))
        assert [run.variant for run in plan(experiments, seeds=[0]).runs] == ["baseline", "swa", "swa@5", "nope"]

    @pytest.mark.parametrize(
        ("name", "words"),
        [
            ("swa@", ("swa@", "size")), ("swa@[", ("swa@[", "size")), ("rope@3", ("rope@3", "rope.yaml", "no sizes")),
            ("gqa@3", ("gqa.yaml", "n_kv_head", 3)), ("swa@x", ("swa.yaml", "window", "x")), ("swa@0", ("window", 0)),
            ("baseline@3", ("baseline@3",)), ("no@3", ("no@3", "swa@128")), ("swa@5-swa@6", ("window", "cannot be joined")),
        ],
    )  # fmt: skip
    def test_what_does_not_fit_is_refused(self, experiments, refused, name, words):
        with refused(*words):
            plan(experiments, name)


class TestCompanions:
    def test_as_many_parameters(self, experiments):
        def parameters(run):
            with torch.device("meta"):
                return sum(p.numel() for p in GPT2(GPT2Config(**run.config["model"]["config"])).parameters())

        edit(experiments / "presets" / "tiny.yaml", lambda c: c["model"]["config"].update(n_embd=64, n_head=4))
        baseline, gqa, wide, both = plan(experiments, "baseline", "gqa", "gqa-wide", "swa-gqa-wide", seeds=[0]).runs
        unit = 2 * (2 * 64 + 1)  # one number wider, in each of two layers
        assert parameters(gqa) < parameters(baseline) - unit
        assert abs(parameters(wide) - parameters(baseline)) <= unit / 2
        assert wide.config["trainer"] == baseline.config["trainer"] and both.config["model"]["config"]["window"] == 8
        assert both.config["model"]["config"]["mlp"] == wide.config["model"]["config"]["mlp"]
        assert str(wide.config["model"]["config"]["mlp"]["width"]) in wide.texts["in_numbers"]

    def test_as_many_flops(self, experiments):
        def flops(run):
            config = GPT2Config(**run.config["model"]["config"])
            return run.max_steps * training_flops_per_token(config, config.block_size)

        def longer_and_smaller(content):
            content["trainer"].update(max_steps=2000, val_check_interval=500)
            content["data"]["vocab_size"] = 300

        edit(experiments / "presets" / "tiny.yaml", longer_and_smaller)
        baseline, swa, longer = plan(experiments, "baseline", "swa", "swa-longer", seeds=[0]).runs
        assert flops(swa) < 0.99 * flops(baseline) and flops(longer) == pytest.approx(flops(baseline), rel=2e-3)
        assert longer.max_steps == 4 * longer.config["trainer"]["val_check_interval"] > baseline.max_steps
        assert str(longer.max_steps) in longer.texts["in_numbers"]

    def test_what_cannot_be_matched_is_refused(self, experiments, refused):
        with refused("swa-longer.yaml", "tiny.yaml", "matched", "FLOPs"):  # 10 steps are too few for one more
            plan(experiments, "swa-longer")
        with refused("gqa-wide.yaml", "matched", "parameters"):
            plan(experiments, "gqa-wide@2")
        write_variant(experiments, "odd", {"model": {"config": {"window": 4}}, "matched": "seconds"})
        with refused("odd.yaml", "matched", "parameters or flops"):
            plan(experiments, "odd")


PART = "from torch import nn\n\n\nclass Part(nn.Identity):\n    def __init__(self, config, layer):\n        super().__init__()\n"


class TestModifications:
    @pytest.fixture
    def folder(self, tmp_path):
        folder = tmp_path / "my modifications"
        folder.mkdir()
        (folder / "part.py").write_text(PART)
        (folder / "silent.yaml").write_text("model: {config: {mlp: part.py:Part}}")
        (folder / "loud.yaml").write_text("model: {config: {norm: {name: layer_norm}}}")
        return folder

    def test_the_baseline_and_what_the_folder_holds(self, experiments, folder):
        found = load_plan("tiny", (), [0], experiments, experiments=folder).runs
        assert [run.variant for run in found] == ["baseline", "loud", "silent"]
        assert found[2].config["model"]["config"]["mlp"] == f"{folder / 'part.py'}:Part"
        assert found[0].invocation["experiments"] == str(folder)

    def test_those_of_the_package_stay_available(self, experiments, folder):
        found = load_plan("tiny", ["rope", "gqa-silent"], [0], experiments, experiments=folder).runs
        assert [run.variant for run in found] == ["rope", "gqa-silent"]

    def test_a_preset_in_the_folder_with_a_factorial_of_its_own(self, experiments, folder):
        (folder / "presets").mkdir()
        (folder / "presets" / "mine.yaml").write_text(yaml.safe_dump(preset(factorial=["silent", "swa"])))
        found = load_plan("mine", (), [0], experiments, experiments=folder).runs
        assert [run.variant for run in found] == ["baseline", "silent", "swa", "silent-swa"]

    def test_the_code_of_a_part_counts_and_its_place_does_not(self, experiments, folder, tmp_path):
        def fingerprints():
            found = load_plan("tiny", (), [0], experiments, experiments=folder).runs
            return {run.variant: run.fingerprint("a corpus") for run in found}

        before = fingerprints()
        (folder / "part.py").write_text(PART + "        self.other = 1\n")
        after = fingerprints()
        assert before["silent"] != after["silent"]
        assert {k: v for k, v in before.items() if k != "silent"} == {k: v for k, v in after.items() if k != "silent"}
        folder = shutil.move(folder, tmp_path / "elsewhere")
        assert fingerprints() == after

    def test_what_is_wrong_with_a_folder(self, experiments, folder, tmp_path, refused):
        with refused("nowhere", "no folder"):
            load_plan("tiny", built_in=experiments, experiments=tmp_path / "nowhere")
        (tmp_path / "empty").mkdir()
        with refused("empty", "no YAML"):
            load_plan("tiny", built_in=experiments, experiments=tmp_path / "empty")
        (folder / "rope.yaml").write_text("model: {config: {}}")
        with refused("rope.yaml", "already"):
            load_plan("tiny", built_in=experiments, experiments=folder)


def in_variant(**content):
    return lambda experiments: write_variant(experiments, "mine", content)


def in_preset(key, value):
    return lambda experiments: edit(experiments / "presets" / "tiny.yaml", lambda content: content.update({key: value}))


def inside_preset(section, key, value):
    return lambda experiments: edit(experiments / "presets" / "tiny.yaml", lambda c: c[section].update({key: value}))


def without(key):
    return lambda experiments: edit(experiments / "presets" / "tiny.yaml", lambda content: content.pop(key))


def config(**fields):
    return in_variant(model={"config": fields})


def raw_variant(text):
    return lambda experiments: (experiments / "variants" / "mine.yaml").write_bytes(text)


def raw_preset(text):
    return lambda experiments: (experiments / "presets" / "tiny.yaml").write_bytes(text)


WRONG = {
    "a variant's key": (in_variant(modle={}), "mine.yaml", "modle"),
    "a preset's key": (in_preset("trainers", {}), "tiny.yaml", "trainers"),
    "a field of the model": (config(n_kv_heads=1), "mine.yaml", "n_kv_heads"),
    "a field of the preset's model": (inside_preset("model", "config", {"n_heads": 2}), "tiny.yaml", "n_heads"),
    "a size that is not there": (config(window="${windw}"), "tiny.yaml", "windw"),
    "a preset without sizes": (without("sizes"), "tiny.yaml", "window"),
    "width and heads": (config(n_head=3), "mine.yaml", "n_embd"),
    "key/value heads": (config(n_kv_head=3), "mine.yaml", "n_kv_head"),
    "odd heads that rotate": (config(positions="rotary", n_embd=6), "mine.yaml", "positions"),
    "a window of nothing": (config(window=0), "mine.yaml", "window"),
    "a window that is text": (config(window="wide"), "mine.yaml", "window"),
    "a model that is no mapping": (in_variant(model="gpt2"), "mine.yaml", "model"),
    "a model config that is no mapping": (in_variant(model={"config": 3}), "mine.yaml", "config"),
    "a preset's model config that is no mapping": (inside_preset("model", "config", 3), "tiny.yaml", "config"),
    "sizes that are no mapping": (in_preset("sizes", 3), "tiny.yaml", "sizes"),
    "factors that are one word": (in_variant(factors="rope"), "mine.yaml", "factors"),
    "factors that are numbers": (in_variant(factors=[1]), "mine.yaml", "factors"),
    "an order that is a word": (in_variant(order="last"), "mine.yaml", "order"),
    "seeds that are one number": (in_preset("seeds", 3), "tiny.yaml", "seeds"),
    "no seeds": (in_preset("seeds", []), "tiny.yaml", "seeds"),
    "a negative seed": (in_preset("seeds", [0, -1]), "tiny.yaml", "-1"),
    "a seed that is too large": (in_preset("seeds", [0, 2**32]), "tiny.yaml", "4294967296"),
    "a seed between": (in_preset("seeds", [0.5]), "tiny.yaml", "0.5"),
    "a seed that is a word": (in_preset("seeds", ["first"]), "tiny.yaml", "first"),
    "a seed that is true": (in_preset("seeds", [True]), "tiny.yaml", "True"),
    "no steps": (inside_preset("trainer", "max_steps", 0), "tiny.yaml", "max_steps"),
    "fewer than no steps": (inside_preset("trainer", "max_steps", -1), "tiny.yaml", "max_steps"),
    "steps in words": (inside_preset("trainer", "max_steps", "many"), "tiny.yaml", "max_steps"),
    "steps that are true": (inside_preset("trainer", "max_steps", True), "tiny.yaml", "max_steps"),
    "no number of steps": (in_preset("trainer", {"val_check_interval": 5}), "tiny.yaml", "max_steps"),
    "a validation between steps": (inside_preset("trainer", "val_check_interval", 0.5), "tiny.yaml", "val_check_interval"),
    "no data": (without("data"), "tiny.yaml", "data"),
    "no model": (without("model"), "tiny.yaml", "model"),
    "no trainer": (without("trainer"), "tiny.yaml", "trainer"),
    "no seeds at all": (without("seeds"), "tiny.yaml", "seeds"),
    "data that is a name": (in_preset("data", "shakespeare"), "tiny.yaml", "data"),
    "a trainer that is a list": (in_preset("trainer", [1]), "tiny.yaml", "trainer"),
    "a prompt that is a number": (in_preset("prompt", 3), "tiny.yaml", "prompt"),
    "an empty prompt": (in_preset("prompt", ""), "tiny.yaml", "prompt"),
    "a corpus that is a number": (in_preset("data", {"corpus": 7}), "tiny.yaml", "data.corpus"),
    "a corpus that is nothing": (in_preset("data", {"corpus": None}), "tiny.yaml", "data.corpus"),
    "no runs at once": (in_preset("at_once", 0), "tiny.yaml", "at_once"),
    "runs at once in words": (in_preset("at_once", "all"), "tiny.yaml", "at_once"),
    "scored tokens in words": (in_preset("evaluation_tokens", "all"), "tiny.yaml", "evaluation_tokens"),
    "fewer scored tokens than none": (in_preset("evaluation_tokens", -5), "tiny.yaml", "evaluation_tokens"),
    "an empty variant": (raw_variant(b""), "mine.yaml", "keys and values"),
    "an empty preset": (raw_preset(b""), "tiny.yaml", "keys and values"),
    "a variant that is a list": (raw_variant(b"- model"), "mine.yaml", "keys and values"),
    "a broken variant": (raw_variant(b"model: {config: [\n"), "mine.yaml", "YAML"),
    "a broken preset": (raw_preset(b"title: x\n\tseeds: [0]\n"), "tiny.yaml", "YAML"),
    "a variant in no encoding": (raw_variant(b"title: \xff\xfe\xfa"), "mine.yaml", "YAML"),
}


class TestRefusal:
    @pytest.mark.parametrize("name", WRONG)
    def test_in_one_line_that_names_file_and_key(self, experiments, name):
        write_variant(experiments, "mine", {"model": {"config": {}}})
        break_it, file, key = WRONG[name]
        break_it(experiments)
        with pytest.raises(UserError) as raised:
            plan(experiments, "mine", *(["swa", "gqa"] if "preset" in name or "sizes" in name else []))
        assert file in refusal(raised) and key in refusal(raised)

    @pytest.mark.parametrize("name", ["ropes", "", "rope.yaml", 300 * "x"])
    def test_an_unknown_variant_with_the_known_ones(self, experiments, name):
        with pytest.raises(UserError) as raised:
            plan(experiments, name)
        assert "variant" in refusal(raised) and "rope-gqa-swa" in refusal(raised)

    @pytest.mark.parametrize("name", ["cpus", "", 300 * "x"])
    def test_an_unknown_preset_with_the_known_ones(self, experiments, name):
        with pytest.raises(UserError) as raised:
            load_plan(name, built_in=experiments)
        assert "preset" in refusal(raised) and "gpt2-small" in refusal(raised)

    def test_a_preset_file_that_is_not_there(self, experiments, tmp_path):
        with pytest.raises(UserError) as raised:
            load_plan(str(tmp_path / "none.yaml"), built_in=experiments)
        assert "none.yaml" in refusal(raised)

    def test_a_negative_seed_of_the_command_line(self, experiments):
        with pytest.raises(UserError) as raised:
            plan(experiments, seeds=[-1])
        assert "-1" in refusal(raised) and "seed" in refusal(raised)
