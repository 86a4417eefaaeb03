"""The settings that decide the samples, together with the clips."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from training.degradations import PUBLISHED, DegradationSettings, mixture
from training.fields import AtLeast1, Count, NotNegative, SettingsError, Share, check_fields
from vsrealbasicvsr.errors import UserError


@dataclass(frozen=True, slots=True, kw_only=True)
class DataSettings:
    """Crop, length and degradations of the samples. The defaults are the paper's stage 1.

    With a pool (`pool_clips` above 0) there are only that many degraded clips, each computed when it is first needed
    and cached on disk. A sample is then a crop of one, flipped, and reversed in time in half of the cases. Sample i is
    a crop of one of the first `pool_start_clips + i * pool_growth` clips, so that a run need not wait for all of them.

    Raises SettingsError for values out of range, and if the pool's clips are smaller than the samples.
    """

    num_frames: AtLeast1 = 30
    """L, number of frames that the network sees."""
    crop_px: AtLeast1 = 64
    """Side of the low-resolution crop; the ground truth is 4 times as large."""
    stochastic: bool = True
    """The paper's scheme: load L/2 frames, mirror them in time, let every degradation walk. False: load L frames."""
    unsharp: bool = True
    """Sharpen the ground truth first, as published; the discriminator's real frames are not sharpened."""
    degradations: DegradationSettings = PUBLISHED
    degradation_mix: tuple[str, ...] = ()
    """Named degradations and their shares, one drawn for each clip, in place of `degradations`: usual:0.5,clean:0.2,
    harsh:0.3. Names: clean, mild, usual, noisy, blocky, starved, harsh, moderate, published."""
    hold_probability: Share = 0.0
    """Share of the samples in which one frame is shown all the time, with its noise."""
    still_probability: Share = 0.0
    """Share of the photographs' clips whose camera does not move at all; otherwise it nearly always moves."""
    soft_probability: Share = 0.0
    """Share of the clips whose ground truth is blurred before it is degraded, as soft footage is: a network that never
    sees soft footage sharpens it."""
    soft_sigma_px: tuple[float, float] = (0.5, 3.0)
    """Range of that Gaussian's standard deviation, in pixels of the ground truth; one for each clip."""
    seed: Count = 0
    """Seed of the samples, and of the networks' random start."""
    pool_clips: Count = 0
    """Number of degraded clips that are cached and reused; 0: every sample is degraded separately."""
    pool_crop_px: AtLeast1 = 96
    """Side of the pool's low-resolution clips."""
    pool_num_frames: AtLeast1 = 12
    """Length of the pool's clips in frames."""
    pool_start_clips: Count = 0
    """Number of the pool's clips that the first sample is drawn from; 0: all."""
    pool_growth: NotNegative = 0.0
    """Number of clips added to these with each sample."""

    def __post_init__(self) -> None:
        check_fields(self)
        try:
            mixture(self.degradation_mix) if self.degradation_mix else None
        except UserError as error:
            raise SettingsError(str(error)) from None
        lowest, highest = self.soft_sigma_px
        if not 0 < lowest <= highest < math.inf:
            raise SettingsError(
                f"soft_sigma_px must be two numbers above 0, the smaller first, got {self.soft_sigma_px}"
            )
        if self.pool_clips and (self.pool_crop_px < self.crop_px or self.pool_num_frames < self.num_frames):
            raise SettingsError(
                f"the pool's clips ({self.pool_num_frames} frames of {self.pool_crop_px} px) are smaller than the crops"
                f" ({self.num_frames} frames of {self.crop_px} px): raise pool_num_frames and pool_crop_px"
            )

    @property
    def num_unique(self) -> int:
        """U, number of frames that a sample reads: half of L, rounded up, with the stochastic scheme."""
        return -(-self.num_frames // 2) if self.stochastic else self.num_frames

    def of_pool_clips(self) -> DataSettings:
        """Return the settings of the pool's clips; a mirrored one has an even number of frames."""
        num_frames = self.pool_num_frames + (self.pool_num_frames % 2 if self.stochastic else 0)
        return replace(
            self,
            crop_px=self.pool_crop_px,
            num_frames=num_frames,
            hold_probability=0.0,
            pool_clips=0,
            pool_start_clips=0,
            pool_growth=0.0,
        )

    def num_pool_clips(self, index: int) -> int:
        """Return the number of pool clips that sample `index` may be a crop of."""
        if not self.pool_start_clips:
            return self.pool_clips
        return min(self.pool_clips, self.pool_start_clips + int(index * self.pool_growth))
