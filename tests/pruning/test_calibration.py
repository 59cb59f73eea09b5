"""Calibration tokens: whole sequences of the text, drawn by a seed."""

import re
from typing import Any

import pytest
import torch

import spectail as st
from spectail.errors import PruneError
from spectail.pruning.blocks import start
from spectail.pruning.calibration import calibration_tokens
from tests.language import llama, tokenizer, words
from tests.pruning.models import decoder, tokens


class _Numbers:
    """A tokenizer of numbers, which warns like the real ones would."""

    model_max_length = 4

    def __call__(self, text: str, add_special_tokens: Any) -> dict[str, list[int]]:
        assert not add_special_tokens
        assert self.model_max_length > 10**9
        return {"input_ids": [int(word) for word in text.split()]}


TEXT = " ".join(map(str, range(103)))


def test_sequences_are_runs_of_the_text_without_repetition() -> None:
    tokenizer = _Numbers()
    drawn = calibration_tokens(tokenizer, TEXT, samples=6, seq_len=10, seed=1)
    assert drawn.shape == (6, 10)
    assert (drawn.diff(dim=1) == 1).all()
    assert drawn.unique().numel() == 60
    assert tokenizer.model_max_length == 4


def test_the_seed_decides_and_a_short_text_gives_all_it_has() -> None:
    first, again, other = (
        calibration_tokens(_Numbers(), TEXT, samples=6, seq_len=10, seed=s) for s in (1, 1, 2)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert calibration_tokens(_Numbers(), TEXT, samples=128, seq_len=10).shape == (10, 10)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"seq_len": 104},
            "the calibration text has 103 tokens, and one sequence takes 104: give a longer text",
        ),
        ({"samples": 0}, "samples must be a whole number of at least 1, not 0"),
        ({"seq_len": 1.5}, "seq_len must be a whole number of at least 1, not 1.5"),
    ],
)
def test_what_cannot_be_drawn(options: dict[str, Any], message: str) -> None:
    with pytest.raises(PruneError, match=re.escape(message)):
        calibration_tokens(_Numbers(), TEXT, **options)


class _WithBos:
    """A tokenizer of numbers that adds a BOS, unless it is told not to."""

    bos_token_id = 1000

    def __call__(self, text: str, add_special_tokens: bool = True) -> dict[str, Any]:
        return {"input_ids": [1000] * add_special_tokens + [int(word) for word in text.split()]}


class GemmaNumbers(_WithBos):
    """The same with a class name that says whose it is."""


def test_every_sample_starts_with_bos_and_goes_on_with_a_run_of_the_text() -> None:
    drawn = calibration_tokens(_WithBos(), TEXT, samples=6, seq_len=10, seed=1, bos="every")
    assert drawn.shape == (6, 10)
    assert (drawn[:, 0] == 1000).all()
    assert (drawn[:, 1:].diff(dim=1) == 1).all()
    assert drawn[:, 1:].unique().numel() == 54
    assert drawn.dtype == torch.long
    assert calibration_tokens(_WithBos(), TEXT, samples=99, seq_len=10, bos="every").shape == (
        11,
        10,
    )


@pytest.mark.parametrize("bos", ["first", "none", "auto"])
def test_samples_from_inside_of_the_text_are_as_published(bos: str) -> None:
    plain = calibration_tokens(_Numbers(), TEXT, samples=6, seq_len=10, seed=1)
    assert torch.equal(
        calibration_tokens(_WithBos(), TEXT, samples=6, seq_len=10, seed=1, bos=bos), plain
    )


@pytest.mark.parametrize(
    ("name", "adds", "starts"),
    [("gemma3", False, True), ("gemma3", True, True), ("llama", True, False),
     ("mistral", True, False),
     ("qwen2", True, True), ("qwen2", False, False), (None, True, False)],
)  # fmt: skip
def test_auto_goes_by_the_model_and_its_tokenizer(
    name: str | None, adds: bool, starts: bool
) -> None:
    model = decoder(name) if name else None
    drawn = calibration_tokens(tokenizer(bos=adds), words(200), samples=4, seq_len=20, model=model)
    assert drawn.shape == (4, 20)
    assert bool((drawn[:, 0] == 0).all()) is starts
    assert not (drawn[:, 1:] == 0).any()


def test_without_a_model_gemmas_tokenizer_tells_by_its_class() -> None:
    drawn = calibration_tokens(GemmaNumbers(), TEXT, samples=6, seq_len=10)
    assert (drawn[:, 0] == 1000).all()


@pytest.mark.parametrize(
    ("tok", "options", "message"),
    [
        (
            _Numbers,
            {"bos": "every"},
            "the tokenizer has no BOS token to start every block with: use bos none, or set",
        ),
        (_Numbers, {"bos": "both"}, "bos must be one of auto, first, every, none, not 'both'"),
        (
            _WithBos,
            {"bos": "every", "seq_len": 1},
            "seq_len must be at least 2 with BOS in every block, not 1",
        ),
        (
            _WithBos,
            {"bos": "every", "seq_len": 105},
            "text has 103 tokens, and one sequence takes 104 beside BOS: gi",
        ),
    ],
)
def test_bos_that_cannot_be(tok: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(PruneError, match=re.escape(message)):
        calibration_tokens(tok(), TEXT, **{"seq_len": 10} | options)


def test_samples_without_the_bos_that_gemma_needs_are_pruned_with_and_noted() -> None:
    model, text = decoder("gemma3"), tokens()
    text[0, 0] = 1
    [note] = st.prune(model, 0.5, method="wanda", calibration=text).notes
    assert note.subject == "calibration"
    assert note.text == (
        "4 of 5 samples do not start with BOS (token 1), which Gemma models need: draw them "
        "with bos every"
    )
    text[:, 0] = 1
    assert not st.prune(decoder("gemma3"), 0.5, method="wanda", calibration=text).notes
    assert not st.prune(decoder("gemma3"), 0.5).notes
    assert not st.prune(llama(), 0.5, method="wanda", calibration=tokens() % 32).notes


def test_calibration_asks_for_no_logits_of_all_positions() -> None:
    model, text, seen = decoder("llama"), tokens(), []
    model.lm_head.register_forward_hook(
        lambda module, args, output: seen.append(tuple(output.shape))
    )
    start(model, list(model.model.layers), text)
    assert seen == [(1, 1, 100)] * 2
