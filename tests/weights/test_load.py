"""Weights from files: every form gives the function of transformers' own class, and what is wrong is named in one line."""

import json
import os
import pickle
import subprocess
import sys
import types
import warnings

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from gpt2_ablate.errors import UserError
from gpt2_ablate.model import GPT2, GPT2Config
from gpt2_ablate.weights import export_huggingface, load_pretrained
from gpt2_ablate.weights.folder import save_model

from .models import V, assert_same_function, each_stock, flip, same, stock_gpt2, tiny_model


@pytest.fixture(scope="module")
def stock():
    return stock_gpt2()


@pytest.fixture
def folder(tmp_path, stock):
    """A folder as transformers writes it: config.json and model.safetensors."""
    stock.save_pretrained(tmp_path / "hf")
    (tmp_path / "hf" / "generation_config.json").unlink()
    return tmp_path / "hf"


@pytest.fixture
def state(stock):
    return {name: x.detach().clone().contiguous() for name, x in stock.transformer.state_dict().items()}


def rewrite_config(folder, **changes):
    settings = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**settings, **changes}))


def rewrite_tensor(folder, name, change):
    tensors = load_file(folder / "model.safetensors")
    tensors[name] = change(tensors[name]).contiguous()
    save_file(tensors, folder / "model.safetensors")


# What can be read


@each_stock
def test_a_folder_of_transformers(tmp_path, stock):
    made = stock()
    made.save_pretrained(tmp_path)
    model = load_pretrained(tmp_path)
    assert_same_function(model, made)
    assert not model.training and all(p.requires_grad and p.is_contiguous() for p in model.parameters())


def test_the_folder_as_text(folder, stock):
    assert_same_function(load_pretrained(str(folder)), stock)


def test_shards(tmp_path, stock):
    stock.save_pretrained(tmp_path, max_shard_size="300KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 2
    assert_same_function(load_pretrained(tmp_path), stock)


def test_a_pytorch_file_in_a_folder(tmp_path, folder, stock):
    (folder / "model.safetensors").unlink()
    torch.save(stock.state_dict(), folder / "pytorch_model.bin")
    assert_same_function(load_pretrained(folder), stock)


def test_pytorch_shards(folder, stock):
    (folder / "model.safetensors").unlink()
    names = sorted(stock.state_dict())
    shard_of = {name: f"pytorch_model-0000{1 + n % 2}-of-00002.bin" for n, name in enumerate(names)}
    for shard in set(shard_of.values()):
        torch.save({name: stock.state_dict()[name] for name in names if shard_of[name] == shard}, folder / shard)
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"metadata": {}, "weight_map": shard_of}))
    assert_same_function(load_pretrained(folder), stock)


@pytest.mark.parametrize("prefix", ["", "transformer."])
@pytest.mark.parametrize("suffix", [".safetensors", ".bin", ".pt"])
def test_a_bare_file_with_and_without_prefix(tmp_path, state, stock, prefix, suffix):
    file = tmp_path / f"weights{suffix}"
    (save_file if suffix == ".safetensors" else torch.save)({prefix + name: x for name, x in state.items()}, file)
    model = load_pretrained(file)
    assert model.config == GPT2Config(vocab_size=V, block_size=32, n_layer=2, n_head=2, n_embd=128)
    assert_same_function(model, stock)


def test_a_pytorch_file_of_the_old_format(tmp_path, state, stock):
    """The released pytorch_model.bin is one."""
    torch.save(state, tmp_path / "old.bin", _use_new_zipfile_serialization=False)
    assert_same_function(load_pretrained(tmp_path / "old.bin"), stock)


@pytest.mark.parametrize("zipped", [True, False])
def test_tensors_that_share_memory_in_a_file_become_weights_of_their_own(tmp_path, state, zipped):
    state["wpe.weight"], state["h.1.ln_1.weight"] = state["wte.weight"][:32], state["h.0.ln_1.weight"]
    file = tmp_path / "shared.bin"
    torch.save({**state, "lm_head.weight": state["wte.weight"]}, file, _use_new_zipfile_serialization=zipped)
    model = load_pretrained(file)
    assert len({p.untyped_storage().data_ptr() for p in model.parameters()}) == len(list(model.parameters()))
    assert all(p.untyped_storage().nbytes() == p.nbytes for p in model.parameters())


def test_buffers_and_a_head_that_is_the_embedding_are_no_weights(tmp_path, state, stock):
    for i in range(2):
        state[f"h.{i}.attn.bias"] = torch.ones(1, 1, 32, 32, dtype=torch.uint8)
        state[f"h.{i}.attn.masked_bias"] = torch.tensor(-1e4)
    save_file({**state, "lm_head.weight": state["wte.weight"].clone()}, tmp_path / "a.safetensors")
    assert_same_function(load_pretrained(tmp_path / "a.safetensors"), stock)


@pytest.mark.parametrize("suffix", [".safetensors", ".bin"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_number_formats_become_fp32(tmp_path, state, dtype, suffix):
    file = tmp_path / f"other{suffix}"
    (save_file if suffix == ".safetensors" else torch.save)({name: x.to(dtype) for name, x in state.items()}, file)
    model = load_pretrained(file)
    assert all(p.dtype == torch.float32 for p in model.parameters())
    assert torch.equal(model.blocks[1].mlp.input.weight, state["h.1.mlp.c_fc.weight"].t().to(dtype).float())


@pytest.mark.parametrize("positions", ["learned", "rotary"])
def test_a_folder_of_ours_and_its_file(tmp_path, positions):
    model = tiny_model(positions=positions, window=6, n_kv_head=1)
    save_model(model, tmp_path)
    for source in (tmp_path, tmp_path / "model.safetensors", tmp_path / "model.json"):
        loaded = load_pretrained(source)
        assert same(loaded, model) and loaded.config == model.config
        assert torch.equal(loaded(torch.arange(20)[None]), model(torch.arange(20)[None]))


def test_loading_leaves_the_random_numbers_alone(folder):
    torch.manual_seed(0)
    load_pretrained(folder)
    drawn = torch.rand(3)
    torch.manual_seed(0)
    assert torch.equal(drawn, torch.rand(3))


SLOPED = """
import torch

from gpt2_ablate.model.positions import Positions


class Sloped(Positions):
    def __init__(self, config):
        super().__init__()
        self.register_buffer("slopes", 1.0 / torch.arange(1, config.n_head + 1), persistent=False)

    def embed(self, x, context):
        return x + self.slopes.sum() * context.position_ids[:, None]
"""


def test_a_part_with_tables_of_its_own_is_whole(tmp_path):
    """Tables are no weights: they have to be made while the weights have no memory yet."""
    (tmp_path / "sloped.py").write_text(SLOPED)
    model = tiny_model(positions=f"{tmp_path / 'sloped.py'}:Sloped")
    folder = tmp_path / "model"
    folder.mkdir()
    save_model(model, folder)
    assert torch.equal(load_pretrained(folder)(torch.arange(20)[None]), model(torch.arange(20)[None]))


def test_a_model_whose_parts_are_gone_or_lie_in_its_own_folder_is_refused(tmp_path, refused):
    """Code that comes with a model is not run: a model may come from anybody."""
    (tmp_path / "sloped.py").write_text(SLOPED)
    save_model(tiny_model(positions=f"{tmp_path / 'sloped.py'}:Sloped"), tmp_path)
    with refused("model.json", "sloped.py"):
        load_pretrained(tmp_path)
    config = (tmp_path / "model.json").read_text()
    for name in ("sloped.py", "/nowhere/sloped.py"):
        (tmp_path / "model.json").write_text(config.replace(str(tmp_path / "sloped.py"), name))
        with refused("model.json", "sloped.py"):
            load_pretrained(tmp_path)


# OpenAI's own form


def variables(state):
    """The tensors of a state dict as the variables of OpenAI's checkpoint."""
    for name, x in state.items():
        *path, leaf = name.replace("h.", "h", 1).split(".")
        projection = leaf == "weight" and x.ndim == 2 and path[0].startswith("h")
        letter = [] if path[0] in ("wte", "wpe") else ["w" if projection else "g" if leaf == "weight" else "b"]
        yield "/".join(["model", *path, *letter]), (x[None] if projection else x).numpy()


@pytest.fixture
def openai_folder(tmp_path):
    (tmp_path / "checkpoint").write_text('model_checkpoint_path: "model.ckpt"\n')
    (tmp_path / "hparams.json").write_text(json.dumps(dict(n_vocab=V, n_ctx=32, n_embd=128, n_head=2, n_layer=2)))
    return tmp_path


def test_openai_names_and_shapes(openai_folder, state, stock, monkeypatch):
    """With a stand-in for TensorFlow's reader; the next test has the real one, where it is installed."""
    kept = dict(variables(state))

    class Reader:
        def get_variable_to_shape_map(self):
            return {name: list(x.shape) for name, x in kept.items()}

        def get_tensor(self, name):
            return kept[name]

    train = types.SimpleNamespace(load_checkpoint=lambda folder: Reader())
    monkeypatch.setitem(sys.modules, "tensorflow", types.SimpleNamespace(train=train))
    monkeypatch.setitem(sys.modules, "tensorflow.train", train)
    assert kept["model/h1/attn/c_attn/w"].shape == (1, 128, 384)
    assert_same_function(load_pretrained(openai_folder), stock)


def test_a_real_tensorflow_checkpoint(openai_folder, state, stock):
    v1 = pytest.importorskip("tensorflow").compat.v1
    with v1.Graph().as_default(), v1.Session() as session:
        made = [v1.get_variable(name, initializer=x) for name, x in variables(state)]
        session.run(v1.global_variables_initializer())
        v1.train.Saver(made).save(session, str(openai_folder / "model.ckpt"))
    assert_same_function(load_pretrained(openai_folder), stock)


def test_without_tensorflow_one_line_says_what_to_install(openai_folder, refused, monkeypatch):
    for name in ("tensorflow", "tensorflow.train"):
        monkeypatch.setitem(sys.modules, name, None)
    with refused(openai_folder, "pip install tensorflow"):
        load_pretrained(openai_folder)


# What is refused


def cut(data):
    return data[: len(data) // 2]


def header_flipped(data):
    return data[:12] + bytes([data[12] ^ 255]) + data[13:]


def emptied(data):
    return b""


def page_of_an_error(data):
    return b"<html>Not Found</html>"


@pytest.mark.parametrize(
    ("damage", "name"),
    [(header_flipped, "model.safetensors")]
    + [(damage, name) for damage in (cut, emptied, page_of_an_error) for name in ("model.safetensors", "pytorch_model.bin")],
)
def test_a_damaged_file_is_refused_by_its_name(folder, stock, refused, damage, name):
    (folder / "model.safetensors").unlink()
    file = folder / name
    (torch.save(stock.state_dict(), file) if name.endswith("bin") else save_file(stock.transformer.state_dict(), file))
    file.write_bytes(damage(file.read_bytes()))
    with refused(file):
        load_pretrained(folder)


def test_a_pickle_with_code_is_not_run(tmp_path, state, refused):
    class Code:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "ran"),)

    torch.save({**state, "extra": Code()}, tmp_path / "model.bin")
    (tmp_path / "plain.pt").write_bytes(pickle.dumps(Code(), protocol=2))
    (tmp_path / "new.pt").write_bytes(pickle.dumps(Code(), protocol=4))
    for name in ("model.bin", "plain.pt", "new.pt"):
        with refused(tmp_path / name, "not run", ".safetensors"), warnings.catch_warnings():
            warnings.simplefilter("error")
            load_pretrained(tmp_path / name)
    assert not (tmp_path / "ran").exists()


def test_a_pickle_of_something_else_is_refused(tmp_path, refused):
    torch.save({"model": {"a": torch.ones(1)}, "step": 3}, tmp_path / "train.pt")
    with refused(tmp_path / "train.pt", "state dict"):
        load_pretrained(tmp_path / "train.pt")


def test_two_candidates_are_refused_and_either_can_be_given(folder, stock, refused):
    torch.save(stock.state_dict(), folder / "pytorch_model.bin")
    with refused(folder, "model.safetensors", "pytorch_model.bin"):
        load_pretrained(folder)
    for name in ("model.safetensors", "pytorch_model.bin"):
        assert_same_function(load_pretrained(folder / name), stock)


def test_a_folder_without_weights_is_refused(tmp_path, refused):
    (tmp_path / "notes.txt").write_text("text")
    with refused(tmp_path, "no weights", "model.safetensors"):
        load_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"vocab_size": V + 1}, ["model.safetensors", "wte.weight", [V, 128], [V + 1, 128]]),
        ({"n_layer": 3}, ["model.safetensors", "h.2.", "missing"]),
        ({"n_layer": 1}, ["model.safetensors", "h.1."]),
        ({"n_positions": 33}, ["model.safetensors", "wpe.weight", [32, 128], [33, 128]]),
        ({"n_embd": 64}, ["model.safetensors", "has the shape", [64, 256]]),
        ({"model_type": "llama"}, ["config.json", "llama", "gpt2"]),
        ({"model_type": ["gpt2"]}, ["config.json", "model_type"]),
        ({"model_type": "gpt_bigcode"}, ["model.safetensors", "c_"]),
        ({"model_type": "starcoder2"}, ["config.json", "max_position_embeddings"]),
        ({"activation_function": "gelu"}, ["config.json", "activation_function", "gelu_new"]),
        ({"layer_norm_epsilon": 1e-6}, ["config.json", "layer_norm_epsilon", "1e-05"]),
        ({"scale_attn_by_inverse_layer_idx": True}, ["config.json", "scale_attn_by_inverse_layer_idx"]),
        ({"n_inner": 100}, ["config.json", "n_inner"]),
        ({"n_head": "two"}, ["config.json", "n_head"]),
        ({"n_embd": None}, ["config.json", "n_embd"]),
        ({"n_head": 0}, ["config.json", "n_head"]),
        ({"n_embd": 10**10}, ["config.json", "cannot be made"]),
        ({"n_positions": 10**20}, ["config.json", "cannot be made"]),
        ({"n_layer": 10**9}, ["config.json", "n_layer", 10**9]),
    ],
    ids=str,
)
def test_a_config_that_does_not_fit_is_refused_by_file_and_key(folder, refused, changes, words):
    rewrite_config(folder, **changes)
    with refused(folder, *words):
        load_pretrained(folder)


@pytest.mark.parametrize(
    ("settings", "key"),
    [
        ({"rope_parameters": {"rope_type": "llama3", "rope_theta": 1e4}}, "llama3"),
        ({"rope_parameters": "default"}, "rope_parameters"),
        ({"rope_parameters": {"rope_type": "yarn", "factor": 2.0, "beta_fast": 8}}, "beta_fast"),
        ({"rope_parameters": {"rope_type": "linear"}}, "rope_factor"),
        ({"rope_parameters": {"rope_type": "yarn", "factor": "2", "original_max_position_embeddings": 16}}, "config.json"),
        ({"use_bias": False}, "use_bias"),
        ({"hidden_act": "silu"}, "hidden_act"),
        ({"intermediate_size": 64}, "intermediate_size"),
        ({"num_attention_heads": 0}, "n_head"),
        ({"hidden_size": "wide"}, "n_embd"),
    ],
    ids=str,
)
def test_a_starcoder2_of_another_function_is_refused(tmp_path, refused, settings, key):
    from .models import stock_starcoder2

    stock_starcoder2().save_pretrained(tmp_path)
    rewrite_config(tmp_path, **settings)
    with refused(tmp_path / "config.json", key):
        load_pretrained(tmp_path)


@pytest.mark.parametrize("text", [b"", b"{", b"null", b"[1]", b"\xff\xfe", b"[" * 100_000], ids=lambda text: text[:9])
def test_a_config_that_is_no_json_object_is_refused(folder, refused, text):
    (folder / "config.json").write_bytes(text)
    with refused(folder / "config.json"):
        load_pretrained(folder)


@pytest.mark.parametrize("number", [float("nan"), float("inf"), float("-inf")])
def test_numbers_that_are_not_finite_are_refused_by_their_tensor(folder, refused, number):
    def spoil(x):
        x.view(-1)[7] = number
        return x

    rewrite_tensor(folder, "transformer.h.1.mlp.c_fc.weight", spoil)
    with refused(folder / "model.safetensors", "h.1.mlp.c_fc.weight", "finite"):
        load_pretrained(folder)


@pytest.mark.parametrize("dtype", [torch.int64, torch.bool, torch.complex64, torch.float8_e4m3fn])
def test_other_formats_are_no_weights(folder, refused, dtype):
    rewrite_tensor(folder, "transformer.ln_f.bias", lambda x: x.to(dtype))
    with refused(folder / "model.safetensors", "ln_f.bias", str(dtype).removeprefix("torch."), "fp16"):
        load_pretrained(folder)


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize(
    ("change", "word"),
    [
        (torch.Tensor.long, "int64"),
        (torch.Tensor.cfloat, "complex64"),
        (torch.Tensor.to_sparse, "sparse"),
        (lambda x: x.to("meta"), "meta"),
        (lambda x: torch.nested.nested_tensor([x]), "tensors"),
    ],
    ids=["whole", "complex", "sparse", "meta", "nested"],
)
def test_other_tensors_of_a_pytorch_file_are_no_weights(tmp_path, state, refused, zipped, change, word):
    with warnings.catch_warnings(action="ignore"):  # nested tensors are no finished part of torch
        state["ln_f.bias"] = change(state["ln_f.bias"])
    torch.save(state, tmp_path / "a.bin", _use_new_zipfile_serialization=zipped)
    with refused(tmp_path / "a.bin", word):
        load_pretrained(tmp_path / "a.bin")


def test_two_names_of_one_weight_are_refused(folder, refused):
    tensors = load_file(folder / "model.safetensors")
    save_file({**tensors, "wte.weight": torch.ones(V, 128)}, folder / "model.safetensors")
    with refused(folder / "model.safetensors", "transformer.wte.weight", " wte.weight"):
        load_pretrained(folder)


def test_a_folder_of_the_name_of_the_weights_is_refused(folder, refused):
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors").mkdir()
    with refused(folder, "no weights"):
        load_pretrained(folder)


@pytest.mark.parametrize("place", range(-22, 0))
def test_a_flipped_bit_at_the_end_of_a_zip_file_is_refused_or_makes_no_difference(tmp_path, state, stock, place):
    """Its table of contents, which says where the numbers are."""
    torch.save(state, tmp_path / "a.bin")
    flip(tmp_path / "a.bin", place)
    try:
        assert_same_function(load_pretrained(tmp_path / "a.bin"), stock)
    except UserError as error:
        assert str(error).startswith(f"{tmp_path / 'a.bin'}: ") and "\n" not in str(error)


def test_a_flipped_bit_in_the_numbers_of_a_zip_file_is_refused(tmp_path, state, refused):
    torch.save(state, tmp_path / "a.bin")
    flip(tmp_path / "a.bin", (tmp_path / "a.bin").stat().st_size // 2)
    with refused(tmp_path / "a.bin", "damaged"):
        load_pretrained(tmp_path / "a.bin")


def test_a_superfluous_tensor_is_refused_by_its_name(folder, refused):
    tensors = load_file(folder / "model.safetensors")
    save_file({**tensors, "transformer.h.0.attn.rotary": torch.ones(3)}, folder / "model.safetensors")
    with refused(folder / "model.safetensors", "h.0.attn.rotary"):
        load_pretrained(folder)


def test_a_head_of_its_own_is_refused(folder, refused):
    tensors = load_file(folder / "model.safetensors")
    save_file({**tensors, "lm_head.weight": torch.ones(V, 128)}, folder / "model.safetensors")
    with refused(folder / "model.safetensors", "lm_head.weight", "embedding"):
        load_pretrained(folder)


def test_a_bare_file_of_another_architecture_is_refused(tmp_path, refused):
    save_file({"model.layers.0.mlp.up_proj.weight": torch.ones(2, 2)}, tmp_path / "llama.safetensors")
    with refused(tmp_path / "llama.safetensors", "layers.0.mlp.up_proj.weight", "config.json"):
        load_pretrained(tmp_path / "llama.safetensors")


def test_a_bare_file_whose_heads_cannot_be_told_is_refused(tmp_path, refused):
    save_file({"wte.weight": torch.ones(5, 96), "wpe.weight": torch.ones(5, 96)}, tmp_path / "a.safetensors")
    with refused(tmp_path / "a.safetensors", 96, "config.json"):
        load_pretrained(tmp_path / "a.safetensors")


@pytest.mark.parametrize(
    "index",
    [
        "{",
        "[]",
        '{"weight_map": 3}',
        '{"weight_map": {"wte.weight": "../elsewhere.safetensors"}}',
        '{"weight_map": {"wte.weight": "model-00001-of-00002.safetensors"}}',
        '{"weight_map": {"wte.weight": "there.safetensors"}}',
        '{"weight_map": {"wte.weight": "model.safetensors.index.json"}}',
        "[" * 100_000,
    ],
    ids=lambda index: index[:60],
)
def test_a_broken_index_is_refused(tmp_path, refused, index):
    save_file({"a": torch.ones(1)}, tmp_path / "there.safetensors")
    file = tmp_path / "model.safetensors.index.json"
    file.write_text(index)
    with refused(file):
        load_pretrained(tmp_path)


# Memory

PEAK = """
import sys
from gpt2_ablate.weights import load_pretrained
def kilobytes(key):  # not getrusage, whose peak begins with that of the parent process
    return int(next(line for line in open("/proc/self/status") if line.startswith(key)).split()[1])
load_pretrained(sys.argv[1])
before = kilobytes("VmRSS")
model = load_pretrained(sys.argv[2])
print(1024 * (kilobytes("VmHWM") - before) / sum(p.nbytes for p in model.parameters()))
"""


def write_124m(folder, form):
    """PyTorch files with the buffers and the head that the released one has; transformers leaves the head out of shards."""
    if form in ("ours", "safetensors"):
        with torch.device("meta"):
            model = GPT2(GPT2Config())
        for name, p in list(model.named_parameters()):
            module, _, leaf = name.rpartition(".")
            setattr(model.get_submodule(module), leaf, torch.nn.Parameter(torch.ones(p.shape), requires_grad=False))
        (save_model if form == "ours" else export_huggingface)(model, folder)
        return
    with torch.device("meta"):
        shapes = transformers.GPT2Model(transformers.GPT2Config()).state_dict()
    state = {name: torch.ones(x.shape) for name, x in sorted(shapes.items())}
    state |= {f"h.{n}.attn.bias": torch.ones(1, 1, 1024, 1024) for n in range(12)}
    if form == "shards":
        shard_of = {name: f"pytorch_model-{n % 4}.bin" for n, name in enumerate(state)}
        (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": shard_of}))
    else:
        state["lm_head.weight"] = state["wte.weight"]
        shard_of = dict.fromkeys(state, "pytorch_model.bin")
    for shard in set(shard_of.values()):
        tensors = {name: x for name, x in state.items() if shard_of[name] == shard}
        torch.save(tensors, folder / shard, _use_new_zipfile_serialization=form != "old")


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
@pytest.mark.parametrize("form", ["ours", "safetensors", "zip", "shards", "old"])
def test_loading_the_124m_model_peaks_at_little_more_than_its_weights(tmp_path, folder, form):
    (tmp_path / "big").mkdir()
    write_124m(tmp_path / "big", form)
    command = [sys.executable, "-c", PEAK, str(folder), str(tmp_path / "big")]
    run = subprocess.run(command, capture_output=True, text=True, check=True)
    assert 1.0 <= float(run.stdout) <= 1.3, run.stdout


def test_a_name_too_long_for_a_file_is_refused(refused):
    with refused("aaaa"):
        load_pretrained("a" * 5000)
