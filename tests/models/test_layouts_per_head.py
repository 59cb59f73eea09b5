"""Three-dimensional attention weights: matrices per head, never convolutions, against
the model's own contractions."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from spectail.models.open import open_source

from .fused import build


def layers_of(source: Any) -> dict[str, Any]:
    return {layer.name: layer for layer in open_source(source).layers}


def test_xlnet_projects_head_by_head() -> None:
    pytest.importorskip("transformers")
    # The head size of 8 would be a kernel of eight positions.
    model: Any = build(
        "XLNetConfig", "XLNetModel", vocab_size=40, d_model=32, n_layer=1, n_head=4, d_inner=48
    )()
    attention = model.layer[0].rel_attn
    inputs, heads = torch.randn(32), torch.randn(4, 8)
    for source in (model, model.state_dict()):
        layers = layers_of(source)
        for name, kind in {"q": "q", "k": "k", "v": "v", "r": "linear"}.items():
            layer = layers[f"layer.0.rel_attn.{name}"]
            assert (layer.kind, layer.n_matrices, layer.rows, layer.cols) == (kind, 4, 8, 32)
            expected = torch.einsum("h,hnd->nd", inputs, getattr(attention, name).detach())
            torch.testing.assert_close(layer.read() @ inputs, expected)
        output = layers["layer.0.rel_attn.o"]
        assert (output.kind, output.n_matrices, output.rows, output.cols) == ("o", 4, 32, 8)
        expected = torch.einsum("nd,hnd->h", heads, attention.o.detach())
        torch.testing.assert_close(torch.einsum("nhd,nd->h", output.read(), heads), expected)
        assert not any(layer.kind == "conv" for layer in layers.values())


def test_funnel_projects_positions_head_by_head() -> None:
    pytest.importorskip("transformers")
    sizes = {
        "block_sizes": [1],
        "num_decoder_layers": 1,
        "d_model": 32,
        "n_head": 4,
        "d_head": 8,
        "d_inner": 48,
    }
    model: Any = build("FunnelConfig", "FunnelBaseModel", vocab_size=40, **sizes)()
    kernel = model.encoder.blocks[0][0].attention.r_kernel.detach()
    layer = next(x for name, x in layers_of(model).items() if name.endswith("r_kernel"))
    inputs = torch.randn(32)
    torch.testing.assert_close(layer.read() @ inputs, torch.einsum("d,dnh->nh", inputs, kernel))


@pytest.mark.parametrize(("heads", "lora", "size"), [(4, 16, 8), (128, 512, 128), (64, 40, 32)])
def test_split_latent_projections_of_llama_cpp(heads: int, lora: int, size: int) -> None:
    state = {
        "blk.0.attn_k_b.weight": torch.randn(heads, lora, size),
        "blk.0.attn_v_b.weight": torch.randn(heads, size, lora),
    }
    for kind in "kv":
        name = f"blk.0.attn_{kind}_b"
        layer = layers_of(state)[name]
        stored = state[f"{name}.weight"]
        assert (layer.kind, layer.n_matrices, layer.rows, layer.cols) == (kind, *stored.shape)
        assert torch.equal(layer.read(), stored)


def test_transformer_lens_stores_inputs_first() -> None:
    state = {f"blocks.0.attn.W_{kind}": torch.randn(4, 32, 8) for kind in "QKV"}
    state["blocks.0.attn.W_O"] = torch.randn(4, 8, 32)
    layers = layers_of(state)
    found = {
        name[-1]: (layer.kind, layer.n_matrices, layer.rows, layer.cols)
        for name, layer in layers.items()
    }
    assert found == {**{k: (k.lower(), 4, 8, 32) for k in "QKV"}, "O": ("o", 4, 32, 8)}
    assert torch.equal(layers["blocks.0.attn.W_K"].read()[2], state["blocks.0.attn.W_K"][2].T)


def test_what_is_not_called_weight_is_no_convolution() -> None:
    state = {
        "rg_lru.recurrent_gate_weight": torch.randn(4, 8, 8),
        "codebooks_head.weight": torch.randn(40, 16, 20),
        "conv1d.weight": torch.randn(40, 16, 4),
    }
    layers = layers_of(state)
    assert layers["rg_lru.recurrent_gate_weight[3]"].n_matrices == 1
    assert layers["codebooks_head[39]"].n_matrices == 1
    assert (layers["conv1d"].kind, layers["conv1d"].n_matrices) == ("conv", 4)
