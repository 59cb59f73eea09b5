"""Images: Fashion-MNIST from Debian's package or a folder of its files, CIFAR from a folder.

The test set is kept apart.
"""

from __future__ import annotations

import gzip
import pickle
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

FASHION = Path("/usr/share/datasets/fashion-mnist")
"""Where Debian's package dataset-fashion-mnist puts its files."""


@dataclass(frozen=True)
class Images:
    """Standardised images (n, channels, height, width) with labels, by use."""

    train: tuple[Tensor, Tensor]
    validation: tuple[Tensor, Tensor]
    test: tuple[Tensor, Tensor]
    classes: int


def load(folder: Path, *, n_train: int, n_validation: int, n_test: int | None = None) -> Images:
    """Take training and validation images from the training set, and test images in order.

    The images taken are the same every time.

    Raises:
        FileNotFoundError: the folder holds neither data set.

    """
    if (folder / "train-images-idx3-ubyte.gz").exists():
        train, test = (_idx(folder, name) for name in ("train", "t10k"))
    elif (folder / "data_batch_1").exists() or (folder / "train").is_file():
        train, test = _cifar(folder)
    else:
        raise FileNotFoundError(
            f"no Fashion-MNIST or CIFAR files in {folder}: install dataset-fashion-mnist "
            f"(Debian) or give --data"
        )
    order = np.random.default_rng(0).permutation(len(train[1]))
    mean, std = (
        train[0].mean(axis=(0, 2, 3), keepdims=True),
        train[0].std(axis=(0, 2, 3), keepdims=True),
    )

    def taken(part: tuple[np.ndarray, np.ndarray], index: np.ndarray) -> tuple[Tensor, Tensor]:
        pixels = (part[0][index] - mean) / std
        return torch.from_numpy(pixels.astype(np.float32)), torch.from_numpy(
            part[1][index].astype(np.int64)
        )

    return Images(
        train=taken(train, order[:n_train]),
        validation=taken(train, order[len(order) - n_validation :]),
        test=taken(test, np.arange(len(test[1]) if n_test is None else n_test)),
        classes=int(train[1].max()) + 1,
    )


def drawn(n: int, seed: int = 0) -> Images:
    """Images of drawn stripes in four directions, to see whether the experiment runs."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(4, (3 * n,), generator=generator)
    grid = torch.stack(torch.meshgrid(torch.arange(12.0), torch.arange(12.0), indexing="ij"))
    waves = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.7, 0.7], [0.7, -0.7]])
    phase = 6 * torch.rand(3 * n, 1, 1, generator=generator)
    pixels = (torch.einsum("nd,dhw->nhw", waves[labels], grid) + phase).sin()[:, None]
    pixels = pixels + 0.5 * torch.randn(pixels.shape, generator=generator)
    train, validation, test = (
        (pixels[i::3].contiguous(), labels[i::3].contiguous()) for i in range(3)
    )
    return Images(train=train, validation=validation, test=test, classes=4)


def augmented(images: Tensor, generator: torch.Generator) -> Tensor:
    """Each image shifted by up to 2 pixels, one draw for the batch, and half of them mirrored."""
    down, right = (int(x) for x in torch.randint(-2, 3, (2,), generator=generator))
    moved = torch.roll(images, (down, right), (2, 3))
    mirrored = torch.rand(len(images), generator=generator) < 0.5
    return torch.where(mirrored.view(-1, 1, 1, 1).to(images.device), moved.flip(3), moved)


def _idx(folder: Path, name: str) -> tuple[np.ndarray, np.ndarray]:
    pixels, labels = (
        gzip.decompress((folder / f"{name}-{what}-ubyte.gz").read_bytes())
        for what in ("images-idx3", "labels-idx1")
    )
    shape = np.frombuffer(pixels, ">u4", count=4)[1:]
    images = np.frombuffer(pixels, np.uint8, offset=16).reshape(shape[0], 1, shape[1], shape[2])
    return images.astype(np.float32) / 255, np.frombuffer(labels, np.uint8, offset=8)


def _cifar(folder: Path) -> tuple[tuple[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]:
    """CIFAR-10 or CIFAR-100 in the python version's files."""
    ten = (folder / "data_batch_1").exists()
    names = [f"data_batch_{i}" for i in range(1, 6)] if ten else ["train"]

    def read(files: list[str]) -> tuple[np.ndarray, np.ndarray]:
        batches = [pickle.loads((folder / file).read_bytes(), encoding="latin1") for file in files]
        pixels = np.concatenate([batch["data"] for batch in batches]).reshape(-1, 3, 32, 32)
        labels = np.concatenate([batch["labels" if ten else "fine_labels"] for batch in batches])
        return pixels.astype(np.float32) / 255, labels

    return read(names), read(["test_batch"] if ten else ["test"])
