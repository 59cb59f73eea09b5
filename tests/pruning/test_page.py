"""The page of a pruning run: its rows are the report's, its lines the
allocations', and zeros are no gain."""

import json
import math
import re
from dataclasses import replace
from typing import Any

import pytest

from spectail.allocation.allocation import Allocation, LayerValue
from spectail.allocation.left_out import Code, LeftOut, Reason
from spectail.evaluation import Perplexity
from spectail.pruning.allocators import as_allocator
from spectail.pruning.methods import as_method
from spectail.pruning.page import COLUMNS, perplexity_by_eps, prune_html, ratios_by_depth
from spectail.pruning.pipeline import Pruned, PruningPlan
from spectail.pruning.report import NO_GAIN, Evaluated, PrunedLayer, PruneReport, Selected
from spectail.pruning.setting import Setting
from spectail.report.page import addresses

BLOCKS, KINDS = 6, {"self_attn.q_proj": 400, "mlp.up_proj": 1200}
HOSTILE = "model.layers.5.<script>alert(1)</script>"


def allocation(eps: float, **settings: Any) -> Allocation:
    """Ratios that rise with the block."""
    shares = [
        LayerValue(
            f"model.layers.{b}.{kind}",
            0.5 * (1 + eps * (2 * b / (BLOCKS - 1) - 1)),
            f"model.layers.{b}",
            2.0,
            numel,
        )
        for b in range(BLOCKS)
        for kind, numel in KINDS.items()
    ]
    given = {"map": f"linear:{1 - eps}:{1 + eps}", "level": "block", **settings}
    return Allocation(
        target="sparsity", budget=0.5, settings=given, shares=tuple(shares),
        source="LlamaForCausalLM",
        left_out=(
            LeftOut("model.embed_tokens", Reason(Code.EMBEDDING, "an embedding")),
            LeftOut(HOSTILE, Reason(Code.ROUTER, "a router")),
        ),
        deviations=("1 of 6 units would lie outside.",),
    )  # fmt: skip


def pruned(*, chosen: bool = True, evaluated: int = 1) -> Pruned:
    """A run by alpha with eps 0.3, its perplexities made up."""
    used = allocation(0.3)
    layers = [
        PrunedLayer(s.name, s.value, round(s.value * s.numel) / s.numel, round(s.value * s.numel),
                    s.numel, "n",
                    "damping raised" if s.name.endswith("3.mlp.up_proj") else "")
        for s in used.shares
    ]  # fmt: skip
    dense, after = Perplexity([3.0, 3.2], seq_len=512), Perplexity([3.5, 3.7], seq_len=512)
    scores = ((Setting(0.1), 40.0), (Setting(0.3), 35.5), (Setting(0.6), math.nan))
    report = PruneReport(
        method="sparsegpt", settings={}, pattern=None, layers=tuple(layers), calibration=(32, 512),
        seconds=1.5, left_out=used.left_out,
        evaluated=tuple(Evaluated(f"test{i}.txt", dense, after) for i in range(evaluated)),
        selected=Selected("the last 10% of <b>text</b>.txt", Setting(0.3), dense, scores)
        if chosen else None,
    )  # fmt: skip
    plan = PruningPlan(
        method=as_method("sparsegpt"),
        sparsity=0.5,
        allocator=as_allocator("farms"),
        eps="auto" if chosen else 0.3,
    )
    others = {"eps 0.1": allocation(0.1), "eps 0.6": allocation(0.6), "uniform": allocation(0.0)}
    return Pruned(plan, used, report, others)


def html(done: Pruned) -> str:
    return prune_html(
        done, source="path/to/my-model", command="spectail prune path/to/my-model --out DIR"
    )


def data_of(text: str) -> Any:
    [found] = re.findall(
        r'<script type="application/json" id="data">(.*?)</script>', text, re.DOTALL
    )
    return json.loads(found)


def body_of(text: str) -> str:
    return re.sub(r"<(script|style).*?</\1>", "", text, flags=re.DOTALL)


def test_rows_are_the_layers_and_those_left_out() -> None:
    done = pruned()
    table = data_of(html(done))["table"]
    assert tuple(table["columns"]) == COLUMNS
    rows = [dict(zip(COLUMNS, row, strict=True)) for row in table["rows"]]
    assert [row["name"] for row in rows] == [*done.allocation, "model.embed_tokens", HOSTILE]
    for row, layer in zip(rows, done.report.layers, strict=False):
        for key in ("requested", "realised", "zeros", "numel"):
            assert row[key] == getattr(layer, key)
        assert (row["status"], row["reason"], row["alpha"]) == ("pruned", layer.note, 2.0)
    assert [(row["status"], row["realised"]) for row in rows[-2:]] == [("left out", None)] * 2
    assert (rows[0]["block"], rows[0]["kind"]) == (0, "q")


def test_lines_are_block_means_of_every_allocation_and_points_what_was_reached() -> None:
    done = pruned()
    fig = ratios_by_depth(done.allocation, done.report, done.others)
    lines = {trace.name: trace for trace in fig.data}
    assert list(lines) == ["used", "reached, each layer", "uniform", "eps 0.1", "eps 0.6"]
    for name, found in (*done.others.items(), ("used", done.allocation)):
        ratios = [found[f"model.layers.{b}.mlp.up_proj"] for b in range(BLOCKS)]
        assert list(lines[name].x) == list(range(BLOCKS))
        assert list(lines[name].y) == pytest.approx(ratios)
    assert list(lines["reached, each layer"].y) == [layer.realised for layer in done.report.layers]
    assert list(lines["reached, each layer"].customdata) == list(range(len(done.report.layers)))


def test_a_block_whose_layers_differ_is_drawn_by_its_weights() -> None:
    done = pruned()
    shares = [
        replace(s, value=0.8) if s.name == "model.layers.2.mlp.up_proj" else s
        for s in done.allocation.shares
    ]
    mixed = replace(done.allocation, shares=tuple(shares))
    line = {trace.name: trace for trace in ratios_by_depth(mixed, done.report, {}).data}["used"]
    assert line.y[2] == pytest.approx(
        (400 * mixed["model.layers.2.self_attn.q_proj"] + 1200 * 0.8) / 1600
    )


def test_the_choice_of_eps_is_drawn_without_the_candidate_that_gave_nan() -> None:
    selected = pruned().report.selected
    assert selected is not None
    fig = perplexity_by_eps(selected)
    assert list(fig.data[0].x) == [0.1, 0.3]
    assert list(fig.data[0].y) == [40.0, 35.5]
    assert (fig.data[1].x, fig.data[1].y) == ((0.3,), (35.5,))
    lost = replace(selected, perplexities=((Setting(0.1), math.inf), (Setting(0.3), math.inf)))
    assert not perplexity_by_eps(lost).data
    assert (
        perplexity_by_eps(lost).layout.annotations[0].text == "no candidate has a finite perplexity"
    )


def test_forms_of_a_rule_are_drawn_apart_and_the_chosen_one_is_named() -> None:
    first, rising = Setting(0.3, "first"), Setting(0.3, "rising")
    scores = ((first, 40.0), (Setting(0.6, "first"), 38.0), (rising, 35.5))
    selected = pruned().report.selected
    assert selected is not None
    chosen = replace(selected, setting=rising, perplexities=scores)
    fig = perplexity_by_eps(chosen)
    assert [trace.name for trace in fig.data] == ["first", "rising", "chosen"]
    assert list(fig.data[0].y) == [40.0, 38.0]
    assert chosen is not None
    assert "rising, eps 0.3 chosen by selection perplexity" in chosen.describe()
    assert chosen.to_dict()["candidates"][2] == {"eps": 0.3, "form": "rising", "perplexity": 35.5}


def test_words_say_what_zeros_are_worth_and_which_perplexity_is_which() -> None:
    body = body_of(html(pruned(evaluated=2)))
    for text in (
        NO_GAIN, "my-model", "This is no test result.", "test0.txt (test text)",
        "test1.txt (test text)",
        "22.2 → 36.6", "dense 22.198, pruned 36.598 (1.65 times)",
        "0.3 (chosen)", "0.6: no number", "1 of 6 units would lie outside.", "damping raised",
        "spectail prune path/to/my-model --out DIR", "32 × 512 tokens",
    ):  # fmt: skip
        assert text in body, text


def test_the_page_says_how_far_the_ratios_follow_depth() -> None:
    done = pruned()
    assert "follow depth" not in body_of(html(done))
    depth = done.allocation.depth_correlations
    body = body_of(html(replace(done, report=replace(done.report, depth=depth))))
    assert "The ratios rise with depth: rank correlation 1.00" in body


def test_without_choice_or_test_text_the_page_says_so() -> None:
    page = html(pruned(chosen=False, evaluated=0))
    assert set(data_of(page)["figures"]) == {"ratios"}
    assert "Not measured: <code>--evaluate FILE</code>" in body_of(page)
    assert "no test result" not in body_of(page)


def test_hostile_text_opens_no_element_and_nothing_is_fetched() -> None:
    page = html(pruned())
    assert page.count("</script>") == 3
    body = body_of(page)
    assert "<b>text</b>" not in body
    assert "&lt;b&gt;text" in body
    assert "default-src 'none'" in page
    for _, address in addresses():  # what a reader may click; the page itself fetches nothing
        body = body.replace(f'<a rel="noreferrer" href="{address}">', "")
    assert not re.search(r"""\b(src|href)=["'](?!#)""", body)
