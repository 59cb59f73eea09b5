"""Adapters in the spellings of programs other than peft; every expected change is written out
here."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from spectail.models.open import open_source

GENERATOR = torch.Generator().manual_seed(7)


def rand(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=GENERATOR)


A, B = rand(3, 6), rand(8, 3)  # rank 3, 6 inputs, 8 outputs
SQUARE_A, SQUARE_B = rand(3, 8), rand(8, 3)
CONV_A, CONV_B, MID = rand(2, 4, 3, 3), rand(5, 2, 1, 1), rand(2, 2, 3, 3)
POINT_A = rand(2, 4, 1, 1)
W1A, W1B, W2A, W2B = rand(8, 3), rand(3, 6), rand(8, 3), rand(3, 6)
T1, T2, U1A, U1B, U2A, U2B = (
    rand(2, 2, 3, 3),
    rand(2, 2, 3, 3),
    rand(2, 5),
    rand(2, 4),
    rand(2, 5),
    rand(2, 4),
)
K1, K2, K2A, K2B = rand(2, 3), rand(4, 2), rand(4, 3), rand(3, 2)
KC = rand(4, 2, 3, 3)
EXPERT_A, EXPERT_B = rand(4, 3, 6), rand(4, 8, 3)
MAGNITUDE, BASE = rand(8).abs() + 1, rand(8, 6)


def conv(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    return torch.stack([b[:, :, 0, 0] @ a[:, :, i, j] for i in range(3) for j in range(3)])


def tucker(core: Any, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Sum over both ranks, one kernel position after the other."""
    return torch.stack([a.T @ core[:, :, i, j] @ b for i in range(3) for j in range(3)])


def decomposed(change: torch.Tensor) -> torch.Tensor:
    """DoRA, row by row."""
    rows = []
    for magnitude, old, new in zip(
        MAGNITUDE.double(), BASE.double(), (BASE + change).double(), strict=True
    ):
        rows.append(magnitude * new / new.norm() - old)
    return torch.stack(rows)


@dataclass(frozen=True)
class Case:
    """What a file holds, what lies beside it, and the changes of the weights that it makes."""

    state: dict[str, torch.Tensor]
    changes: dict[str, torch.Tensor]
    config: dict[str, Any] | None = None
    note: str = ""
    notes: tuple[str, ...] = ()
    others: tuple[str, ...] = field(default=())


UNET = "lora_unet_down_blocks_0_attentions_0_proj_in"
PEFT = "base_model.model.layers.0.q_proj"
MLX = "model.layers.0.self_attn.q_proj"
RANK_3 = {"r": 3, "lora_alpha": 6}
SCALE_20 = {"lora_parameters": {"rank": 3, "scale": 20.0}}
CASES: dict[str, Case] = {
    "kohya": Case(
        {
            f"{UNET}.lora_down.weight": A,
            f"{UNET}.lora_up.weight": B,
            f"{UNET}.alpha": torch.tensor(1.5),
        },
        {UNET: B @ A * 0.5},
    ),
    "kohya, alpha an integer": Case(
        {
            f"{UNET}.lora_down.weight": A,
            f"{UNET}.lora_up.weight": B,
            f"{UNET}.alpha": torch.tensor(6),
        },
        {UNET: B @ A * 2},
    ),
    "kohya without alpha": Case(
        {f"{UNET}.lora_down.weight": A, f"{UNET}.lora_up.weight": B}, {UNET: B @ A}
    ),
    "kohya convolution": Case(
        {
            f"{UNET}.lora_down.weight": CONV_A,
            f"{UNET}.lora_up.weight": CONV_B,
            f"{UNET}.alpha": torch.tensor(1.0),
        },
        {UNET: conv(CONV_A, CONV_B) * 0.5},
    ),
    "kohya 1 x 1 convolution": Case(
        {
            f"{UNET}.lora_down.weight": POINT_A,
            f"{UNET}.lora_up.weight": CONV_B,
            f"{UNET}.alpha": torch.tensor(1.0),
        },
        {UNET: (CONV_B[:, :, 0, 0] @ POINT_A[:, :, 0, 0] * 0.5)[None]},
    ),
    "kohya convolution with a core": Case(
        {
            f"{UNET}.lora_down.weight": POINT_A,
            f"{UNET}.lora_mid.weight": MID,
            f"{UNET}.lora_up.weight": CONV_B,
            f"{UNET}.alpha": torch.tensor(4.0),
        },
        {UNET: tucker(MID, CONV_B[:, :, 0, 0].T, POINT_A[:, :, 0, 0]) * 2},
    ),
    "lycoris loha": Case(
        {
            f"{UNET}.hada_w1_a": W1A,
            f"{UNET}.hada_w1_b": W1B,
            f"{UNET}.hada_w2_a": W2A,
            f"{UNET}.hada_w2_b": W2B,
            f"{UNET}.alpha": torch.tensor(6.0),
        },
        {UNET: (W1A @ W1B) * (W2A @ W2B) * 2},
    ),
    "lycoris loha with cores": Case(
        {
            f"{UNET}.hada_t1": T1,
            f"{UNET}.hada_w1_a": U1A,
            f"{UNET}.hada_w1_b": U1B,
            f"{UNET}.hada_t2": T2,
            f"{UNET}.hada_w2_a": U2A,
            f"{UNET}.hada_w2_b": U2B,
            f"{UNET}.alpha": torch.tensor(1.0),
        },
        {UNET: tucker(T1, U1A, U1B) * tucker(T2, U2A, U2B) * 0.5},
    ),
    "lycoris lokr, both whole: alpha is not used": Case(
        {f"{UNET}.lokr_w1": K1, f"{UNET}.lokr_w2": K2, f"{UNET}.alpha": torch.tensor(9.0)},
        {UNET: torch.cat([torch.cat([a * K2 for a in row], 1) for row in K1])},
    ),
    "lycoris lokr, one in factors": Case(
        {
            f"{UNET}.lokr_w1": K1,
            f"{UNET}.lokr_w2_a": K2A,
            f"{UNET}.lokr_w2_b": K2B,
            f"{UNET}.alpha": torch.tensor(6.0),
        },
        {UNET: torch.cat([torch.cat([a * (K2A @ K2B) for a in row], 1) for row in K1]) * 2},
    ),
    "lycoris lokr of a convolution": Case(
        {f"{UNET}.lokr_w1": K1, f"{UNET}.lokr_w2": KC},
        {
            UNET: torch.stack(
                [
                    torch.cat([torch.cat([a * KC[:, :, i, j] for a in row], 1) for row in K1])
                    for i in range(3)
                    for j in range(3)
                ]
            )
        },
    ),
    "lycoris full difference": Case(
        {f"{UNET}.diff": BASE, f"{UNET}.diff_b": MAGNITUDE, "lora_te_norm.w_norm": MAGNITUDE},
        {UNET: BASE},
    ),
    "kohya, text encoders": Case(
        {
            f"lora_te{i}_text_model_encoder_layers_0_mlp_fc1.{piece}": value
            for i in (1, 2)
            for piece, value in {
                "lora_down.weight": A,
                "lora_up.weight": B,
                "alpha": torch.tensor(3.0),
            }.items()
        },
        {f"lora_te{i}_text_model_encoder_layers_0_mlp_fc1": B @ A for i in (1, 2)},
    ),
    "kohya, dora": Case(
        {
            f"{UNET}.lora_down.weight": A,
            f"{UNET}.lora_up.weight": B,
            f"{UNET}.dora_scale": MAGNITUDE[:, None],
            f"{UNET}.alpha": torch.tensor(3.0),
        },
        {UNET: B @ A},
        note="magnitude",
    ),
    "names of the model with alpha": Case(
        {
            "diffusion_model.blocks.0.q.lora_down.weight": A,
            "diffusion_model.blocks.0.q.lora_up.weight": B,
            "diffusion_model.blocks.0.q.alpha": torch.tensor(1.5),
        },
        {"diffusion_model.blocks.0.q": B @ A * 0.5},
    ),
    "factors called A and B with alpha": Case(
        {
            "diffusion_model.blocks.0.q.lora_A.weight": A,
            "diffusion_model.blocks.0.q.lora_B.weight": B,
            "diffusion_model.blocks.0.q.alpha": torch.tensor(1.5),
        },
        {"diffusion_model.blocks.0.q": B @ A * 0.5},
    ),
    "diffusers, attention processors": Case(
        {
            f"unet.mid_block.attn1.processor.to_{name}_lora.{side}.weight": value
            for name in ("q", "out")
            for side, value in (("down", A), ("up", B))
        },
        {"unet.mid_block.attn1.to_q": B @ A, "unet.mid_block.attn1.to_out.0": B @ A},
    ),
    "diffusers without processor": Case(
        {"mid_block.attn1.to_q_lora.down.weight": A, "mid_block.attn1.to_q_lora.up.weight": B},
        {"mid_block.attn1.to_q": B @ A},
    ),
    "diffusers, factors below the layer": Case(
        {"unet.attn1.to_q.lora.down.weight": A, "unet.attn1.to_q.lora.up.weight": B},
        {"unet.attn1.to_q": B @ A},
    ),
    "diffusers, text encoder": Case(
        {
            "text_encoder.layers.0.self_attn.q_proj.lora_linear_layer.down.weight": A,
            "text_encoder.layers.0.self_attn.q_proj.lora_linear_layer.up.weight": B,
            "text_encoder.layers.1.self_attn.to_out_lora.down.weight": A,
            "text_encoder.layers.1.self_attn.to_out_lora.up.weight": B,
        },
        {
            "text_encoder.layers.0.self_attn.q_proj": B @ A,
            "text_encoder.layers.1.self_attn.out_proj": B @ A,
        },
    ),
    "xlabs": Case(
        {
            f"double_blocks.0.processor.{name}.{side}.weight": value
            for name in ("qkv_lora1", "proj_lora2")
            for side, value in (("down", A), ("up", B))
        },
        {"double_blocks.0.img_attn.qkv": B @ A, "double_blocks.0.txt_attn.proj": B @ A},
    ),
    "xlabs, single blocks": Case(
        {
            "single_blocks.3.processor.qkv_lora.down.weight": A,
            "single_blocks.3.processor.qkv_lora.up.weight": B,
        },
        {"single_blocks.3.qkv": B @ A},
    ),
    "mlx": Case({f"{MLX}.lora_a": A.T, f"{MLX}.lora_b": B.T}, {MLX: B @ A * 20}, SCALE_20),
    "mlx, square": Case(
        {f"{MLX}.lora_a": SQUARE_A.T, f"{MLX}.lora_b": SQUARE_B.T},
        {MLX: SQUARE_B @ SQUARE_A * 20},
        SCALE_20,
    ),
    "mlx of 2024, with alpha": Case(
        {f"{MLX}.lora_a": A.T, f"{MLX}.lora_b": B.T},
        {MLX: B @ A * 10 * 16 / 3},
        {"lora_parameters": {"rank": 3, "alpha": 16.0, "scale": 10.0}},
    ),
    "mlx embedding": Case(
        {"model.embed_tokens.lora_a": B, "model.embed_tokens.lora_b": A},
        {"model.embed_tokens": B @ A * 20},
        SCALE_20,
    ),
    "mlx experts": Case(
        {
            "model.layers.0.mlp.switch_mlp.up_proj.lora_a": EXPERT_A,
            "model.layers.0.mlp.switch_mlp.up_proj.lora_b": EXPERT_B,
        },
        {
            f"model.layers.0.mlp.switch_mlp.up_proj[{i}]": EXPERT_B[i] @ EXPERT_A[i] * 20
            for i in range(4)
        },
        SCALE_20,
    ),
    "mlx, dora": Case(
        {f"{MLX}.lora_a": A.T, f"{MLX}.lora_b": B.T, f"{MLX}.m": MAGNITUDE},
        {MLX: B @ A * 20},
        SCALE_20,
        "magnitude",
    ),
    "torchtune": Case(
        {"layers.0.attn.q_proj.lora_a.weight": A, "layers.0.attn.q_proj.lora_b.weight": B},
        {"layers.0.attn.q_proj": B @ A * 2},
        RANK_3,
    ),
    "torchtune, square": Case(
        {
            "layers.0.attn.q_proj.lora_a.weight": SQUARE_A,
            "layers.0.attn.q_proj.lora_b.weight": SQUARE_B,
        },
        {"layers.0.attn.q_proj": SQUARE_B @ SQUARE_A * 2},
        RANK_3,
    ),
    "torchtune, dora in the model's own file": Case(
        {
            "layers.0.attn.q_proj.weight": BASE,
            "layers.0.attn.q_proj.lora_a.weight": A,
            "layers.0.attn.q_proj.lora_b.weight": B,
            "layers.0.attn.q_proj.magnitude": MAGNITUDE,
        },
        {"layers.0.attn.q_proj": decomposed(B @ A * 2)},
        RANK_3,
        others=("layers.0.attn.q_proj",),
    ),
    "peft, dora beside the base weight": Case(
        {
            f"{PEFT}.base_layer.weight": BASE,
            f"{PEFT}.lora_A.default.weight": A,
            f"{PEFT}.lora_B.default.weight": B,
            f"{PEFT}.lora_magnitude_vector.default.weight": MAGNITUDE,
        },
        {"layers.0.q_proj": decomposed(B @ A * 2)},
        RANK_3,
        others=("layers.0.q_proj",),
    ),
    "peft, one matrix saved whole": Case(
        {
            f"{PEFT}.lora_A.weight": A,
            f"{PEFT}.lora_B.weight": B,
            "base_model.model.lm_head.weight": BASE,
        },
        {"layers.0.q_proj": B @ A * 2},
        RANK_3,
        others=("lm_head",),
    ),
    "lycoris outside of diffusion": Case(
        {"lycoris_blocks_0_q.lora_down.weight": A, "lycoris_blocks_0_q.lora_up.weight": B},
        {"lycoris_blocks_0_q": B @ A},
    ),
    "llama.cpp": Case(
        {"blk.0.attn_q.weight.lora_a": SQUARE_A, "blk.0.attn_q.weight.lora_b": SQUARE_B},
        {"blk.0.attn_q": SQUARE_B @ SQUARE_A},
        notes=("scaling",),
    ),
    "loralib": Case(
        {"q_proj.lora_A": A, "q_proj.lora_B": B}, {"q_proj": B @ A}, notes=("scaling",)
    ),
}
NAMES = (
    "adapter_model.safetensors",
    "adapters.safetensors",
    "adapter.safetensors",
    "pytorch_lora_weights.safetensors",
)


@pytest.mark.parametrize("name", CASES)
def test_change_of_every_weight(name: str, tmp_path: Path) -> None:
    case = CASES[name]
    file = tmp_path / NAMES[list(CASES).index(name) % len(NAMES)]
    save_file({key: value.contiguous().clone() for key, value in case.state.items()}, file)
    if case.config is not None:
        (tmp_path / "adapter_config.json").write_text(json.dumps(case.config))
    source = open_source(tmp_path)
    rows = {layer.name: layer for layer in source.layers if layer.kind == "lora"}
    assert set(rows) == {f"{target}.lora" for target in case.changes}
    assert {layer.name for layer in source.layers} - set(rows) == set(case.others)
    for target, change in case.changes.items():
        row, truth = rows[f"{target}.lora"], change if change.ndim > 2 else change[None]
        assert row.problem is None
        assert case.note in row.note
        assert bool(case.note) == bool(row.note)
        assert (row.n_matrices, row.rows, row.cols, row.numel) == (*truth.shape, truth.numel())
        torch.testing.assert_close(row.read(), truth.double(), rtol=1e-5, atol=1e-5)
    assert len(source.notes) == len(case.notes)
    assert all(word in note for word, note in zip(case.notes, source.notes, strict=True))


def test_the_configuration_that_diffusers_puts_into_the_header(tmp_path: Path) -> None:
    targets = {"unet.attn1.to_q": 2.0, "unet.attn1.to_k": 0.5, "text_encoder.q_proj": 1.0}
    state = {
        f"{t}.lora_{side}.weight": v.clone() for t in targets for side, v in (("A", A), ("B", B))
    }
    flat = {"unet.r": 3, "unet.lora_alpha": 6, "unet.alpha_pattern": {"to_k": 1.5}}
    flat |= {"text_encoder.r": 3, "text_encoder.lora_alpha": 3}
    metadata = {"format": "pt", "lora_adapter_metadata": json.dumps(flat)}
    save_file(state, tmp_path / "pytorch_lora_weights.safetensors", metadata=metadata)
    source = open_source(tmp_path)
    assert source.notes == ()
    rows = {layer.name: layer for layer in source.layers}
    for target, scale in targets.items():
        torch.testing.assert_close(rows[f"{target}.lora"].read()[0].float(), B @ A * scale)


@pytest.mark.parametrize(
    "setting", [{"use_qalora": True}, {"kasa_config": {"beta": 1}}, {"velora_config": {"scale": 1}}]
)
def test_variants_of_lora_whose_change_is_another_are_failed_rows(
    setting: dict[str, bool | dict[str, int]], tmp_path: Path
) -> None:
    save_file(
        {f"{PEFT}.lora_A.weight": A, f"{PEFT}.lora_B.weight": B},
        tmp_path / "adapter_model.safetensors",
    )
    (tmp_path / "adapter_config.json").write_text(
        json.dumps(RANK_3 | {"peft_type": "LORA"} | setting)
    )
    (row,) = open_source(tmp_path).layers
    assert next(iter(setting)) in str(row.problem)


def test_a_configuration_beside_a_whole_model_changes_nothing(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text(json.dumps(RANK_3 | {"peft_type": "LORA"}))
    torch.save(
        {"layers.0.experts.gate_up_proj": torch.randn(2, 8, 4)}, tmp_path / "consolidated.00.pth"
    )
    assert not any(layer.problem for layer in open_source(tmp_path).layers)


@pytest.mark.parametrize("architecture", ["llama", "unheard-of"])
def test_an_adapter_of_llama_cpp(architecture: str, tmp_path: Path) -> None:
    gguf = pytest.importorskip("gguf")
    writer = gguf.GGUFWriter(tmp_path / "lora.gguf", architecture)
    writer.add_string("general.type", "adapter")
    writer.add_float32("adapter.lora.alpha", 1.5)
    writer.add_uint32(f"{architecture}.attention.head_count", 2)
    # llama.cpp reorders the rows of a head: the two halves of each of ours alternate there.
    reordered = SQUARE_B.reshape(2, 2, 2, 3).swapaxes(1, 2).reshape(8, 3).contiguous()
    for name, b in {"attn_q": reordered, "ffn_up": SQUARE_B}.items():
        writer.add_tensor(f"blk.1.{name}.weight.lora_a", SQUARE_A.numpy())
        writer.add_tensor(f"blk.1.{name}.weight.lora_b", b.numpy())
    for step in (
        writer.write_header_to_file,
        writer.write_kv_data_to_file,
        writer.write_tensors_to_file,
        writer.close,
    ):
        step()
    source = open_source(tmp_path / "lora.gguf")
    rows = {layer.name: layer.read()[0].float() for layer in source.layers}
    known = architecture == "llama"
    names = (
        ["layers.1.self_attn.q_proj", "layers.1.mlp.up_proj"]
        if known
        else ["blk.1.attn_q", "blk.1.ffn_up"]
    )
    prefix = "model." if known else ""
    assert set(rows) == {f"{prefix}{name}.lora" for name in names}
    torch.testing.assert_close(rows[f"{prefix}{names[1]}.lora"], SQUARE_B @ SQUARE_A * 0.5)
    up = SQUARE_B if known else reordered
    torch.testing.assert_close(rows[f"{prefix}{names[0]}.lora"], up @ SQUARE_A * 0.5)


UNKNOWN: dict[str, tuple[dict[str, torch.Tensor], str]] = {
    "lycoris oft": (
        {f"{UNET}.oft_blocks": rand(2, 4, 4), f"{UNET}.alpha": torch.tensor(1.0)},
        "OFT",
    ),
    "a new form of lycoris": ({f"{UNET}.nova_x": rand(4, 4)}, "nova_x"),
    "a new form of peft": ({f"{PEFT}.nova_A": rand(3, 6), f"{PEFT}.nova_B": rand(8, 3)}, "NOVA"),
    "LoRA-XS": (
        {
            f"{PEFT}.lora_A.weight": A,
            f"{PEFT}.lora_B.weight": B,
            f"{PEFT}.default_lora_latent_mapping.weight": rand(3, 3),
        },
        "LoRA with default_lora_latent_mapping",
    ),
    "a vector between both factors": (
        {f"{PEFT}.lora_A.weight": A, f"{PEFT}.lora_B.weight": B, f"{PEFT}.lora_core": rand(3)},
        "LoRA with lora_core",
    ),
    "bone": ({f"{PEFT}.bone_block": rand(4, 6)}, "Bone"),
}


@pytest.mark.parametrize("name", UNKNOWN)
def test_unknown_forms_are_failed_rows(name: str, tmp_path: Path) -> None:
    state, word = UNKNOWN[name]
    save_file(state, tmp_path / "adapter_model.safetensors")
    (tmp_path / "adapter_config.json").write_text('{"peft_type": "NOVA", "r": 3}')
    (row,) = open_source(tmp_path).layers
    assert word in str(row.problem)
    assert "live model" in str(row.problem)
    assert row.kind == "lora"


def test_prompts_are_no_weights(tmp_path: Path) -> None:
    state = {
        "prompt_embeddings": rand(5, 8),
        "base_model.model.layers.0.self_attn.adaption_prompt": rand(1, 5, 8),
    }
    save_file(state, tmp_path / "adapter_model.safetensors")
    layers = open_source(tmp_path).layers
    assert len(layers) == 2
    assert all("prompts are inputs" in str(layer.no_weight) for layer in layers)


def test_names_that_only_look_like_pieces_are_layers() -> None:
    state = {
        "net.m.0.weight": BASE,
        "m.weight": BASE,
        "road_net.weight": BASE,
        "magnitude.weight": BASE,
        "poly_x": BASE,
    }
    source = open_source({name: value.clone() for name, value in state.items()})
    assert not any(layer.kind == "lora" for layer in source.layers)
    assert len(source.layers) == len(state)


@pytest.mark.parametrize(
    ("whole", "adapter"),
    [
        ("pytorch_model.bin", "adapter_model.safetensors"),
        ("model.safetensors", "adapter_model.safetensors"),
        ("model.safetensors", "adapters.safetensors"),
        ("pytorch_model.bin", "adapter.safetensors"),
        ("model.safetensors", "pytorch_lora_weights.safetensors"),
        ("model.safetensors", "adapter_model.bin"),
        ("diffusion_pytorch_model.safetensors", "pytorch_lora_weights.safetensors"),
        ("consolidated.00.pth", "adapter_0.pt"),
    ],
)
def test_a_whole_model_is_opened_before_an_adapter_beside_it(
    whole: str, adapter: str, tmp_path: Path
) -> None:
    def save(state: Any, name: str) -> None:
        write: Callable[..., Any] = save_file if name.endswith(".safetensors") else torch.save
        write(state, tmp_path / name)

    save({f"{PEFT}.lora_A.weight": A, f"{PEFT}.lora_B.weight": B}, adapter)
    assert [layer.name for layer in open_source(tmp_path).layers] == ["layers.0.q_proj.lora"]
    save({"layers.0.q_proj.weight": BASE}, whole)
    assert [layer.name for layer in open_source(tmp_path).layers] == ["layers.0.q_proj"]
    assert [layer.name for layer in open_source(tmp_path / adapter).layers] == [
        "layers.0.q_proj.lora"
    ]


def test_the_last_of_several_steps_of_an_adapter_is_opened(tmp_path: Path) -> None:
    for i, name in enumerate(("adapters.safetensors", "0000100_adapters.safetensors")):
        save_file(
            {f"{MLX}.lora_a": A.T.contiguous() * (i + 1), f"{MLX}.lora_b": B.T.contiguous()},
            tmp_path / name,
        )
    (row,) = open_source(tmp_path).layers
    torch.testing.assert_close(row.read()[0].float(), B @ A)
