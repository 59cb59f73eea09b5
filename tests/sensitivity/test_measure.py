"""st.sensitivities: known divergences, the model unchanged, every layout, a run that goes on."""

from __future__ import annotations

import copy
import itertools
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import spectail as st
from spectail.allocation.coverage import cover
from spectail.allocation.sensitivities import sensitivities_of
from spectail.core.quantisers import Integers
from spectail.errors import (
    AllocationError,
    EvaluationError,
    PruneError,
    RunError,
    SourceError,
)
from spectail.models.live import restored
from spectail.models.live.walk import module_source
from spectail.models.live.weights import Weight, editable, owners
from spectail.sensitivity.measure import sensitivity_of
from spectail.sensitivity.noise import noisy
from spectail.sensitivity.predictions import Predictions
from tests.pruning.models import decoder, tokens

WORDS = 12


class OneLinear(nn.Module):
    """Softmax of a linear map of a fixed embedding: its divergence is known in closed form."""

    def __init__(self) -> None:
        super().__init__()
        draw = torch.Generator().manual_seed(3)
        self.table: Tensor
        self.register_buffer("table", torch.randn(WORDS, 8, generator=draw))
        self.linear = nn.Linear(8, WORDS, bias=False)
        with torch.no_grad():
            self.linear.weight.copy_(0.7 * torch.randn(WORDS, 8, generator=draw))

    def forward(self, ids: Tensor) -> Tensor:
        """Logits (samples, length, words)."""
        found: Tensor = self.linear(self.table[ids])
        return found


def weights_of(model: nn.Module) -> list[Weight]:
    """All weights of a model that can be written."""
    source, places = module_source(model, fingerprint=False), owners(model)
    return [editable(layer, places) for layer in source.layers if not layer.no_weight]


def bits_of(model: nn.Module) -> dict[str, Tensor]:
    """The stored bytes of every parameter and buffer."""
    return {
        name: value.detach().clone().contiguous().view(torch.uint8)
        for name, value in model.state_dict().items()
    }


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[k], other[k]) for k in one)


def expected_by_hand(model: OneLinear, ids: Tensor) -> float:
    """The mean of the second-order divergence over all noise of size t^2, per t^2.

    KL(p || p of z + d) = d^T (diag p - p p^T) d / 2 + O(d^3). For d = N x with N of independent
    entries of variance v, the expectation is v ||x||^2 sum_i p_i (1 - p_i) / 2, and
    t^2 = v rows cols / ||W||^2.
    """
    weight = model.linear.weight.detach().double()
    total, count = 0.0, 0
    for sample in ids.tolist():
        for position in range(3, len(sample), 4):
            x = model.table[sample[position]].double()
            p = torch.softmax(weight @ x, 0)
            total += float(x.square().sum() * (p * (1 - p)).sum() / 2)
            count += 1
    return total / count * float(weight.square().sum()) / weight.numel()


def test_the_divergence_of_a_softmax_is_the_one_computed_by_hand() -> None:
    model, ids = (
        OneLinear(),
        torch.randint(WORDS, (4, 32), generator=torch.Generator().manual_seed(0)),
    )
    (weight,) = weights_of(model)
    dense = Predictions(model, ids)
    # The mean over draws, because one draw in 96 weights is far from the expectation.
    found = [sensitivity_of(weight, dense, noise=1e-4, seed=seed) for seed in range(300)]
    assert sum(found) / 300 == pytest.approx(expected_by_hand(model, ids), rel=0.05)


def test_one_draw_is_the_quadratic_form_of_its_own_noise() -> None:
    model, ids = (
        OneLinear(),
        torch.randint(WORDS, (2, 16), generator=torch.Generator().manual_seed(1)),
    )
    (weight,) = weights_of(model)
    before = weight.read().double()
    with noisy(weight, 1e-4, 7):
        noise = weight.read().double() - before
    assert float(noise.square().sum() / before.square().sum()) == pytest.approx(1e-4, rel=1e-3)
    total = 0.0
    positions = [(i, j) for i in range(2) for j in range(3, 16, 4)]
    for i, j in positions:
        x = model.table[ids[i, j]].double()
        p, d = torch.softmax(before @ x, 0), noise @ x
        total += float((p * d.square()).sum() - (p * d).sum() ** 2) / 2
    found = sensitivity_of(weight, Predictions(model, ids), noise=1e-4, seed=7)
    assert found == pytest.approx(total / len(positions) / 1e-4, rel=0.05)


def trained_words() -> tuple[Any, Tensor]:
    """A Llama whose layers differ in weight, and text of its words."""
    model = decoder("llama")
    with torch.no_grad():
        for number, weight in enumerate(weights_of(model)):
            # From layers that hardly matter to layers that decide, at one relative error.
            if "layers" in weight.name:
                weight.write(weight.read() * 4.0 ** (number % 4 - 2))
    return model, tokens(4, 48)


def test_the_ranking_is_that_of_the_loss_after_real_rounding() -> None:
    model, ids = trained_words()
    found = st.sensitivities(model, ids)
    dense = Predictions(model, ids)
    predicted, real = [], []
    for weight in weights_of(model):
        if weight.name not in found:
            continue
        before = weight.read()
        rounded = Integers(4).dequantised(before)
        error = float((rounded - before).square().sum() / before.square().sum())
        with torch.no_grad():
            weight.write(rounded)
            real.append(dense.divergence())
            weight.write(before)
        predicted.append(found[weight.name] * error)
    ranks = [torch.tensor(x).argsort().argsort().double() for x in (predicted, real)]
    correlation = float(torch.corrcoef(torch.stack(ranks))[0, 1])
    assert len(real) == 14
    assert correlation > 0.9


@pytest.mark.parametrize("name", ["llama", "smollm2", "gpt2", "phi3", "neox", "mixtral", "gemma3"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_every_bit_of_the_model_is_as_it_was(name: str, dtype: torch.dtype) -> None:
    model = decoder(name).to(dtype)
    model.train()
    before = bits_of(model)
    found = st.sensitivities(model, tokens(2, 16))
    assert same(bits_of(model), before)
    assert model.training
    assert len(found) > 7
    assert all(value >= 0 for value in found.values())
    assert max(found.values()) > 0


def test_layers_of_one_parameter_get_noise_apart() -> None:
    model = decoder("phi3")
    (weight,) = [w for w in weights_of(model) if w.name.endswith("0.self_attn.qkv_proj.k")]
    whole = dict(model.named_parameters())[weight.path]
    before, part = whole.detach().clone(), weight.read()
    with noisy(weight, 0.1, 0):
        changed = (whole != before).any(dim=1)
        error = float((weight.read() - part).square().sum() / part.square().sum())
    assert error == pytest.approx(0.1, rel=1e-4)
    assert int(changed.sum()) == weight.rows < len(whole)
    assert torch.equal(whole, before)


def test_bfloat16_noise_is_drawn_in_float32_and_rounded_once() -> None:
    model = decoder("llama").to(torch.bfloat16)
    weight = next(w for w in weights_of(model) if w.name.endswith("q_proj"))
    before = weight.read()
    noise = torch.randn(before.shape, generator=torch.Generator().manual_seed(5))
    noise *= (0.05 * before.float().square().sum() / noise.square().sum()).sqrt()
    with noisy(weight, 0.05, 5):
        assert torch.equal(weight.read(), (before.float() + noise).to(torch.bfloat16))
    assert torch.equal(weight.read(), before)


class Shared(nn.Module):
    """Two blocks that multiply by one weight, a convolution, and a head tied to the embedding."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed = nn.Embedding(30, 16)
        self.blocks = nn.ModuleList([nn.Linear(16, 16, bias=False) for _ in range(2)])
        self.blocks[1].weight = self.blocks[0].weight
        self.layers = nn.ModuleList([nn.Conv1d(16, 16, 3, padding=2) for _ in range(2)])
        self.head = nn.Linear(16, 30, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, ids: Tensor) -> Tensor:
        """Logits (samples, length, words)."""
        hidden = self.embed(ids)
        for block in self.blocks:
            hidden = hidden + torch.tanh(block(hidden))
        for layer in self.layers:
            hidden = hidden + torch.tanh(layer(hidden.mT)[..., : ids.shape[1]].mT)
        found: Tensor = self.head(hidden)
        return found


def test_a_shared_weight_gets_noise_once_and_convolutions_get_it_too() -> None:
    model = Shared()
    before = bits_of(model)
    ids = torch.randint(30, (2, 16), generator=torch.Generator().manual_seed(0))
    found = st.sensitivities(model, ids)
    assert list(found) == ["blocks.0", "layers.0", "layers.1"]
    assert min(found.values()) > 0
    assert same(bits_of(model), before)


def test_an_expert_that_no_token_reaches_has_sensitivity_0_and_the_summary_says_so() -> None:
    model = decoder("mixtral")
    # Of three tokens two experts each, so that not all of 2 x 4 experts can be reached twice.
    found = st.sensitivities(model, torch.full((1, 4), 7))
    dead = [name for name, value in found.items() if value == 0]
    assert len(dead) == 3 * 2 * 2
    assert all("experts" in name for name in dead)
    assert f"note: noise in {len(dead)} layers changes no prediction" in found.summary()


@pytest.mark.parametrize(
    ("name", "in_file", "live"),
    [
        ("gpt2", "transformer.h.1.mlp.c_fc", "transformer.h.1.mlp.c_fc"),
        ("phi3", "model.layers.0.mlp.gate_up_proj.up", "model.layers.0.mlp.gate_up_proj.up"),
        # Experts are stored one by one and live in one parameter.
        ("mixtral", "model.layers.1.block_sparse_moe.experts.2.w1",
         "model.layers.1.mlp.experts.gate_up_proj[2].gate"),
    ],
)  # fmt: skip
def test_they_pair_with_the_layers_of_the_saved_file(
    name: str, in_file: str, live: str, tmp_path: Path
) -> None:
    model = decoder(name)
    model.save_pretrained(tmp_path)
    found = st.sensitivities(model, tokens(2, 16))
    chosen: Any = cover(st.open_source(tmp_path).layers, inside_blocks=True).layers
    paired, notes = sensitivities_of(chosen, found)
    assert sorted(paired.values()) == sorted(found.values())
    assert paired[in_file] == found[live]
    assert notes == ()


def test_a_chosen_few_layers() -> None:
    model = decoder("llama")
    found = st.sensitivities(model, tokens(1, 8), kinds="q,up", exclude=["*.0.*"])
    assert list(found) == ["model.layers.1.self_attn.q_proj", "model.layers.1.mlp.up_proj"]


def test_the_same_call_gives_the_same_numbers_and_another_seed_others() -> None:
    model, ids = decoder("llama"), tokens(1, 16)
    first, again, other = (st.sensitivities(model, ids, seed=seed) for seed in (0, 0, 1))
    assert dict(first) == dict(again)
    assert all(first[name] != other[name] for name in first)


@pytest.mark.parametrize("stop", [KeyboardInterrupt, RuntimeError])
def test_an_interrupted_measurement_leaves_the_model_and_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stop: type[BaseException]
) -> None:
    model, ids, out = decoder("llama"), tokens(2, 16), tmp_path / "s.json"
    whole = st.sensitivities(model, ids)
    before = bits_of(model)
    inner, calls = Predictions.divergence, itertools.count()

    def stopping(self: Predictions) -> float:
        if next(calls) == 5:
            raise stop
        return inner(self)

    monkeypatch.setattr(Predictions, "divergence", stopping)
    with pytest.raises(stop):
        st.sensitivities(model, ids, out=out)
    assert same(bits_of(model), before)
    unfinished = st.Sensitivities.load(out, unfinished=True)
    assert dict(unfinished) == dict(itertools.islice(whole.items(), 5))
    with pytest.raises(AllocationError, match="holds 5 of 14 sensitivities: run the same spectail"):
        st.Sensitivities.load(out)
    monkeypatch.undo()
    told: list[Any] = []
    finished = st.sensitivities(model, ids, out=out, progress=lambda *step: told.append(step))
    assert dict(finished) == dict(whole) == dict(st.Sensitivities.load(out))
    assert told[0] == (list(whole)[5], 5, 14)
    assert told[-1] == (None, 14, 14)
    assert len(told) == 10


def test_ctrl_c_while_weights_are_put_back(monkeypatch: pytest.MonkeyPatch) -> None:
    model, ids = decoder("llama"), tokens(1, 8)
    before = bits_of(model)
    inner, calls = restored._put_back, itertools.count()

    def pressed(kept: Any) -> None:
        if next(calls) == 3:
            raise KeyboardInterrupt
        inner(kept)

    monkeypatch.setattr(restored, "_put_back", pressed)
    with pytest.raises(KeyboardInterrupt):
        st.sensitivities(model, ids)
    assert next(calls) == 5
    assert same(bits_of(model), before)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seed": 1}, r"another setting \(seed\): choose another file, or --fresh"),
        ({"noise": 0.1}, r"another setting \(noise\)"),
        ({"tokens": tokens(2, 8, seed=9)}, r"another setting \(tokens\)"),
        ({"exclude": ["*.0.*"]}, "another choice of layers"),
        ({"model": decoder("llama", seed=1)}, "another model"),
        # The same weights, which another configuration computes something else with.
        ({"model": decoder("llama", hidden_act="gelu")}, r"another setting \(configuration\)"),
    ],
    ids=lambda x: next(iter(x)) if isinstance(x, dict) else "",
)
def test_a_file_of_another_measurement_stays_unless_it_may_go(
    tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    out = tmp_path / "s.json"
    call = {"model": decoder("llama"), "tokens": tokens(2, 8), "out": out}
    st.sensitivities(**call)
    before = out.read_text()
    with pytest.raises(RunError, match=message):
        st.sensitivities(**call | change)
    assert out.read_text() == before
    found = st.sensitivities(**call | change, fresh=True)
    assert dict(found) == dict(st.Sensitivities.load(out))
    assert out.read_text() != before


def test_what_is_no_file_of_sensitivities_stays(tmp_path: Path) -> None:
    out = tmp_path / "notes.json"
    out.write_text('{"format": "mine"}')
    for fresh in (False, True):
        with pytest.raises(AllocationError, match=r"notes\.json"):
            st.sensitivities(decoder("llama"), tokens(1, 8), out=out, fresh=fresh)
    assert json.loads(out.read_text()) == {"format": "mine"}


def _bert(kind: str) -> Any:
    hf = pytest.importorskip("transformers")
    config = hf.BertConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48,
        vocab_size=100, max_position_embeddings=64,
    )  # fmt: skip
    return getattr(hf, kind)(config)


def _t5() -> Any:
    hf = pytest.importorskip("transformers")
    config = hf.T5Config(d_model=32, d_kv=8, d_ff=48, num_layers=1, num_heads=4, vocab_size=100)
    return hf.T5ForConditionalGeneration(config)


@pytest.mark.parametrize(
    ("kind", "why"),
    [
        ("BertForMaskedLM", "is an encoder, whose predictions depend on later tokens"),
        ("BertLMHeadModel", "is an encoder, whose predictions depend on later tokens"),
        ("BertModel", "gives no logits for tokens"),
        ("BertForSequenceClassification", "gives no logits for tokens"),
        ("T5ForConditionalGeneration", "is an encoder-decoder"),
    ],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_encoders_are_refused(kind: str, why: str, dtype: torch.dtype, tmp_path: Path) -> None:
    model = (_t5() if kind.startswith("T5") else _bert(kind)).to(dtype)
    with torch.no_grad():
        for parameter in model.parameters():
            # Like a trained one: in a drawn one the other tokens hardly count.
            parameter.normal_(0, 0.3)
    with pytest.raises(EvaluationError, match=f"{kind} {why}: sensitivities are measured on pred"):
        st.sensitivities(model, tokens(1, 24), out=tmp_path / "s.json")
    assert list(tmp_path.iterdir()) == []


def test_a_model_without_a_head_is_refused() -> None:
    with pytest.raises(EvaluationError, match="LlamaModel gives no logits for tokens"):
        st.sensitivities(decoder("llama").model, tokens(1, 8))


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ({"noise": 0.0}, EvaluationError, "noise must be a number from 0.0001 to 1, not 0.0"),
        ({"noise": 1e-5}, EvaluationError, "noise must be a number from 0.0001 to 1, not 1e-05"),
        ({"noise": True}, EvaluationError, "noise must be a number from 0.0001 to 1, not True"),
        ({"noise": float("nan")}, EvaluationError, "noise must be a number from 0.0001 to 1"),
        ({"seed": -1}, EvaluationError, "seed must be a whole number from 0 to 9223.*7, not -1"),
        ({"seed": 2**63}, EvaluationError, "seed must be a whole number from 0 to 9223.*, not 92"),
        ({"tokens": tokens(1, 8) > 9}, PruneError, r"a tensor of shape \(1, 8\) of type .*bool"),
        ({"tokens": tokens(1, 8) * 1j}, PruneError, "not a tensor of .* of type torch.complex64"),
        ({"tokens": None}, PruneError, "sensitivities needs calibration"),
        ({"tokens": tokens(1, 80)}, PruneError, "80 tokens exceed the model's 64 positions"),
        ({"tokens": tokens(1, 8) + 90}, PruneError, "the model knows 100"),
        ({"include": ["nothing"]}, AllocationError, "nothing"),
        ({"include": ["model.embed_tokens"]}, SourceError, "tied to"),
    ],
    ids=str,
)  # fmt: skip
def test_bad_input_is_one_line(given: dict[str, Any], error: type[Exception], message: str) -> None:
    model = decoder("smollm2")
    before = bits_of(model)
    with pytest.raises(error, match=message) as caught:
        st.sensitivities(model, **{"tokens": tokens(1, 8), **given})
    assert "\n" not in str(caught.value)
    assert same(bits_of(model), before)


def test_predictions_that_are_not_finite_are_named() -> None:
    model = decoder("llama")
    bad = copy.deepcopy(model)
    with torch.no_grad():
        bad.model.layers[1].mlp.up_proj.weight[0, 0] = float("nan")
    with pytest.raises(EvaluationError, match="the model gives NaN on the calibration text"):
        st.sensitivities(bad, tokens(1, 8))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_noise_below_the_rounding_of_half_precision_is_refused(dtype: torch.dtype) -> None:
    with pytest.raises(EvaluationError, match=r"noise of 0.001 is lost in the rounding of a model"):
        st.sensitivities(decoder("llama").to(dtype), tokens(1, 8), noise=1e-3)


def test_the_smallest_noise_gives_the_sensitivities_of_larger_noise() -> None:
    model, ids = decoder("llama"), tokens(2, 16)
    small, larger = (st.sensitivities(model, ids, noise=noise) for noise in (1e-4, 2e-3))
    assert dict(small) == pytest.approx(dict(larger), rel=0.3)


def test_the_largest_seed_draws_noise() -> None:
    model, ids = decoder("llama"), tokens(1, 8)
    first, last = (st.sensitivities(model, ids, seed=2**63 - n) for n in (1, 2))
    assert all(first[name] != last[name] for name in first)


@pytest.mark.parametrize("dtype", [torch.int8, torch.int16, torch.uint8, torch.int32], ids=str)
def test_token_ids_of_any_whole_type(dtype: torch.dtype) -> None:
    model, ids = decoder("llama"), tokens(1, 8)
    assert dict(st.sensitivities(model, ids.to(dtype))) == dict(st.sensitivities(model, ids))


class Whole(nn.Module):
    """A decoder that takes the option to keep few logits and keeps all."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, input_ids: Tensor, logits_to_keep: int | Tensor = 0) -> Tensor:
        """Logits (samples, length, words)."""
        found: Tensor = self.inner(input_ids).logits
        return found


class Last(Whole):
    """A decoder that gives logits at the last two positions only."""

    def forward(self, input_ids: Tensor, logits_to_keep: int | Tensor = 0) -> Tensor:
        """Logits (samples, 2, words)."""
        return super().forward(input_ids)[:, -2:]


def test_a_model_that_keeps_all_logits_counts_at_the_same_positions() -> None:
    model, ids = decoder("llama"), tokens(2, 16)
    found = list(st.sensitivities(Whole(model), ids).values())
    assert found == pytest.approx(list(st.sensitivities(model, ids).values()))


def test_a_model_that_keeps_other_positions_is_refused() -> None:
    with pytest.raises(EvaluationError, match="Last gives logits at 2 positions for 16 tokens"):
        st.sensitivities(Last(decoder("llama")), tokens(2, 16))


def test_layers_that_zeros_hide_are_not_put_down_to_the_text_alone() -> None:
    model = decoder("llama")
    with torch.no_grad():
        model.model.layers[0].mlp.up_proj.weight.zero_()
    found = st.sensitivities(model, tokens(1, 8))
    dead = [name for name, value in found.items() if value == 0]
    assert dead == [f"model.layers.0.mlp.{x}_proj" for x in ("gate", "up", "down")]
    assert "or weights of zero, theirs or others, hide them" in found.summary()


class Ruled(OneLinear):
    """A model that rules out the first word."""

    def forward(self, ids: Tensor) -> Tensor:
        """Logits of which one is minus infinity."""
        return torch.cat([torch.full((*ids.shape, 1), -torch.inf), super().forward(ids)], -1)


def test_a_word_that_the_model_rules_out_does_not_count() -> None:
    ids = torch.randint(WORDS, (2, 16), generator=torch.Generator().manual_seed(1))
    assert dict(st.sensitivities(Ruled(), ids)) == pytest.approx(
        dict(st.sensitivities(OneLinear(), ids))
    )
