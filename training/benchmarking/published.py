"""The paper's numbers for VideoLQ: 50 sequences, three frames of each. Numbers without a source are left out.

Sources: mmagic's model card for RealBasicVSR, this project's notes of table 2 of the paper (Chan et al. 2022, arXiv
2111.12704) for the other two. The paper's rows of RealSR, DAN, BasicVSR++, RealVSR and DBVSR were not at hand when this
was written. Each PI follows from NIQE and NRQM.
"""

from __future__ import annotations

from collections.abc import Mapping

NUM_SEQUENCES, FRAMES_EACH = 50, 3
SCALE = 4
"""Enlargement of all methods in the paper."""

PUBLISHED: Mapping[str, Mapping[str, float]] = {
    "Real-ESRGAN": {"niqe": 4.2091, "brisque": 32.103, "nrqm": 5.7108, "pi": 4.2492},
    "BSRGAN": {"niqe": 4.2460, "brisque": 30.213, "nrqm": 5.7172, "pi": 4.2644},
    "RealBasicVSR": {"niqe": 3.7662, "brisque": 29.030, "nrqm": 6.0477, "pi": 3.8593},
}
"""Values by method, then metric. The authors' published program cleans once (theta 255); the paper names theta 5."""
