"""Named settings: the paper's two stages, fine-tuning, those of the default weights, and a short smoke test."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from training.degradations import MODERATE
from training.losses.settings import LossSettings
from training.settings import Settings
from vsrealbasicvsr.model import Architecture

COMPACT_ARCHITECTURE = Architecture(
    cleaning_channels=32,
    num_cleaning_blocks=6,
    mid_channels=64,
    num_backward_blocks=5,
    num_forward_blocks=5,
    fusion_channels=64,
    quarter_channels=32,
    hr_channels=16,
    hr_out_channels=16,
    num_flow_levels=5,
    flow_channels=(16, 32, 16, 8),
    flow_stride=2,
    start_passes=1,
    num_cleaning_levels=3,
)
"""Sizes of the default weights: 1,349,865 parameters."""


COMPACT_MIX = ("usual:0.4", "mild:0.13", "clean:0.12", "blocky:0.14", "harsh:0.15", "noisy:0.06")
"""Degradations that the default weights are trained with: mostly what most videos have gone through."""


SMOKE_ARCHITECTURE = Architecture(
    cleaning_channels=16,
    num_cleaning_blocks=2,
    mid_channels=16,
    num_backward_blocks=2,
    num_forward_blocks=2,
    fusion_channels=16,
    quarter_channels=16,
    hr_channels=16,
    hr_out_channels=16,
    flow_channels=(8, 16, 8, 8),
)


STAGE_1 = Settings()


STAGE_2 = dataclasses.replace(
    STAGE_1,
    losses=dataclasses.replace(
        STAGE_1.losses,
        perceptual_weight=1.0,
        adversarial_weight=0.05,
    ),
    iterations=150_000,
    batch=8,
    learning_rate=5e-5,
    final_learning_rate=5e-5,
)


COMPACT = dataclasses.replace(
    STAGE_1,
    architecture=COMPACT_ARCHITECTURE,
    data=dataclasses.replace(
        STAGE_1.data,
        degradations=MODERATE,
        degradation_mix=COMPACT_MIX,
        hold_probability=0.2,
        soft_probability=0.15,  # without soft footage, clean soft masters came out 0.7 dB below bicubic
        num_frames=14,  # with 6 to 10 frames the hidden states did not converge: a still image changed at its ends
        crop_px=48,
        stochastic=False,
        unsharp=False,
        pool_clips=2000,
        pool_num_frames=14,
    ),
    losses=dataclasses.replace(
        STAGE_1.losses,
        output_weight=0.5,
        cleaning_weight=0.05,  # more wipes detail from good input, whose averaged truth is softer than the input
        psnr_weight=0.5,
        colour_weight=1.0,
        colour_block_px=48,
        flicker_weight=4.0,
        rest_weight=0.25,
        flow_rest_weight=0.1,
    ),
    iterations=6000,
    batch=3,
    learning_rate=6e-4,
    final_learning_rate=3e-6,
    flow_learning_rate=5e-5,
    flow_from_share=0.1,
    warm_up_iterations=100,
    max_gradient_norm=0.5,
    ema_decay=0.998,
    checkpoint_every=200,
    log_every=50,
    images_every=500,
)


COMPACT_STAGE = dataclasses.replace(COMPACT, flow_learning_rate=0.0, flow_from_share=0.0, final_learning_rate=1e-6)
"""What follows on `compact`: the flow network stays."""


MORE_SOFT_DATA = dataclasses.replace(
    COMPACT.data,
    num_frames=8,
    soft_probability=0.3,
    soft_sigma_px=(2.5, 8.0),  # less blur does not show in the input: with it, all came out softer
)
"""Shorter samples, of which more are soft, so that a sharp set leaves what is out of focus as it is."""


COMPACT_GAN = dataclasses.replace(
    COMPACT_STAGE,
    losses=dataclasses.replace(
        COMPACT.losses,
        output_weight=1.0,
        cleaning_weight=0.0,
        psnr_weight=0.0,
        rest_weight=0.0,
        flow_rest_weight=0.0,
        coarse_weight=5.0,
        coarse_contrast=0.3,
        chroma_weight=6.0,
        flicker_weight=14.0,
        texture_weight=30.0,
        texture_quantile=0.65,  # at the median, twice the weight sharpened next to nothing
        weave_weight=400.0,
        hatching_weight=400.0,
        phase_weight=150.0,
        mixture_probability=0.5,
        discriminator="patch",
        adversarial_weight=0.06,
        feature_matching_weight=0.5,
        adversarial_warm_up_iterations=100,
    ),
    freeze_cleaning=True,
    iterations=3000,
    learning_rate=2e-4,
    final_learning_rate=1e-5,
    discriminator_learning_rate=3e-4,
    warm_up_iterations=50,
    ema_decay=0.995,
)


PRESETS: Mapping[str, Settings] = {
    "stage1": STAGE_1,
    "stage2": STAGE_2,
    "finetune": dataclasses.replace(
        STAGE_2,
        iterations=20_000,
        batch=2,
        gradient_checkpointing=True,
    ),
    "compact": COMPACT,
    "compact-gan": COMPACT_GAN,
    "compact-style": dataclasses.replace(
        COMPACT_GAN,
        data=MORE_SOFT_DATA,
        losses=dataclasses.replace(
            COMPACT_GAN.losses,
            coarse_weight=8.0,
            coarse_contrast=0.6,
            flicker_weight=8.0,
            texture_weight=4.0,
            texture_quantile=0.6,
            phase_weight=100.0,
            perceptual_weight=0.03,
            perceptual_network="vgg16",
            perceptual_every=4,
            style_weight=0.25,
            adversarial_weight=0.5,
            adversarial_warm_up_iterations=50,
            mixture_probability=0.3,
        ),
        iterations=800,
        batch=2,
        final_learning_rate=5e-6,
        discriminator_learning_rate=5e-4,
        warm_up_iterations=10,
        ema_decay=0.98,
        checkpoint_every=50,
        log_every=10,
    ),
    "compact-contrast": dataclasses.replace(
        COMPACT_STAGE,
        data=MORE_SOFT_DATA,
        losses=LossSettings(
            output_weight=0.0, cleaning_weight=0.0, contrast_weight=1.0, contrast_strength=2.0, flicker_weight=1.0
        ),
        freeze_cleaning=True,
        iterations=600,
        batch=2,
        learning_rate=3e-4,
        warm_up_iterations=10,
        ema_decay=0.97,
        checkpoint_every=50,
        log_every=10,
    ),
    "compact-cleaning": dataclasses.replace(
        COMPACT_STAGE,
        data=dataclasses.replace(
            COMPACT.data,
            degradation_mix=("starved:0.35", "blocky:0.25", "usual:0.2", "clean:0.12", "harsh:0.08"),
            num_frames=2,
        ),
        losses=LossSettings(output_weight=0.0, cleaning_weight=0.0, banding_weight=12.0, keep_weight=4.0),
        freeze_basicvsr=True,
        iterations=1500,
        batch=8,
        learning_rate=1e-3,
        warm_up_iterations=30,
        max_gradient_norm=0.05,
        ema_decay=0.98,
    ),
    "smoke": dataclasses.replace(
        STAGE_1,
        architecture=SMOKE_ARCHITECTURE,
        data=dataclasses.replace(
            STAGE_1.data,
            degradations=MODERATE,
            num_frames=4,
            crop_px=32,
            unsharp=False,
            pool_clips=48,
            pool_crop_px=48,
            pool_num_frames=6,
        ),
        losses=dataclasses.replace(
            STAGE_1.losses,
            colour_weight=1.0,
        ),
        iterations=300,
        batch=4,
        learning_rate=2e-3,
        final_learning_rate=1e-4,
        flow_learning_rate=1e-4,
        flow_from_share=0.5,
        warm_up_iterations=10,
        max_gradient_norm=1.0,
        ema_decay=0.98,
        checkpoint_every=50,
        log_every=20,
        images_every=150,
    ),
}
"""stage1, stage2: the paper's. finetune: stage 2, short, for 24 GB. compact, compact-gan: the default weights' faithful
set, and the sharp one that begins from it; hours on a CPU, minutes on a GPU. compact-style: what follows on
compact-gan, with VGG16; an hour on a CPU. compact-contrast: what follows on the faithful set, for the contrast that
damage took; half an hour on a CPU. compact-cleaning: the cleaning module alone, for blocks and bands on walls; half an
hour on a CPU. smoke: minutes on a CPU."""
