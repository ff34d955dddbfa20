"""GPT-2 from wherever its weights are: the hub, a folder of ours or of transformers, a file, OpenAI's own checkpoint."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

from gpt2_ablate.errors import UserError
from gpt2_ablate.model import GPT2
from gpt2_ablate.utils.io import read_json
from gpt2_ablate.weights import hub
from gpt2_ablate.weights.build import check_layers, empty_model, read_weights
from gpt2_ablate.weights.folder import CONFIG, load_model
from gpt2_ablate.weights.hf_architectures import ARCHITECTURES
from gpt2_ablate.weights.tensor_files import Tensors, open_tensors

HEAD_DIM = 64  # of every released GPT-2
HEAD = "lm_head.weight"  # where a file has the head beside the embedding
CONSTANTS = r"h\.\d+\.attn\.(bias|masked_bias)|layers\.\d+\.self_attn\.rotary_emb\.inv_freq"  # that files hold beside weights


def load_pretrained(source: str | Path, download: bool = True) -> GPT2:
    """The model that `source` holds, in fp32 and in evaluation mode.

    Memory peaks at little more than the weights, if the file has no wider numbers: they are read one by one into the place
    where they stay. Dropout is a matter of training, not of weights: it is 0 unless a model.json of ours says otherwise.

    A flipped bit is refused where the file can be checked: what we wrote (folders of ours and exports) has checksums, as
    have PyTorch files that are zip files; a file in the cache of the hub is named by its sha256. In other files, as
    safetensors of others or PyTorch files from before torch 1.6, it cannot be told.

    Args:
        source: one of

            - a folder of ours (model.json and model.safetensors), as a finished run or `convert` leaves it;
            - a folder of transformers' (config.json and model.safetensors or pytorch_model.bin, whole or in shards) with a
              GPT-2, or with a GPTBigCode or Starcoder2 whose function one of our variants has;
            - OpenAI's own folder (checkpoint, model.ckpt.*, hparams.json), if TensorFlow is installed;
            - a .safetensors or PyTorch file. Without a config.json beside it, it has to be a GPT-2, whose sizes are told
              from the shapes; heads are taken to be 64 wide, as in all released models;
            - a name on the hub, as openai-community/gpt2-medium, or short gpt2, gpt2-medium, gpt2-large, gpt2-xl.
        download: False takes from the hub only what its cache on this machine has.

    Raises:
        UserError: nothing is there, more than one thing is there, it is broken, it is another architecture, or a tensor is
            missing, superfluous, of another shape, or not finite.
    """
    path = Path(source)
    if not os.path.exists(path):  # which, unlike Path.exists, takes names of any length
        return _load_file(hub.fetch(str(source), download))
    if path.is_dir():
        path = _choose(path)
    if path.name in (CONFIG, "model.safetensors") and (path.parent / CONFIG).exists():
        return load_model(path.parent)
    return _load_file(path)


def _choose(folder: Path) -> Path:
    """The one thing in a folder that can be loaded."""
    kinds = {name: folder / name for name in (CONFIG, *hub.FILES) if (folder / name).is_file()}
    if CONFIG in kinds and not (folder / "config.json").exists():
        kinds.pop("model.safetensors", None)  # the weights of our own form
    if (folder / "checkpoint").is_file():
        kinds["checkpoint"] = folder  # TensorFlow's
    if not kinds:
        raise UserError(
            f"{folder}: holds no weights; it needs model.json and model.safetensors, or config.json and one of "
            f"{', '.join(hub.FILES)}, or OpenAI's checkpoint and hparams.json; a file of another name can be given itself"
        )
    if len(kinds) > 1:
        raise UserError(f"{folder}: holds {' and '.join(kinds)}; give the path of the one that is meant")
    return next(iter(kinds.values()))


def _load_file(file: Path) -> GPT2:
    tensors = open_tensors(file)
    # Names without what a language model's class puts in front (transformer. or model.) -> names in the file.
    prefixes = "|".join(re.escape(architecture.prefix) for architecture in ARCHITECTURES.values())
    stored_as: dict[str, str] = {}
    for name in tensors.shapes:
        other = stored_as.setdefault(re.sub(f"^({prefixes})", "", name), name)
        if other != name:
            raise UserError(f"{tensors.where}: holds both {other} and {name}, two names of one weight; leave one of them out")
    # OpenAI's checkpoint is a folder, and has settings of another name.
    config_file = file / "hparams.json" if file.is_dir() else file.parent / "config.json"
    if config_file.exists():
        settings = read_json(config_file)
    else:
        config_file, settings = file, _infer_sizes(tensors, stored_as)
    kind = settings.get("model_type", "gpt2")
    architecture = ARCHITECTURES.get(str(kind))
    if architecture is None:
        known = ", ".join(ARCHITECTURES)
        raise UserError(f"{config_file}: model_type: {kind!r} is another architecture; it has to be one of {known}")
    for old, new in (("n_vocab", "vocab_size"), ("n_ctx", "n_positions")):  # OpenAI's names
        if old in settings:
            settings.setdefault(new, settings[old])
    try:
        for key in ("n_layer", "num_hidden_layers"):
            check_layers(settings.get(key), len(tensors.shapes))
        config = architecture.read(settings)
        model = empty_model(config)
    except (UserError, TypeError) as error:  # TypeError: words where numbers should be
        raise UserError(f"{config_file}: {error}") from error
    weights = {name: full for name, full in stored_as.items() if not re.fullmatch(CONSTANTS, name)}
    described_by = "GPT-2" if config_file == file else config_file.name
    return read_weights(
        model, tensors, weights, described_by, lambda name, weight: architecture.pieces(name, weight, config), HEAD
    )


def _infer_sizes(tensors: Tensors, stored_as: dict[str, str]) -> dict[str, Any]:
    """The config.json of a GPT-2, from the shapes of its tensors."""
    try:
        (vocab_size, n_embd), (n_positions, _) = (tensors.shapes[stored_as[name]] for name in ("wte.weight", "wpe.weight"))
    except (KeyError, ValueError) as error:
        raise UserError(
            f"{tensors.where}: holds {', '.join(list(stored_as)[:3]) or 'nothing'}, which is no GPT-2 (wte.weight, wpe.weight, "
            "h.0.ln_1.weight, ...); put the config.json beside it if it is another architecture"
        ) from error
    if n_embd % HEAD_DIM:
        raise UserError(
            f"{tensors.where}: wte.weight: the width {n_embd} is no multiple of {HEAD_DIM}, so the number of heads cannot be "
            "told; put the config.json beside the file"
        )
    layers = {int(number) for name in stored_as for number in re.findall(r"^h\.(\d+)\.", name)}
    return {"vocab_size": vocab_size, "n_positions": n_positions, "n_embd": n_embd, "n_head": n_embd // HEAD_DIM,
            "n_layer": max(layers, default=-1) + 1}  # fmt: skip
