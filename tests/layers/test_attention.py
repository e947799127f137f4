"""Oracles: the definition, vector by vector; and torch's own attention."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from torchrec_models.layers.attention import InteractingLayer
from torchrec_models.layers.dropout import keep_mask
from torchrec_models.layers.small_attention import MAX_VECTORS, small_attention

OPTIONS = {
    "paper": {},
    "authors": {"qkv_relu": True, "qkv_bias": True, "scale": True, "layer_norm": "post_relu", "residual": "project"},
    "fuxictr": {"scale": True, "layer_norm": "pre_relu", "residual": "project"},
    "no residual": {"residual": "none"},
}


def make_layer(options: dict, *, in_width: int = 6, num_heads: int = 2) -> InteractingLayer:
    torch.manual_seed(0)
    layer = InteractingLayer(in_width, 6, num_heads=num_heads, **options).double()
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.normal_()
    return layer


def by_definition(layer: InteractingLayer, vectors_NE: Tensor) -> Tensor:
    """One row, eq. 5-8 of the paper, head by head and vector by vector."""
    maps = layer.projections.weight.split(6)
    biases = layer.projections.bias.split(6) if layer.projections.bias is not None else [torch.zeros(6)] * len(maps)
    project = [[m @ e + b for e in vectors_NE] for m, b in zip(maps, biases)]
    if layer.qkv_relu:
        project = [[v.relu() for v in vectors] for vectors in project]
    query, key, value = project[:3]
    rows = []
    for m in range(len(vectors_NE)):
        heads = []
        for h in range(layer.num_heads):
            part = slice(h * layer.head_width, (h + 1) * layer.head_width)
            weights = torch.stack([layer.scale * (query[m][part] @ k[part]) for k in key]).exp()
            heads.append(sum(w * v[part] for w, v in zip(weights / weights.sum(), value)))
        out = torch.cat(heads)
        if layer.residual != "none":
            out = out + (project[3][m] if layer.residual == "project" else vectors_NE[m])
        rows.append(layer.norm_after(layer.norm_before(out).relu()))
    return torch.stack(rows)


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("num_vectors", [1, 5, MAX_VECTORS + 1])
def test_interacting_layer_is_its_definition(options, num_vectors):
    layer, x_BNE = make_layer(options), torch.randn(2, num_vectors, 6, dtype=torch.float64)
    torch.testing.assert_close(layer(x_BNE), torch.stack([by_definition(layer, x_NE) for x_NE in x_BNE]), atol=1e-12, rtol=0)


@pytest.mark.parametrize("num_vectors", [4, MAX_VECTORS + 1])
def test_groups_do_not_see_each_other(num_vectors):
    layer, x_BGNE = make_layer({}), torch.randn(2, 3, num_vectors, 6, dtype=torch.float64)
    torch.testing.assert_close(layer(x_BGNE), torch.stack([layer(x_BNE) for x_BNE in x_BGNE.unbind(1)], dim=1))


def test_widths_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="multiple of num_heads, got 6 and 4"):
        make_layer({}, num_heads=4)
    with pytest.raises(ValueError, match="equal to the width of its input \\(5\\), got 6"):
        make_layer({"residual": "identity"}, in_width=5)


def torch_attention(qkv_BNC: Tensor, mask: Tensor | float = 1.0) -> Tensor:
    """Two heads, scale 0.7; `mask` multiplies the attention weights."""
    query, key, value = (x.unflatten(2, (2, -1)).transpose(1, 2) for x in qkv_BNC.chunk(3, dim=2))
    if isinstance(mask, float):
        out = F.scaled_dot_product_attention(query, key, value, scale=0.7)
    else:
        out = ((0.7 * query @ key.mT).softmax(dim=3) * mask) @ value
    return out.transpose(1, 2).flatten(2)


@pytest.mark.parametrize("dropout", [0.0, 0.4])
@pytest.mark.parametrize(("num_rows", "compiled"), [(0, False), (3, False), (3, True)])
def test_small_attention_equals_torchs_in_value_and_gradient(dropout, num_rows, compiled):
    attend = torch.compile(small_attention, backend="aot_eager", fullgraph=True) if compiled else small_attention
    qkv_BNC = torch.randn(num_rows, 5, 24, dtype=torch.float64, requires_grad=True)
    upstream_BNA = torch.randn(num_rows, 5, 8, dtype=torch.float64)
    torch.manual_seed(3)
    found_BNA = attend(qkv_BNC, num_heads=2, scale=0.7, dropout=dropout)
    (found_grad,) = torch.autograd.grad(found_BNA, qkv_BNC, upstream_BNA)
    mask: Tensor | float = 1.0
    if dropout:
        torch.manual_seed(3)
        mask = keep_mask(torch.empty(num_rows * 2, 5, 5), dropout).unflatten(0, (num_rows, 2)).double() / (1 - dropout)
    expected_BNA = torch_attention(qkv_BNC, mask)
    (expected_grad,) = torch.autograd.grad(expected_BNA, qkv_BNC, upstream_BNA)
    torch.testing.assert_close(found_BNA, expected_BNA, atol=1e-12, rtol=0)
    torch.testing.assert_close(found_grad, expected_grad, atol=1e-12, rtol=0)


def test_scores_of_any_size_stay_finite():
    qkv_BNC = (1e4 * torch.randn(3, 5, 24)).requires_grad_()
    out_BNA = small_attention(qkv_BNC, num_heads=2, scale=1.0, dropout=0.0)
    (grad,) = torch.autograd.grad(out_BNA.sum(), qkv_BNC)
    assert out_BNA.isfinite().all() and grad.isfinite().all()
