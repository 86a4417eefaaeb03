"""Recognition of other networks by the names of their tensors, for error messages."""

import re
from collections.abc import Collection

_NETWORKS: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("BasicVSR++", (r"deform_align\.(backward|forward)_1\.", r"backbone\.(backward|forward)_1\.")),
    ("IconVSR", (r"edvr\.", r"(backward|forward)_(fusion|resblocks|trunk)\.")),
    ("EDVR", (r"pcd_align(ment)?\.", r"(tsa_)?fusion\.")),
    (
        "BasicVSR, which has no cleaning module",
        (r"(backward|forward)_(resblocks|trunk)\.", r"(spynet\.|upconv1\.|upsample1\.|fusion\.)"),
    ),
    ("Real-ESRGAN or ESRGAN (RRDBNet)", (r"(body|RRDB_trunk|trunk)\.\d+\.(rdb|RDB)1\.conv1\.",)),
    ("ESRGAN (RRDBNet, its first layout)", (r"model\.1\.sub\.0\.RDB1\.",)),
    ("Real-ESRGAN's compact network (SRVGGNetCompact)", (r"^body\.0\.weight$", r"^body\.2\.weight$")),
    ("SwinIR or one of its kind", (r"layers\.0\.residual_group\.blocks\.0\.",)),
    ("VRT", (r"stage1\.residual_group1\.",)),
    ("SPyNet, the flow network alone", (r"^basic_module\.0\.basic_module\.0\.",)),
    ("VGG", (r"^features\.0\.weight$", r"^classifier\.")),
    ("a discriminator", (r"^conv_?0\.weight$", r"conv_?1\.weight_orig$")),
)
"""Names of networks, each with patterns that must all occur in its keys. The first match counts."""

_MAX_KEY_LENGTH = 200


def network_of(keys: Collection[str]) -> str | None:
    """Return in words which known network these keys belong to; None if none is recognised.

    Args:
        keys: Names of tensors, without a prefix that all of them share.
    """
    keys = [key[:_MAX_KEY_LENGTH] for key in keys]
    for name, patterns in _NETWORKS:
        if all(any(re.search(pattern, key) for key in keys) for pattern in patterns):
            return name
    return None
