"""Calibration tokens: whole sequences of the text, drawn by a seed."""

import re

import pytest
import torch

from spectail.errors import PruneError
from spectail.pruning.blocks import start
from spectail.pruning.calibration import calibration_tokens
from tests.pruning.models import decoder, tokens


class _Numbers:
    """A tokenizer of numbers, which warns like the real ones would."""

    model_max_length = 4

    def __call__(self, text, add_special_tokens):
        assert not add_special_tokens
        assert self.model_max_length > 10**9
        return {"input_ids": [int(word) for word in text.split()]}


TEXT = " ".join(map(str, range(103)))


def test_sequences_are_runs_of_the_text_without_repetition():
    tokenizer = _Numbers()
    drawn = calibration_tokens(tokenizer, TEXT, samples=6, seq_len=10, seed=1)
    assert drawn.shape == (6, 10)
    assert (drawn.diff(dim=1) == 1).all()
    assert drawn.unique().numel() == 60
    assert tokenizer.model_max_length == 4


def test_the_seed_decides_and_a_short_text_gives_all_it_has():
    first, again, other = (calibration_tokens(_Numbers(), TEXT, samples=6, seq_len=10, seed=s) for s in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert calibration_tokens(_Numbers(), TEXT, samples=128, seq_len=10).shape == (10, 10)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"seq_len": 104}, "the calibration text has 103 tokens, and one sequence takes 104: give a longer text"),
        ({"samples": 0}, "samples must be a whole number of at least 1, not 0"),
        ({"seq_len": 1.5}, "seq_len must be a whole number of at least 1, not 1.5"),
    ],
)
def test_what_cannot_be_drawn(options, message):
    with pytest.raises(PruneError, match=re.escape(message)):
        calibration_tokens(_Numbers(), TEXT, **options)


def test_calibration_asks_for_no_logits_of_all_positions():
    model, text, seen = decoder("llama"), tokens(), []
    model.lm_head.register_forward_hook(lambda module, args, output: seen.append(tuple(output.shape)))
    start(model, list(model.model.layers), text)
    assert seen == [(1, 1, 100)] * 2
