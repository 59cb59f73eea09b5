"""compare: a file beside the live model, where transformers calls the layers otherwise in each."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import spectail as st
from spectail.core.spec import Spec

transformers = pytest.importorskip("transformers")
SIZES = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
}


def test_a_file_and_its_live_model_are_the_same_layers(tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = transformers.ViTConfig(image_size=8, patch_size=4, **SIZES)
    model = transformers.ViTForImageClassification(config).eval()
    model.save_pretrained(tmp_path)
    file, live = (st.analyze(source, spec=Spec(window=16)) for source in (tmp_path, model))
    for one, other in ((file, live), (live, file)):
        table = st.compare(one, other).table
        blocks = table[table["block"].notna()]
        assert set(blocks["status"]) == {"paired"}
        assert len(blocks) == 12
        assert (blocks["alpha_change"] == 0).all()
        assert not table["name"].str.contains("cls_token|position_embeddings").any()
    names = dict(zip(blocks["name_a"], blocks["name_b"], strict=True))
    assert names["vit.layers.1.attention.o_proj"] == "vit.encoder.layer.1.attention.output.dense"


def test_a_layer_with_two_possible_partners_says_so() -> None:
    first = ("layers.0.fc1", "x.layers.1.fc1")
    second = ("left.layers.0.fc1", "right.layers.0.fc1", "x.layers.1.fc1")
    runs = [
        st.analyze({f"{name}.weight": torch.randn(64, 64) for name in names}, spec=Spec(window=16))
        for names in (first, second)
    ]
    table = st.compare(*runs).table.set_index("name_a")
    row = table.loc["layers.0.fc1"]
    assert row["status"] == "only in A"
    assert (
        row["reason"]
        == "several layers of B could be this one: left.layers.0.fc1, right.layers.0.fc1"
    )
