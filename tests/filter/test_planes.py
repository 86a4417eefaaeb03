"""Frames converted where they are computed, against core.resize: every format, matrix, range and chroma location."""

import itertools

import numpy as np
import pytest
import torch
import vapoursynth as vs

from tests.filter.clips import FORMATS, as_format, digests, photograph
from tests.tolerances import HALF_PLANES, PLANES
from vsrealbasicvsr.engine import MATRICES, DeviceConfig, PlaneFormat, to_planes
from vsrealbasicvsr.filter import entry
from vsrealbasicvsr.filter.conversion import plane_format

FAMILIES = {vs.YUV: "yuv", vs.GRAY: "grey", vs.RGB: "rgb"}
KINDS = [(vs.INTEGER, 8), (vs.INTEGER, 10), (vs.INTEGER, 16), (vs.FLOAT, 16), (vs.FLOAT, 32)]
SUBSAMPLINGS = [(0, 0), (1, 0), (0, 1), (1, 1), (2, 0), (2, 2)]


def picture(height: int, width: int) -> torch.Tensor:
    """Smooth colours, some of them outside of [0, 1]."""
    generator = torch.Generator().manual_seed(height * 1000 + width)
    coarse = torch.rand(1, 3, height // 3 + 2, width // 3 + 2, generator=generator)
    return torch.nn.functional.interpolate(coarse, size=(height, width), mode="bicubic")[0] * 1.2 - 0.1


def as_clip(core, rgb: torch.Tensor):
    blank = core.std.BlankClip(format=vs.RGBS, width=rgb.shape[2], height=rgb.shape[1], length=1, keep=True)

    def fill(n, f):
        frame = f.copy()
        for plane in range(3):
            np.copyto(np.asarray(frame[plane]), rgb[plane].numpy())
        return frame

    return core.std.ModifyFrame(blank, blank, fill)


def values(plane: torch.Tensor) -> np.ndarray:
    """As numbers: integers of more than 8 bits come as the bits of int16."""
    plane = plane.numpy()
    return (plane.view(np.uint16) if plane.dtype == np.int16 else plane).astype(np.float64)


def assert_same_planes(expected, actual: list[np.ndarray], wanted) -> None:
    """Integers: one step apart in the few places where rounding decides; floats: rounding."""
    assert len(actual) == wanted.num_planes
    for plane, ours in zip(expected, actual, strict=True):
        theirs = np.asarray(plane).astype(np.float64)
        if wanted.sample_type == vs.INTEGER:
            assert np.abs(theirs - ours).max() <= 1
            assert (theirs != ours).mean() <= (0.02 if ours.size > 100 else 0.3)
        else:
            np.testing.assert_allclose(ours, theirs, atol=HALF_PLANES if wanted.bits_per_sample == 16 else PLANES)


@pytest.mark.parametrize(("height", "width"), [(4, 4), (36, 20)])
@pytest.mark.parametrize("subsampling", SUBSAMPLINGS, ids=str)
@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: f"{vs.SampleType(kind[0]).name} {kind[1]}")
def test_the_planes_are_those_of_core_resize(core, kind, subsampling, height, width):
    rgb = picture(height, width)
    clip = as_clip(core, rgb)
    locations = range(6) if any(subsampling) else [0]
    for matrix, location, value in itertools.product(MATRICES, locations, (vs.RANGE_FULL, vs.RANGE_LIMITED)):
        wanted = core.query_video_format(vs.YUV, *kind, *subsampling)
        made = to_planes(
            rgb,
            PlaneFormat(
                family="yuv", bits=kind[1], is_float=kind[0] == vs.FLOAT, is_full_range=value == vs.RANGE_FULL,
                subsampling=subsampling, matrix=matrix, chroma_location=location,
            ),
        )  # fmt: skip
        frame = clip.resize.Bicubic(format=wanted.id, matrix=matrix, range=value, chromaloc=location).get_frame(0)
        assert_same_planes(frame, [values(plane) for plane in made], wanted)


@pytest.mark.parametrize("family", [vs.GRAY, vs.RGB])
@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: f"{vs.SampleType(kind[0]).name} {kind[1]}")
def test_grey_and_rgb_planes_are_those_of_core_resize(core, kind, family):
    rgb = picture(32, 48)
    wanted = core.query_video_format(family, *kind)
    for value in (vs.RANGE_FULL, vs.RANGE_LIMITED):
        arguments = {"range": value} | ({"matrix": 9} if family == vs.GRAY else {})
        made = to_planes(
            rgb,
            PlaneFormat(
                family=FAMILIES[family], bits=kind[1], is_float=kind[0] == vs.FLOAT,
                is_full_range=value == vs.RANGE_FULL, matrix=9,
            ),
        )  # fmt: skip
        frame = as_clip(core, rgb).resize.Bicubic(format=wanted.id, **arguments).get_frame(0)
        assert_same_planes(frame, [values(plane) for plane in made], wanted)


@pytest.mark.parametrize("wrong", [{"bits": 32}, {"bits": 7}, {"matrix": 10}, {"is_float": True, "bits": 10}])
def test_a_format_that_nothing_can_be_written_in_is_refused(wrong):
    with pytest.raises(ValueError, match="PlaneFormat: no way to write"):
        PlaneFormat(**{"family": "yuv", "bits": 8, "is_float": False, "is_full_range": False} | wrong)


def test_a_gpu_converts_and_a_cpu_does_not():
    cpu, gpu = (DeviceConfig(torch.device(name), torch.float32) for name in ("cpu", "cuda:0"))
    assert not entry._converts([cpu])
    assert entry._converts([gpu])
    assert entry._converts([gpu, gpu])


# ---- through core.rbvsr.Upscale, as on a GPU -------------------------------------------------------------------------


@pytest.fixture
def both_ways(tiny_model, monkeypatch):
    """Upscale, its frames converted by core.resize, and where they are computed."""

    def upscale(clip, **arguments):
        made = []
        for converts in (False, True):
            monkeypatch.setattr(entry, "_converts", lambda computes, converts=converts: converts)
            made.append(clip.rbvsr.Upscale(model=tiny_model, **arguments))
        return made

    return upscale


@pytest.mark.long
@pytest.mark.parametrize("format_id", FORMATS, ids=lambda format_id: vs.PresetVideoFormat(format_id).name)
def test_upscale_gives_the_same_clip_wherever_it_is_converted(core, both_ways, format_id):
    clip = as_format(core, format_id, num_frames=2).std.SetFrameProps(text="übung", several=[1, 2])
    on_host, on_device = both_ways(clip)
    assert on_device.format.id == format_id
    for theirs, ours in zip(on_host.frames(close=False), on_device.frames(close=False), strict=True):
        assert dict(ours.props) == dict(theirs.props)
        planes = [np.asarray(plane).astype(np.float64) for plane in ours]
        assert_same_planes(theirs, planes, on_host.format)


@pytest.mark.long
def test_each_frame_is_converted_by_its_own_properties_and_those_that_torch_cannot_by_core_resize(core, both_ways):
    clip = photograph(core, num_frames=1).resize.Bicubic(format=vs.YUV420P8, matrix=1)
    kinds = [
        {"_Matrix": 1, "_Range": vs.RANGE_LIMITED},
        {"_Matrix": 6, "_Range": vs.RANGE_FULL, "_ChromaLocation": 2},
        {"_Matrix": 10, "_Transfer": 14, "_Primaries": 9},  # constant luminance
        {"_Matrix": 9, "_ChromaLocation": 1},
        {},
    ]
    wanted = clip.format
    told = [plane_format(wanted, clip.height, {"_rbvsr" + key: value for key, value in kind.items()}) for kind in kinds]
    assert [form is not None for form in told] == [True, True, False, True, True]
    mixed = core.std.Splice([clip.std.RemoveFrameProps().std.SetFrameProps(**kind) if kind else clip for kind in kinds])
    on_host, on_device = both_ways(mixed, scene_cuts="off")
    for n, (theirs, ours) in enumerate(zip(on_host.frames(close=False), on_device.frames(close=False), strict=True)):
        assert dict(ours.props) == dict(theirs.props)
        assert_same_planes(theirs, [np.asarray(plane).astype(np.float64) for plane in ours], wanted)
        if told[n] is None:
            assert all(np.array_equal(np.asarray(a), np.asarray(b)) for a, b in zip(theirs, ours, strict=True))


@pytest.mark.long
def test_converted_frames_are_the_same_bytes_in_any_order_and_upscaled_once(core, tiny_model, monkeypatch):
    monkeypatch.setattr(entry, "_converts", lambda computes: True)
    made = []
    original = entry.WindowUpscaler
    monkeypatch.setattr(entry, "WindowUpscaler", lambda *a, **k: made.append(original(*a, **k)) or made[-1])
    clip = as_format(core, vs.YUV420P10, num_frames=12)
    forwards = digests(clip.rbvsr.Upscale(model=tiny_model, length=4, overlap=2))
    assert made[0].statistics.frames_reconstructed == made[0].statistics.frames_cleaned == 12
    backwards = digests(clip.rbvsr.Upscale(model=tiny_model, length=4, overlap=2).std.Reverse())
    assert backwards[::-1] == forwards
