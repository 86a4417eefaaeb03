"""Clips of a real core for the filter's tests, and digests of their frames."""

import hashlib

import numpy as np
import skimage.data
import vapoursynth as vs

FORMATS = [
    *(vs.GRAY8, vs.GRAY10, vs.GRAY16, vs.GRAYH, vs.GRAYS),
    *(vs.RGB24, vs.RGB30, vs.RGB48, vs.RGBH, vs.RGBS),
    *(vs.YUV410P8, vs.YUV411P8, vs.YUV440P8, vs.YUV420P8, vs.YUV422P8, vs.YUV444P8),
    *(vs.YUV420P9, vs.YUV420P10, vs.YUV422P12, vs.YUV444P14, vs.YUV420P16, vs.YUV444P16),
    *(vs.YUV444PH, vs.YUV444PS, vs.YUV420PH, vs.YUV420PS),
]


def photograph(core, *, width=64, height=48, num_frames=6, name="coffee"):
    """A photograph that drifts, RGB24."""
    image = getattr(skimage.data, name)()
    blank = core.std.BlankClip(format=vs.RGB24, width=width, height=height, length=num_frames, fpsnum=25, fpsden=1)

    def fill(n, f):
        frame = f.copy()
        for plane in range(3):
            np.copyto(np.asarray(frame[plane]), image[100 : 100 + height, 100 + 2 * n : 100 + 2 * n + width, plane])
        return frame

    return core.std.ModifyFrame(blank, blank, fill)


def as_format(core, format_id, **arguments):
    clip = photograph(core, **arguments)
    if clip.format.color_family == vs.RGB and core.get_video_format(format_id).color_family == vs.RGB:
        return clip.resize.Bicubic(format=format_id)
    return clip.resize.Bicubic(format=format_id, matrix=vs.MATRIX_BT709)


def digest(frame) -> str:
    return hashlib.md5(b"".join(np.ascontiguousarray(plane).tobytes() for plane in frame)).hexdigest()


def digests(clip) -> list[str]:
    return [digest(frame) for frame in clip.frames(close=True)]
