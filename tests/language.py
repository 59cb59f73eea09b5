"""Small language models of transformers with tokenizers of their own."""

import math
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

WORDS = ("<s>", "<unk>", *(f"w{i}" for i in range(30)))


def tokenizer(*, bos: bool = False) -> PreTrainedTokenizerFast:
    """One token for each of ``w0`` to ``w29``, split at white space;
    ``bos`` puts one <s> at the start.
    """
    inner = Tokenizer(
        models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<unk>")
    )
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    if bos:
        inner.post_processor = processors.TemplateProcessing(
            single="<s> $A", special_tokens=[("<s>", 0)]
        )
    return PreTrainedTokenizerFast(tokenizer_object=inner, bos_token="<s>", unk_token="<unk>")


def llama(*, layers: int = 2, hidden: int = 64, seed: int = 0, **more: Any) -> Any:
    """A Llama with random weights over the words of ``tokenizer``."""
    torch.manual_seed(seed)
    sizes: dict[str, Any] = {
        "num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 96
    }  # fmt: skip
    config = LlamaConfig(
        vocab_size=len(WORDS), hidden_size=hidden, num_hidden_layers=layers,
        max_position_embeddings=256, bos_token_id=0, eos_token_id=1, pad_token_id=1,
        **(sizes | more),
    )  # fmt: skip
    return LlamaForCausalLM(config)


def bigram(chances: torch.Tensor) -> Any:
    """A Llama of no layers that gives the next word by the last one: ``chances`` is (last, next),
    rows sum to 1.

    The embedding is the identity, which the norm multiplies by sqrt(vocabulary).
    """
    n = len(WORDS)
    model = llama(layers=0, hidden=n, num_attention_heads=1, num_key_value_heads=1)
    with torch.no_grad():
        model.model.embed_tokens.weight.copy_(torch.eye(n))
        model.lm_head.weight.copy_(chances.log().T / math.sqrt(n))
    return model


def words(n: int, seed: int = 0) -> str:
    """Text of n words."""
    drawn = torch.randint(30, (n,), generator=torch.Generator().manual_seed(seed))
    return " ".join(f"w{i}" for i in drawn.tolist())
