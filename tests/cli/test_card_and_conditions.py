"""``spectail card`` and ``spectail compare --fail-on``."""

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from markdown_it import MarkdownIt

import spectail as st
from spectail.cli import run
from spectail.errors import RunError
from spectail.report.card import MARK, card
from spectail.results.compare import pair_layers
from spectail.results.conditions import Condition


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Two runs of one model; in the second the first q has a heavier tail."""
    folder = tmp_path_factory.mktemp("runs")
    drawn = torch.Generator().manual_seed(0)
    weights = {
        f"model.layers.{b}.self_attn.{kind}_proj.weight": torch.randn(256, 256, generator=drawn)
        for b in range(3)
        for kind in ("q", "k")
    }
    weights["model.layers.0.evil|name<b>.weight"] = torch.randn(256, 256, generator=drawn)
    st.analyze(weights, out=folder / "a")
    name = "model.layers.0.self_attn.q_proj.weight"
    scales = torch.linspace(0, 3, 256).exp()
    st.analyze(weights | {name: weights[name] * scales}, out=folder / "b")
    return folder / "a", folder / "b"


def test_a_condition_ends_with_1_and_names_the_layers(
    folders: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    a, b = map(str, folders)
    assert run(["compare", a, b]) == 0
    assert run(["compare", a, b, "--fail-on", "z>4"]) == 0
    assert run(["compare", a, b, "--fail-on", "z<-4"]) == 1
    assert run(["compare", a, b, "--fail-on", "|z|>4", "--fail-on", "z>4"]) == 1
    out = capsys.readouterr().out
    assert "z<-4 holds for 1 layer: model.layers.0.self_attn.q_proj" in out
    assert "z>4 holds for no layer" in out


@pytest.mark.parametrize("text", ["z", "z>", "w>4", "z=4", "|z>4", "z>nan", "z>1e999", "z>4;rm"])
def test_a_condition_of_another_form_is_an_error(text: str) -> None:
    with pytest.raises(RunError, match=r"a condition is one of z, change, alpha"):
        Condition.of(text)


def test_conditions_agree_with_the_table(folders: tuple[Path, Path]) -> None:
    comparison = pair_layers(*map(st.Analysis.load, folders))
    table = comparison.table
    for text, held in (
        ("change>=0", table["alpha_change"] >= 0),
        ("|change|<=0.01", table["alpha_change"].abs() <= 0.01),
        ("alpha<2.1", table["alpha_b"] < 2.1),
    ):
        assert Condition.of(text).holds(comparison) == table["name"][held].tolist()


def test_what_cannot_be_decided_is_counted(folders: tuple[Path, Path]) -> None:
    a, b = map(st.Analysis.load, folders)
    fewer = st.Analysis(b.run, b.layers[:-2])
    assert Condition.of("z>4").unknown(pair_layers(a, fewer)) == 2


def test_alpha_of_b_needs_no_partner(folders: tuple[Path, Path]) -> None:
    a, b = map(st.Analysis.load, folders)
    fewer = st.Analysis(a.run, a.layers[:-2])
    failed = [replace(x, status="failed", alpha=math.nan) for x in a.layers[:1]]
    for other in (fewer, st.Analysis(a.run, (*failed, *a.layers[1:]))):
        condition, comparison = Condition.of("alpha>1"), pair_layers(other, b)
        assert set(condition.holds(comparison)) == {layer.name for layer in b.layers}
        assert condition.unknown(comparison) == 0
        assert Condition.of("change>-9").unknown(comparison) > 0
    # What only A has is open, and so is what failed in B.
    comparison = pair_layers(b, fewer)
    assert Condition.of("alpha>1").unknown(comparison) == 2
    comparison = pair_layers(b, st.Analysis(a.run, (*failed, *a.layers[1:])))
    assert Condition.of("alpha>1").unknown(comparison) == 1


def test_a_condition_that_can_be_decided_nowhere_fails(
    folders: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = [layer.name for layer in st.Analysis.load(folders[0]).layers]
    broken = {f"{name}.weight": torch.full((256, 256), torch.nan) for name in names}
    st.analyze(broken, out=tmp_path / "broken")
    assert run(["compare", str(folders[0]), str(tmp_path / "broken"), "--fail-on", "z>4"]) == 1
    assert "cannot be decided for 7 layers" in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize("window", ["whole", "fit"])
def test_the_card_does_not_compare_windows_of_several_sizes(window: str) -> None:
    weights = {"a.weight": torch.randn(64, 64), "b.weight": torch.randn(64, 192)}
    weights["c.weight"] = torch.randn(128, 128)
    text = card(st.analyze(weights, spec=st.Spec(window=window)))
    assert "alphas of unlike shapes do not compare" in text
    assert "share one window" not in text
    assert ("as whole matrices" in text) == (window == "whole")
    assert "share one window" in card(st.analyze(weights))


@pytest.mark.parametrize("name", ["``<img src=x>", "`", "a``b`<b>", "x`|`y", "\n```\n# h"])
def test_no_name_leaves_its_code(name: str, folders: tuple[Path, Path]) -> None:
    """A renderer of CommonMark sees text and code only, in a table of as many rows as kinds."""
    found = st.Analysis.load(folders[0])
    first = replace(found.layers[0], name=name, kind=name, alpha=1.0)
    run = replace(found.run, source=name, given=name)
    text = card(replace(found, run=run, layers=(first, *found.layers[1:])))
    parsed = MarkdownIt("commonmark", {"html": True}).enable("table").parse(text)
    tokens = [child for token in parsed for child in (token, *(token.children or []))]
    raw = [token.content for token in tokens if token.type.startswith("html")]
    assert "".join(raw).strip() == MARK
    assert sum(token.type == "heading_open" for token in tokens) == 1
    assert sum(token.type == "fence" for token in tokens) == 1
    assert {token.type for token in tokens} >= {"table_open", "code_inline"}


def test_the_card_says_what_the_run_says(
    folders: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["card", str(folders[0])]) == 0
    text = capsys.readouterr().out
    analysis = st.Analysis.load(folders[0])
    of_q = analysis.table[analysis.table["kind"] == "q"]["alpha"]
    assert f"| q | 3 | {of_q.mean():.3f} |" in text
    assert "7 of 7 layers measured" in text
    assert "no claim of a power law" in text
    assert "st.analyze" in text or "spectail analyze" in text
    # Names cannot open a cell or an element.
    outside = "".join(text.split("`")[::2])
    assert "<b>" not in outside
    out = tmp_path / "card.md"
    assert run(["card", str(folders[0]), "--out", str(out)]) == 0
    assert out.read_text() == text
    assert run(["card", str(folders[1]), "--out", str(out), "--quiet"]) == 0
    (tmp_path / "own.md").write_text("my own text")
    assert run(["card", str(folders[0]), "--out", str(tmp_path / "own.md")]) == 2
    assert run(["card", str(tmp_path)]) == 2
