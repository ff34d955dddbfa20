"""Files are whole or not there, hold only what JSON has words for, and are refused by name when they are broken."""

import contextlib
import json
import math
import resource

import pytest

from gpt2_ablate.errors import UserError
from gpt2_ablate.records import environment, read_record, read_results, write_results
from gpt2_ablate.utils.io import write_json, write_text

from .study.tiny import failed, full, record, refusal, results, study


@contextlib.contextmanager
def files_end_at(size):
    """No file can grow beyond so many bytes: a disk that fills up in the middle of a write."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


class TestWriting:
    def test_makes_the_folder_and_replaces_what_was_there(self, tmp_path):
        file = tmp_path / "a" / "b" / "text"
        for text in ("first, and longer", "second: ä"):
            write_text(file, text)
            assert file.read_text(encoding="utf-8") == text
            assert list(file.parent.iterdir()) == [file]

    @pytest.mark.parametrize("old", ["what was there", None], ids=["over a file", "anew"])
    def test_a_write_that_fails_halfway_leaves_everything_as_it_was(self, tmp_path, old):
        file = tmp_path / "text"
        if old:
            file.write_text(old)
        with files_end_at(1000), pytest.raises(UserError) as raised:
            write_text(file, 100_000 * "x")
        assert str(file) in refusal(raised)
        assert [entry.name for entry in tmp_path.iterdir()] == (["text"] if old else [])
        assert not old or file.read_text() == old

    def test_text_that_cannot_be_encoded_leaves_everything_as_it_was(self, tmp_path):
        """Half of a surrogate pair: JSON can hold it, a file in UTF-8 cannot."""
        file = tmp_path / "text"
        file.write_text("what was there")
        with pytest.raises(ValueError):
            write_text(file, 100_000 * "x" + json.loads(r'"\ud83d"'))
        assert list(tmp_path.iterdir()) == [file] and file.read_text() == "what was there"

    def test_a_folder_that_is_a_file_is_refused(self, tmp_path):
        (tmp_path / "folder").write_text("a file")
        with pytest.raises(UserError) as raised:
            write_text(tmp_path / "folder" / "text", "x")
        assert "folder" in refusal(raised)
        assert (tmp_path / "folder").read_text() == "a file"

    def test_what_is_not_finite_becomes_null(self, tmp_path):
        write_json(tmp_path / "r.json", {"a": math.nan, "b": [math.inf, -math.inf, 1.5], "c": (2, {"d": math.nan})})

        def no_other_words(word):
            raise AssertionError(word)

        content = json.loads((tmp_path / "r.json").read_text(), parse_constant=no_other_words)
        assert content == {"a": None, "b": [None, None, 1.5], "c": [2, {"d": None}]}


class TestReading:
    def test_results_come_back_as_they_were(self, tmp_path):
        runs = [*study(), failed("rope", 9)]
        write_results(tmp_path / "results.json", runs)
        assert read_results(tmp_path / "results.json") == runs

    def test_unknown_keys_are_kept_and_facts_are_not_read(self, tmp_path):
        runs = [
            {"variant": "a", "seed": 0, "status": "finished", "metrics": {"validation_loss": 6, "mine": [1]}, "mine": {"a": 1}}
        ]
        write_results(tmp_path / "results.json", runs, facts={"best": "b"})
        assert read_results(tmp_path / "results.json") == runs

    def test_records_of_earlier_versions_are_read(self, tmp_path):
        """Whose keys had other names."""
        write_results(tmp_path / "results.json", [record("a", 0, 6.0, stock=None, asked={"preset": "cpu"})])
        (run,) = read_results(tmp_path / "results.json")
        assert run["hf_architecture"] is None and run["invocation"] == {"preset": "cpu"}
        assert "stock" not in run and "asked" not in run

    def test_no_record_is_none(self, tmp_path):
        assert read_record(tmp_path / "record.json") is None

    @pytest.mark.parametrize("read", [read_results, read_record])
    @pytest.mark.parametrize(
        "content",
        [b"", b"{", b"[]", b"3", b"\xff\xfe\x00", json.dumps(results(study()))[:200].encode(), b'{"schema": 1}', b"null"],
        ids=["empty", "a brace", "a list", "a number", "binary", "cut off", "without runs", "null"],
    )
    def test_a_broken_file_is_refused_by_name(self, tmp_path, read, content):
        file = tmp_path / "some.json"
        file.write_bytes(content)
        with pytest.raises(UserError) as raised:
            read(file)
        assert str(file) in refusal(raised)

    @pytest.mark.parametrize("schema", [0, 2, "1", None])
    def test_another_schema_is_refused(self, tmp_path, schema):
        write_json(tmp_path / "results.json", results(study(), schema))
        write_json(tmp_path / "record.json", {"schema": schema, **record("rope", 0, 6.0)})
        for read, name in ((read_results, "results.json"), (read_record, "record.json")):
            with pytest.raises(UserError) as raised:
                read(tmp_path / name)
            assert "schema" in refusal(raised) and repr(schema) in refusal(raised)

    @pytest.mark.parametrize(
        ("key", "value"),
        [
            ("variant", None), ("variant", 3), ("seed", "0"), ("seed", None), ("seed", 0.5), ("status", "done"), ("status", None),
            ("metrics", [6.0]), ("metrics", "good"), ("metrics", None), ("metrics", {}), ("metrics", {"validation_loss": "6"}),
            ("metrics", {"validation_loss": None}), ("config", [1]), ("config", "gpt2"), ("config", {"model": "gpt2"}),
            ("environment", "a laptop"), ("preset", ["cpu"]), ("factors", "rope"), ("factors", 3), ("order", "last"),
            ("texts", "words"), ("curves", 3),
            ("curves", {"train": 5}), ("curves", {"validation": [[1]]}), ("curves", {"validation": [["1", "2"]]}),
            ("texts", {"idea": 5}), ("environment", {"packages": ["torch"]}), ("factors", [["rope"]]), ("factors", [1]),
            ("tensors", {"norm.weight": 16}), ("tensors", {"norm.weight": ["16"]}), ("tensors", {"norm.weight": [None]}),
            ("config", {"model": None}), ("config", {"model": {"config": None}}), ("config", {"data": []}),
            ("loss_by_position", [1]), ("loss_by_position", [{"from": 0}]), ("cost_by_context", [{"context": "long"}]),
            ("cost_by_context", [{"context": 256, "forward_flops_per_token": None, "kv_bytes": 1}]),
        ],
    )  # fmt: skip
    def test_a_value_of_the_wrong_type_is_refused_by_run_and_key(self, tmp_path, key, value):
        """Whoever wrote the file: what is wrong in it is said here, not by a traceback in the middle of the report."""
        runs = study()
        runs[5][key] = value
        (tmp_path / "results.json").write_text(json.dumps(results(runs)))
        with pytest.raises(UserError) as raised:
            read_results(tmp_path / "results.json")
        assert "runs[5]" in refusal(raised) and key in refusal(raised)

    @pytest.mark.parametrize(
        ("path", "value"),
        [
            ("config.model.config.n_head", "4"), ("config.model.config.n_head", 0), ("config.model.config.n_head", None),
            ("config.model.config.n_kv_head", "1"), ("config.model.config.block_size", "32"),
            ("config.model.config.block_size", True), ("config.model.config.window", "64"),
            ("config.model.config.window", [8, "8"]), ("config.model.config.window", -8),
            ("config.data.batch_size", "2"), ("config.data.batch_size", 2.5), ("config.trainer.max_steps", "280"),
            ("config.trainer.max_steps", None), ("config.trainer.accumulate_grad_batches", "2"), ("invocation.at_once", "2"),
            ("asked.at_once", "2"),
        ],
    )  # fmt: skip
    def test_a_setting_that_cannot_be_reckoned_with_is_refused_by_run_and_key(self, tmp_path, path, value):
        runs = json.loads(json.dumps(full(study())))  # which share their sections
        *parents, key = path.split(".")
        section = runs[5]
        for parent in parents:
            section = section.setdefault(parent, {})
        section[key] = value
        (tmp_path / "results.json").write_text(json.dumps(results(runs)))
        with pytest.raises(UserError) as raised:
            read_results(tmp_path / "results.json")
        assert "runs[5]" in refusal(raised) and path in refusal(raised) and repr(value) in refusal(raised)

    @pytest.mark.parametrize("fields", [{"window": None}, {"window": 8}, {"window": [8, None]}, {"n_kv_head": None}], ids=str)
    def test_settings_that_a_model_can_have_are_taken(self, tmp_path, fields):
        write_results(tmp_path / "results.json", [record("rope", 0, 6.0, config={"model": {"config": fields}})])
        assert len(read_results(tmp_path / "results.json")) == 1

    @pytest.mark.parametrize("loss", [math.nan, math.inf], ids=str)
    def test_a_finished_run_has_a_finite_loss(self, tmp_path, loss):
        (tmp_path / "results.json").write_text(json.dumps(results([record("rope", 0, loss)])))
        with pytest.raises(UserError) as raised:
            read_results(tmp_path / "results.json")
        assert "validation_loss" in refusal(raised)

    @pytest.mark.parametrize("run", [3, None, [], "rope"], ids=str)
    def test_a_run_that_is_no_object_is_refused(self, tmp_path, run):
        (tmp_path / "results.json").write_text(json.dumps(results([run])))
        with pytest.raises(UserError) as raised:
            read_results(tmp_path / "results.json")
        assert "runs[0]" in refusal(raised)

    def test_a_missing_file_is_refused_by_name(self, tmp_path):
        with pytest.raises(UserError) as raised:
            read_results(tmp_path / "none.json")
        assert "none.json" in refusal(raised)

    def test_a_run_that_did_not_finish_needs_no_metrics(self, tmp_path):
        runs = [{"variant": "rope", "seed": 0, "status": status} for status in ("failed", "missing")]
        write_results(tmp_path / "results.json", runs)
        assert read_results(tmp_path / "results.json") == runs


def test_the_environment_says_what_made_the_numbers():
    found = environment()
    assert found["hardware"] and found["cores"] >= 1 and found["packages"]["torch"]
    assert found["packages"]["transformers"]  # what is verified and benchmarked depends on it
    json.dumps(found)
