"""Perplexity: models whose answer is known by hand, an outside loop, and one line for what cannot
be evaluated."""

import math
import pickle
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import spectail as st
from spectail.errors import EvaluationError
from spectail.evaluation import Perplexity, token_blocks
from tests.language import WORDS, bigram, llama, tokenizer, words


def test_a_uniform_head_gives_the_size_of_the_vocabulary() -> None:
    model = llama()
    torch.nn.init.zeros_(model.lm_head.weight)
    ppl = st.perplexity(model, tokenizer(), words(100), seq_len=20)
    assert ppl == pytest.approx(len(WORDS), rel=1e-6)
    assert ppl.se == pytest.approx(0, abs=1e-5)
    assert (len(ppl.losses), ppl.seq_len, ppl.n_tokens) == (5, 20, 95)


def test_a_bigram_model_gives_what_its_table_says() -> None:
    n = len(WORDS)
    chances = (
        torch.rand(n, n, dtype=torch.float64, generator=torch.Generator().manual_seed(1)) + 0.1
    )
    chances /= chances.sum(1, keepdim=True)
    text, seq_len = words(95, seed=3), 30
    ids = [WORDS.index(word) for word in text.split()]
    losses = [
        [-math.log(chances[ids[i - 1], ids[i]]) for i in range(start + 1, start + seq_len)]
        for start in (0, 30, 60)
    ]
    ppl = st.perplexity(bigram(chances), tokenizer(), text, seq_len=seq_len)
    assert ppl == pytest.approx(math.exp(sum(map(sum, losses)) / 87), rel=1e-5)
    means = torch.tensor([sum(block) / 29 for block in losses], dtype=torch.float64)
    assert ppl.losses == pytest.approx(means.tolist(), rel=1e-5)
    assert ppl.se == pytest.approx(ppl * float(means.std()) / math.sqrt(3), rel=1e-3)


def test_it_is_what_transformers_computes_block_by_block_and_the_published_formula() -> None:
    model, tok, text = llama().eval(), tokenizer(bos=True), words(300)
    ids = torch.tensor(tok(text)["input_ids"])
    assert ids[0] == 0
    assert (ids[1:] != 0).all()
    blocks = ids[: 300 // 64 * 64].view(-1, 64)
    with torch.no_grad():
        means = [float(model(block[None], labels=block[None]).loss) for block in blocks]
    published = math.exp(sum(mean * 64 for mean in means) / (len(means) * 64))
    assert st.perplexity(model, tok, text, seq_len=64) == pytest.approx(published, rel=1e-5)


@pytest.mark.parametrize("batch_size", [2, 3, 100])
def test_batches_and_pieces_of_positions_change_nothing(
    batch_size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = st.perplexity(llama(), tokenizer(), words(300), seq_len=64)
    monkeypatch.setattr(sys.modules["spectail.evaluation.perplexity"], "POSITIONS", 7)
    other = st.perplexity(llama(), tokenizer(), words(300), seq_len=64, batch_size=batch_size)
    assert other.losses == pytest.approx(whole.losses, rel=1e-5)


def test_only_the_first_sequences_with_progress() -> None:
    seen = []
    ppl = st.perplexity(
        llama(),
        tokenizer(),
        words(300),
        seq_len=50,
        max_sequences=4,
        batch_size=3,
        progress=lambda *x: seen.append(x),
    )
    assert seen == [(3, 4), (4, 4)]
    assert ppl.losses == pytest.approx(
        st.perplexity(llama(), tokenizer(), words(200), seq_len=50).losses, rel=1e-5
    )


def test_text_as_one_text_a_list_or_a_file(tmp_path: Path) -> None:
    parts = [words(50, seed) for seed in range(3)]
    path = tmp_path / "text.txt"
    path.write_text("\n\n".join(parts))
    expected = token_blocks(tokenizer(), "\n\n".join(parts), 40)
    assert expected.shape == (3, 40)
    for text in (parts, tuple(parts), path):
        assert torch.equal(token_blocks(tokenizer(), text, 40), expected)


def test_the_model_keeps_its_modes_and_weights() -> None:
    model = llama(attention_dropout=0.5)
    model.model.layers[0].eval()
    modes = [module.training for module in model.modules()]
    before = {name: value.clone() for name, value in model.state_dict().items()}
    first, second = (st.perplexity(model, tokenizer(), words(100), seq_len=50) for _ in range(2))
    assert first == second
    assert [module.training for module in model.modules()] == modes
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_a_plain_module_that_gives_logits() -> None:
    class Plain(torch.nn.Module):
        def forward(self, ids: Any) -> torch.Tensor:
            return torch.zeros(*ids.shape, 32, dtype=torch.bfloat16)

    assert st.perplexity(Plain(), tokenizer(), words(100), seq_len=20) == pytest.approx(
        32, rel=1e-6
    )


def test_the_result_is_a_number_that_survives_a_copy() -> None:
    ppl = Perplexity([1.0, 1.5], seq_len=8)
    copy = pickle.loads(pickle.dumps(ppl))
    assert (copy, copy.losses, copy.seq_len) == (ppl, ppl.losses, 8)
    assert f"{ppl:.2f}" == "3.49"
    assert ppl < 3.5
    assert math.isnan(Perplexity([1.0], seq_len=8).se)
    assert Perplexity([1e4, 1.0], seq_len=8) == math.inf
    assert math.isnan(Perplexity([1e4, 1.0], seq_len=8).se)


def _broken() -> Any:
    model = llama()
    torch.nn.init.constant_(model.model.layers[1].mlp.up_proj.weight, math.nan)
    return model


@pytest.mark.parametrize(
    ("model", "text", "options", "message"),
    [
        (
            llama,
            words(30),
            {"seq_len": 31},
            "the text has 30 tokens, fewer than one block of 31: give more text or a",
        ),
        (llama, "", {"seq_len": 31}, "the text has 0 tokens"),
        (
            llama,
            words(30),
            {},
            "the model has 256 positions, fewer than seq_len 2048: give a smaller one",
        ),
        (llama, words(30), {"seq_len": 1}, "seq_len must be a whole number of at least 2, not 1"),
        (
            llama,
            words(30),
            {"seq_len": 9, "batch_size": 0},
            "batch_size must be a whole number of at least 1, not 0",
        ),
        (
            llama,
            words(30),
            {"seq_len": 9, "max_sequences": 0},
            "max_sequences must be a whole number of at least 1, n",
        ),
        (
            _broken,
            words(30),
            {"seq_len": 10},
            "the model gives NaN on sequence 1 of 3: weights or activations are not",
        ),
    ],
)
def test_what_cannot_be_evaluated_is_one_line(
    model: Any, text: Any, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(EvaluationError) as error:
        st.perplexity(model(), tokenizer(), text, **options)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_another_models_tokenizer() -> None:
    model = llama()
    model.config.vocab_size = 10
    with pytest.raises(EvaluationError, match="gives token 31, but the model knows 10: is it the"):
        st.perplexity(model, tokenizer(), "w29 " * 20, seq_len=10)


class _Words(torch.nn.Module):
    """A plain module: embeddings, and whatever ``head`` makes of them."""

    def __init__(self, head: Callable[[torch.Tensor], Any], known: int = 40) -> None:
        super().__init__()
        self.embedding, self.head = torch.nn.Embedding(known, 40), head

    def forward(self, ids: torch.Tensor) -> Any:
        return self.head(self.embedding(ids))


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (lambda: _Words(lambda x: (x, None)), "_Words gives no logits for tokens: perplexity is m"),
        (lambda: _Words(lambda x: {"logits": x}), "_Words gives no logits for tokens"),
        (lambda: _Words(lambda x: x[:, -1]), "_Words gives no logits for tokens"),
        (lambda: _Words(lambda x: x[:, 1:]), "_Words gives logits at 9 positions for 10 tokens"),
        (lambda: _Words(lambda x: x + x.mean(1, True)), "_Words is an encoder, whose predictions"),
        (lambda: _Words(lambda x: x, known=20), "_Words does not know every token"),
        (lambda: _Words(lambda x: x[..., :20]), "has token 31, but the model has logits for 20"),
        (lambda: llama().model, "LlamaModel gives no logits for tokens"),
        (lambda: _trained_bert("BertForMaskedLM"), "BertForMaskedLM is an encoder, whose predict"),
        (lambda: _trained_bert("BertLMHeadModel"), "BertLMHeadModel is an encoder, whose predict"),
    ],
)
def test_what_predicts_no_next_token_is_refused(model: Callable[[], Any], message: str) -> None:
    with pytest.raises(EvaluationError) as error:
        st.perplexity(model(), tokenizer(), "w29 w3 w17 " * 10, seq_len=10, bos="none")
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def _trained_bert(kind: str) -> Any:
    hf = pytest.importorskip("transformers")
    config = hf.BertConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48,
        vocab_size=40, initializer_range=0.3,
    )  # fmt: skip
    return getattr(hf, kind)(config)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(EvaluationError, match=r"cannot read .*none.txt: No such file"):
        token_blocks(tokenizer(), tmp_path / "none.txt", 4)
    (tmp_path / "latin").write_bytes("Übung".encode("latin-1"))
    with pytest.raises(EvaluationError, match="latin is no UTF-8 text"):
        token_blocks(tokenizer(), tmp_path / "latin", 4)
