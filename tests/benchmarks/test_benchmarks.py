"""The benchmarks measure the right thing: the plain procedure is right, the sides do
the same work, the files load.
"""

import argparse
import json
import math
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import spectail as st
from benchmarks import __main__ as benchmarks
from benchmarks import (
    agreement,
    balancer,
    checkpoint,
    command,
    common,
    fit,
    layers,
    plain,
    precision,
    training,
)
from benchmarks.weights import LLAMA_70B, made, shapes_of_block, write_checkpoint, write_sample
from spectail.errors import SourceError
from spectail.models.open import open_source
from tests import language
from tests.benchmarks.light_job import Broken, Counter
from tests.reference import plain_farms

CUTOFFS = ["median", "top:0.1", "peak", "ks"]


@pytest.fixture
def matrix() -> torch.Tensor:
    return made(90, 70, name="k_proj").double()


@pytest.fixture
def pooled(matrix: torch.Tensor) -> torch.Tensor:
    return plain.pooled_eigenvalues(matrix, (40, 40), plain.grid_corners((90, 70), (40, 40), 3))


def one_result(arguments: list[str], path: Path) -> dict[str, Any]:
    benchmarks.main([*arguments, "--quick", "--result", str(path)])
    result = json.loads(path.read_text())
    assert result["benchmark"] == arguments[0]
    assert result["quick"]
    assert result["environment"]["cores"] >= 1
    results: dict[str, Any] = result["results"]
    return results


class TestPlain:
    def test_eigenvalues_are_those_of_the_oracle(
        self, matrix: torch.Tensor, pooled: torch.Tensor
    ) -> None:
        corners = [(top, left) for top in (0, 25, 50) for left in (0, 15, 30)]
        expected = plain_farms.pooled_eigenvalues([matrix.numpy()], (40, 40), corners)
        np.testing.assert_allclose(pooled.numpy(), expected, rtol=1e-12, atol=1e-14)

    def test_one_window_per_side_starts_at_the_corner(self) -> None:
        assert plain.grid_corners((90, 70), (40, 40), 1) == [(0, 0)]

    @pytest.mark.parametrize("cutoff", CUTOFFS)
    @pytest.mark.parametrize("legacy", [False, True])
    def test_fit_is_that_of_the_oracle(
        self, pooled: torch.Tensor, cutoff: str, legacy: bool
    ) -> None:
        found = plain.fit(pooled, cutoff, log_lower_bound=legacy)
        expected = plain_farms.fit(pooled.numpy(), cutoff, legacy=legacy)
        assert found.n_tail == expected.n_tail
        assert found.alpha == pytest.approx(expected.alpha, rel=1e-12)
        assert found.ks == pytest.approx(expected.ks, rel=1e-9)

    @pytest.mark.parametrize("legacy", [False, True])
    def test_peak_tries_the_candidates_of_the_oracle(
        self, pooled: torch.Tensor, legacy: bool
    ) -> None:
        tried = [float(pooled[i]) for i in plain.candidates(pooled, "peak", log_lower_bound=legacy)]
        assert tried == plain_farms.near_peak(pooled.numpy(), log_lower_bound=legacy)

    @pytest.mark.parametrize("cutoff", CUTOFFS)
    def test_spectail_finds_the_same(self, matrix: torch.Tensor, cutoff: str) -> None:
        own = st.tail_fit(
            matrix, st.Spec(window=40, placement="grid:3", cutoff=cutoff, legacy=True)
        )
        pooled = plain.pooled_eigenvalues(
            matrix, (40, 40), plain.grid_corners((90, 70), (40, 40), 3)
        )
        assert plain.fit(pooled, cutoff, log_lower_bound=True).alpha == pytest.approx(
            own.alpha, rel=1e-9
        )

    def test_a_sampled_scan_stays_within_its_budget(self, pooled: torch.Tensor) -> None:
        tried = plain.candidates(pooled, "ks")
        whole = sum(len(pooled) - i for i in tried)
        assert plain.every_within(whole * 1.01, pooled, tried) == 1
        every = plain.every_within(whole / 5, pooled, tried)
        assert every in (5, 6)
        assert sum(len(pooled) - i for i in tried[::every]) <= 1.05 * whole / 5


def test_the_quickest_threads_leave_the_setting_alone() -> None:
    before = torch.get_num_threads()
    assert plain.quickest_threads(lambda: torch.ones(10).sum()) in (1, before)
    assert torch.get_num_threads() == before


def test_rounding_moves_alpha_by_less_than_the_bound() -> None:
    matrix = torch.from_numpy(np.random.default_rng(0).standard_t(3, (128, 192)))
    change, bound, lost = precision.compare(matrix, 64)
    assert 0 < change < bound < 0.1
    assert 0 < lost < 0.1


class TestTimes:
    def test_ratios_are_paired(self) -> None:
        assert common.paired([2, 30, 8], [1, 10, 2]) == {
            "median": 3,
            "least": 2,
            "most": 4,
            "rounds": 3,
        }

    def test_a_command_that_fails_says_why(self) -> None:
        with pytest.raises(
            RuntimeError, match=r"ended with exit code 2: .*no such file or folder: 'nowhere'"
        ):
            common.run_command([*command.SPECTAIL, "analyze", "nowhere", "--out", "unused"])

    def test_memory_is_the_commands_own(self) -> None:
        here = bytearray(300 * 2**20)
        python = command.SPECTAIL[0]
        small, large = (
            common.run_command(
                [python, "-c", f"import time; x = bytearray({mb} << 20); time.sleep(0.2)"],
                every=0.005,
            )
            for mb in (1, 100)
        )
        assert len(here) > 0
        assert small.peak_megabytes < 60
        assert 90 < large.peak_megabytes - small.peak_megabytes < 110
        assert large.seconds > 0.2

    def test_processor_time_is_the_commands_own_and_does_not_count_waiting(self) -> None:
        python = command.SPECTAIL[0]
        sum(range(10**7))
        code = "import time; t = time.process_time\nwhile t() < {}: pass\ntime.sleep({})"
        waiting, busy = (
            common.run_command([python, "-c", code.format(work, sleep)])
            for work, sleep in ((0.0, 0.6), (0.6, 0.0))
        )
        assert waiting.processor_seconds < 0.3 < 0.6 <= waiting.seconds
        assert 0.6 <= busy.processor_seconds < 1.0

    def test_every_side_is_asked_in_every_round_with_its_own_environment(self) -> None:
        sides = {name: common.Side(Counter, (10,), {"BENCHMARK_SIDE": name}) for name in "ab"}
        outcomes = common.run_sides(sides, 3)
        for name, outcome in outcomes.items():
            assert outcome.seconds == {"work": [3.0, 3.25, 3.5]}, "the warm-up is not counted"
            assert outcome.facts == {"calls": 14, "variable": name}
            assert 0 < outcome.megabytes["before"] <= outcome.megabytes["peak"]
            assert outcome.to_dict()["seconds"] == {"work": 3.25}
        assert "BENCHMARK_SIDE" not in os.environ

    def test_a_side_that_fails_ends_the_benchmark(self) -> None:
        with pytest.raises(
            RuntimeError, match="a side of the benchmark failed; its own error is printed above"
        ):
            common.run_sides({"a": common.Side(Broken, (0,))}, 1)


class TestQuickModes:
    def test_layers(self, tmp_path: Path) -> None:
        case = one_result(["layers", "--rounds", "1"], tmp_path / "layers.json")["quick"]
        assert case["layers"]["layer"] == {
            "shape": [96, 128],
            "window": [64, 64],
            "windows": 9,
            "compared": 4,
        }
        assert "4 windows" in case["sides"]["plain float32"]["extrapolated"]["eigenvalues"]
        assert case["ratios"]["layer"]["eigenvalues: plain float64 / spectail"]["median"] > 0
        differences = case["alpha_difference"]["plain float64 - spectail"]["layer"]
        assert set(differences) == set(layers.CUTOFFS)
        assert max(map(abs, differences.values())) < 1e-9

    def test_fit(self, tmp_path: Path) -> None:
        case = one_result(["fit", "--rounds", "1", "--spectrum", "pareto"], tmp_path / "fit.json")[
            "pareto 1000"
        ]
        assert set(case["ratios"]) == {f"{cutoff}: plain / spectail" for cutoff in fit.CUTOFFS}
        assert max(map(abs, case["alpha_difference"].values())) < 1e-9

    def test_solvers(self, tmp_path: Path) -> None:
        ways = one_result(["solvers", "--rounds", "1"], tmp_path / "solvers.json")["32"]
        assert ways["ours"]["error"] < 1e-12

    def test_command_alone(self, tmp_path: Path) -> None:
        result = one_result(["command"], tmp_path / "command.json")
        assert result["weightwatcher"] == "not measured"
        assert result["spectail"]["peak_megabytes"][0] > 50

    def test_agreement_without_weightwatcher(self, tmp_path: Path) -> None:
        result = one_result(["agreement"], tmp_path / "agreement.json")
        assert result == {"weightwatcher": "not measured"}

    def test_agreement_finds_differences_and_layers_of_one_side(self) -> None:
        same: dict[str, Any] = {"status": "ok", **dict.fromkeys(agreement.COLUMNS.values(), 2.0)}
        theirs = {"a": dict.fromkeys(agreement.COLUMNS, 2.0)}
        theirs |= {"b": {**theirs["a"], "D": 2.2}, "c": theirs["a"]}
        ours: dict[str, dict[str, Any]] = {
            "a": same,
            "b": same,
            "d": same,
            "e": {"status": "skipped", "reason": "too small"},
        }
        found = agreement.compare(theirs, ours)
        assert found["columns"]["ks"] == {"difference": pytest.approx(0.2 / 2.2), "layer": "b"}
        assert found["columns"]["alpha"]["difference"] == 0
        assert found["only in WeightWatcher"] == ["c"]
        assert found["only in spectail"] == ["d", "e: too small"]

    def test_weightwatchers_numbers_were_reproduced(self) -> None:
        stored = json.loads((benchmarks.RESULTS / "agreement.json").read_text())["results"]
        assert stored.pop("weightwatcher")["weightwatcher"] == "0.7.7"
        assert set(stored) == set(agreement.MODELS)
        for model in stored.values():
            assert model["only in WeightWatcher"] == []
            for name, column in model["columns"].items():
                # WeightWatcher adds 1e-10 to each term of the entropy.
                assert column["difference"] < (1e-6 if name == "entropy" else 1e-10), name
            for theirs, ours in model["means"].values():
                assert ours == pytest.approx(theirs, rel=1e-10)

    def test_command_against_weightwatcher(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        answer = {
            "analyze_seconds": 5.0,
            "load_seconds": 1.0,
            "layers": 3,
            "versions": {"weightwatcher": "0"},
        }
        stand_in = tmp_path / "stand_in.py"
        stand_in.write_text(f"print('chatter'); print({json.dumps(answer)!r}); print('more')")
        monkeypatch.setattr(command, "SCRIPT", stand_in)
        result = one_result(
            ["command", "--weightwatcher", sys.executable], tmp_path / "command.json"
        )
        own = result["spectail"]["seconds"][0]
        assert result["weightwatcher"]["layers"] == 3
        ratio = result["ratios"]["weightwatcher's analyze() alone / spectail's whole process"][
            "median"
        ]
        assert ratio == pytest.approx(5.0 / own, rel=0.01)

    def test_checkpoint(self, tmp_path: Path) -> None:
        result = one_result(["checkpoint"], tmp_path / "checkpoint.json")
        assert result["analyze"]["layers"] == 16
        assert result["analyze"]["layers_not_ok"] == []
        assert result["analyze"]["by_kind"]["down"]["layers"] == 2
        # The tiny layers have no more than three windows of the common size.
        assert result["tolerance"]["rank_correlation"] == 1.0
        assert result["tolerance"]["within_1_percent"] == 1.0
        assert result["tolerance, smaller window"]["window"] == [[32, 32]]
        assert result["tolerance, smaller window"]["change"]["median"] > 0
        for run in result["70b"]:
            assert run["layers"] == 6 * 7 + 2
            assert run["measured"]["layers"] == 3 * 7
            assert run["measured"]["layers_not_ok"] == []
            # Three of six blocks, and two ends that cost less than a block.
            assert 3 / 7 < run["share_of_the_cost_measured"] < 1 / 2
            assert run["computed"]["gigabytes_fetched"] <= run["computed"]["gigabytes_read"]

    def test_a_sample_has_the_size_of_the_whole_and_takes_the_room_of_its_blocks(
        self, tmp_path: Path
    ) -> None:
        whole, part = tmp_path / "whole", tmp_path / "part"
        size = write_checkpoint(whole, 3, config=checkpoint.TINY, per_shard=1)
        assert write_sample(part, 3, [1], config=checkpoint.TINY) == size
        one, other = (
            {layer.name: layer for layer in open_source(folder).layers} for folder in (whole, part)
        )
        assert list(one) == list(other)
        for name, layer in one.items():
            assert (layer.rows, layer.cols) == (other[name].rows, other[name].cols)
            filled = bool(other[name].read().any())
            assert filled == (".1." in name)
            if filled:
                torch.testing.assert_close(layer.read(), other[name].read(), rtol=0, atol=0)

    def test_training(self, tmp_path: Path) -> None:
        result = one_result(["training", "--rounds", "1"], tmp_path / "training.json")
        assert result["largest_alpha_difference"] < 1e-4
        assert result["ratios"]["plain / spectail"]["rounds"] == 1

    def test_balancer(self, tmp_path: Path) -> None:
        result = one_result(["balancer", "--rounds", "1"], tmp_path / "balancer.json")
        assert set(result["overhead_per_epoch"]) == {"balanced", "background"}
        assert result["sides"]["balanced"]["layers"] == 19
        assert result["sides"]["plain"]["layers"] == 0


def test_the_overhead_of_a_balancer_counts_measuring_and_hooks() -> None:
    # 10 steps of 1 s, 0.02 of it the optimizer's, which takes 0.03 with hooks; 3.91 s to measure: 1
    # % each
    plain, side = (
        {"steps": [10.0], "optimizer": [0.2]},
        {"steps": [10.4], "optimizer": [0.3], "update": [3.91]},
    )
    assert balancer.overhead(plain, side, "optimizer", repeated=39.1, steps=10) == pytest.approx(
        0.02
    )
    assert balancer.overhead(plain, side, "steps", repeated=1, steps=10) == pytest.approx(
        4.31 / 391, abs=1e-5
    )


class TestFitSpectra:
    @pytest.mark.parametrize("kind", fit.SPECTRA)
    def test_as_many_as_asked_ascending(self, kind: str) -> None:
        found = fit.spectrum(kind, 1000)
        assert found.shape == (1000,)
        assert (np.diff(found) >= 0).all()
        assert found[0] > 0

    def test_pareto_has_the_exponent_it_says(self) -> None:
        assert plain.fit(
            torch.from_numpy(fit.spectrum("pareto", 20_000)), "median"
        ).alpha == pytest.approx(3, abs=0.1)

    def test_a_missing_demo_model_is_named(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def missing(source: str) -> None:
            raise SourceError("the demo model is not installed")

        monkeypatch.setattr(fit, "open_source", missing)
        assert fit._run_case("smollm2", 1000, 1, math.inf) == {
            "not measured": "the demo model is not installed"
        }


class TestLayerCases:
    def test_the_demo_has_its_seven_kinds_in_the_runs_window(self) -> None:
        cut = layers.cuts(layers.CASES["demo"])
        assert list(cut) == list(layers.KINDS)
        assert {c.window for c in cut.values()} == {(192, 192)}
        assert cut["down"].matrix.shape == (576, 1536)

    @pytest.mark.parametrize(
        ("size", "expected"), [(4, [1, 2, 3, 4]), (7, [1, 1.5, 2, 2.5, 3, 3.5, 4])]
    )
    def test_a_stretched_spectrum_keeps_its_quantiles(
        self, size: int, expected: list[float]
    ) -> None:
        assert layers._stretched(torch.tensor([1.0, 2, 3, 4]), size).tolist() == expected


class TestWeights:
    def test_the_same_arguments_give_the_same_weights(self) -> None:
        assert torch.equal(made(50, 40, seed=1), made(50, 40, seed=1))
        assert not torch.equal(made(50, 40, seed=1), made(50, 40, seed=2))

    def test_the_strongest_direction_stands_above_the_bulk(self) -> None:
        singular = torch.linalg.svdvals(made(512, 512, name="up_proj"))
        assert singular[0] == pytest.approx(2.0 * 1.5 * 2, rel=0.2), (
            "strength x depth factor x edge"
        )
        assert singular[0] / singular[3] == pytest.approx(4**0.6, rel=0.25)

    def test_kinds_and_depths_differ_and_none_is_noise(self) -> None:
        def alpha(name: str, depth: float) -> float:
            return st.tail_fit(made(512, 512, name=name, depth=depth), st.Spec(window=128)).alpha

        alphas = [
            alpha(name, depth) for name in ("q_proj", "up_proj", "v_proj") for depth in (0.0, 1.0)
        ]
        null = st.tail_fit(torch.randn(512, 512), st.Spec(window=128)).alpha_null
        assert max(alphas) < null
        assert min(abs(a - b) for a, b in zip(alphas[::2], alphas[1::2], strict=True)) > 0.02
        assert max(alphas) - min(alphas) > 0.2

    def test_keys_and_values_of_70b_are_shared_by_eight_heads(self) -> None:
        shapes = shapes_of_block(LLAMA_70B)
        assert shapes["self_attn.k_proj"] == shapes["self_attn.v_proj"] == (1024, 8192)
        assert shapes["self_attn.q_proj"] == (8192, 8192)
        # 80 blocks, embedding and head: Llama-2-70B has 68.98 billion parameters.
        total = 80 * sum(rows * cols for rows, cols in shapes.values()) + 2 * 32000 * 8192
        assert total == pytest.approx(68.98e9, rel=1e-3)

    def test_a_checkpoint_reads_as_a_llama(self, tmp_path: Path) -> None:
        size = write_checkpoint(tmp_path, 3, config=checkpoint.TINY)
        source = open_source(str(tmp_path))
        shapes = {layer.name: (layer.rows, layer.cols) for layer in source.layers}
        expected = {
            f"model.layers.{block}.{name}": shape
            for block in range(3)
            for name, shape in shapes_of_block(checkpoint.TINY).items()
        }
        assert shapes == expected | {"model.embed_tokens": (300, 128), "lm_head": (300, 128)}
        assert source.n_vectors == 7
        assert size == 2 * (sum(math.prod(shape) for shape in shapes.values()) + 7 * 128)
        assert len(list(tmp_path.glob("*.safetensors"))) == 3
        loaded = next(
            layer for layer in source.layers if layer.name == "model.layers.1.mlp.down_proj"
        ).read()
        rounded = made(
            128, 320, name="model.layers.1.mlp.down_proj", depth=0.5, dtype=torch.bfloat16
        )
        assert torch.equal(loaded[0], rounded.float())

    def test_another_checkpoint_in_the_folder_is_refused(self, tmp_path: Path) -> None:
        write_checkpoint(tmp_path, 1, config=checkpoint.TINY)
        arguments = argparse.Namespace(quick=True, folder=tmp_path, keep=True, seed=0)
        with pytest.raises(SystemExit, match="holds another checkpoint"):
            checkpoint.run(arguments)

    def test_only_what_was_written_is_removed(self, tmp_path: Path) -> None:
        folder = tmp_path / "model"
        write_checkpoint(folder, 1, config=checkpoint.TINY)
        (folder / "mine.txt").write_text("stays")
        checkpoint._remove(folder)
        assert [file.name for file in folder.iterdir()] == ["mine.txt"]


def test_pruning_tells_its_peak_and_the_parts_of_it(tmp_path: Path) -> None:
    language.llama().save_pretrained(tmp_path / "model")
    language.tokenizer().save_pretrained(tmp_path / "model")
    found = one_result(["prune", "--model", str(tmp_path / "model")], tmp_path / "prune.json")
    assert found["peak_megabytes"] > found["parts_megabytes"]["model"]
    statistics = 4 * (6 * 64**2 + 96**2) / 2**20
    assert found["parts_megabytes"]["statistics of one block"] == pytest.approx(
        statistics, abs=0.06
    )
    assert found["parts_megabytes"]["hidden states"] == 0.0
    assert found["loading_alone"]["peak"] > 50


def test_resnet18_has_its_published_size() -> None:
    model = training.network(training.WIDTHS)
    assert sum(p.numel() for p in model.parameters()) == 11_689_512
    assert training.network(training.QUICK_WIDTHS)(torch.zeros(2, 3, 64, 64)).shape == (2, 1000)
