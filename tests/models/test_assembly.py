"""The table of recipes: each is used by some case, a new one is one line;
names, bits and grids follow their laws."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as some
from torch import nn

from spectail.models.assembly import recipes
from spectail.models.assembly.bits import unpack, unpack_words
from spectail.models.assembly.eight_bit import grid_of
from spectail.models.assembly.pieces import Pieces, fill_in, match_name
from spectail.models.assembly.quantisation import Quantisation
from spectail.models.assembly.recipes import RECIPES, Recipe, assemble
from spectail.models.lazy_tensor import in_memory
from spectail.models.open import open_source

from .cases import PLAIN
from .quantised_cases import CASES
from .test_quantised import state_of


def test_every_recipe_is_used_by_some_case(monkeypatch: pytest.MonkeyPatch) -> None:
    used = set()

    def spying(recipe: Any) -> Recipe:
        def build(pieces: Any) -> Any:
            made = recipe.build(pieces)
            if made is not None:
                used.add(recipe.name)
            return made

        return Recipe(recipe.name, recipe.anchor, recipe.pieces, recipe.weight, build)

    monkeypatch.setattr(recipes, "RECIPES", tuple(map(spying, RECIPES)))
    states = [(state_of(case), case.config) for case in CASES.values()]
    states += [
        (PLAIN["normed"]().state_dict(), {}),
        (OLD_NORMS, {}),
        (UNKNOWN, {}),
        ({"a.weight.compressed": CODES, "a.weight.bitmask": CODES}, {}),
    ]
    states.append(({"a.codes": CODES}, {}))
    for state, config in states:
        assemble([in_memory(name, tensor) for name, tensor in state.items()], config)
    elsewhere = {"factors", "torch"}  # test_layouts_spectral, test_quantised
    assert {recipe.name for recipe in RECIPES} - used == elsewhere


CODES = torch.zeros(8, 4, dtype=torch.uint8)
OLD_NORMS = {
    "a.weight_g": torch.ones(6, 1),
    "a.weight_v": torch.ones(6, 4),
    "b.weight_orig": torch.ones(6, 4),
    "b.weight_u": torch.ones(6),
}
UNKNOWN = {
    "a.parametrizations.weight.original": torch.ones(6, 4),
    "b.parametrizations.weight.original0": torch.ones(6, 4),
}


def test_a_new_form_is_one_function_and_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def halves(pieces: Pieces) -> Any:
        top, bottom = pieces.anchor, pieces["{}.bottom"]
        shape = (top.shape[0] + bottom.shape[0], top.shape[1])
        return pieces.made(shape, lambda a, b: torch.cat((a, b)), top, bottom)

    line = Recipe("halves", "{}.top", ("{}.bottom",), "{}.weight", halves)
    monkeypatch.setattr(recipes, "RECIPES", (*RECIPES, line))
    top, bottom = torch.randn(2, 5), torch.randn(3, 5)
    (layer,) = open_source({"block.0.q.top": top, "block.0.q.bottom": bottom}).layers
    assert layer.name == "block.0.q"
    assert torch.equal(layer.read()[0], torch.cat((top, bottom)))


def test_parametrisations_that_a_file_does_not_tell_fail() -> None:
    model: Any = nn.Sequential(nn.Linear(4, 4, bias=False))
    nn.utils.parametrizations.orthogonal(model[0])
    (live,) = open_source(model).layers
    assert torch.equal(live.read()[0], model[0].weight)
    (stored,) = open_source(model.state_dict()).layers
    assert (stored.name, stored.rows, stored.cols) == ("0", 4, 4)
    assert "parametrised in a way that the file does not tell" in str(stored.problem)


WORDS = some.from_regex(r"[a-z][a-z0-9_]{0,6}", fullmatch=True)


@given(module=some.lists(WORDS, max_size=3).map(".".join), own=WORDS)
@settings(max_examples=50, deadline=None)
@pytest.mark.parametrize(
    "pattern",
    ["{}.qweight", "{}.*_scale", "{}.*._data", "{}.parametrizations.*.original1", "{}._*_qdata"],
)
def test_a_pattern_matches_the_names_that_it_makes(pattern: str, module: Any, own: Any) -> None:
    found = match_name(pattern, fill_in(pattern, module, own))
    assert found is not None
    assert fill_in(pattern, *found) == fill_in(pattern, module, own)
    assert match_name(pattern, fill_in(pattern, module, own) + "x") is None


@pytest.mark.parametrize("bits", range(1, 9))
def test_bits_are_unpacked_as_they_were_packed(bits: int) -> None:
    values = torch.randint(0, 2**bits, (3, 5, 32), generator=torch.Generator().manual_seed(bits))
    stream = [
        [sum(v << (bits * i) for i, v in enumerate(row)) for row in part]
        for part in values.tolist()
    ]
    size = 4 * bits
    data = torch.tensor(
        [[list(n.to_bytes(size, "little")) for n in part] for part in stream], dtype=torch.uint8
    )
    for dtype in (torch.uint8, torch.int32):
        assert torch.equal(unpack(data.view(dtype), bits, 32), values.to(torch.int32))


def test_words_may_have_empty_bits_at_their_end() -> None:
    values = torch.arange(10) % 8
    word = torch.tensor(
        [[sum(v << (3 * i) for i, v in enumerate(values.tolist()))]], dtype=torch.int32
    )
    assert torch.equal(unpack_words(word, 3, 10)[0], values.to(torch.int32))


SIZES = some.integers(1, 600)


@given(rows=SIZES, cols=SIZES, block=some.sampled_from([(128, 128), (64, 64), (1, 32), (32, 128)]))
@settings(max_examples=200, deadline=None)
def test_a_grid_covers_the_weight_and_a_stated_block_is_kept(
    rows: Any, cols: Any, block: Any
) -> None:
    scale = tuple(-(-size // width) for size, width in zip((rows, cols), block, strict=True))
    grid = grid_of((rows, cols), scale, block)
    assert grid is not None
    for size, width, count in zip((rows, cols), grid.widths, grid.view, strict=True):
        assert -(-size // width) == count
    if 1 not in scale and scale[0] != rows and scale[1] != cols:
        assert grid.widths == block


@given(size=SIZES, blocks=some.integers(2, 40))
@settings(max_examples=200, deadline=None)
def test_without_a_stated_block_only_one_reading_is_taken(size: Any, blocks: Any) -> None:
    fitting = [width for width in range(1, size + 1) if -(-size // width) == blocks]
    readings = {
        width for width in fitting if width * blocks == size or width in {16, 32, 64, 128, 256}
    }
    grid = grid_of((7, size), (7, blocks), None)
    if blocks == size:
        assert grid is not None
        assert grid.widths == (1, 1)
    elif len(readings) == 1:
        assert grid is not None
        assert grid.widths == (1, readings.pop())
    else:
        assert grid is None


def test_scales_that_fit_no_reading_are_refused() -> None:
    assert grid_of((8, 6), (5,), None) is None
    assert grid_of((8, 6), (2, 2, 2), None) is None
    assert grid_of((3, 8, 8), (3, 8), None) is None
    assert grid_of((8, 8, 5), (8,), None) is None
    grid = grid_of((3, 8, 5), (3, 8), None)
    assert grid is not None
    assert math.prod(grid.view) == 24


@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize(
    ("weight", "scale"), [((1200, 320), (10, 1)), ((300, 1536), (3, 12)), ((600, 640), (5, 5))]
)
def test_a_scale_is_not_turned_where_several_block_sizes_fit_it_as_stored(
    weight: tuple[int, int], scale: tuple[int, int], turned: bool
) -> None:
    # 10 blocks of 1,200 rows: 120, or 128 of which the last is cut short.
    weight, scale = (weight[::-1], scale[::-1]) if turned else (weight, scale)
    assert grid_of(weight, scale, None) is None
    stacked = grid_of((4, *weight), (4, *scale), None)
    assert stacked is None


def test_a_scale_is_turned_where_it_cannot_lie_as_stored() -> None:
    grid = grid_of((64, 96), (1, 64), None)
    assert grid is not None
    assert (grid.view, grid.widths, grid.is_transposed) == ((64, 1), (1, 96), True)


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({"weight_block_size": [128, 64]}, (128, 64)),
        ({"config_groups": {"a": {"weights": {"block_structure": "128x128"}}}}, (128, 128)),
        ({"config_groups": {"a": {"input_activations": {"block_structure": [1, 128]}}}}, None),
        ({"a": {"weight_block_size": [128, 64]}, "b": {"weight_block_size": [64, 64]}}, None),
        ({"weight_block_size": None}, None),
        ({}, None),
    ],
)
def test_the_block_size_is_read_where_there_is_one(
    config: dict[str, Any], expected: tuple[int, int] | None
) -> None:
    assert Quantisation(config).block_size == expected


def test_a_configuration_is_gone_through_once_for_all_weights() -> None:
    class Counted(dict[str, Any]):
        times = 0

        def items(self) -> Any:
            self.times += 1
            return super().items()

    part = Counted(bits=4)
    tensors = [
        tensor
        for name in "abc"
        for tensor in (
            in_memory(f"{name}.weight", torch.ones(64, 64).to(torch.float8_e4m3fn)),
            in_memory(f"{name}.weight_scale_inv", torch.ones(2, 2)),
        )
    ]
    said = {"weight_block_size": [32, 32], "modules": part}
    made = assemble(tensors, {"quantization_config": said})
    assert [weight.problem for weight in made] == [None] * 3
    assert part.times == 1
