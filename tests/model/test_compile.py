"""torch.compile makes the same model, whatever its layers see. Graphs only: no compiler is run."""

import pytest
import torch

from .test_long import PATTERNS
from .tiny import close, tiny_model, tokens


def test_nothing_breaks_the_graph_where_documents_are_kept_apart():
    torch.compiler.reset()
    model, text = tiny_model(positions="rotary"), tokens(2, 32)
    documents = (torch.arange(32) > 11).long().expand(2, -1)
    compiled = torch.compile(model, dynamic=False, backend="aot_eager", fullgraph=True)
    close(compiled(text, documents=documents), model(text, documents=documents), 1e-5)


@pytest.mark.parametrize(
    ("pattern", "precision"), [("none", "fp32"), ("global", "fp32"), ("alternating", "bf16"), ("all", "bf16")]
)
def test_a_compiled_model_is_the_same(pattern, precision):
    torch.compiler.reset()
    model, text = tiny_model(positions="rotary", n_kv_head=2, **PATTERNS[pattern]), tokens(2, 32)
    compiled = torch.compile(model, dynamic=False, backend="aot_eager")
    with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
        expected, found = model(text), compiled(text)
    close(found, expected, 1e-5 if precision == "fp32" else 0.1)
    parameters = list(model.parameters())
    gradients = [torch.autograd.grad(y.float().square().sum(), parameters) for y in (found, expected)]
    for ours, theirs in zip(*gradients, strict=True):
        assert (ours - theirs).norm() <= (1e-4 if precision == "fp32" else 0.05) * theirs.norm()
