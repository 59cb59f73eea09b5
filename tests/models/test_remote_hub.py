"""Models of the hub by ranges: a hub and its server of large files, both on loopback."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import pandas as pd
import pytest
import torch
from huggingface_hub import constants, try_to_load_from_cache
from safetensors.torch import save_file

import spectail as st
from spectail.measuring.engines.task import Request, Trouble, measure_request
from spectail.measuring.planning import make_plan
from spectail.models.open import open_source
from tests.conftest import weights
from tests.models.servers import COMMIT, Server, serve, serve_hub
from tests.models.test_remote import assert_same, impatient, table

__all__ = ["impatient"]


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """The files of the model ``org/toy-1.5``."""
    folder = tmp_path / "hub" / "org" / "toy-1.5"
    (folder / "other").mkdir(parents=True)
    save_file(weights(), folder / "model.safetensors")
    save_file(weights(seed=1), folder / "other" / "model.safetensors")
    (folder / "config.json").write_text('{"model_type": "llama", "num_attention_heads": 8}')
    return folder


@pytest.fixture
def hub(repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """A hub that redirects to another server for weights; the cache of this user is empty."""
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    with serve(tmp_path / "hub") as large, serve_hub(tmp_path / "hub") as server:
        server.redirect_to = large.url.replace("127.0.0.1", "localhost")
        monkeypatch.setattr(constants, "ENDPOINT", server.url)
        server.large = large
        yield server


@pytest.mark.parametrize(
    "source",
    ["org/toy-1.5", "hf://org/toy-1.5", "hf://org/toy-1.5@main", f"hf://org/toy-1.5@{COMMIT}"],
)
def test_a_model_of_the_hub_reads_as_locally(hub: Server, repository: Path, source: str) -> None:
    assert_same(source, repository)
    assert open_source(source).label == source


def test_a_mirror_that_lists_by_folders(hub: Server, repository: Path) -> None:
    hub.mirror = True
    assert_same("org/toy-1.5", repository)


@pytest.mark.parametrize("path", ["other", "other/model.safetensors"])
def test_a_file_or_folder_of_a_repository(hub: Server, repository: Path, path: str) -> None:
    assert_same(f"hf://org/toy-1.5/{path}", repository / path)


def test_the_token_goes_to_the_hub_only(hub: Server) -> None:
    open_source("org/toy-1.5")
    # huggingface_hub itself asks other things, without the token.
    asked = [request for request in hub.requests if "toy-1.5" in request.path]
    assert {request.headers["authorization"] for request in asked} == {"Bearer hf_secret"}
    assert hub.large.requests
    assert not any("authorization" in request.headers for request in hub.large.requests)


def test_only_what_is_measured_is_fetched_and_nothing_is_cached(
    hub: Server, repository: Path
) -> None:
    st.analyze("org/toy-1.5", include=["*layers.1.self_attn*"])
    size = (repository / "model.safetensors").stat().st_size
    assert hub.large.sent < size / 2
    assert try_to_load_from_cache("org/toy-1.5", "model.safetensors") is None


def test_a_model_in_the_cache_is_read_from_there(
    hub: Server, repository: Path, tmp_path: Path
) -> None:
    snapshot = tmp_path / "cache" / "models--org--toy-1.5" / "snapshots" / COMMIT
    snapshot.mkdir(parents=True)
    (snapshot.parent.parent / "refs").mkdir()
    (snapshot.parent.parent / "refs" / "main").write_text(COMMIT)
    # With the configuration alone, the weights come from the hub.
    (snapshot / "config.json").write_text((repository / "config.json").read_text())
    assert len(open_source("org/toy-1.5").layers) > 10
    assert any("toy-1.5" in request.path for request in hub.requests)
    before = len(hub.requests)
    other = weights(blocks=2)
    save_file(other, snapshot / "model.safetensors")
    source = open_source("org/toy-1.5")
    assert source.label == "org/toy-1.5"
    assert len(source.layers) == sum(tensor.dim() == 2 for tensor in other.values())
    assert len(hub.requests) == before
    # An index whose shards are not all there is a part of a model.
    (snapshot / "model.safetensors").rename(snapshot / "model-00001-of-00002.safetensors")
    (snapshot / "model.safetensors.index.json").write_text(
        '{"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "gone.safetensors"}}'
    )
    open_source("org/toy-1.5")
    assert len(hub.requests) > before


def keep(repository: Path, cache: Path, files: Sequence[str]) -> Path:
    """Put some files of the repository into the cache; return their folder."""
    home = cache / f"models--org--{repository.name}"
    for name in files:
        file = home / "snapshots" / COMMIT / name
        file.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(repository / name, file)
    (home / "refs").mkdir()
    (home / "refs" / "main").write_text(COMMIT)
    return home


@pytest.mark.parametrize(
    ("files", "asks"),
    [
        (["vae/config.json", "vae/model.safetensors"], True),
        (["model_index.json", "vae/config.json", "vae/model.safetensors"], True),
        (["model_index.json", "vae/model.safetensors", "unet/config.json"], True),
        (["model_index.json", "vae/model.safetensors", "unet/model.safetensors"], False),
        (["scheduler.bin"], True),
    ],
)
def test_a_part_of_a_pipeline_in_the_cache_is_not_the_model(
    hub: Server, tmp_path: Path, files: list[str], asks: bool
) -> None:
    pipeline = tmp_path / "hub" / "org" / "pipe"
    for number, part in enumerate(("vae", "unet")):
        (pipeline / part).mkdir(parents=True)
        (pipeline / part / "config.json").write_text("{}")
        save_file(weights(blocks=1, seed=number), pipeline / part / "model.safetensors")
    (pipeline / "scheduler.bin").touch()
    index = {"vae": ["diffusers", "A"], "unet": ["diffusers", "U"], "checker": [None, None]}
    (pipeline / "model_index.json").write_text(json.dumps(index))
    keep(pipeline, tmp_path / "cache", files)
    found = open_source("org/pipe")
    assert {layer.name.partition(".")[0] for layer in found.layers} == {"vae", "unet"}
    assert any("pipe" in request.path for request in hub.requests) == asks


def test_the_first_shard_in_the_cache_is_not_the_model(
    hub: Server, repository: Path, tmp_path: Path
) -> None:
    shards = [f"model-{number:05d}-of-00002.safetensors" for number in (1, 2)]
    (repository / "model.safetensors").rename(repository / shards[0])
    (repository / "other" / "model.safetensors").unlink()
    save_file({"last.weight": torch.randn(80, 80)}, repository / shards[1])
    keep(repository, tmp_path / "cache", shards[:1])
    assert "last" in {layer.name for layer in open_source("org/toy-1.5").layers}


def test_files_beside_the_model_may_be_missing_in_the_cache(
    hub: Server, repository: Path, tmp_path: Path
) -> None:
    home = keep(repository, tmp_path / "cache", ["config.json", "model.safetensors"])
    # Programs that need one format fetch the index of another one, but not its shards.
    (home / "snapshots" / COMMIT / "pytorch_model.bin.index.json").write_text(
        '{"weight_map": {"a": "pytorch_model-00001-of-00001.bin"}}'
    )
    # As huggingface_hub notes all files of a repository of which it has fetched some.
    (home / "trees").mkdir()
    names = ("README.md", "config.json", "model.safetensors")
    noted = {"format_version": 1, "files": {name: {"size": 1, "blob_id": "0"} for name in names}}
    (home / "trees" / f"{COMMIT}.json").write_text(json.dumps(noted))
    assert len(open_source("org/toy-1.5").layers) > 10
    assert not hub.requests


def test_a_run_from_the_hub_and_one_from_the_cache_say_how_they_differ(
    hub: Server, repository: Path, tmp_path: Path
) -> None:
    st.analyze("org/toy-1.5", out=tmp_path / "run", include=["*layers.0*"])
    st.analyze("org/toy-1.5", out=tmp_path / "a", shard="1/2")
    plan = make_plan("org/toy-1.5", spec=st.presets.FARMS)
    keep(repository, tmp_path / "cache", ["config.json", "model.safetensors"])
    st.analyze("org/toy-1.5", out=tmp_path / "b", shard="2/2")
    trouble = measure_request(Request("", "org/toy-1.5", None, plan.run, "cpu", 1, False))
    assert isinstance(trouble, Trouble)
    advice = "give hf://org/toy-1.5 to read the hub everywhere"
    assert trouble.reason.endswith(advice)
    with pytest.raises(st.RunError, match=f"{advice}$"):
        st.analyze("org/toy-1.5", out=tmp_path / "run", include=["*layers.0*"])
    with pytest.raises(st.RunError, match=f"{advice}$"):
        st.analyze("org/toy-1.5", out=tmp_path / "a", shard="2/2")
    with pytest.raises(st.RunError, match=f"{advice}$"):
        st.merge(tmp_path / "a", tmp_path / "b", out=tmp_path / "c")


def test_failures_of_the_hub_are_repeated(hub: Server, repository: Path, impatient: None) -> None:
    hub.fail_every = hub.large.fail_every = 3
    assert_same("org/toy-1.5", repository)


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("org/nothing", "there is no model hf://org/nothing on the hub that you may read"),
        ("hf://org/nothing", "there is no model hf://org/nothing on the hub that you may read"),
        ("hf://org/toy-1.5@gone", "there is no model hf://org/toy-1.5@gone on the hub"),
        ("hf://org/toy-1.5/gone", "there is no model at hf://org/toy-1.5/gone"),
    ],
)
def test_what_is_missing_is_one_line(hub: Server, source: str, words: str) -> None:
    with pytest.raises(st.SourceError, match=words) as error:
        open_source(source)
    assert "\n" not in str(error.value)
    assert "hf_secret" not in str(error.value)


def test_a_private_model_and_an_outage_are_one_line(hub: Server, impatient: None) -> None:
    hub.denied = "."
    with pytest.raises(st.SourceError, match="you may read; check the id, and for a private"):
        open_source("org/toy-1.5")
    hub.denied, hub.fail_every = "$^", 1
    with pytest.raises(st.SourceUnreachableError, match=r"hf://org/toy-1.5 cannot be read: 503"):
        open_source("org/toy-1.5")


def test_offline_is_one_line(hub: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    for source in ("org/toy-1.5", "hf://org/toy-1.5"):
        with pytest.raises(st.SourceError, match=r"HF_HUB_OFFLINE forbids .* its id, org/toy-1.5"):
            open_source(source)
    assert not hub.requests


@pytest.mark.parametrize("package", ["huggingface_hub", "obstore"])
def test_a_missing_package_is_one_line(
    hub: Server, package: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in [name for name in sys.modules if name.partition(".")[0] == package]:
        monkeypatch.setitem(sys.modules, module, None)
    monkeypatch.setitem(sys.modules, package, None)
    words = f"needs the package {package}; install it with: pip install 'spectail.hf.'"
    with pytest.raises(st.SourceError, match=words):
        open_source("org/toy-1.5")


def test_the_endpoint_comes_from_the_environment(
    hub: Server, repository: Path, tmp_path: Path
) -> None:
    environment = {**os.environ, "HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "home")}
    command = [sys.executable, "-m", "spectail", "analyze", "hf://org/toy-1.5"]
    subprocess.run([*command, "--out", tmp_path / "run"], check=True, env=environment)
    remote = pd.read_parquet(tmp_path / "run" / "layers.parquet").drop(columns="seconds")
    remote = remote.astype({"block": "float64"})  # files hold whole numbers, the table NaN too
    pd.testing.assert_frame_equal(remote, table(repository), check_exact=True)
