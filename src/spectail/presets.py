"""Settings of the papers, by name and with their source; no other module holds such constants.

The first part says how alpha is measured, the second how values are assigned from it.
``dataclasses.replace(presets.FARMS, cutoff="ks")`` makes a variant.
"""

from __future__ import annotations

from spectail.core.cutoffs import HistogramPeak, KSMinimum, Median, TopFraction
from spectail.core.spec import Spec
from spectail.core.windows import Grid, Tile

FARMS = Spec()
"""The default: square windows of one size for the whole run, the fewest that cover each layer, and
the median cutoff. This is the method of Hu et al. 2025 without the defects of its code."""

FARMS_TAIL = Spec(cutoff=TopFraction(0.1))
"""The default's windows with Hill's estimator on the largest 10 % of the eigenvalues. In
``experiments/pruning`` it was the best guide to the blocks that magnitude and Wanda should prune
less."""

FARMS_LLM = Spec(window=2000, placement=Grid(10), cutoff=HistogramPeak(), legacy=True)
"""FARMS for LLM pruning as published: 2000 x 2000 windows (limited to the layer) at 10 x 10
positions, xmin near the histogram's peak (arXiv 2506.06280; LLM_Pruning scripts, including their
log10 lower bound)."""

FARMS_CV = Spec(window=100, placement=Grid(10), cutoff=Median(), legacy=True)
"""FARMS for images as published: 100 rows, ratio 1, 10 x 10 positions, median; convolutions average
alphas over divisions (arXiv 2506.06280; Image_Classification scripts)."""

FULL = Spec(window="whole", cutoff=Median())
"""The whole matrix without windows, as before FARMS, with the default cutoff."""

WEIGHTWATCHER = Spec(window="whole", cutoff=KSMinimum(), legacy="weightwatcher")
"""Whole matrices, xmin of least KS distance (Martin, Peng and Mahoney 2021; Clauset et al. 2009),
as WeightWatcher 0.7.7 computes it: see ``core.weightwatcher``."""

TEMPBALANCE = Spec(window="whole", cutoff=Median(), legacy=True)
"""Whole matrices, xmin at the median, numerical zeros kept (Zhou et al. 2023, arXiv 2312.00359;
xmin_pos 2)."""

ALPHAPRUNING = Spec(window="whole", cutoff=HistogramPeak(), legacy=True)
"""Whole matrices, xmin near the histogram's peak with the log10 lower bound (Lu et al. 2024, arXiv
2410.10912)."""

ALPHAQ = Spec(window=128, placement=Tile(), cutoff=TopFraction(0.1))
"""128 x 128 windows, Hill's estimator on the top 10 % (arXiv 2606.04980). The published code draws
at most 256 random blocks without a seed, and takes the whole matrix if a side is below 128. Here
the windows are tiles, and smaller layers are skipped."""

BY_NAME = {
    "farms": FARMS,
    "farms-tail": FARMS_TAIL,
    "farms-llm": FARMS_LLM,
    "farms-cv": FARMS_CV,
    "full": FULL,
    "weightwatcher": WEIGHTWATCHER,
    "tempbalance": TEMPBALANCE,
    "alphapruning": ALPHAPRUNING,
    "alphaq": ALPHAQ,
}
"""The presets by their name on the command line."""

MAPS = {
    "alphapruning": "linear:0.7:1.3",
    "tempbalance": "linear:0.5:1.5",
    "tb-sigmoid": "sigmoid:1.0:1.0:10.0",
    "llr": "linear:1.0:5.0",
    "alphadecay": "linear:0.666:3.0",
}
"""Maps from alpha to factors, as text. Sparsity: the eps of AlphaPruning's README for LLaMA-7B,
magnitude, 70 % (0.2 for Wanda and SparseGPT). Learning rates: TempBalance (arXiv 2312.00359),
ModelBalancing (arXiv 2410.12178; its scale is 0.125 to 2 depending on the amount of data) and LLR
(arXiv 2605.22297). Weight decay: AlphaDecay (5 in place of 3 in some of its runs)."""

SPARSITY_BOUNDS = (0.0, 0.998)
"""The largest ratio that the published FARMS code allows is 0.998 (0.99999 at 70 %). AlphaPruning
has no bound."""

ALPHAQ_CHOICES = (2, 3, 4, 8)
"""Bit widths that AlphaQ chooses from (arXiv 2606.04980)."""

ALPHAQ_GAMMA = 1.0
"""AlphaQ's default. Its ablation finds the best values at 10 to 20 for DeepSeek and Qwen, near 200
for Mixtral."""

PRUNE_EPS = 0.2
"""Default eps of the linear map in ``spectail prune``: AlphaPruning's README for LLaMA-7B at 70 %,
Wanda and SparseGPT (arXiv 2410.10912). Published values range from 0.1 to 0.6 and were tuned per
model, method and sparsity."""

PRUNE_EPS_CANDIDATES = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6)
"""The values that ``spectail prune --eps auto`` tries: the range in the scripts of AlphaPruning and
FARMS (``llm_pruning_main.txt``), which set eps per model, method and sparsity, in steps of 0.1."""

OWL_M = 5.0
"""A weight is an outlier if its score is more than this many times the mean score of its block
(OWL, arXiv 2310.05175)."""

OWL_LAMBDA = 0.08
"""Half the range of OWL's ratios across blocks. This is its default; M and lambda were tuned per
model."""

DLP_WIDTH = 0.15
"""Half the range of DLP's ratios across blocks, its alpha (arXiv 2505.23807)."""

DSA_LAMBDA = 0.07
"""Half the range of the ratios that DSA takes over from OWL (NeurIPS 2024)."""

KIND_OFFSETS = {
    0.5: {"q": 0.049, "k": 0.040, "v": -0.090, "o": -0.030},
    0.6: {"q": 0.038, "k": 0.026, "v": -0.059, "o": -0.030},
    0.7: {"q": 0.025, "k": 0.021, "v": -0.042, "o": -0.023},
}
"""How far the ratio of zeros of q, k, v and o lies from that of their block, by sparsity: the means
over the ratios that EvoPress (arXiv 2410.14649) searched for four models of 7 to 8 billion weights
(``experiments/allocation/profiles.py``)."""

LLR_TRANSITION = 50
"""Steps over which LLR moves from one set of rates to the next (arXiv 2605.22297; 20 in its shorter
runs)."""

MIN_EIGENVALUES = 50
"""Layers with fewer eigenvalues train at the base rate (TempBalance and AlphaDecay; ModelBalancing
has 12 for PDEs)."""
