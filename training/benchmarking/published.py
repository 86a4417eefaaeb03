"""What the paper says of VideoLQ: 50 sequences, three frames of each. Only numbers whose source was seen are here.

Sources: table 2 of Chan et al. 2022 ("Investigating Tradeoffs in Real-World Video Super-Resolution", arXiv
2111.12704), and for RealBasicVSR mmagic's model card, which has the same. The paper's rows of RealSR, DAN, BasicVSR++,
RealVSR and DBVSR were not at hand when this was written, so they are absent. Each PI follows from NIQE and NRQM.
"""

from __future__ import annotations

from collections.abc import Mapping

NUM_SEQUENCES, FRAMES_EACH = 50, 3

PUBLISHED: Mapping[str, Mapping[str, float]] = {
    "Real-ESRGAN": {"niqe": 4.2091, "brisque": 32.103, "nrqm": 5.7108, "pi": 4.2492},
    "BSRGAN": {"niqe": 4.2460, "brisque": 30.213, "nrqm": 5.7172, "pi": 4.2644},
    "RealBasicVSR": {"niqe": 3.7662, "brisque": 29.030, "nrqm": 6.0477, "pi": 3.8593},
}
"""By method, then metric. RealBasicVSR was run by its authors with one cleaning pass (theta 255)."""
