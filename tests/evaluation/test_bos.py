"""BOS: which rule a model gets, what the blocks hold, and that the losses are those of such
blocks."""

import itertools
import pickle
import re
from importlib import import_module
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tokenizers import processors
from transformers import Gemma3ForCausalLM, Gemma3TextConfig, PreTrainedTokenizerFast

import spectail as st
from spectail.errors import EvaluationError
from spectail.evaluation.bos import Bos, resolve, text_setting
from tests.language import WORDS, bigram, llama, tokenizer, words

BOS = WORDS.index("<s>")
AUTO: Any = import_module("transformers.models.auto.configuration_auto")
GEMMAS = sorted(kind for kind in AUTO.CONFIG_MAPPING_NAMES if "gemma" in kind)


class GemmaTokenizerOfOurs(PreTrainedTokenizerFast):
    """Words in a tokenizer whose class says whose it is."""


def of_type(kind: str, **more: object) -> Any:
    """Stands in for a model of which only the configuration is looked at."""
    return SimpleNamespace(config=SimpleNamespace(model_type=kind, **more))


def gemma(seed: int = 0) -> Gemma3ForCausalLM:
    """A Gemma 3 with random weights over the words of ``tokenizer``."""
    torch.manual_seed(seed)
    config = Gemma3TextConfig(
        vocab_size=len(WORDS), hidden_size=32, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, head_dim=8, intermediate_size=48, max_position_embeddings=64,
        bos_token_id=BOS, eos_token_id=1, pad_token_id=1, sliding_window=16,
    )  # fmt: skip
    result: Gemma3ForCausalLM = Gemma3ForCausalLM(config).eval()
    return result


def without_bos() -> PreTrainedTokenizerFast:
    found = tokenizer()
    found.bos_token = None
    return found


def glm_tokenizer(*, adds: bool) -> PreTrainedTokenizerFast:
    """w0 and w1 serve as the two tokens that GLM starts with, under its names."""
    found = without_bos()
    names = {"[gMASK]": WORDS.index("w0"), "<sop>": WORDS.index("w1")}
    found.convert_tokens_to_ids = names.get  # type: ignore[method-assign, assignment]
    if adds:
        found.backend_tokenizer.post_processor = processors.TemplateProcessing(
            single="w0 w1 $A", special_tokens=[("w0", names["[gMASK]"]), ("w1", names["<sop>"])]
        )
    return found


def ids_of(text: str) -> list[int]:
    """What the text is in words, by the table and not by the tokenizer."""
    return [WORDS.index(word) for word in text.split()]


def blocks_by_hand(text: str, seq_len: int, rule: str, opening: list[int]) -> list[list[int]]:
    """Blocks one after the other, as the definition of the rules says."""
    ids = ids_of(text)
    found: list[list[int]] = []
    if rule == "first":
        ids = opening + ids
    while True:
        front = opening if rule == "every" else []
        take = seq_len - len(front)
        if len(ids) < take:
            return found
        found.append(front + ids[:take])
        ids = ids[take:]


@pytest.mark.parametrize("adds", [False, True])
@pytest.mark.parametrize("kind", GEMMAS)
def test_every_gemma_gets_bos_in_every_block_whatever_its_tokenizer_adds(
    kind: Any, adds: bool
) -> None:
    assert len(GEMMAS) > 10
    assert resolve("auto", tokenizer(bos=adds), of_type(kind)) == Bos("every", (BOS,))


@pytest.mark.parametrize(
    ("kind", "adds", "rule"),
    [
        ("llama", True, "first"),
        ("mistral", True, "first"),
        ("opt", True, "first"),
        ("llama", False, "none"),
        ("gpt2", False, "none"),
        ("qwen3", False, "none"),
        ("cohere2", True, "every"),
        ("lfm2", True, "every"),
    ],
)
def test_others_go_by_what_their_tokenizer_adds_and_by_the_published_tables(
    kind: str, adds: bool, rule: str
) -> None:
    assert resolve("auto", tokenizer(bos=adds), of_type(kind)).rule == rule


def test_the_text_part_of_a_multi_modal_model_counts() -> None:
    for kind, adds, rule in (("gemma2", False, "every"), ("llama", True, "first")):
        model = of_type("llava", text_config=SimpleNamespace(model_type=kind, vocab_size=7))
        assert resolve("auto", tokenizer(bos=adds), model).rule == rule
        assert text_setting(model, "vocab_size") == 7


def test_a_wrapped_model_is_asked_for_the_model_inside() -> None:
    model = torch.nn.DataParallel(gemma())
    assert resolve("auto", tokenizer(), model).rule == "every"


def test_without_a_model_type_the_tokenizer_decides() -> None:
    inner = tokenizer().backend_tokenizer
    kind: Any = GemmaTokenizerOfOurs
    ours = kind(tokenizer_object=inner, bos_token="<s>", unk_token="<unk>")
    assert resolve("auto", ours).rule == "every"
    assert resolve("auto", ours, torch.nn.Linear(1, 1)).rule == "every"
    assert resolve("auto", ours, llama()).rule == "none"
    assert resolve("auto", tokenizer(bos=True), torch.nn.Linear(1, 1)).rule == "first"
    assert resolve("auto", tokenizer()).rule == "none"


def test_the_flag_of_a_gguf_file_counts_where_the_call_adds_nothing() -> None:
    flagged = tokenizer()
    object.__setattr__(flagged, "_add_bos_token", True)
    assert flagged("w0")["input_ids"] == ids_of("w0")
    assert resolve("auto", flagged, of_type("cohere")).rule == "every"
    first = resolve("auto", flagged, of_type("llama"))
    assert first.rule == "first"
    assert first.tokens(flagged, "w1 w2") == ids_of("w1 w2")


def test_a_template_with_bos_counts_where_the_flag_is_false() -> None:
    templated = tokenizer(bos=True)
    assert not templated.add_bos_token
    assert resolve("auto", templated, of_type("cohere")).rule == "every"


def test_an_end_token_that_is_also_bos_is_no_bos_in_front() -> None:
    both = tokenizer()
    both.eos_token = "<s>"
    both.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="$A <s>", special_tokens=[("<s>", BOS)]
    )
    assert both("w1")["input_ids"] == [*ids_of("w1"), BOS]
    assert resolve("auto", both, of_type("cohere")).rule == "none"
    assert resolve("every", both).tokens(both, "w1 w2") == [*ids_of("w1 w2"), BOS]


@pytest.mark.parametrize("rule", ["first", "every", "none"])
@pytest.mark.parametrize("adds", [False, True])
@pytest.mark.parametrize("seq_len", [2, 3, 10, 33])
def test_blocks_hold_bos_where_the_rule_says_and_the_text_without_a_gap(
    rule: str, adds: bool, seq_len: int
) -> None:
    tok, text = tokenizer(bos=adds), words(100)
    found = resolve(rule, tok).cut(resolve(rule, tok).tokens(tok, text), seq_len)
    assert found.tolist() == blocks_by_hand(text, seq_len, rule, [BOS])
    seen = [token for token in found.flatten().tolist() if token != BOS]
    assert seen == ids_of(text)[: len(seen)]


def test_bos_that_is_written_in_the_text_stays() -> None:
    for adds, rule in ((False, "none"), (True, "none"), (False, "every"), (True, "first")):
        tok = tokenizer(bos=adds)
        assert resolve(rule, tok).tokens(tok, "<s> w1 w2") == [BOS, *ids_of("w1 w2")]


@pytest.mark.parametrize("batch_size", [1, 3])
@pytest.mark.parametrize("rule", ["auto", "first", "every", "none"])
@pytest.mark.parametrize(
    ("make", "adds", "auto"),
    [
        (gemma, False, "every"),
        (gemma, True, "every"),
        (llama, True, "first"),
        (llama, False, "none"),
    ],
)
def test_losses_are_what_transformers_computes_on_such_blocks(
    make: Any, adds: bool, auto: str, rule: str, batch_size: int
) -> None:
    model, text = make().eval(), words(120, seed=2)
    ppl = st.perplexity(
        model,
        tokenizer(bos=adds),
        text,
        seq_len=24,
        max_sequences=4,
        bos=rule,
        batch_size=batch_size,
    )
    used = auto if rule == "auto" else rule
    blocks = torch.tensor(blocks_by_hand(text, 24, used, [BOS])[:4])
    with torch.no_grad():
        losses = [float(model(block[None], labels=block[None]).loss) for block in blocks]
    assert ppl.losses == pytest.approx(losses, rel=1e-5)
    assert (ppl.bos, ppl.n_tokens, ppl.seq_len) == (used, 4 * 23, 24)


def test_under_every_the_first_word_of_a_block_is_predicted_from_bos() -> None:
    n = len(WORDS)
    chances = (
        torch.rand(n, n, dtype=torch.float64, generator=torch.Generator().manual_seed(1)) + 0.1
    )
    chances /= chances.sum(1, keepdim=True)
    text = words(12, seed=3)
    ppl = st.perplexity(bigram(chances), tokenizer(), text, seq_len=4, bos="every")
    ids, losses = ids_of(text), []
    for start in range(0, 12, 3):
        chain = [BOS, *ids[start : start + 3]]
        steps = itertools.pairwise(chain)
        losses.append(-sum(float(chances[a, b].log()) for a, b in steps) / 3)
    assert ppl.losses == pytest.approx(losses, rel=1e-5)


@pytest.mark.parametrize("adds", [False, True])
@pytest.mark.parametrize("kind", ["glm", "glm4", "glm4_moe", "glm_moe_dsa", "chatglm"])
def test_glm_starts_every_block_with_its_two_tokens_which_are_not_predicted(
    kind: str, adds: bool
) -> None:
    tok, model, text = glm_tokenizer(adds=adds), llama().eval(), "w5 w6 w7 " * 10
    opening = ids_of("w0 w1")
    model.config.model_type = kind
    ppl = st.perplexity(model, tok, text, seq_len=8)
    blocks = torch.tensor(blocks_by_hand(text, 8, "every", opening))
    assert (ppl.bos, len(blocks), ppl.n_tokens) == ("every", 5, 5 * 6)
    with torch.no_grad():
        chances = model(blocks).logits.log_softmax(-1)
    losses = [
        -sum(float(row[i - 1, block[i]]) for i in range(2, 8)) / 6
        for row, block in zip(chances, blocks, strict=True)
    ]
    assert ppl.losses == pytest.approx(losses, rel=1e-5)
    assert st.perplexity(model, tok, text, seq_len=8, bos="none").n_tokens == 3 * 7


def test_glm_without_its_tokens_in_the_vocabulary_is_as_any_other() -> None:
    assert resolve("auto", tokenizer(), of_type("glm4")).rule == "none"
    assert resolve("auto", without_bos(), of_type("glm4")) == Bos("none")


@pytest.mark.parametrize(
    ("model", "tok", "options", "message"),
    [
        (llama, without_bos, {"bos": "every"}, ("the tokenizer has no BOS token to start every "
                                               "block with: use bos no")),
        (llama, without_bos, {"bos": "first"}, ("the tokenizer has no BOS token to start the "
                                               "text with: use bos none,")),
        (gemma, without_bos, {}, ("Gemma models predict badly without BOS at the start of every "
                                 "block, and this token")),
        (llama, tokenizer, {"bos": "always"}, ("bos must be one of auto, first, every, none, "
                                              "not 'always'")),
        (llama, tokenizer, {"bos": None}, "bos must be one of auto, first, every, none, not None"),
        (llama, tokenizer, {"bos": "every", "seq_len": 32},
         ("the text has 30 tokens, fewer than one block of 32, 31 beside BOS: give more text or "
         "a smaller seq_len")),
        (llama, lambda: tokenizer(bos=True), {"seq_len": 32}, ("the text has 31 tokens, fewer "
                                                              "than one block of 32: gi")),
        (gemma, tokenizer, {"seq_len": 65}, "the model has 64 positions, fewer than seq_len 65"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_one_line(
    model: Any, tok: Any, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(EvaluationError, match=re.escape(message)) as error:
        st.perplexity(model(), tok(), words(30), **{"seq_len": 10} | options)
    assert "\n" not in str(error.value)


def test_a_block_as_long_as_the_models_positions_holds_bos_too() -> None:
    ppl = st.perplexity(gemma(), tokenizer(), words(63), seq_len=64)
    assert (len(ppl.losses), ppl.n_tokens) == (1, 63)


def test_no_room_beside_the_two_tokens_of_glm() -> None:
    with pytest.raises(
        EvaluationError, match="seq_len must be at least 3 with BOS in every block, not 2"
    ):
        resolve("auto", glm_tokenizer(adds=False), of_type("glm")).cut([1, 2, 3], 2)


@pytest.mark.parametrize(
    ("rule", "shown"), [("every", "every block"), ("first", "start of the text"), ("none", "none")]
)
def test_the_result_says_which_rule_was_used_also_as_json_and_after_a_copy(
    rule: str, shown: str
) -> None:
    ppl = st.perplexity(llama(), tokenizer(), words(100), seq_len=20, bos=rule)
    assert ppl.describe().endswith(f" sequences of 20 tokens, BOS: {shown})")
    assert ppl.to_dict()["bos"] == rule
    copy = pickle.loads(pickle.dumps(ppl))
    assert (copy.bos, copy.n_tokens, copy.describe()) == (rule, ppl.n_tokens, ppl.describe())
