"""The aspect-ratio experiment on tiny matrices, its laws, and the code of its docs page."""

import doctest
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import spectail as st
from experiments.aspect_ratio.__main__ import _nested, main
from experiments.aspect_ratio.laws import LAWS, RANK, SHARE
from experiments.aspect_ratio.measure import (
    Settings,
    alone_alphas,
    drawn,
    piece,
    shape_alphas,
    size_alphas,
)
from experiments.common import ROOT


@pytest.fixture(scope="module")
def quick(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("aspect_ratio")
    assert main(["--quick", "--out", str(folder)]) == 0
    return folder / "quick"


def test_a_quick_run_writes_results_tables_and_pictures(quick: Any) -> None:
    results = json.loads((quick / "results.json").read_text())
    assert set(results["alphas"]) == {"shapes", "sizes", "alone", "pieces"}
    assert set(results["alphas"]["shapes"]) == set(LAWS)
    assert list(results["alphas"]["shapes"]["Gaussian"]) == ["32x32", "32x128", "64x64", "64x256"]
    assert set(results["alphas"]["shapes"]["Gaussian"]["32x128"]["1"]) == {"windows", "whole"}
    text = (quick / "tables.md").read_text()
    assert "growing rank plus noise (not one law)" in text
    assert "| toy layer |" in text
    for name in ("aspect-ratio.png", "window-size.png"):
        assert (quick / name).read_bytes().startswith(b"\x89PNG")


def test_a_stopped_run_goes_on_to_the_same_results(quick: Any, tmp_path: Path) -> None:
    arguments = ["--quick", "--out", str(tmp_path)]
    assert main([*arguments, "--seconds", "0.05"]) == 3
    assert main(arguments) == 0
    one, two = (
        json.loads((folder / "results.json").read_text()) for folder in (quick, tmp_path / "quick")
    )
    assert one["alphas"] == two["alphas"]


@pytest.mark.parametrize("law", LAWS)
def test_laws_keep_their_variance_and_their_seed(law: str) -> None:
    wide, square = drawn(law, 256, 1024, 0), drawn(law, 512, 512, 0)
    assert wide.dtype == np.float32
    assert wide.shape == (256, 1024)
    assert np.array_equal(wide, drawn(law, 256, 1024, 0))
    assert not np.array_equal(wide, drawn(law, 256, 1024, 1))
    assert np.median(np.abs(wide)) == pytest.approx(np.median(np.abs(square)), rel=0.1)


def test_the_low_rank_term_has_its_rank_and_share() -> None:
    law = drawn("rank 16 plus noise", 400, 400, 0).astype(np.float64)
    values = np.linalg.svd(law, compute_uv=False)
    assert law.var() == pytest.approx(1, rel=0.1)
    assert values[RANK - 1] > 1.2 * values[RANK]
    assert values[RANK] < 1.05 * values[RANK + 1]
    assert (values[:RANK] ** 2).sum() / (values**2).sum() == pytest.approx(SHARE, abs=0.1)


def test_scaled_rows_and_columns_are_each_others_transpose() -> None:
    rows, columns = (np.random.default_rng(0), np.random.default_rng(0))
    assert np.array_equal(
        LAWS["rows of different scale"].draw(rows, 20, 30),
        LAWS["columns of different scale"].draw(columns, 30, 20).T,
    )


def test_full_settings_name_the_shapes_of_the_docs() -> None:
    settings = Settings()
    assert len(settings.shapes()) == 20
    assert (128, 2048) in settings.shapes()
    assert max(max(shape) for shape in settings.shapes()) == 4096
    assert len(settings.seeds_for(128, 128)) == 5
    assert len(settings.seeds_for(4096, 4096)) == 2
    assert settings.crops(360, 2048) == [
        (s, s * r) for s in (96, 192) for r in (1, 2, 4, 8, 16) if s * r <= 2048
    ]
    assert settings.crops(1536, 576)[-1] == (1536, 384)


def test_pieces_lie_inside_and_differ_by_seed() -> None:
    matrix = np.arange(600, dtype=np.float32).reshape(20, 30)
    cut = piece(matrix, 5, 7, 0)
    top, left = divmod(int(cut[0, 0]), 30)
    assert np.array_equal(cut, matrix[top : top + 5, left : left + 7])
    assert cut[0, 0] != piece(matrix, 5, 7, 1)[0, 0]


def test_alphas_are_those_of_tail_fit() -> None:
    matrix = drawn("Student-t, 3 degrees", 64, 256, 0)
    found = shape_alphas(matrix, 32, whole=True)
    for cutoff in found["windows"]:
        assert found["windows"][cutoff] == pytest.approx(
            st.tail_fit(matrix, st.Spec(window=32, cutoff=cutoff)).alpha, rel=1e-5
        )
        whole = st.tail_fit(matrix, st.Spec(window="whole", cutoff=cutoff)).alpha
        assert found["whole"][cutoff] == pytest.approx(whole, rel=1e-5)
    sizes = size_alphas(matrix, (16, 64, 128))
    assert list(sizes) == ["16", "64"]
    assert sizes["16"]["median"] == pytest.approx(
        st.tail_fit(matrix, st.Spec(window=16)).alpha, rel=1e-5
    )
    single = [
        st.tail_fit(matrix[:, i : i + 64], st.Spec(window=64)).alpha for i in range(0, 256, 64)
    ]
    assert alone_alphas(matrix, (64,))["64"]["median"] == pytest.approx(np.mean(single), rel=1e-5)


def test_keys_become_branches() -> None:
    assert _nested({"a/b/c": 1, "a/b/d": 2, "e/f": 3}) == {
        "a": {"b": {"c": 1, "d": 2}},
        "e": {"f": 3},
    }


def test_one_law_agrees_across_shapes_in_windows_and_not_whole() -> None:
    """The claim of the docs page, small: means over seeds, median cutoff, windows of 64."""
    shapes, seeds = [(128, 128), (128, 512), (256, 1024)], range(4)
    found = [
        [shape_alphas(drawn("Gaussian", *shape, seed), 64, whole=True) for seed in seeds]
        for shape in shapes
    ]
    windows, whole = (
        [np.mean([seed[what]["median"] for seed in shape]) for shape in found]
        for what in ("windows", "whole")
    )
    assert max(windows) / min(windows) < 1.02
    assert max(whole) / min(whole) > 1.5


def test_the_code_of_the_docs_page_runs() -> None:
    text = (ROOT / "docs" / "aspect-ratio.md").read_text()
    code = "".join(re.findall(r"```python\n(.*?)```", text, re.DOTALL))
    test = doctest.DocTestParser().get_doctest(code, {}, "aspect-ratio.md", None, 0)
    assert len(test.examples) > 8
    results = doctest.DocTestRunner().run(test)
    assert results.failed == 0


RESULTS = ROOT / "experiments" / "aspect_ratio" / "results.json"


@pytest.mark.skipif(
    not RESULTS.exists(), reason="a source distribution holds no results of experiments"
)
def test_the_committed_results_are_those_of_the_present_settings() -> None:
    results = json.loads(RESULTS.read_text())
    assert results["settings"] == json.loads(json.dumps(Settings().to_dict()))
