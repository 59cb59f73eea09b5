"""The language experiment on written-out sums: data, optimizers, schedule,
training, and a whole quick run."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import spectail as st
from experiments.common import Journal
from experiments.language.__main__ import QUICK, Experiment, main, rules, search_key
from experiments.language.data import as_bytes, batch, corpus, drawn, spaced
from experiments.language.train import Recipe, fit, llama, loss, optimizers, share_of_rate
from experiments.pruning.texts import Texts

RECIPE = Recipe(optimizer="AdamW", lr=0.003, seed=0, steps=12, batch=8, length=32, every=4)
WINDOWS = st.presets.FARMS


def trained(rule: Any, recipe: Any = RECIPE) -> Any:
    torch.manual_seed(0)
    return fit(llama(64, 2, 32), drawn(), recipe, rule, WINDOWS)


@pytest.fixture(scope="module")
def quick(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("language")
    assert main(["--quick", "--out", str(folder)]) == 0
    return folder / "quick"


def test_seeds_that_all_methods_have_are_written(
    quick: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = (quick / "language.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "quick").mkdir()
    for left_out, shown in (
        ("AlphaDecay, windows | 0", ""),
        ("AlphaDecay, windows | 1", "Seeds: 1"),
    ):
        kept = [
            line
            for line in lines
            if f'final | Muon | {left_out}"' not in line and "windows | 1" not in line
        ]
        (tmp_path / "quick" / "language.jsonl").write_text("".join(kept))
        assert main(["--quick", "--out", str(tmp_path), "--seconds", "0"]) == 3
        assert shown in capsys.readouterr().out
        assert (tmp_path / "quick" / "results.json").exists() is bool(shown)


def test_a_quick_run_trains_every_method_with_every_seed(quick: Any) -> None:
    runs = json.loads((quick / "results.json").read_text())["runs"]
    finals = [run for key, run in runs.items() if key.startswith("final")]
    assert len(finals) == 2 * 6 * 2
    assert all(list(run["losses"]) == ["0", "2", "4"] and 0 < run["test"] < 8 for run in finals)
    assert all("test" not in run for key, run in runs.items() if key.startswith("search"))
    assert (quick / "language.png").read_bytes().startswith(b"\x89PNG")


def test_training_learns_and_repeats_and_follows_its_rule() -> None:
    one, again = trained(None), trained(None)
    scaled = trained(st.LLR(transition=0, min_eigenvalues=0))
    decayed = trained(st.AlphaDecay(min_eigenvalues=0))
    assert one == again
    assert one["losses"][12] < one["losses"][0] - 0.5
    assert one["losses"][4] == scaled["losses"][4], "the first measurement is after step 4"
    assert len({found["losses"][12] for found in (one, scaled, decayed)}) == 3


def test_muon_takes_the_matrices_inside_of_blocks_and_adamw_the_rest() -> None:
    model = llama(64, 2, 32)
    muon, adamw = optimizers(model, Recipe(**{**vars(RECIPE), "optimizer": "Muon"}))
    assert isinstance(muon, torch.optim.Muon)
    names = {id(p): name for name, p in model.named_parameters()}
    taken = [{names[id(p)] for p in o.param_groups[0]["params"]} for o in (muon, adamw)]
    assert len(taken[0]) == 2 * 7
    assert taken[0].isdisjoint(taken[1])
    assert taken[0] | taken[1] == set(names.values())
    assert {"model.embed_tokens.weight", "lm_head.weight", "model.norm.weight"} <= taken[1]


def test_the_rate_warms_up_and_ends_at_a_tenth() -> None:
    shares = [share_of_rate(step, 100) for step in range(101)]
    assert shares[0] == pytest.approx(0.1)
    assert max(shares) == shares[9] == shares[10] == pytest.approx(1)
    assert shares[10:] == sorted(shares[10:], reverse=True)
    assert shares[100] == pytest.approx(0.1)


def test_the_least_validation_loss_chooses_and_a_diverged_run_never(tmp_path: Path) -> None:
    settings = type(QUICK)(lrs=(0.1, 0.2, 0.3))
    experiment = Experiment(drawn(), settings, Journal.open(tmp_path / "j", {}), "cpu")
    for lr, value in zip(settings.lrs, (2.0, float("nan"), 1.5), strict=True):
        experiment.journal.add(search_key("AdamW", "one rate", lr), {"validation": value})
    assert experiment.chosen("AdamW", "one rate") == 0.3


def test_all_methods_differ_in_their_rule_alone() -> None:
    found = rules(QUICK)
    assert [rule and (rule.name, rule.spec.window) for rule in found.values()] == [
        None,
        ("llr", "common"),
        ("llr", "whole"),
        ("alphadecay", "whole"),
        ("llr", "common"),
        ("alphadecay", "common"),
    ]


def test_before_training_whole_matrices_have_the_factors_of_their_shapes() -> None:
    torch.manual_seed(0)
    model = llama(256, 7, 128)
    optimizer = torch.optim.AdamW(model.parameters())
    balancer = st.Balancer(
        model, optimizer, st.LLR(spec=st.presets.TEMPBALANCE, transition=0), every=None
    )
    balancer.update()
    for name, factor in balancer.factors.items():
        assert 4.4 < factor <= 5 if ".mlp." in name else 1 <= factor < 1.3


def test_texts_are_bytes_in_pieces_of_their_own_use() -> None:
    text = corpus(Texts(calibration="äb", selection="cd", tests={"one": "e", "two": "f"}))
    assert text.train.tolist() == [0xC3, 0xA4, ord("b")]
    assert bytes(text.test.tolist()) == b"e\n\nf"
    numbers = as_bytes("".join(map(chr, range(100))))
    assert spaced(numbers, size=3, length=10)[:, 0].tolist() == [0, 45, 90]
    pieces = batch(numbers, size=5, length=10, generator=torch.Generator().manual_seed(0))
    assert pieces.shape == (5, 10)
    assert (pieces.diff() == 1).all()


def test_the_loss_is_the_mean_over_all_pieces() -> None:
    text = drawn().test
    torch.manual_seed(0)
    model = llama(64, 1, 32)
    pieces = spaced(text, size=32, length=32)
    scores = model(input_ids=pieces).logits[:, :-1].log_softmax(-1)
    by_hand = -scores.gather(-1, pieces[:, 1:, None]).mean()
    assert loss(model, text, RECIPE) == pytest.approx(by_hand.item(), rel=1e-5)


def test_texts_are_given_together_or_not_at_all() -> None:
    with pytest.raises(SystemExit, match="give --train, --validation and --test together"):
        main(["--train", "a.txt"])
