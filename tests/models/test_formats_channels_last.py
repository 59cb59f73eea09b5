"""Flax and Keras: kernels turned into torch's orientation, checked by what the layers compute."""

from __future__ import annotations

import io
import json
import zipfile
from pathlib import Path
from typing import Any

import h5py
import msgpack
import numpy as np
import pytest
import torch
from safetensors.numpy import save_file
from torch.nn import functional

from spectail.errors import SourceError
from spectail.models.open import open_source

from .format_cases import packed_array


def random(*shape: int) -> Any:
    return np.random.default_rng(sum(shape)).standard_normal(shape, np.float32)


def flax(path: Path | None, tree: Any, **options: Any) -> Any:
    """Write nested dicts of arrays as flax.serialization documents it."""
    packed = {
        key: flax(None, value) if isinstance(value, dict) else packed_array(value)
        for key, value in tree.items()
    }
    if path is None:
        return packed
    path.write_bytes(msgpack.packb(packed | options, use_bin_type=True))
    return path


def keras(path: Path, arrays: Any) -> Path:
    with h5py.File(path, "w") as file:
        for name, value in arrays.items():
            file[name] = value
    return path


def by_name(source: Any) -> dict[str, Any]:
    return {layer.name: layer for layer in source.layers}


def stored(source: Any) -> dict[str, Any]:
    """The tensors under torch's names, as they are before they are cut into matrices."""
    return {layer.name: layer.tensor for layer in source.layers}


DENSE, CONV, CONV1, HEADS, OUT = (
    random(7, 5),
    random(3, 2, 4, 6),
    random(3, 4, 6),
    random(8, 2, 4),
    random(2, 4, 8),
)


@pytest.fixture(params=["flax", "keras 2", "keras 3"])
def layers(request: pytest.FixtureRequest, tmp_path: Path) -> dict[str, Any]:
    """One model in each of the three ways of naming its variables."""
    if request.param == "flax":
        tree = {
            "dense": {"kernel": DENSE, "bias": random(5)},
            "conv2d": {"kernel": CONV},
            "conv1d": {"kernel": CONV1},
            "embedding": {"embedding": random(11, 6)},
            "attention": {
                "query": {"kernel": HEADS, "bias": random(2, 4)},
                "attention_output": {"kernel": OUT},
            },
            "norm": {"scale": random(5), "bias": random(5)},
        }
        return stored(
            open_source(
                flax(tmp_path / "m.msgpack", {"params": tree, "opt_state": {"mu": tree}}, step=3)
            )
        )
    if request.param == "keras 2":
        arrays = {
            "dense/dense/kernel:0": DENSE,
            "dense/dense/bias:0": random(5),
            "conv2d/conv2d/kernel:0": CONV,
            "conv1d/conv1d/kernel:0": CONV1,
            "embedding/embedding/embeddings:0": random(11, 6),
            "attention/attention/query/kernel:0": HEADS,
            "attention/attention/attention_output/kernel:0": OUT,
            "norm/norm/gamma:0": random(5),
            "optimizer_weights/adam/dense/kernel:0": random(7, 5),
        }
        return stored(open_source(keras(tmp_path / "m.h5", arrays)))
    arrays = {
        "layers/dense/vars/0": DENSE,
        "layers/dense/vars/1": random(5),
        "layers/conv2d/vars/0": CONV,
        "layers/conv1d/vars/0": CONV1,
        "layers/embedding/vars/0": random(11, 6),
        "layers/attention/query_dense/vars/0": HEADS,
        "layers/attention/output_dense/vars/0": OUT,
        "layers/layer_normalization/vars/0": random(5),
        "optimizer/vars/3": random(7, 5),
    }
    return stored(open_source(keras(tmp_path / "m.weights.h5", arrays)))


def test_names(layers: Any) -> None:
    assert set(layers) == {
        "dense",
        "conv2d",
        "conv1d",
        "embedding",
        "attention.query",
        "attention.attention_output",
    }
    assert layers["embedding"].layout == "embedding"


def test_dense(layers: Any) -> None:
    x = random(3, 7)
    product = functional.linear(torch.from_numpy(x), layers["dense"].read(()))
    np.testing.assert_allclose(product.numpy(), x @ DENSE, rtol=1e-5)


def test_convolutions(layers: Any) -> None:
    """A convolution over channels-last data, written out."""
    x = random(1, 3, 2, 4)
    expected = np.einsum("nhwi,hwio->no", x, CONV)
    found = functional.conv2d(torch.from_numpy(x.transpose(0, 3, 1, 2)), layers["conv2d"].read(()))
    np.testing.assert_allclose(found[..., 0, 0].numpy(), expected, rtol=1e-4)
    x = random(1, 3, 4)
    found = functional.conv1d(torch.from_numpy(x.transpose(0, 2, 1)), layers["conv1d"].read(()))
    np.testing.assert_allclose(found[..., 0].numpy(), np.einsum("nki,kio->no", x, CONV1), rtol=1e-4)


def test_attention_with_a_dimension_for_heads(layers: Any) -> None:
    x = random(3, 8)
    found = functional.linear(torch.from_numpy(x), layers["attention.query"].read(()))
    np.testing.assert_allclose(
        found.numpy(), np.einsum("nd,dhk->nhk", x, HEADS).reshape(3, 8), rtol=1e-4
    )
    y = random(3, 2, 4)
    found = functional.linear(
        torch.from_numpy(y.reshape(3, 8)), layers["attention.attention_output"].read(())
    )
    np.testing.assert_allclose(found.numpy(), np.einsum("nhk,hkd->nd", y, OUT), rtol=1e-4)


@pytest.mark.parametrize("kind", ["lstm", "gru", "simple_rnn"])
def test_recurrent_layers_of_keras(kind: str, tmp_path: Path) -> None:
    gates = {"lstm": "ifgo", "gru": "zrn", "simple_rnn": "h"}[kind]  # in Keras' order
    kernel, recurrent = random(6, 4 * len(gates)), random(4, 4 * len(gates))
    arrays = {
        f"layers/{kind}/cell/vars/{i}": value
        for i, value in enumerate((kernel, recurrent, random(4)))
    }
    found = by_name(open_source(keras(tmp_path / "m.weights.h5", arrays)))
    for i, gate in enumerate(gates):
        name = f".{gate}" if len(gates) > 1 else ""
        cut = slice(4 * i, 4 * i + 4)
        assert np.array_equal(
            found[f"{kind}.weight_ih_l0{name}"].read()[0].numpy(), kernel[:, cut].T
        )
        assert np.array_equal(
            found[f"{kind}.weight_hh_l0{name}"].read()[0].numpy(), recurrent[:, cut].T
        )


def test_depthwise_and_separable_convolutions(tmp_path: Path) -> None:
    depth, point = random(3, 3, 4, 2), random(1, 1, 8, 5)
    arrays = {
        "layers/separable_conv2d/vars/0": depth,
        "layers/separable_conv2d/vars/1": point,
        "layers/depthwise_conv2d/vars/0": depth,
    }
    found = stored(open_source(keras(tmp_path / "m.weights.h5", arrays)))
    weight = found["separable_conv2d.depthwise"].read(())
    x = random(1, 3, 3, 4)
    result = functional.conv2d(torch.from_numpy(x.transpose(0, 3, 1, 2)), weight, groups=4)
    np.testing.assert_allclose(
        result.flatten().numpy(), np.einsum("nhwi,hwim->nim", x, depth).ravel(), rtol=1e-4
    )
    assert torch.equal(found["depthwise_conv2d.depthwise"].read(()), weight)
    assert np.array_equal(
        found["separable_conv2d.pointwise"].read(())[:, :, 0, 0].numpy(), point[0, 0].T
    )


def test_an_array_in_chunks(tmp_path: Path) -> None:
    """Flax cuts arrays above a limit into flat chunks."""
    value = random(7, 5)
    pieces = [value.reshape(-1)[:20], value.reshape(-1)[20:]]
    chunked = {
        "__msgpack_chunked_array__": True,
        "shape": {"0": 7, "1": 5},
        "chunks": {str(i): packed_array(piece) for i, piece in enumerate(pieces)},
    }
    (tmp_path / "m.msgpack").write_bytes(
        msgpack.packb({"dense": {"kernel": chunked}}, use_bin_type=True)
    )
    (layer,) = open_source(tmp_path / "m.msgpack").layers
    assert np.array_equal(layer.read()[0].numpy(), value.T)


def test_every_form_of_a_msgpack_value_is_stepped_over(tmp_path: Path) -> None:
    others = {
        "numbers": [
            0,
            127,
            128,
            2**16,
            2**40,
            -1,
            -32,
            -33,
            -(2**20),
            -(2**40),
            1.5,
            None,
            True,
            False,
        ],
        "texts": ["", "a" * 31, "a" * 32, "b" * 300, "c" * 70000],
        "bytes": [b"", b"a" * 300, b"b" * 70000],
        "lists": [[1] * 15, [1] * 16, [1] * 70000],
        "dict": {str(i): i for i in range(20)},
        "extensions": [msgpack.ExtType(5, b"a" * size) for size in (1, 2, 4, 8, 16, 3, 300, 70000)],
    }
    value = random(7, 5)
    content = others | {"dense": {"kernel": packed_array(value)}}
    (tmp_path / "m.msgpack").write_bytes(msgpack.packb(content, use_bin_type=True))
    (layer,) = open_source(tmp_path / "m.msgpack").layers
    assert np.array_equal(layer.read()[0].numpy(), value.T)


def test_transformers_names_meet_those_of_torch(tmp_path: Path) -> None:
    prefix = "bert/tf_bert_model/bert/encoder/layer_._3/attention/self/query/"
    path = keras(
        tmp_path / "tf_model.h5", {f"{prefix}kernel:0": DENSE, f"{prefix}bias:0": random(5)}
    )
    (layer,) = open_source(path).layers
    assert (layer.name, layer.kind, layer.block) == (
        "bert.encoder.layer.3.attention.self.query",
        "q",
        3,
    )


@pytest.mark.parametrize("compress", [False, True])
def test_keras_archives_and_compressed_arrays(compress: bool, tmp_path: Path) -> None:
    content = io.BytesIO()
    with h5py.File(content, "w") as file:
        file.create_dataset(
            "layers/dense/vars/0", data=DENSE, compression="gzip" if compress else None
        )
    with zipfile.ZipFile(
        tmp_path / "m.keras", "w", zipfile.ZIP_DEFLATED if compress else zipfile.ZIP_STORED
    ) as archive:
        archive.writestr("config.json", json.dumps({}))
        archive.writestr("model.weights.h5", content.getvalue())
    (layer,) = open_source(tmp_path / "m.keras").layers
    assert np.array_equal(layer.read()[0].numpy(), DENSE.T)


@pytest.mark.parametrize(
    ("name", "message"),
    [("m.msgpack", "msgpack file of Flax"), ("m.h5", "HDF5"), ("m.npz", "numpy")],
)
def test_empty_files(name: str, message: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(b"")
    with pytest.raises(SourceError, match=f"is empty; expected .*{message}"):
        open_source(tmp_path / name)


def test_a_missing_library_gives_the_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = keras(tmp_path / "m.h5", {"dense/kernel:0": DENSE})
    monkeypatch.setitem(__import__("sys").modules, "h5py", None)
    with pytest.raises(SourceError, match="pip install h5py"):
        open_source(path)


@pytest.mark.parametrize("separator", ["/", "."])
@pytest.mark.parametrize("ending", ["npz", "safetensors"])
def test_models_of_jax_in_other_files(ending: str, separator: str, tmp_path: Path) -> None:
    """Google publishes ViT as .npz, transformers wrote Flax models as safetensors too."""
    tree = {
        "enc/block_0/Attention_1/query/kernel": HEADS,
        "enc/block_0/Attention_1/query/bias": random(2, 4),
        "enc/block_0/Attention_1/out/kernel": OUT,
        "enc/block_0/Mlp_3/Dense_0/kernel": DENSE,
        "enc/block_0/LayerNorm_0/scale": random(5),
        "embedding/kernel": CONV,
        "pos_embedding": random(1, 9, 6),
    }
    arrays = {name.replace("/", separator): value for name, value in tree.items()}
    path = tmp_path / f"m.{ending}"
    if ending == "npz":
        np.savez(path, **arrays)
    else:
        save_file(arrays, path)
    found = by_name(open_source(path))
    expected = {
        "enc.block_0.Attention_1.query": HEADS.reshape(8, 8).T[None],
        "enc.block_0.Attention_1.out": OUT.reshape(8, 8).T[None],
        "enc.block_0.Mlp_3.Dense_0": DENSE.T[None],
        "embedding": CONV.reshape(6, 4, 6).transpose(0, 2, 1),
    }
    assert set(found) == {*expected, "pos_embedding"}
    assert found["pos_embedding"].no_weight
    for name, values in expected.items():
        np.testing.assert_array_equal(found[name].read().numpy(), values)


def test_kernels_beside_weights_stay_as_they_are(tmp_path: Path) -> None:
    np.savez(tmp_path / "m.npz", **{"a.kernel": DENSE, "b.weight": DENSE})
    assert [layer.read().shape for layer in open_source(tmp_path / "m.npz").layers] == [
        (1, 7, 5)
    ] * 2


@pytest.mark.parametrize("mlx", [True, False])
def test_convolutions_of_mlx_are_channels_last(mlx: bool, tmp_path: Path) -> None:
    state = {
        "encoder.conv1.weight": random(6, 3, 4),
        "patch_embed.proj.weight": random(6, 2, 3, 4),
        "layers.0.mlp.switch_mlp.gate_proj.weight": random(6, 3, 4),
        "layers.0.mlp.fc1.weight": random(6, 3),
    }
    save_file(state, tmp_path / "m.safetensors", metadata={"format": "mlx" if mlx else "pt"})
    found = by_name(open_source(tmp_path / "m.safetensors"))
    shapes = {
        "encoder.conv1": (3, 6, 4) if mlx else (4, 6, 3),
        "patch_embed.proj": (6, 6, 4) if mlx else (12, 6, 2),
    }
    for name, shape in shapes.items():
        assert tuple(found[name].read().shape) == shape
    if mlx:
        window = state["patch_embed.proj.weight"].transpose(1, 2, 0, 3).reshape(6, 6, 4)
        np.testing.assert_array_equal(found["patch_embed.proj"].read().numpy(), window)
    gate = found["layers.0.mlp.switch_mlp.gate_proj[0]"].read()[0].numpy()
    np.testing.assert_array_equal(gate, state["layers.0.mlp.switch_mlp.gate_proj.weight"][0])
