"""Where the beginning-of-sequence token (BOS) goes when a text is cut into blocks.

There are three rules:

- ``first``: one BOS at the beginning of the text, so that only the first block has it;
- ``every``: one BOS at the start of every block;
- ``none``: no BOS.

A block always has ``seq_len`` tokens, BOS included. Under ``every`` a block takes ``seq_len - 1``
tokens of text, and all of them are predicted. Under the other rules it takes ``seq_len`` tokens of
the text (or of BOS and text); its first token has nothing before it and is not predicted. In both
cases ``seq_len - 1`` tokens are predicted per block, and no token of the text is left out between
two blocks.

``auto`` chooses a rule by the model's family and by what its tokenizer does: see ``resolve``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor, nn

from spectail.errors import EvaluationError

Rule: TypeAlias = Literal["first", "every", "none"]
"""Where BOS goes."""

CHOICES = ("auto", "first", "every", "none")
"""What callers may give as ``bos``."""

WORDS: dict[Rule, str] = {"every": "every block", "first": "start of the text", "none": "none"}
"""The rules as reports write them, after "BOS: "."""

PUBLISHED_ONCE = ("llama", "mistral", "mixtral", "opt")
"""Model types whose tokenizer adds BOS and whose published tables use one BOS per text.

GPTQ, SparseGPT, Wanda, OWL and AlphaPruning tokenise the whole text in one call and cut the token
ids, so the blocks after the first have no BOS. ``auto`` does the same for these models.
"""


@dataclass(frozen=True)
class Family:
    """Models that predict badly unless every sequence starts as their training sequences did."""

    name: str
    part: str
    """A part of the model type, or of the tokenizer's class in lower case, that only the family
    has."""
    opening: tuple[str, ...] = ()
    """The tokens that a sequence starts with; empty if that is the tokenizer's BOS."""


NEEDS_BOS = (
    # Gemma 1: lm-evaluation-harness, pull request 1465 (LAMBADA perplexity 5.9e9 without BOS, 3.5
    # with it, for 7B). Gemma 2: pull request 2049 (2645 without). Gemma 3: docs/evaluation.md, two
    # to three times. Gemma 4: llama.cpp, pull request 21500; its GGUF tokenizer adds no BOS here.
    Family("Gemma", "gemma"),
    # GLM has no BOS: all its training sequences start with these two tokens, which not every
    # version of its tokenizer adds. Reported for GLM-5.2: perplexity 29.2 without and 9.4 with
    # them (github.com/JustVugg/colibri, pull request 155).
    Family("GLM", "glm", ("[gMASK]", "<sop>")),
)
"""Families for which ``auto`` means ``every``, whatever their tokenizer adds."""


@dataclass(frozen=True)
class Bos:
    """A rule, and the token ids of BOS.

    >>> Bos("every", (1,)).cut([10, 11, 12, 13, 14], 3)
    tensor([[ 1, 10, 11],
            [ 1, 12, 13]])
    >>> Bos("first", (1,)).cut([10, 11, 12, 13, 14], 3)
    tensor([[ 1, 10, 11],
            [12, 13, 14]])
    """

    rule: Rule
    opening: tuple[int, ...] = ()
    """One token id, or the two of GLM; empty for a tokenizer without BOS."""

    @property
    def in_block(self) -> int:
        """Number of tokens of every block that are BOS and not text."""
        return len(self.opening) if self.rule == "every" else 0

    @property
    def unpredicted(self) -> int:
        """Number of tokens at the start of every block that are not predicted, at least one."""
        return max(1, self.in_block)

    def tokens(self, tokenizer: Any, text: str) -> list[int]:
        """Return the token ids of the whole text without the BOS that the tokenizer adds.

        The text is tokenised in one call, as published, so that no word is cut.
        """
        ids = list(tokenizer(text, verbose=False)["input_ids"])
        added = self.opening and tuple(ids[: len(self.opening)]) == self.opening
        return ids[len(self.opening) :] if added and _adds(tokenizer, self.opening) else ids

    def cut(self, ids: Sequence[int], seq_len: int) -> Tensor:
        """Cut token ids into blocks (n, seq_len) with BOS; drop the incomplete last block.

        Raises:
            EvaluationError: fewer tokens than one block takes, or no room in a block beside BOS.

        """
        room = room_for_text(self, seq_len)
        stream = [*self.opening, *ids] if self.rule == "first" else list(ids)
        n = len(stream) // room
        if n == 0:
            needed = f"one block of {seq_len}" + (f", {room} beside BOS" if self.in_block else "")
            raise EvaluationError(
                f"the text has {len(stream)} tokens, fewer than {needed}: "
                "give more text or a smaller seq_len"
            )
        return self.open(torch.tensor(stream[: n * room], dtype=torch.long).view(n, room))

    def open(self, blocks: Tensor) -> Tensor:
        """Put BOS in front of every row of (n, length) if the rule is ``every``."""
        if not self.in_block:
            return blocks
        front = torch.tensor(self.opening, dtype=blocks.dtype, device=blocks.device)
        return torch.cat([front.expand(len(blocks), -1), blocks], dim=1)


def room_for_text(bos: Bos, seq_len: int) -> int:
    """Return how many tokens of text a block of ``seq_len`` takes beside its BOS.

    Raises:
        EvaluationError: the block has no room for text.

    """
    if seq_len <= bos.in_block:
        raise EvaluationError(
            f"seq_len must be at least {bos.in_block + 1} with BOS in every block, not {seq_len}"
        )
    return seq_len - bos.in_block


def resolve(bos: str, tokenizer: Any, model: nn.Module | None = None) -> Bos:
    """Turn the caller's choice into a rule.

    ``auto`` is the first of these that applies:

    - ``every`` for a family of ``NEEDS_BOS``, whatever the tokenizer adds;
    - ``none`` if the tokenizer has no BOS, or does not add it by itself;
    - ``first`` for ``PUBLISHED_ONCE``, so that LLaMA's numbers are those of the published tables;
    - ``first``, which is what the tokenizer does, for a model that does not state its type;
    - ``every`` for other models whose tokenizer adds BOS, because they were trained with it.

    Args:
        bos: one of ``CHOICES``.
        tokenizer: the model's tokenizer.
        model: the family follows from its ``config.model_type``; without a model, from the class
            of the tokenizer.

    Raises:
        EvaluationError: an unknown choice; no BOS where the choice or the family needs one.

    """
    check_choice(bos)
    kinds = _model_types(model)
    # Without a model, classes such as GemmaTokenizer tell the family.
    family = _family(kinds or (type(tokenizer).__name__.lower(),), tokenizer)
    opening = _opening(tokenizer, family)
    if bos == "auto":
        return Bos(_auto(kinds, family, tokenizer, opening), opening)
    # Written out, because a type checker cannot narrow a text to the literals of Rule.
    rule: Rule = "every" if bos == "every" else "first" if bos == "first" else "none"
    if rule != "none" and not opening:
        where = "every block" if rule == "every" else "the text"
        raise EvaluationError(
            f"the tokenizer has no BOS token to start {where} with: "
            "use bos none, or set the tokenizer's bos_token"
        )
    return Bos(rule, opening)


def check_choice(bos: object) -> None:
    """Refuse anything but one of ``CHOICES``."""
    if bos not in CHOICES:
        raise EvaluationError(f"bos must be one of {', '.join(CHOICES)}, not {bos!r}")


def needed_bos(model: nn.Module) -> tuple[str, int] | None:
    """Return the family and BOS id of a model that needs BOS, by its configuration; else None."""
    kinds = _model_types(model)
    family = next((f for f in NEEDS_BOS if not f.opening and _is_of(f, kinds)), None)
    ids = (getattr(config, "bos_token_id", None) for config in _configs(model))
    found = next((token for token in ids if isinstance(token, int)), None)
    return (family.name, found) if family and found is not None else None


def text_setting(model: nn.Module, name: str) -> int | None:
    """Return a whole number of the model's configuration, or of its text part; None if absent."""
    values = (getattr(config, name, None) for config in _configs(model))
    return next((value for value in values if isinstance(value, int)), None)


def _auto(
    kinds: Sequence[str], family: Family | None, tokenizer: Any, opening: tuple[int, ...]
) -> Rule:
    """Choose a rule: see ``resolve``."""
    if family:
        if not opening:
            raise EvaluationError(
                f"{family.name} models predict badly without BOS at the start of every block, and "
                "this tokenizer has no BOS token: set its bos_token, or use bos none"
            )
        return "every"
    if not opening or not _adds(tokenizer, opening):
        return "none"
    return "first" if not kinds or any(kind in PUBLISHED_ONCE for kind in kinds) else "every"


def _family(kinds: Sequence[str], tokenizer: Any) -> Family | None:
    """Return the family that needs BOS; GLM only if the vocabulary has its opening tokens."""
    return next(
        (
            family
            for family in NEEDS_BOS
            if _is_of(family, kinds) and (not family.opening or _ids(tokenizer, family.opening))
        ),
        None,
    )


def _is_of(family: Family, kinds: Sequence[str]) -> bool:
    """Whether one of the model types belongs to the family."""
    return any(family.part in kind for kind in kinds)


def _opening(tokenizer: Any, family: Family | None) -> tuple[int, ...]:
    """Return the ids of BOS; empty if there is none."""
    if family and family.opening:
        return _ids(tokenizer, family.opening)
    token = getattr(tokenizer, "bos_token_id", None)
    return (token,) if isinstance(token, int) else ()


def _ids(tokenizer: Any, tokens: Sequence[str]) -> tuple[int, ...]:
    """Return the ids of tokens; empty unless the vocabulary has all of them."""
    convert = getattr(tokenizer, "convert_tokens_to_ids", None)
    found = [convert(token) for token in tokens] if convert else []
    # Tokenizers answer with None or with their unknown token.
    unknown = (None, getattr(tokenizer, "unk_token_id", None))
    return () if any(token in unknown for token in found) else tuple(found)


def _adds(tokenizer: Any, opening: tuple[int, ...]) -> bool:
    """Whether the tokenizer puts BOS in front of a text by itself.

    A trial call decides, because the flag ``add_bos_token`` is false for tokenizers whose file has
    a template with BOS in it. If the flag is true, it counts: GGUF files set it.
    """
    if getattr(tokenizer, "add_bos_token", None) is True:
        return True
    # An empty text works for every tokenizer. But if BOS is also EOS, it would not show which of
    # the two was added.
    probe = "a" if getattr(tokenizer, "eos_token_id", None) in opening else ""
    plain = list(tokenizer(probe, add_special_tokens=False)["input_ids"])
    start = [*opening, *plain]
    return list(tokenizer(probe)["input_ids"])[: len(start)] == start


def _model_types(model: nn.Module | None) -> tuple[str, ...]:
    """Return the model's type and, for a multi-modal model, that of its text part."""
    found = (getattr(config, "model_type", None) for config in _configs(model))
    return tuple(kind.lower() for kind in found if isinstance(kind, str) and kind)


def _configs(model: nn.Module | None) -> list[Any]:
    """Return the configuration and that of the text part, also of a model in DataParallel."""
    inner = getattr(model, "module", None)
    config = getattr(model, "config", None) or getattr(inner, "config", None)
    found = (config, getattr(config, "text_config", None))
    return [one for one in found if one is not None]
