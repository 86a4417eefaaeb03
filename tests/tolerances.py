"""How far two results may lie apart, and why: the one place for numbers that say "the same".

Differences are of values in the units of the picture (0 to 1) or of flow (pixels), absolute.
"""

REFERENCE = 2e-4
"""Against the reference network (float32, another build of torch, another CPU). Measured here: 2e-5 pixels on flow,
4e-7 on pictures. A picture in 8 bits has steps of 4e-3; a swapped channel, a missing bias or a wrong align_corners
shows at 1e-2 and more."""

FLOAT64 = 1e-5
"""Float32 against the same network in float64. Measured: 3e-7 on pictures, 3e-6 pixels on flow; rounding grows with the
number of layers, not with the size of the picture."""

REGROUPED = 1e-5
"""Float32 against float32 when the same frames are computed in other batches: libraries choose other kernels, which add
in another order. Measured: 3e-7."""

SAMPLING = 1e-5
"""Bilinear sampling at integer places: the coordinates pass through the range -1 to 1 in float32 and come back 1e-6 of
a pixel off, on values of about 1."""

WINOGRAD = 2e-4
"""Our own convolutions against torch's, relative to the largest value: Winograd's transforms add and subtract numbers
up to 30 times as large. Measured: 2e-5 of a value for one convolution, 4e-7 on pictures of the published network."""

PLANES = 2e-6
"""A frame's colour planes, floats, by torch against core.resize: the same sums in another order. Measured: 3e-7."""

HALF_PLANES = 1e-3
"""The same in half precision: the last bit of values of 1 and more."""
