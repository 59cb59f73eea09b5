"""The image experiment on drawn stripes: data files, networks, training, and a whole quick run."""

import gzip
import json
import pickle
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import spectail as st
from experiments.common import Journal
from experiments.images.__main__ import QUICK, Experiment, main, search_key, specs
from experiments.images.data import augmented, drawn, load
from experiments.images.networks import resnet, toy, vgg
from experiments.images.train import Recipe, fit, spread


@pytest.fixture(scope="module")
def quick(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("images")
    assert main(["--quick", "--out", str(folder)]) == 0
    return folder / "quick"


def test_a_quick_run_trains_every_method_with_every_seed(quick: Any) -> None:
    runs = json.loads((quick / "results.json").read_text())["runs"]
    finals = [key for key in runs if key.startswith("final")]
    assert len(finals) == 3 * 2
    assert all(0 <= runs[key]["test"] <= 100 and runs[key]["alphas"] for key in finals)
    assert (quick / "images.png").read_bytes().startswith(b"\x89PNG")


def test_results_are_written_when_the_comparison_is_complete(quick: Any, tmp_path: Path) -> None:
    lines = (quick / "images.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "quick").mkdir()
    again = ["--quick", "--out", str(tmp_path), "--seconds", "0"]
    for left_out, written in (("final", False), ("ablation", True)):
        kept = [line for line in lines if not line.startswith(f'["{left_out}')]
        (tmp_path / "quick" / "images.jsonl").write_text("".join(kept))
        assert main(again) == 3
        assert (tmp_path / "quick" / "results.json").exists() is written


def test_training_learns_and_repeats_and_follows_its_rule() -> None:
    images = drawn(96)
    recipe = Recipe(epochs=6, batch=32, lr=0.05, seed=0)
    found = []
    for rule in (
        None,
        None,
        st.TempBalance(map="linear:0.1:1.9", spec=st.Spec(window=16), min_eigenvalues=0),
    ):
        torch.manual_seed(0)
        found.append(fit(toy(16, 1, 4), images, recipe, rule, st.Spec(window=16)))
    one, again, balanced = found
    assert one == again
    assert one["validation"] > 60
    assert balanced["alphas"] != one["alphas"]
    assert balanced["alphas before"] == one["alphas before"]


def test_every_method_chooses_from_the_same_grid(tmp_path: Path) -> None:
    settings = replace(QUICK, lrs=(0.1, 0.2), ranges=((0.1, 1.9), (0.5, 1.5)), search_seeds=2)
    experiment = Experiment(drawn(8), settings, Journal.open(tmp_path / "j", {}), "cpu")
    tried = {method: experiment.tried(method) for method in specs(settings)}
    assert tried["TempBalance, windows"] == tried["TempBalance, whole matrices"]
    assert [lr for lr, _ in tried["one rate"]] == [0.1, 0.2]
    for i, (lr, limits) in enumerate(tried["TempBalance, windows"]):
        for seed, validation in enumerate((50 + i % 3, 50 + 3 * (i == 3))):
            key = search_key("toy", "TempBalance, windows", lr, limits, seed)
            experiment.journal.add(key, {"validation": validation, "test": 100 - i})
    assert experiment.chosen("toy", "TempBalance, windows") == (0.2, (0.5, 1.5)), (
        "best in the mean, not of one seed"
    )


def test_networks_have_their_layers_and_give_scores() -> None:
    x = torch.zeros(2, 3, 32, 32)
    for network, layers in ((resnet, 21), (vgg, 14)):
        model = network(4, 3, 10)
        assert sum(p.ndim > 1 for p in model.parameters()) == layers
        assert model(x).shape == (2, 10)
    assert vgg(4, 1, 10)(torch.zeros(2, 1, 28, 28)).shape == (2, 10)


def test_fashion_files_are_read_and_split_apart(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    pixels, labels = rng.integers(0, 256, (20, 5, 6), np.uint8), rng.integers(0, 3, 20, np.uint8)
    for name in ("train", "t10k"):
        head = np.array([2051, 20, 5, 6], ">u4").tobytes()
        (tmp_path / f"{name}-images-idx3-ubyte.gz").write_bytes(
            gzip.compress(head + pixels.tobytes())
        )
        (tmp_path / f"{name}-labels-idx1-ubyte.gz").write_bytes(
            gzip.compress(b"12345678" + labels.tobytes())
        )
    images = load(tmp_path, n_train=12, n_validation=8)
    assert images.train[0].shape == (12, 1, 5, 6)
    assert images.classes == labels.max() + 1
    assert torch.equal(images.test[1], torch.from_numpy(labels.astype(np.int64)))
    whole = torch.cat([images.train[0], images.validation[0]])
    assert torch.allclose(whole.mean(), torch.tensor(0.0), atol=1e-5)
    assert torch.allclose(whole.std(unbiased=False), torch.tensor(1.0), atol=1e-5)
    assert sorted(map(float, whole.sum((1, 2, 3)))) == pytest.approx(
        sorted(map(float, images.test[0].sum((1, 2, 3))))
    )


def test_cifar_files_are_read(tmp_path: Path) -> None:
    for i in [*range(1, 6), 0]:
        data = {"data": np.full((2, 3072), i, np.uint8), "labels": [i, 1]}
        (tmp_path / (f"data_batch_{i}" if i else "test_batch")).write_bytes(pickle.dumps(data))
    images = load(tmp_path, n_train=4, n_validation=4)
    assert images.train[0].shape == (4, 3, 32, 32)
    assert len(images.test[1]) == 2


def test_missing_data_names_the_package(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="install dataset-fashion-mnist"):
        load(tmp_path, n_train=1, n_validation=1)


def test_augmentation_shifts_and_mirrors() -> None:
    images = torch.arange(2 * 36.0).reshape(2, 1, 6, 6)
    found = augmented(images, torch.Generator().manual_seed(0))
    assert found.shape == images.shape
    assert torch.equal(found.flatten(1).sort()[0], images.flatten(1).sort()[0])
    assert spread({"a": 1.0, "b": 3.0}) == pytest.approx(2**0.5)
