"""The rules on encoders: their score, masks, inputs and a whole run on a toy."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from experiments.allocation import encoders, steps
from experiments.allocation.antibodies import HEAVY, LIGHT, RESIDUES, antibodies
from experiments.allocation.encoders import Encoder, embed, encoder_tables, lines, removal_order
from experiments.allocation.rules import READS_NO_WEIGHTS, RULES
from experiments.common import ROOT
from experiments.pruning.texts import Texts

TOY = steps.Settings(
    targets=(("magnitude", 0.5), ("wanda", 0.5)),
    eps=(0.3, 0.6),
    draws=2,
    seq_len=8,
    calibration=3,
    selection=2,
    tests=2,
)


@pytest.fixture
def toy() -> Any:
    """An encoder of three small blocks with drawn weights."""
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=30,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=3,
        num_attention_heads=4,
        max_position_embeddings=16,
        initializer_range=0.3,
    )
    return transformers.BertModel(config, add_pooling_layer=False)


def toy_texts() -> Texts:
    """Lines of six letters."""
    draw = torch.Generator().manual_seed(0)
    texts = [
        "\n".join(
            "".join(RESIDUES[int(i)] for i in torch.randint(20, (6,), generator=draw))
            for _ in range(5)
        )
        for _ in range(4)
    ]
    return Texts(texts[0], texts[1], {"one": texts[2], "two": texts[3]})


def test_the_score_is_the_mean_distance_of_embeddings(toy: Any) -> None:
    encoder, tokens = Encoder(toy), torch.arange(24).reshape(3, 8)
    assert encoder.score(tokens) == pytest.approx(0, abs=1e-6)
    dense = embed(toy, tokens).clone()
    with encoder.borrowed(), torch.no_grad():
        toy.encoder.layer[1].output.dense.weight.mul_(-1)
        moved = toy(tokens).last_hidden_state.mean(1)
        angles = [(a @ b / (a.norm() * b.norm())).item() for a, b in zip(moved, dense, strict=True)]
        assert encoder.score(tokens) == pytest.approx(1 - sum(angles) / 3, abs=1e-5)
        assert encoder.score(tokens) > 0.01
    assert encoder.score(tokens) == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("method", ["magnitude", "wanda"])
def test_masks_are_those_of_the_product(toy: Any, method: str) -> None:
    encoder, tokens = Encoder(toy), torch.arange(24).reshape(3, 8)
    seen = encoder.statistics(tokens) if method == "wanda" else None
    names = [weight.name for weight in encoder.weights]
    for start in (0.3, 0.55):
        ratios = {name: start + 0.01 * i for i, name in enumerate(names)}
        with encoder.borrowed():
            encoder.prune_at_once(ratios, method, seen)
            found = [weight.read().clone() for weight in encoder.weights]
        with encoder.borrowed():
            super(Encoder, encoder).prune_at_once(ratios, method, seen)
            expected = [weight.read().clone() for weight in encoder.weights]
        for one, other in zip(found, expected, strict=True):
            assert torch.equal(one, other)
            assert bool((one == 0).any())


def test_the_order_of_removal_is_a_ranking() -> None:
    weights = torch.tensor([[3.0, -1.0], [0.5, 2.0]])
    assert removal_order(weights, None).tolist() == [[3, 1], [0, 2]]
    # Scores [[3, 2], [0.5, 4]]: the least of every row first, of these the second row's.
    assert removal_order(weights, torch.tensor([1.0, 4.0])).tolist() == [[2, 1], [0, 3]]


def test_antibodies_of_a_text_have_one_length_and_texts_share_no_gene() -> None:
    texts = antibodies()
    for text, length in (
        (texts.calibration, 120),
        (texts.selection, 120),
        (texts.tests["heavy"], 120),
        (texts.tests["light"], 107),
    ):
        assert {len(line) for line in text.splitlines()} == {length}
        assert set(text) - {"\n"} <= set(RESIDUES)
        assert len(set(text.splitlines())) == len(text.splitlines())
    parts = [texts.calibration, texts.selection, texts.tests["heavy"]]
    nearest = [{_nearest(line) for line in part.splitlines()} for part in parts]
    assert all(len(genes) == 2 for genes in nearest)
    assert len(set().union(*nearest)) == len(HEAVY)
    assert {_nearest(line) for line in texts.tests["light"].splitlines()} == set(LIGHT)


def _nearest(chain: str) -> str:
    genes = HEAVY | LIGHT
    return max(genes, key=lambda g: sum(a == b for a, b in zip(genes[g], chain, strict=False)))


def test_a_run_goes_on_ends_and_fills_the_tables(
    toy: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = tmp_path / "docs" / "allocation-results.md"
    page.parent.mkdir()
    marks = ("encoders", "encoders tested", "encoders depth")
    page.write_text("".join(f"<!-- {mark} -->\n<!-- /{mark} -->\n" for mark in marks))
    sampler = lines({letter: i + 5 for i, letter in enumerate(RESIDUES)})
    monkeypatch.setattr(encoders, "SETTINGS", TOY)
    monkeypatch.setattr(encoders, "JOURNALS", tmp_path)
    monkeypatch.setattr(encoders, "ROOT", tmp_path)
    opened = (toy, toy_texts(), sampler, (2, 3))
    monkeypatch.setattr(encoders, "open_encoder", lambda name, folders: opened)
    assert encoders.main(["--model", "antiberty", "--seconds", "0"]) == 3
    assert encoders.main(["--model", "antiberty"]) == 0
    kept = (tmp_path / "antiberty.jsonl").read_text().splitlines()
    done = dict(json.loads(line) for line in kept[1:])
    for target in TOY.targets:
        assert all(done[steps.select_key(target, rule, 0.3)] for rule in ("owl", "farms-tail"))
        for rule in (*steps.finalists(done, TOY, target), *READS_NO_WEIGHTS):
            row = done[steps.test_key(target, rule, 1)]
            assert row["sparsity"] == pytest.approx(0.5, abs=1e-3)
            assert row["one"] > 0
            assert row["two"] > 0
    assert done["dense | 0"] == pytest.approx({"one": 0, "two": 0}, abs=1e-6)
    assert "AntiBERTy, magnitude 0.5" in page.read_text()
    tried = sum(len(TOY.candidates(rule)) for rule in RULES)
    assert sum(key.startswith("select | wanda") for key in done) == tried


def test_inputs_stand_between_the_end_tokens(toy: Any, tmp_path: Path) -> None:
    texts = toy_texts()
    sampler = lines({letter: i + 5 for i, letter in enumerate(RESIDUES)})
    experiment = encoders.EncoderExperiment(
        Encoder(toy), None, texts, settings=TOY, journal=None, sampler=sampler, ends=(2, 3)
    )
    for what, text in (("calibration", texts.calibration), ("two", texts.tests["two"])):
        for row in experiment._tokens(what, 1).tolist():
            assert (row[0], row[-1], len(row)) == (2, 3, 8)
            assert "".join(RESIDUES[token - 5] for token in row[1:-1]) in text.splitlines()


def test_the_tables_of_encoders_follow_from_the_committed_journals() -> None:
    journals = ROOT / "experiments" / "allocation" / "journals"
    if not any((journals / f"{name}.jsonl").exists() for name in encoders.MODELS):
        pytest.skip("no journal is kept yet")
    page = (ROOT / "docs" / "allocation-results.md").read_text(encoding="utf-8")
    for part in encoder_tables(journals).values():
        assert part in page
