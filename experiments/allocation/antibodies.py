"""Antibody sequences for AntiBERTy: human germline genes with drawn mutations and a drawn CDR3.

No package at hand ships enough natural antibodies. A chain here is a germline V gene, a CDR3 of
drawn residues and a J gene, as V(D)J recombination joins them; then single residues are replaced,
as somatic hypermutation does. The V genes are divided between calibration, selection and tests.
They were not checked against a database: these are antibody-like sequences, not reference genes.
"""

from __future__ import annotations

import random

from experiments.pruning.texts import Texts

RESIDUES = "ACDEFGHIKLMNPQRSTVWY"
CDR3 = "AADDDDEFGGGGGHILMNPPRRSSSSTTVVWYYYYY"
"""Residues of a drawn CDR3: glycine, serine, aspartate and tyrosine are common in natural ones."""
MUTATED = 0.05
"""The part of the residues of a V gene that is replaced."""

HEAVY = {
    "IGHV3-23": "EVQLLESGGGLVQPGGSLRLSCAASGFTFSSYAMSWVRQAPGKGLEWVSAISGSGGSTYYADSVKGRFTISRDNSKNTLYL"
    "QMNSLRAEDTAVYYCAK",
    "IGHV1-69": "QVQLVQSGAEVKKPGSSVKVSCKASGGTFSSYAISWVRQAPGQGLEWMGGIIPIFGTANYAQKFQGRVTITADESTSTAYM"
    "ELSSLRSEDTAVYYCAR",
    "IGHV3-30": "QVQLVESGGGVVQPGRSLRLSCAASGFTFSSYGMHWVRQAPGKGLEWVAVISYDGSNKYYADSVKGRFTISRDNSKNTLYL"
    "QMNSLRAEDTAVYYCAK",
    "IGHV1-2": "QVQLVQSGAEVKKPGASVKVSCKASGYTFTGYYMHWVRQAPGQGLEWMGWINPNSGGTNYAQKFQGRVTMTRDTSISTAYME"
    "LSRLRSDDTAVYYCAR",
    "IGHV5-51": "EVQLVQSGAEVKKPGESLKISCKGSGYSFTSYWIGWVRQMPGKGLEWMGIIYPGDSDTRYSPSFQGQVTISADKSISTAYL"
    "QWSSLKASDTAMYYCAR",
    "IGHV4-59": "QVQLQESGPGLVKPSETLSLTCTVSGGSISSYYWSWIRQPPGKGLEWIGYIYYSGSTNYNPSLKSRVTISVDTSKNQFSLK"
    "LSSVTAADTAVYYCAR",
}
"""Human germline V genes of heavy chains."""
LIGHT = {
    "IGKV1-39": "DIQMTQSPSSLSASVGDRVTITCRASQSISSYLNWYQQKPGKAPKLLIYAASSLQSGVPSRFSGSGSGTDFTLTISSLQPE"
    "DFATYYC",
    "IGKV3-20": "EIVLTQSPGTLSLSPGERATLSCRASQSVSSSYLAWYQQKPGQAPRLLIYGASSRATGIPDRFSGSGSGTDFTLTISRLEP"
    "EDFAVYYC",
    "IGKV3-11": "EIVLTQSPATLSLSPGERATLSCRASQSVSSYLAWYQQKPGQAPRLLIYDASNRATGIPARFSGSGSGTDFTLTISSLEPE"
    "DFAVYYC",
}
"""Human germline V genes of kappa chains."""
LENGTHS = {"heavy": 120, "light": 107}
"""Residues of a chain; the CDR3 is as long as the genes leave room for."""
JOINING = {"heavy": "WGQGTLVTVSS", "light": "FGQGTKVEIK"}
KEPT = 64
"""How many chains of a text there are to draw from, per V gene."""


def antibodies() -> Texts:
    """Calibration, selection and tests from different V genes, one chain a line."""
    return Texts(
        calibration=chains("heavy", ("IGHV3-23", "IGHV1-69"), seed=0),
        selection=chains("heavy", ("IGHV3-30", "IGHV1-2"), seed=1),
        tests={
            "heavy": chains("heavy", ("IGHV5-51", "IGHV4-59"), seed=2),
            "light": chains("light", tuple(LIGHT), seed=3),
        },
    )


def chains(chain: str, genes: tuple[str, ...], *, seed: int) -> str:
    """``KEPT`` chains of every gene, one a line, all of one length."""
    rng = random.Random(seed)
    found = []
    for gene in genes:
        germline = (HEAVY | LIGHT)[gene]
        for _ in range(KEPT):
            mutated = (rng.choice(RESIDUES) if rng.random() < MUTATED else r for r in germline)
            free = LENGTHS[chain] - len(germline) - len(JOINING[chain])
            found.append("".join([*mutated, *rng.choices(CDR3, k=free), JOINING[chain]]))
    return "\n".join(found)
