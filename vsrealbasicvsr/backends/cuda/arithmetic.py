"""Convolutions on CUDA whose arithmetic is fixed, whatever the switches of the process say."""

import torch
from torch import Tensor, nn

from vsrealbasicvsr.model import RealBasicVSR

_NO_ENGINE = "unable to find an engine to execute this computation"
"""What torch says, in lower case, where cuDNN has no algorithm with these properties, or no memory for any."""


class _FixedConv2d(nn.Conv2d):
    """A convolution that passes cuDNN's switches explicitly, instead of reading those of the process.

    `torch.backends.cudnn` is shared by all threads: setting and restoring its switches around a step would change the
    results of whoever computes at the same time, and two threads that do so restore each other's values.
    `torch._convolution`, which torch calls in every convolution, takes the same switches as arguments.

    benchmark is off and deterministic on: a benchmark chooses the algorithm that was the fastest this time, and
    algorithms differ in their rounding; cuDNN's heuristics choose by the sizes and the GPU alone. (Where there is no
    memory for the workspace of the chosen one, torch takes the next: short memory may change results within rounding.)
    Where cuDNN has no deterministic algorithm for a shape, as it may for 7x7 kernels in float32, one is taken that is
    not marked so: for this shape always.
    """

    allow_tf32: bool
    cudnn_enabled: bool
    not_deterministic: set[tuple[int, ...]]

    @classmethod
    def like(cls, conv: nn.Conv2d, *, allow_tf32: bool) -> "_FixedConv2d":
        """Create one with the weights and the settings of `conv` itself, which pads with zeros."""
        fixed = cls.__new__(cls)  # a new one would first draw weights of its own
        fixed.__dict__.update(conv.__dict__)
        fixed.allow_tf32 = allow_tf32
        fixed.cudnn_enabled = torch.backends.cudnn.enabled
        fixed.not_deterministic = set()
        return fixed

    def forward(self, x: Tensor) -> Tensor:
        """Return the convolution of x."""
        shape = tuple(x.shape)
        if shape in self.not_deterministic:
            return self._convolved(x, deterministic=False)
        try:
            return self._convolved(x, deterministic=True)
        except RuntimeError as error:
            if _NO_ENGINE not in str(error).lower():
                raise
        result = self._convolved(x, deterministic=False)  # or the error, which then means that memory is short
        self.not_deterministic.add(shape)
        return result

    def _convolved(self, x: Tensor, *, deterministic: bool) -> Tensor:
        return torch._convolution(
            x,
            self.weight,
            self.bias,
            self.stride,
            self.padding,  # type: ignore[arg-type]
            self.dilation,
            False,  # transposed
            (0, 0),  # output_padding
            self.groups,
            False,  # benchmark
            deterministic,
            self.cudnn_enabled,
            self.allow_tf32,
        )


def fix_arithmetic(model: RealBasicVSR) -> None:
    """Make the model's convolutions compute the same bits at every run, whatever torch's switches say.

    TF32 rounds the factors of float32 products to 10 bits of mantissa. A network in float32 does not use it, to stay
    float32. In half precision it is allowed: where convolutions are not fused (steps.py) the flow network is in float32
    then, and without tensor cores it would take (by estimate, on an H100) as long as all the rest; float16 has the same
    10 bits. Its products are summed in float32. A fused model has convolutions of its own, which read no switch.
    """
    allow_tf32 = model.dtype != torch.float32
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if type(child) is nn.Conv2d:
                setattr(parent, name, _FixedConv2d.like(child, allow_tf32=allow_tf32))
