"""What the tests of this room share: small models of ours and of transformers in which every weight matters."""

import pytest
import torch
import transformers

from gpt2_ablate.model import GPT2, GPT2Config

V = 97


def tiny_model(seed=0, **changes):
    """2 layers, 2 heads of 64; all weights random, those that start at zero or one too."""
    return randomised(GPT2(GPT2Config(**{**dict(vocab_size=V, block_size=32, n_layer=2, n_head=2, n_embd=128), **changes})), seed)


def randomised(model, seed=0, std=0.2):
    """Norms stay near one and biases small, or the last bias alone would choose every token."""
    generator = torch.Generator().manual_seed(seed)
    for name, p in model.named_parameters():
        noise = torch.randn(p.shape, generator=generator)
        p.data.copy_(std * noise if p.ndim > 1 else name.endswith("weight") + 0.1 * noise)
    return model.eval()


def stock_gpt2(**changes):
    """transformers' GPT-2 of the same sizes."""
    sizes = dict(vocab_size=V, n_positions=32, n_layer=2, n_head=2, n_embd=128, bos_token_id=0, eos_token_id=0)
    return randomised(transformers.GPT2LMHeadModel(transformers.GPT2Config(**{**sizes, **changes})))


def stock_bigcode():
    sizes = dict(vocab_size=V, n_positions=32, n_layer=2, n_head=2, n_embd=128, bos_token_id=0, eos_token_id=0)
    return randomised(transformers.GPTBigCodeForCausalLM(transformers.GPTBigCodeConfig(**sizes, multi_query=True)))


def stock_starcoder2():
    return randomised(
        transformers.Starcoder2ForCausalLM(
            transformers.Starcoder2Config(
                vocab_size=V, max_position_embeddings=32, hidden_size=32, intermediate_size=128, num_hidden_layers=2,
                num_attention_heads=4, num_key_value_heads=2, sliding_window=6, bos_token_id=0, eos_token_id=0,
                rope_parameters={"rope_type": "default", "rope_theta": 10_000.0},
            )
        )
    )  # fmt: skip


def tokens(B=2, T=20, vocabulary=V):
    return torch.randint(vocabulary, (B, T), generator=torch.Generator().manual_seed(0))


@torch.no_grad()
def assert_same_function(ours, theirs, tolerance=1e-4):
    text = tokens()
    torch.testing.assert_close(ours(text), theirs(text).logits, rtol=tolerance, atol=tolerance)


def same(one, other):
    """The same tensors, bit for bit."""
    weights = dict(one.named_parameters()), dict(other.named_parameters())
    return weights[0].keys() == weights[1].keys() and all(torch.equal(p, weights[1][name]) for name, p in weights[0].items())


def flip(file, place=-1000):
    """Another bit in one byte of a file: by default in the numbers of its last tensors."""
    data = bytearray(file.read_bytes())
    data[place] ^= 1
    file.write_bytes(data)


each_stock = pytest.mark.parametrize("stock", [stock_gpt2, stock_bigcode, stock_starcoder2], ids=lambda f: f.__name__)
