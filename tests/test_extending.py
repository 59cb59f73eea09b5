"""Adding something from outside: one type in one file, one line in one
table, and everything else follows.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from torch import nn

import spectail as st
from spectail import export
from spectail.allocation import targets
from spectail.allocation.targets import LearningRate, Target
from spectail.cli import run
from spectail.core import cutoffs
from spectail.core.cutoffs import Cutoff, cutoff_forms, parse_cutoff
from spectail.export import Tool
from spectail.pruning import methods as pruning_methods
from spectail.pruning.masks import smallest
from spectail.pruning.statistics import Squares
from spectail.training import rules as training_rules
from tests.allocation.conftest import layer, results, transformer
from tests.pruning.models import decoder, tokens
from tests.training.nets import net, train


@dataclass(frozen=True)
class LowerQuarter(Cutoff):
    """A toy: everything but the lowest quarter."""

    text = "quarter"
    summary = "all but the lowest quarter of the eigenvalues"
    meaning = "alpha describes the upper three quarters."

    def start(self, eigenvalues: Any) -> Any:
        return eigenvalues.size // 4


class TestACutoff:
    @pytest.fixture(autouse=True)
    def registered(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(cutoffs, "CUTOFFS", [*cutoffs.CUTOFFS, LowerQuarter])

    def test_is_parsed_and_named(self) -> None:
        assert parse_cutoff("quarter") == LowerQuarter()
        assert cutoff_forms(cutoffs.CUTOFFS).endswith("fixed:X or quarter")

    def test_is_measured_with_a_null_and_an_error_bar(self) -> None:
        matrix = np.random.default_rng(0).standard_normal((256, 256))
        fit = st.tail_fit(matrix, st.Spec(window=64, cutoff="quarter"))
        start = fit.eigenvalues.size // 4
        tail = fit.eigenvalues[start:]
        assert fit.alpha == pytest.approx(1 + tail.size / np.log(tail / tail[0]).sum())
        assert abs(fit.alpha - fit.alpha_null) < 4 * np.hypot(fit.alpha_se, fit.alpha_null_sd)

    def test_runs_from_the_command_line_to_the_report(self, tmp_path: Path) -> None:
        torch.manual_seed(0)
        torch.save(
            {"a.weight": torch.randn(96, 128), "b.weight": torch.randn(128, 96)},
            tmp_path / "model.pt",
        )
        assert (
            run(
                [
                    "analyze",
                    str(tmp_path / "model.pt"),
                    "--out",
                    str(tmp_path / "run"),
                    "--cutoff",
                    "quarter",
                ]
            )
            == 0
        )
        assert (
            "lpha describes the upper three quarters"
            in (tmp_path / "run" / "report.html").read_text()
        )
        assert str(st.Analysis.load(tmp_path / "run").run.spec.cutoff) == "quarter"


@dataclass(frozen=True)
class Largest(pruning_methods.Method):
    """A toy: the largest weights of a matrix go, and the others are halved."""

    name = "largest"
    meaning = "the largest weights went."
    statistic = Squares

    def apply(self, weights: torch.Tensor, quota: Any, seen: Any = None) -> Any:
        assert seen.tokens
        return pruning_methods.Outcome(smallest(-weights.abs(), quota.count), weights / 2)


class TestAPruningMethod:
    @pytest.fixture(autouse=True)
    def registered(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(pruning_methods, "METHODS", [*pruning_methods.METHODS, Largest()])

    def test_prunes_a_live_model_by_its_name(self) -> None:
        model: Any = decoder("llama")
        before = model.model.layers[1].mlp.up_proj.weight.detach().clone()
        report = st.prune(model, 0.25, method="largest", calibration=tokens())
        stays = before.abs() <= before.abs().flatten().kthvalue(before.numel() * 3 // 4).values
        expected = torch.where(stays, before / 2, 0)
        assert torch.equal(model.model.layers[1].mlp.up_proj.weight, expected)
        assert (report.method, report.settings, report.realised) == ("largest", {}, 0.25)

    def test_needs_the_text_that_it_asks_for(self) -> None:
        with pytest.raises(st.PruneError, match="largest needs calibration"):
            st.prune(decoder("llama"), 0.25, method="largest")

    def test_runs_from_the_command_line_to_the_report(self, tmp_path: Path) -> None:
        text = _save_with_tokenizer(decoder("llama"), tmp_path / "model")
        (tmp_path / "text.txt").write_text(text)
        where = ["prune", str(tmp_path / "model"), "--out", str(tmp_path / "out")]
        words = ["--calibration", str(tmp_path / "text.txt"), "--seq-len", "16", "--quiet"]
        how = ["--sparsity", "0.25", "--allocation", "uniform", "--method", "largest"]
        assert run([*where, *words, *how]) == 0
        assert "the largest weights went" in (tmp_path / "out" / "report.html").read_text()

    def test_stands_in_the_help_and_in_errors(self, capfd: pytest.CaptureFixture[str]) -> None:
        assert run(["prune", "--help"]) == 0
        assert "largest" in capfd.readouterr().out
        with pytest.raises(st.PruneError, match="sparsegpt, largest, not 'smallest'"):
            st.prune(decoder("llama"), 0.25, method="smallest")


def _save_with_tokenizer(model: Any, folder: Path) -> str:
    """Save a model with a tokenizer of whole words; returns a text of words that it knows."""
    transformers = pytest.importorskip("transformers")
    tokenizers = pytest.importorskip("tokenizers")
    words = [f"w{i}" for i in range(90)]
    vocabulary = {"<pad>": 0} | {word: i + 3 for i, word in enumerate(words)}
    whole = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token="<pad>"))
    whole.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    model.save_pretrained(folder)
    saved = transformers.PreTrainedTokenizerFast(tokenizer_object=whole, pad_token="<pad>")
    saved.save_pretrained(folder)
    return " ".join(words[(7 * i * i + i) % 90] for i in range(400))


@dataclass(frozen=True, kw_only=True)
class Steep(training_rules.Rule):
    """A toy: the highest alpha trains at nine times the rate of the lowest."""

    name = "steep"
    option = "lr"
    target = LearningRate
    map: str = "linear:1:9"


class TestATrainingRule:
    @pytest.fixture(autouse=True)
    def registered(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(training_rules, "RULES", [*training_rules.RULES, Steep])

    def test_is_found_by_name_by_name_and_map_and_by_its_settings(self) -> None:
        assert training_rules.as_rule("steep") == Steep()
        assert training_rules.as_rule("steep:sqrt").map == st.maps.SquareRoot()
        settings = Steep(level="block").settings()
        assert training_rules.as_rule(settings) == Steep(level="block")
        with pytest.raises(st.TrainingError, match="alphadecay, steep "):
            training_rules.as_rule("shallow")

    def test_trains_every_layer_at_its_rate_and_resumes(self) -> None:
        def trained(rate: float) -> tuple[st.Balancer, list[Any]]:
            model = net()
            balancer = st.Balancer(
                model, torch.optim.SGD(model.parameters(), lr=rate), "steep", every=None
            )
            balancer.update()
            before = [p.detach().clone() for p in model.parameters()]
            train(model, balancer.optimizer, 1)
            moved = [p.detach() - b for p, b in zip(model.parameters(), before, strict=True)]
            return balancer, moved

        balancer, moved = trained(0.01)
        ordered = sorted(balancer.history[-1].alphas.items(), key=lambda item: item[1])
        factors = [balancer.factors[name] for name, _ in ordered]
        assert (factors[0], factors[-1]) == (1.0, 9.0)
        assert all(low < high for low, high in pairwise(factors))
        plain = net()
        gradients = _gradients(plain)
        for (name, _), change, gradient in zip(
            plain.named_parameters(), moved, gradients, strict=True
        ):
            factor = balancer.factors.get(name.split(".")[0])
            if factor is not None:
                assert torch.allclose(change, -0.01 * factor * gradient, atol=1e-6)
        other, _ = trained(0.01)
        other.load_state_dict(balancer.state_dict())
        assert other.factors == balancer.factors


def _gradients(model: nn.Module) -> list[Any]:
    """The gradients of the first step of ``train``."""
    train(model, torch.optim.SGD(model.parameters(), lr=0.0), 1)
    return [p.grad for p in model.parameters()]


@dataclass(frozen=True, kw_only=True)
class Rank(Target):
    """A toy: the budget times the place of the unit among all, from the lowest alpha."""

    name: ClassVar[str] = "rank"
    meaning: ClassVar[str] = "the base rank times the place of alpha"
    budget_meaning: ClassVar[str] = "the rank of the lowest alpha"
    inside_blocks: ClassVar[bool] = True

    level: str = "block"
    power: float = 1.0

    def values(self, units: Any, budget: float) -> tuple[Any, tuple[str]]:
        place = 1 + units.alpha.argsort().argsort()
        return budget * place**self.power, ("toys have no published rule.",)


@dataclass(frozen=True)
class Table(Tool):
    """A toy: one line per layer."""

    name: ClassVar[str] = "table"
    takes: ClassVar[str] = "anything"
    tried: ClassVar[str] = "this test"

    separator: str = ","

    def text(self, allocation: Any) -> str:
        return "\n".join(f"{name}{self.separator}{value:g}" for name, value in allocation.items())

    def remark(self, allocation: Any) -> str:
        return f"lines: {len(allocation)}"


class TestATargetAndATool:
    @pytest.fixture(autouse=True)
    def registered(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(targets, "TARGETS", [*targets.TARGETS, Rank])
        monkeypatch.setattr(export, "TOOLS", [*export.TOOLS, Table])

    @pytest.fixture
    def folder(self, tmp_path: Path) -> Path:
        found = transformer(3)
        st.Analysis(found.run, found.layers).save(tmp_path / "run")
        return tmp_path

    def test_a_target_is_known_by_its_name(self) -> None:
        alphas = {f"layers.{i}.up": alpha for i, alpha in enumerate((3.0, 2.0, 4.0))}
        analysis = results(*(layer(name, alpha) for name, alpha in alphas.items()))
        allocation = st.allocate(analysis, target="rank", budget=8)
        assert dict(allocation) == {"layers.0.up": 16, "layers.1.up": 8, "layers.2.up": 24}
        assert allocation.settings == {"level": "block", "power": 1.0}
        assert allocation.deviations == ("toys have no published rule.",)

    def test_they_run_from_the_command_line(
        self, folder: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        made, out = folder / "rank.json", folder / "table.txt"
        command = ["allocate", str(folder / "run"), "--target", "rank", "--budget", "8"]
        assert run([*command, "--out", str(made), "--option", "power=2"]) == 0
        assert "rank 8 (level block, power 2)" in capsys.readouterr().out
        assert json.loads(made.read_text())["settings"] == {"level": "block", "power": 2}
        command = ["export", str(made), "--to", "table", "--out", str(out)]
        assert run([*command, "--option", "separator=;"]) == 0
        assert capsys.readouterr().out == f"lines: 6\ntable: {out}\n"
        values = [float(line.partition(";")[2]) for line in out.read_text().splitlines()]
        assert values == [8, 8, 32, 32, 72, 72]

    @pytest.mark.parametrize(("command", "name"), [("allocate", "rank"), ("export", "table")])
    def test_the_help_and_the_refusal_name_them(
        self, folder: Path, capsys: pytest.CaptureFixture[str], command: Any, name: str
    ) -> None:
        assert run([command, "--help"]) == 0
        assert f", {name}." in capsys.readouterr().out
        option = {"allocate": ["--target", "x", "--budget", "1"], "export": ["--to", "x"]}[command]
        assert run([command, str(folder / "run"), *option, "--out", str(folder / "o")]) == 2
        assert f", {name}, not 'x'" in capsys.readouterr().err

    @pytest.mark.parametrize(
        ("option", "message"),
        [
            ("power", "--option must be NAME=VALUE, not 'power'"),
            ("gamma=2", "--option 'gamma=2': give it as --gamma"),
            ("depth=2", "target rank takes level, power, but no depth"),
        ],
    )
    def test_an_option_that_a_target_lacks_is_refused(
        self, folder: Path, capsys: pytest.CaptureFixture[str], option: Any, message: str
    ) -> None:
        command = ["allocate", str(folder / "run"), "--target", "rank", "--budget", "8"]
        assert run([*command, "--out", str(folder / "o"), "--option", option]) == 2
        assert message in capsys.readouterr().err
        assert not (folder / "o").exists()

    def test_an_option_that_a_tool_lacks_is_refused(
        self, folder: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        made = folder / "a.json"
        st.allocate(transformer(3), target="rank", budget=8).save(made)
        command = ["export", str(made), "--to", "table", "--out", str(folder / "o")]
        assert run([*command, "--option", "depth=2"]) == 2
        assert "--option depth has no effect on table" in capsys.readouterr().err
        assert run([*command, "--method", "rtn"]) == 2
        assert "--method has no effect on table" in capsys.readouterr().err
