"""The pruning experiment on a toy model: its parts against plain versions, and a whole run."""

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import spectail as st
from experiments.common import Journal
from experiments.pruning import allocations
from experiments.pruning.__main__ import QUICK, main
from experiments.pruning.allocations import RULES, block_alphas, by_outliers, shrunk, with_outliers
from experiments.pruning.bench import Bench
from experiments.pruning.steps import Experiment, Settings, best, finalists, selection_key
from experiments.pruning.summary import against_baseline
from experiments.pruning.texts import Texts, given, read_html
from experiments.pruning.toy import toy
from spectail.pruning.allocators import as_allocator, uniform
from spectail.pruning.scores import wanda


@pytest.fixture(scope="module")
def quick(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("pruning")
    assert main(["--quick", "--out", str(folder)]) == 0
    return folder / "quick"


@pytest.fixture
def bench() -> Any:
    return Bench(toy()[0])


@pytest.fixture(scope="module")
def analysis() -> st.Analysis:
    return st.analyze(toy()[0], spec=st.Spec(window=32), include=["model.layers.*"])


def test_a_quick_run_compares_everything_at_one_sparsity(quick: Any) -> None:
    results = json.loads((quick / "results.json").read_text())
    assert list(results["tests"]) == ["magnitude 0.5", "wanda 0.6", "sparsegpt 0.6"]
    for target, found in results["tests"].items():
        assert set(found) == {*allocations.MAIN, *allocations.PARTS, *results["finalists"]}
        for row in found.values():
            assert row["sparsity"] == pytest.approx(float(target.split()[1]), abs=1e-4)
            assert len(row["seeds"]) == 2
    assert results["tests"]["wanda 0.6"][allocations.BASELINE]["ratio"] == 1
    assert set(results["selection"]["wanda 0.6"]) == set(RULES)
    assert (quick / "pruning.png").read_bytes().startswith(b"\x89PNG")
    text = (quick / "tables.md").read_text()
    assert "| FARMS default |" in text
    assert "| per layer |" in text


def test_a_stopped_run_goes_on_to_the_same_results(quick: Any, tmp_path: Path) -> None:
    # As if the whole run had been stopped halfway; what is left is stopped every few seconds.
    folder = tmp_path / "quick"
    folder.mkdir()
    lines = (quick / "pruning.jsonl").read_text().splitlines(keepends=True)
    (folder / "pruning.jsonl").write_text("".join(lines[: len(lines) // 2]))
    while main(["--quick", "--out", str(tmp_path), "--seconds", "6"]) == 3:
        pass
    one, two = (json.loads((each / "results.json").read_text()) for each in (quick, folder))
    assert one == two


def test_finalists_are_the_best_on_selection_text_of_all_methods() -> None:
    settings, done = Settings(eps=(0.1, 0.3), eps_magnitude=(0.1,)), {}
    for name in RULES:
        for method, sparsity in settings.targets[:2]:
            for eps in settings.eps_of(method, name):
                done[selection_key(method, sparsity, name, eps)] = 100.0
    done[selection_key("magnitude", 0.5, "KS", 0.1)] = 50.0
    done[selection_key("wanda", 0.6, "per layer", 0.3)] = 40.0
    done[selection_key("wanda", 0.6, "OWL", 0.3)] = 10.0
    done[selection_key("magnitude", 0.5, "windows of 64", 0.1)] = 20.0
    for eps in settings.eps:
        done[selection_key("wanda", 0.6, "windows of 64", eps)] = 1000.0
    assert finalists(done, settings) == ["per layer", "KS"]


def test_perplexity_is_that_of_the_package() -> None:
    model, letters, texts = toy()
    text = texts.tests["one"]
    expected = st.perplexity(model, lambda text, **_: letters(text), text, seq_len=32)
    ids = torch.tensor(letters(text)["input_ids"])
    blocks = ids[: len(ids) // 32 * 32].view(-1, 32)
    assert Bench(model).perplexity(blocks) == pytest.approx(expected, rel=1e-5)


def test_borrowed_weights_come_back(bench: Any) -> None:
    before = {name: value.clone() for name, value in bench.model.state_dict().items()}
    with bench.borrowed():
        bench.prune_at_once(0.5, "magnitude", None)
        assert any(
            not torch.equal(value, before[name]) for name, value in bench.model.state_dict().items()
        )
    assert all(torch.equal(value, before[name]) for name, value in bench.model.state_dict().items())


def test_pruning_at_once_uses_the_inputs_of_the_dense_model(bench: Any) -> None:
    tokens = torch.randint(256, (3, 16), generator=torch.Generator().manual_seed(0))
    layer, inputs = bench.model.model.layers[2].mlp.down_proj, []
    hook = layer.register_forward_pre_hook(
        lambda module, args: inputs.append(args[0].reshape(-1, args[0].shape[-1]))
    )
    with torch.no_grad():
        bench.model(tokens)
    hook.remove()
    score = wanda(layer.weight.detach(), torch.cat(inputs).square().sum(0))
    seen = bench.statistics(tokens)
    with bench.borrowed():
        bench.prune_at_once(0.25, "wanda", seen)
        zeros = layer.weight == 0
    kept, gone = (
        score.masked_fill(zeros, math.inf).amin(dim=1),
        score.masked_fill(~zeros, -1).amax(dim=1),
    )
    assert zeros.float().mean() == 0.25
    assert (gone <= kept).all()


def test_outliers_give_the_ratios_of_owl() -> None:
    model, _, _ = toy()
    tokens = torch.randint(256, (4, 32), generator=torch.Generator().manual_seed(1))
    expected = as_allocator("owl").prepare(model, 0.6, calibration=tokens)(0.2)
    shares = expected.settings["by block"]
    found = by_outliers(shares, uniform(model, 0.6), 0.12)
    assert found == pytest.approx(dict(expected), abs=1e-6)


@pytest.mark.parametrize("name", RULES)
def test_every_allocation_meets_the_budget(name: Any, analysis: st.Analysis) -> None:
    even = uniform(toy()[0], 0.6)
    shares = {share.unit: float(i) for i, share in enumerate(even.shares)}
    found = allocations.ratios(RULES[name], 0.3, 0.6, analysis=analysis, even=even, owl=shares)
    sizes = {share.name: share.numel for share in even.shares}
    assert set(found) == set(sizes)
    mean = sum(found[layer] * n for layer, n in sizes.items()) / sum(sizes.values())
    assert mean == pytest.approx(0.6, abs=1e-9)


def test_shrinking_pulls_the_uncertain_ones_most(analysis: st.Analysis) -> None:
    noisy = tuple(
        replace(
            layer, alpha=2.0 + 0.1 * (layer.block or 0), alpha_se=0.01 if layer.block != 3 else 0.2
        )
        for layer in analysis.layers
    )
    found = [layer.alpha for layer in shrunk(noisy, {}) if layer.kind == noisy[0].kind]
    before = [layer.alpha for layer in noisy if layer.kind == noisy[0].kind]
    moved = np.abs(np.subtract(found, before))
    assert moved[3] == max(moved)
    assert shrunk(tuple(replace(x, alpha_se=0.0) for x in noisy), {})[0].alpha == pytest.approx(
        before[0]
    )


def test_more_outliers_mean_a_lower_score(analysis: st.Analysis) -> None:
    even = tuple(replace(layer, alpha=2.0) for layer in analysis.layers)
    units = list(block_alphas(even))
    found = block_alphas(with_outliers(even, {unit: float(i) for i, unit in enumerate(units)}))
    assert [found[unit] for unit in units] == sorted(found.values(), reverse=True)


def test_sparsegpt_takes_what_wanda_chose(tmp_path: Path) -> None:
    model, letters, texts = toy()
    journal = Journal.open(tmp_path / "j.jsonl", {})
    settings = replace(QUICK, eps=(0.1, 0.3))
    experiment = Experiment(
        model, letters, texts, settings=settings, journal=journal, work=tmp_path
    )
    for eps, score in ((0.1, 9.0), (0.3, None)):
        journal.add(selection_key("wanda", 0.6, "OWL", eps), score)
    assert experiment.chosen("sparsegpt", 0.6, "OWL") == 0.1
    assert experiment.chosen("wanda", 0.6, "uniform") is None


def test_ratios_are_taken_seed_by_seed() -> None:
    found = {allocations.BASELINE: {"seeds": [10.0, 40.0]}, "other": {"seeds": [5.0, 10.0]}}
    against_baseline(found)
    assert found["other"]["ratio"] == pytest.approx(math.sqrt(0.5 * 0.25))
    assert (found["other"]["ratio_low"], found["other"]["ratio_high"]) == pytest.approx((0.25, 0.5))
    assert best({"0.1": None, "0.2": 3.0}) == 3.0


def test_pages_lose_their_tags_and_texts_keep_their_names(tmp_path: Path) -> None:
    page = tmp_path / "a.html"
    page.write_text(
        "<html><head><title>no</title></head><body><p>One &amp; "
        "<b>two</b></p><script>no</script>three"
    )
    assert read_html(page) == "One &\ntwo\nthree"
    for name in "abc":
        (tmp_path / name).write_text(name)
    assert given(tmp_path / "a", tmp_path / "b", [f"c={tmp_path / 'c'}"]) == Texts(
        "a", "b", {"c": "c"}
    )


def test_texts_are_given_together_or_not_at_all(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="no text may serve two ends"):
        main(["--calibration", str(tmp_path / "a"), "--out", str(tmp_path)])
