"""core.rbvsr.Upscale on a real core: formats, properties, order of the requests, scene cuts, memory, every error."""

import concurrent.futures
import os
import random
import re
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
import vapoursynth as vs

from tests.filter.clips import FORMATS, as_format, digest, digests, photograph
from tests.tolerances import WINOGRAD
from vsrealbasicvsr.engine import FrameCache, WindowUpscaler, scene_cuts
from vsrealbasicvsr.filter import conversion, entry
from vsrealbasicvsr.weights import load_model, write_weights


def planes_mean(frame) -> list[float]:
    """Mean of each plane, in units of the whole range."""
    peak = 1.0 if frame.format.sample_type == vs.FLOAT else (1 << frame.format.bits_per_sample) - 1
    return [float(np.asarray(plane, dtype=np.float64).mean()) / peak for plane in frame]


@pytest.mark.parametrize("format_id", FORMATS, ids=lambda format_id: vs.PresetVideoFormat(format_id).name)
def test_a_clip_leaves_in_the_format_it_came_in_four_times_as_large_in_the_same_colour(core, format_id):
    clip = as_format(core, format_id, num_frames=2, width=32, height=24)
    out = clip.rbvsr.Upscale()

    assert out.format.id == format_id
    assert (out.width, out.height, out.num_frames, out.fps) == (128, 96, clip.num_frames, clip.fps)
    frame = out.get_frame(1)
    assert (frame.format.id, frame.width, frame.height) == (format_id, 128, 96)
    assert np.isfinite([np.asarray(plane, dtype=np.float64).sum() for plane in frame]).all()
    bicubic = clip.resize.Bicubic(128, 96).get_frame(1)
    assert np.abs(np.subtract(planes_mean(frame), planes_mean(bicubic))).max() < 1 / 255


@pytest.mark.parametrize("format_id", [vs.GRAY8, vs.RGB24, vs.YUV420P8, vs.YUV444PH, vs.RGBS])
@pytest.mark.long
def test_every_frame_property_comes_out_as_it_went_in(core, tiny_model, format_id):
    clip = as_format(core, format_id, num_frames=3)
    clip = clip.std.SetFrameProps(
        _Matrix=0 if clip.format.color_family == vs.RGB else 6,
        _Transfer=1, _Primaries=9, _Range=1, _SARNum=8, _SARDen=9, _FieldBased=2, _PictType="B", _AbsoluteTime=0.5,
        several=[1, 2, 3], text="übung", floats=[0.5, 1.5],
    )  # fmt: skip
    if clip.format.color_family == vs.YUV:
        clip = clip.std.SetFrameProps(_ChromaLocation=2)
    for n, frame in enumerate(clip.rbvsr.Upscale(model=tiny_model).frames()):
        assert dict(frame.props) == dict(clip.get_frame(n).props)


@pytest.mark.parametrize(("format_id", "assumed"), [
    (vs.GRAY8, {"_Matrix": 6, "_Range": 0}),
    (vs.RGB24, {}),
    (vs.YUV444P8, {"_Matrix": 6, "_Range": 0}),
    (vs.YUV420P8, {"_Matrix": 6, "_Range": 0, "_ChromaLocation": 0}),
])  # fmt: skip
def test_a_frame_without_properties_gets_none_but_the_colours_that_were_assumed(core, tiny_model, format_id, assumed):
    clip = as_format(core, format_id, num_frames=1).std.RemoveFrameProps()
    assert dict(clip.rbvsr.Upscale(model=tiny_model).get_frame(0).props) == assumed


@pytest.mark.parametrize("props", [{}, {"_Matrix": 2}])
@pytest.mark.parametrize(("height", "matrix"), [(144, vs.MATRIX_ST170_M), (578, vs.MATRIX_BT709)])
@pytest.mark.long
def test_the_matrix_that_was_assumed_is_the_one_that_is_shown(core, tiny_model, height, matrix, props):
    clip = photograph(core, width=4, height=288, num_frames=1).resize.Point(4, height)
    clip = clip.resize.Bicubic(format=vs.YUV444P16, matrix=matrix)
    unnamed = clip.std.RemoveFrameProps("_Matrix").std.SetFrameProps(_Primaries=1, _Transfer=6, **props)
    arguments = {"model": tiny_model, "length": 1, "overlap": 0}
    out = unnamed.rbvsr.Upscale(**arguments)
    named = dict(out.get_frame(0).props)
    assert (named["_Matrix"], named["_Primaries"], named["_Transfer"]) == (matrix, 1, 6)
    shown = [one.resize.Bicubic(format=vs.RGB48) for one in (out, clip.rbvsr.Upscale(**arguments))]
    assert digests(shown[0].std.RemoveFrameProps()) == digests(shown[1].std.RemoveFrameProps())


def log_of(core, clip) -> list[str]:
    """What is said while a clip that `clip()` makes is computed."""
    lines: list[str] = []
    handle = core.add_log_handler(lambda kind, text: lines.append(text))
    try:
        list(clip().frames())
    finally:
        core.remove_log_handler(handle)
    return lines


@pytest.mark.long
def test_the_log_says_once_what_was_assumed_of_the_colours(core, tiny_model):
    unnamed = as_format(core, vs.YUV420P8, num_frames=4).std.RemoveFrameProps()
    mixed = unnamed[:2] + unnamed[2:].std.SetFrameProps(_Matrix=2)
    said = [line for line in log_of(core, lambda: mixed.rbvsr.Upscale(model=tiny_model)) if "ssumed" in line]
    frame = "[0-3]"  # whichever VapourSynth's threads reach first
    assert len(said) == 1
    assert re.fullmatch(
        f"rbvsr.Upscale: frame {frame} does not name all of its colours. Assumed and written to the upscaled frames: "
        + re.escape("_Matrix=6 (BT.601, by its height of 576 at most), _Range=0 (limited), _ChromaLocation=0 (left). ")
        + "If that is wrong, name them before: std.SetFrameProps.",
        said[0],
    )
    named = unnamed.std.SetFrameProps(_Matrix=6, _Range=1, _ChromaLocation=1)
    rgb = photograph(core, num_frames=2).std.RemoveFrameProps()
    for clip in (named[:2], rgb):
        assert not [line for line in log_of(core, lambda: clip.rbvsr.Upscale(model=tiny_model)) if "ssumed" in line]  # noqa: B023


@pytest.mark.long
@pytest.mark.parametrize(("format_id", "alpha_id"), [
    (vs.YUV420P8, vs.GRAY8), (vs.YUV444P10, vs.GRAY10), (vs.RGB48, vs.GRAY16), (vs.RGBS, vs.GRAYS), (vs.RGBH, vs.GRAYH),
])  # fmt: skip
def test_an_alpha_plane_is_enlarged_with_its_frame(core, tiny_model, format_id, alpha_id):
    clip = as_format(core, format_id)
    alpha = photograph(core, name="astronaut").std.ShufflePlanes(1, vs.GRAY).std.SetFrameProps(_Matrix=6, _Range=1)
    alpha = alpha.resize.Bicubic(format=alpha_id)
    out = clip.std.ClipToProp(alpha).rbvsr.Upscale(model=tiny_model, length=4, overlap=1)
    planes = out.std.PropToClip()
    out.set_output(7, alpha=planes)
    vs.clear_output(7)
    assert (planes.format.id, planes.width, planes.height) == (alpha_id, 256, 192)
    expected = alpha.resize.Lanczos(256, 192)
    if expected.format.sample_type == vs.FLOAT:
        expected = expected.std.Limiter(0, 1)
    order = (5, 0, 1, 3, 2, 4, 5)
    frames = [out.get_frame(n).props["_Alpha"] for n in order]
    made = digests(expected)
    assert [digest(frame) for frame in frames] == [made[n] for n in order]
    assert frames[0].props["_Range"] == vs.RANGE_FULL
    assert digests(out) == digests(clip.rbvsr.Upscale(model=tiny_model, length=4, overlap=1))


@pytest.mark.long
def test_alpha_planes_may_come_and_go_change_their_kind_and_be_interlaced_by_name(core, tiny_model):
    clip = as_format(core, vs.YUV420P8)
    small = core.std.BlankClip(clip, format=vs.GRAY8, width=20, height=30, color=[200])
    deep = core.std.BlankClip(clip, format=vs.GRAY16, color=[50_000]).std.SetFrameProps(_FieldBased=2, _Matrix=0)
    mixed = clip[:2] + clip[2:4].std.ClipToProp(small[:2]) + clip[4:].std.ClipToProp(deep[:2])
    frames = list(mixed.rbvsr.Upscale(model=tiny_model, scene_cuts="off").frames())
    assert all("_Alpha" not in frame.props for frame in frames[:2])
    for frame, value in zip(frames[2:], (200, 200, 50_000, 50_000), strict=True):
        plane = np.asarray(frame.props["_Alpha"][0])
        assert plane.shape == (192, 256)
        assert (plane == value).all()


@pytest.mark.long
def test_each_frame_is_converted_by_its_own_matrix_and_range(core, tiny_model):
    rgb = photograph(core, num_frames=1)
    kinds = [
        {"matrix": matrix, "range": value}
        for matrix in (vs.MATRIX_ST170_M, vs.MATRIX_BT709, vs.MATRIX_BT2020_NCL)
        for value in (vs.RANGE_FULL, vs.RANGE_LIMITED)
    ]
    mixed = core.std.Splice([rgb.resize.Bicubic(format=vs.YUV444P16, **kind) for kind in kinds])
    out = mixed.rbvsr.Upscale(model=tiny_model, scene_cuts="off", length=1, overlap=0)
    shown = [np.asarray(frame[0]).astype(float) for frame in out.resize.Bicubic(format=vs.RGB48).frames()]
    for picture in shown[1:]:
        assert np.abs(picture - shown[0]).mean() < 65535 * 0.001


WRONG_COLOURS = [
    {"_Matrix": 0}, {"_Matrix": 2}, {"_Matrix": 3}, {"_Matrix": 10}, {"_Matrix": 11}, {"_Matrix": 14}, {"_Matrix": 99},
    {"_Transfer": 3}, {"_Transfer": -1}, {"_Primaries": 99}, {"_Range": 7}, {"_ChromaLocation": 99},
    {"_Matrix": 10, "_Transfer": 16, "_Primaries": 9}, {"_Matrix": 14, "_Transfer": 1, "_Primaries": 1},
    {"_Matrix": [1, 1]}, {"_Matrix": "709"}, {"_Matrix": 1.5}, {"_Matrix": [b"\xff", b""]}, {"_Range": [1, 1]},
    {"_Range": "full"}, {"_Range": 1.0}, {"_ChromaLocation": [1, 2]}, {"_FieldBased": 7}, {"_FieldBased": "x"},
    {"_Field": 7}, {"_Field": "x"}, {"_SARNum": "8", "_SARDen": 9}, {"_SARNum": -8, "_SARDen": 0}, {"_SARDen": 9},
    {"_SceneChangePrev": "x"}, {"_SceneChangeNext": [1, 0]}, {"_SceneChangePrev": 0.5},
]  # fmt: skip


@pytest.mark.parametrize("format_id", [vs.GRAY8, vs.YUV420P8, vs.RGB24])
@pytest.mark.long
def test_colours_that_a_frame_names_wrongly_are_taken_for_the_usual_ones_and_kept(core, tiny_model, format_id):
    clip = as_format(core, format_id, num_frames=1, width=16, height=16).std.RemoveFrameProps()
    wrong = core.std.Splice([clip.std.SetFrameProps(**props) for props in WRONG_COLOURS])
    usual = clip.rbvsr.Upscale(model=tiny_model).get_frame(0)
    frames = wrong.rbvsr.Upscale(model=tiny_model, length=1, overlap=0).frames(close=True)
    for out, props in zip(frames, WRONG_COLOURS, strict=True):
        is_assumed = props == {"_Matrix": 2} and format_id != vs.RGB24
        assert dict(out.props) == dict(usual.props) | ({} if is_assumed else props)
        assert digest(out) == digest(usual), props


ODD_VALUES = [-1, 0, 1, 2, 7, 14, 99, 2**40, -(2**63), [1, 1], 0.5, float("inf"), [0.5, 1.5], "x", b"\xff\x00"]


@pytest.mark.long
@pytest.mark.parametrize("format_id", [vs.GRAY16, vs.RGBS, vs.YUV420P8, vs.YUV444PH])
@pytest.mark.parametrize("where", ["core.resize", "the device"])
def test_no_frame_fails_for_its_properties_and_all_of_them_come_out(core, tiny_model, monkeypatch, format_id, where):
    monkeypatch.setattr(entry, "_converts", lambda computes: where == "the device")
    names = (*conversion.REWRITTEN_PROPS, "_SceneChangePrev", "_SceneChangeNext", "_DurationNum", "_Alpha", "_Combed")
    chosen = random.Random(0)
    clip = core.std.BlankClip(format=format_id, width=16, height=16, length=1, keep=True).std.RemoveFrameProps()
    kinds = [
        {name: chosen.choice(ODD_VALUES) for name in chosen.sample(names, chosen.randint(1, 6))} for _ in range(60)
    ]
    odd = core.std.Splice([clip.std.SetFrameProps(**kind) for kind in kinds])
    frames = odd.rbvsr.Upscale(model=tiny_model, length=20, overlap=2).frames(close=True)
    for n, (frame, kind) in enumerate(zip(frames, kinds, strict=True)):
        props = dict(frame.props)
        assert set(props) - set(kind) <= {"_Matrix", "_Range", "_ChromaLocation"}, n  # assumed
        assert {name: props[name] for name in kind if kind[name] != 2} == {k: v for k, v in kind.items() if v != 2}, n


@pytest.mark.long
def test_a_matrix_that_needs_a_transfer_is_used_where_it_can_be_and_no_frame_fails(core):
    kinds = [
        {"_Matrix": matrix, "_Transfer": transfer, "_Primaries": primaries}
        for matrix in (10, 12, 13, 14)
        for transfer in (-1, 0, 1, 2, 3, 8, 14, 16, 18, 19)
        for primaries in (-1, 0, 1, 2, 3, 9, 10, 22, 23)
    ]
    for format_id in (vs.YUV444P8, vs.GRAY16):
        clip = core.std.BlankClip(format=format_id, width=16, height=16, length=1, keep=True)
        many = core.std.Splice([clip.std.SetFrameProps(**kind) for kind in kinds])
        rgbs = conversion.to_rgbs(many)
        for kind, frame in zip(kinds, conversion.from_rgbs(rgbs, rgbs, many).frames(close=True), strict=True):
            assert {name: frame.props[name] for name in kind} == kind
        for kind, frame in zip(kinds, rgbs.frames(close=True), strict=True):
            # Where the matrix was used, so were the transfer and the primaries.
            there = clip.std.SetFrameProps(**kind).resize.Bicubic(format=vs.RGBS)
            try:
                there.resize.Bicubic(format=format_id, matrix=kind["_Matrix"]).get_frame(0)
            except vs.Error:
                assert frame.props["_Transfer"] == 2
            else:
                assert frame.props["_Transfer"] == kind["_Transfer"]


@pytest.mark.parametrize(
    ("props", "said"),
    [
        ({"_Matrix": 14, "_Transfer": 1}, "_Matrix=14, which cannot be used with _Transfer=1: taken for 6 (ST170_M)"),
        ({"_Matrix": 10}, "_Matrix=10, which cannot be used without _Transfer and _Primaries: taken for 6 (ST170_M)"),
        ({"_Matrix": [1, 9]}, "_Matrix=[1, 9], which cannot be used: taken for 6 (ST170_M)"),
        ({"_Range": 7}, "_Range=7, which cannot be used: taken for 0 (limited)"),
        ({"_ChromaLocation": 99}, "_ChromaLocation=99, which cannot be used: taken for 0 (left)"),
        ({"_FieldBased": 7}, "_FieldBased=7, which cannot be used: taken for 0 (progressive)"),
        ({"_SceneChangePrev": "x\n"}, "_SceneChangePrev='x\\n', which cannot be used: taken for absent"),
        ({"_FieldBased": 2}, "is marked as interlaced (_FieldBased)"),
        ({"_Matrix": 14, "_Transfer": 16, "_Primaries": 9}, None),
        ({"_Matrix": 2, "_Transfer": -1, "_Primaries": "x", "_Field": 5, "_SARNum": -1}, None),
        ({}, None),
    ],
)
@pytest.mark.long
def test_a_property_that_cannot_be_used_is_named_once_in_the_log(core, tiny_model, props, said):
    lines: list[str] = []
    clip = as_format(core, vs.YUV420P8, num_frames=5, width=16, height=16)
    clip = clip.std.RemoveFrameProps().std.SetFrameProps(**props)
    handle = core.add_log_handler(lambda kind, text: lines.append(text) if kind >= vs.MESSAGE_TYPE_WARNING else None)
    try:
        list(clip.rbvsr.Upscale(model=tiny_model, length=2, overlap=1).frames(close=True))
    finally:
        core.remove_log_handler(handle)
    assert len(lines) == (said is not None), lines
    if said is not None:
        check_message(lines[0], ["rbvsr.Upscale: frame ", said])


@pytest.mark.parametrize(("error", "place"), [
    (ValueError, (FrameCache, "supply")), (LookupError, (FrameCache, "supply")), (OSError, (FrameCache, "supply")),
    (LookupError, (WindowUpscaler, "upscale_into")), (AssertionError, (WindowUpscaler, "upscale_into")),
    (TypeError, (FrameCache, "source")), (LookupError, (FrameCache, "source")),
])  # fmt: skip
def test_a_bug_in_a_frame_is_one_line_with_the_way_to_report_it(core, tiny_model, monkeypatch, error, place):
    out = as_format(core, vs.YUV420P8, num_frames=3).rbvsr.Upscale(model=tiny_model)
    lines: list[tuple[int, str]] = []
    handle = core.add_log_handler(lambda kind, text: lines.append((kind, text)))

    def fail(*_, **__):
        raise error("nobody thought\nof this")

    try:
        with monkeypatch.context() as patch:
            patch.setattr(*place, fail)
            with pytest.raises(vs.Error) as caught:
                out.get_frame(0)
    finally:
        core.remove_log_handler(handle)
    check_message(str(caught.value), [f"frame 0 failed because of a bug ({error.__name__}: nobody thought of this)"])
    check_message(str(caught.value), ["Report it", "core.rbvsr.Version()", "core.add_log_handler"])
    ((kind, text),) = [line for line in lines if "Traceback" in line[1]]
    assert kind == vs.MESSAGE_TYPE_DEBUG
    assert text.rstrip().endswith("of this")
    assert out.get_frame(0).width == 256  # and nothing is left behind


def test_the_luma_of_an_rgb_clip_can_be_upscaled(core, tiny_model):
    rgb = photograph(core, num_frames=1).resize.Bicubic(format=vs.RGB48)
    luma = core.std.ShufflePlanes(rgb, 1, vs.GRAY)
    assert luma.get_frame(0).props["_Matrix"] == 0
    assert luma.rbvsr.Upscale(model=tiny_model).get_frame(0).width == 256


@pytest.mark.parametrize(("height", "matrix"), [(576, vs.MATRIX_ST170_M), (578, vs.MATRIX_BT709)])
@pytest.mark.long
def test_a_clip_that_names_no_matrix_is_taken_for_what_its_height_suggests(core, tiny_model, height, matrix):
    clip = photograph(core, width=4, height=288, num_frames=1).resize.Point(4, height)
    clip = clip.resize.Bicubic(format=vs.YUV444P8, matrix=matrix)
    arguments = {"model": tiny_model, "length": 1, "overlap": 0}
    unnamed = clip.std.RemoveFrameProps(["_Matrix"]).rbvsr.Upscale(**arguments)
    assert digests(unnamed) == digests(clip.rbvsr.Upscale(**arguments))


@pytest.mark.long
def test_any_order_and_any_slice_give_the_same_bytes(core, tiny_model):
    clip = as_format(core, vs.YUV420P8, num_frames=22)
    arguments = {"model": tiny_model, "length": 6, "overlap": 2}
    expected = digests(clip.rbvsr.Upscale(**arguments))
    assert len(set(expected)) == 22

    backwards = clip.rbvsr.Upscale(**arguments)
    assert [digest(backwards.get_frame(n)) for n in reversed(range(22))] == expected[::-1]
    shuffled, order = clip.rbvsr.Upscale(**arguments), random.Random(0).sample(range(22), 22)
    assert [digest(shuffled.get_frame(n)) for n in order] == [expected[n] for n in order]
    assert digests(clip.rbvsr.Upscale(**arguments)[9:17]) == expected[9:17]
    assert digests(clip.rbvsr.Upscale(**arguments)[::5]) == expected[::5]
    assert digests(clip.rbvsr.Upscale(**arguments)) == expected


@pytest.fixture
def core_settings(core):
    before = core.num_threads, core.max_cache_size
    yield core
    core.num_threads, core.max_cache_size = before


@pytest.mark.long
@pytest.mark.parametrize("num_threads", [2, 8])
def test_the_number_of_threads_changes_no_byte(core_settings, tiny_model, num_threads):
    core = core_settings
    clip = as_format(core, vs.YUV420P8, num_frames=20)
    arguments = {"model": tiny_model, "length": 6, "overlap": 2}
    core.num_threads = 1
    expected = digests(clip.rbvsr.Upscale(**arguments))
    core.num_threads = num_threads
    assert digests(clip.rbvsr.Upscale(**arguments)) == expected


@pytest.mark.long
@pytest.mark.parametrize(("length", "overlap"), [(80, 4), (20, 4), (5, 2), (2, 0), (1, 0)])
def test_sixteen_requests_in_flight_ask_for_each_source_frame_once(core_settings, tiny_model, length, overlap):
    core = core_settings
    core.num_threads = 8
    clip = as_format(core, vs.YUV420P8, num_frames=90)
    asked: list[int] = []

    def note(n, f):
        asked.append(n)
        return f

    watched = core.std.ModifyFrame(clip, clip, note)
    out = watched.rbvsr.Upscale(model=tiny_model, length=length, overlap=overlap)
    for frame in out.frames(prefetch=16, backlog=16, close=True):
        assert frame.width == 256
    assert sorted(asked) == list(range(90))


@pytest.mark.long
def test_tile_changes_nothing_but_rounding(core, tiny_model):
    clip = as_format(core, vs.RGBS, num_frames=6)
    whole, tiled = (
        np.stack(
            [
                np.asarray(frame[plane])
                for frame in clip.rbvsr.Upscale(model=tiny_model, tile=tile).frames()
                for plane in range(3)
            ]
        )
        for tile in (0, 7)
    )
    assert np.abs(whole - tiled).max() < 1e-5


def test_unknown_kernels_are_an_error_that_says_which_there_are(core, tiny_model, monkeypatch):
    monkeypatch.setenv("RBVSR_KERNELS", "fast")
    clip = core.std.BlankClip(format=vs.RGB24, width=16, height=16, length=2)
    with pytest.raises(vs.Error) as caught:
        clip.rbvsr.Upscale(model=tiny_model)
    check_message(str(caught.value), ["RBVSR_KERNELS", "fast", "avx2", "Unset"])


@pytest.mark.long
def test_memory_is_short_and_nothing_is_computed_twice(core_settings, tiny_model, monkeypatch):
    core = core_settings
    core.num_threads, core.max_cache_size = 8, 1
    made: list[WindowUpscaler] = []

    class Noted(WindowUpscaler):
        def __init__(self, *arguments, **options):
            super().__init__(*arguments, **options)
            made.append(self)

    monkeypatch.setattr(entry, "WindowUpscaler", Noted)
    clip = as_format(core, vs.YUV420P8, num_frames=60, width=96, height=80)
    for _ in clip.rbvsr.Upscale(model=tiny_model, length=10, overlap=3).frames(prefetch=16, backlog=16, close=True):
        pass
    done = made[0].statistics
    assert (done.windows_computed, done.frames_reconstructed) == (6, 60)
    assert done.backward_steps == done.forward_steps == 60 + 3 * 5


@pytest.mark.long
def test_memory_is_short_and_nothing_waits_for_ever(core_settings, tiny_model):
    core = core_settings
    core.num_threads, core.max_cache_size = 8, 1
    clip = as_format(core, vs.YUV420P8, num_frames=60, width=96, height=80)  # a frame upscaled is more than the cache
    out = clip.rbvsr.Upscale(model=tiny_model, length=10, overlap=3)
    futures = [out.get_frame_async(n) for n in random.Random(0).sample(range(60), 60)]
    done, waiting = concurrent.futures.wait(futures, timeout=120)
    assert not waiting
    assert len(done) == 60


@pytest.mark.long
def test_two_scenes_in_one_window_are_what_each_is_alone(core, tiny_model):
    a = as_format(core, vs.YUV420P8, num_frames=5)
    b = as_format(core, vs.YUV420P8, num_frames=4, name="astronaut")
    arguments = {"model": tiny_model, "length": 30}
    alone = digests(a.rbvsr.Upscale(**arguments)) + digests(b.rbvsr.Upscale(**arguments))

    assert digests((a + b).rbvsr.Upscale(**arguments)) == alone
    assert digests((a + b).rbvsr.Upscale(**arguments, scene_cuts="off")) != alone
    assert digests((a + b).rbvsr.Upscale(**arguments, scene_cuts="props")) != alone
    told = a.std.SetFrameProps(_SceneChangeNext=0)[:-1] + a[-1].std.SetFrameProps(_SceneChangeNext=1) + b
    assert digests(told.rbvsr.Upscale(**arguments, scene_cuts="props")) == alone


@pytest.mark.parametrize("order", [range(9), (8, 0, 5, 4, 3, 7, 1, 2, 6)], ids=["forwards", "jumbled"])
def test_scenes_are_found_on_the_hosts_threads_and_no_device_waits_for_it(core, tiny_model, monkeypatch, order):
    joined = as_format(core, vs.YUV420P8, num_frames=5) + as_format(core, vs.YUV420P8, num_frames=4, name="astronaut")
    found, looking = [], []

    def watched(function):
        def watching(*arguments):
            looking.append(threading.current_thread().name)
            found.append(function(*arguments))
            return found[-1]

        return watching

    for name in ("thumbnail", "is_scene_cut"):
        monkeypatch.setattr(scene_cuts, name, watched(getattr(scene_cuts, name)))
    out = joined.rbvsr.Upscale(model=tiny_model, length=3, overlap=1)
    for n in order:
        out.get_frame(n).close()
    cuts = [one for one in found if isinstance(one, bool)]
    assert (len(cuts), sum(cuts)) == (8, 1)
    assert len(found) == 8 + 9
    assert not [name for name in looking if name.startswith("rbvsr-")]


@pytest.mark.parametrize(("width", "height", "format_id"), [
    (1, 1, vs.RGB24), (1, 1, vs.GRAYS), (2, 2, vs.YUV420P8), (1, 9, vs.YUV444P8), (33, 7, vs.RGBS), (4, 4, vs.YUV410P8),
])  # fmt: skip
def test_the_smallest_clips_work(core, tiny_model, width, height, format_id):
    clip = as_format(core, format_id, width=width, height=height, num_frames=2)
    frames = list(clip.rbvsr.Upscale(model=tiny_model).frames())
    assert [(frame.width, frame.height) for frame in frames] == [(width * 4, height * 4)] * 2


def test_half_precision_on_the_cpu_stays_close(core, tiny_model):
    clip = as_format(core, vs.RGBS, num_frames=3)
    single, half = (
        np.asarray(clip.rbvsr.Upscale(model=tiny_model, precision=precision).get_frame(2)[1])
        for precision in ("fp32", "fp16")
    )
    assert 0 < np.abs(single - half).max() < 0.02


def test_theta_decides_how_often_a_frame_is_cleaned(core, tiny_model):
    clip = as_format(core, vs.RGBS, num_frames=1)
    once, thrice = (np.asarray(clip.rbvsr.Upscale(theta=theta, model=tiny_model).get_frame(0)[0]) for theta in (255, 0))
    assert np.abs(once - thrice).max() > 1e-4


@pytest.fixture(scope="module")
def cleaning_models(tmp_path_factory, tiny_model):
    """Two files of one random network: cleaning much, and with a cleaning module of zeros."""
    folder = tmp_path_factory.mktemp("cleaning")
    model = load_model(tiny_model)
    model.image_cleaning[1].weight.mul_(4)
    write_weights(model, folder / "much.safetensors", metadata={}, dtype=torch.float32)
    for parameter in model.image_cleaning.parameters():
        parameter.zero_()
    write_weights(model, folder / "nothing.safetensors", metadata={}, dtype=torch.float32)
    return folder / "much.safetensors", folder / "nothing.safetensors"


def pixels(clip) -> np.ndarray:
    return np.stack([np.asarray(frame[plane]) for frame in clip.frames(close=True) for plane in range(3)])


@pytest.mark.long
@pytest.mark.parametrize("kernels", ["", "off"])
@pytest.mark.parametrize("theta", [0, 5])
def test_without_cleaning_the_cleaning_module_might_be_zero(core, cleaning_models, monkeypatch, kernels, theta):
    monkeypatch.setenv("RBVSR_KERNELS", kernels)
    much, nothing = cleaning_models
    clip = as_format(core, vs.RGBS, num_frames=3)
    assert digests(clip.rbvsr.Upscale(theta, much, cleaning=0)) == digests(clip.rbvsr.Upscale(theta, nothing))
    assert digests(clip.rbvsr.Upscale(theta, much, cleaning=1)) == digests(clip.rbvsr.Upscale(theta, much))


@pytest.mark.long
def test_half_the_cleaning_is_the_same_with_any_kernels_and_in_tiles(core, cleaning_models, monkeypatch):
    much, _ = cleaning_models
    clip = as_format(core, vs.RGBS, num_frames=3)
    arguments = {"theta": 0, "model": much}
    ours = pixels(clip.rbvsr.Upscale(**arguments, cleaning=0.5))
    tiles = pixels(clip.rbvsr.Upscale(**arguments, cleaning=0.5, tile=7))
    monkeypatch.setenv("RBVSR_KERNELS", "off")
    by_torch = pixels(clip.rbvsr.Upscale(**arguments, cleaning=0.5))
    torch_tiles = pixels(clip.rbvsr.Upscale(**arguments, cleaning=0.5, tile=7))
    for other in (tiles, by_torch, torch_tiles):
        assert np.abs(other - ours).max() < WINOGRAD
    none, whole = (pixels(clip.rbvsr.Upscale(**arguments, cleaning=cleaning)) for cleaning in (0, 1))
    assert min(np.abs(other - ours).max() for other in (none, whole)) > 100 * WINOGRAD


ERRORS = [
    ({"theta": -1}, ["theta", "-1", "0 and 255"]),
    ({"theta": 256}, ["theta", "256", "0 and 255"]),
    ({"theta": float("nan")}, ["theta", "nan"]),
    ({"detail": -0.1}, ["detail", "-0.1", "0 (faithful) and 1 (sharp)", "Leave it out"]),
    ({"detail": 1.5}, ["detail", "1.5"]),
    ({"detail": float("nan")}, ["detail", "nan"]),
    ({"cleaning": -1}, ["cleaning", "-1", "0 (none) and 1", "default is 1"]),
    ({"cleaning": 1.001}, ["cleaning", "1.001"]),
    ({"cleaning": float("inf")}, ["cleaning", "inf"]),
    ({"cleaning": float("nan")}, ["cleaning", "nan"]),
    ({"length": 0}, ["length", "0", "at least 1"]),
    ({"overlap": -2}, ["overlap", "-2", "at least 0"]),
    ({"scene_cuts": "sometimes"}, ["scene_cuts", "sometimes", "auto, props, off"]),
    ({"precision": "fp8"}, ["precision", "fp8", "fp32"]),
    ({"device": "gpu"}, ["device", "gpu", "cpu"]),
    ({"device": "hpu"}, ["device", "hpu", "cpu"]),
    ({"device": "cpu,cpu"}, ["device", "cpu,cpu", "twice", "once"]),
    ({"device": "cpu,cuda:77"}, ["device", "cuda:77", "cpu"]),
    ({"tile": -1}, ["tile", "-1", "at least 1", "default"]),
    ({"device": "a\nb"}, ["device", "a b"]),
    ({"scene_cuts": "x\ny" * 2000}, ["scene_cuts", "x y"]),
    ({"device": "cuda:77"}, ["device", "cuda:77", "cpu"]),
    ({"model": "no/such/file.safetensors"}, ["no/such/file.safetensors", "does not exist", "default"]),
    ({"model": "."}, ["folder", ".safetensors"]),
    ({"model": ""}, ["model"]),
]


@pytest.mark.parametrize(
    ("arguments", "words"), ERRORS, ids=lambda value: str(value) if isinstance(value, dict) else ""
)
def test_a_wrong_argument_gets_one_line_that_says_what_and_the_way_out(core, arguments, words):
    clip = core.std.BlankClip(format=vs.RGB24, width=16, height=16, length=2)
    with pytest.raises(vs.Error) as caught:
        clip.rbvsr.Upscale(**arguments)
    check_message(str(caught.value), words)


def check_message(text, words):
    assert text.startswith("rbvsr.Upscale: ")
    assert "\n" not in text
    assert "Traceback" not in text
    for word in words:
        assert word in text


def test_an_unreadable_model_is_named_with_what_was_found(core, tmp_path):
    page = tmp_path / "weights.pth"
    page.write_text("<!DOCTYPE html><html><body>404</body></html>")
    clip = core.std.BlankClip(format=vs.RGB24, width=16, height=16, length=2)
    with pytest.raises(vs.Error) as caught:
        clip.rbvsr.Upscale(model=str(page))
    check_message(str(caught.value), [str(page), "web page", "Download"])


@pytest.mark.parametrize(("arguments", "words"), [
    ({"varformat": 1}, ["constant format", "Convert"]),
    ({"varsize": 1}, ["constant size", "Crop or resize"]),
    ({"format": vs.GRAY32}, ["Gray32", "16 bit"]),
    ({"format": (vs.YUV, vs.INTEGER, 8, 3, 0)}, ["YUVssw3ssh0P8", "8x1 pixels", "Convert it first"]),
    ({"format": (vs.YUV, vs.FLOAT, 32, 0, 4)}, ["YUVssw0ssh4PS", "1x16 pixels", "Convert it first"]),
])  # fmt: skip
def test_a_clip_that_cannot_be_upscaled_gets_one_line(core, arguments, words):
    if isinstance(arguments.get("format"), tuple):
        arguments = {"format": core.query_video_format(*arguments["format"]).id}
    clip = core.std.BlankClip(**{"format": vs.YUV420P8, "width": 64, "height": 64, "length": 3, **arguments})
    with pytest.raises(vs.Error) as caught:
        clip.rbvsr.Upscale()
    check_message(str(caught.value), words)


@pytest.mark.long
@pytest.mark.parametrize("first_asked", [5, 7, 9])
def test_a_source_frame_that_fails_costs_one_frame_and_the_request_that_found_it(core, tiny_model, first_asked):
    clip = as_format(core, vs.YUV420P8, num_frames=20)

    def fail(n, f):
        if n == 7:
            raise vs.Error("frame 7 is damaged")
        return f

    arguments = {"model": tiny_model, "length": 10, "overlap": 2}
    lines: list[str] = []
    handle = core.add_log_handler(lambda kind, text: lines.append(text))
    try:
        out = core.std.ModifyFrame(clip, clip, fail).rbvsr.Upscale(**arguments)
        with pytest.raises(vs.Error, match="frame 7 is damaged"):
            out.get_frame(first_asked)
        # A cut where it fails, and the windows where they were: so the sequence is told to be.
        cut = core.std.Splice([clip[:7], clip[7].std.SetFrameProps(_SceneChangePrev=1, _SceneChangeNext=1), clip[8:]])
        expected = digests(cut.rbvsr.Upscale(**arguments))
        assert [n for n in range(20) if n != 7 and digest(out.get_frame(n)) != expected[n]] == []
        for _ in range(10_000):  # the reason is asked for beside everything else
            with pytest.raises(vs.Error) as caught:
                out.get_frame(7)
            if "damaged" in str(caught.value):
                break
        out.get_frame(12)  # says what there is to say
    finally:
        core.remove_log_handler(handle)
    check_message(str(caught.value), ["source frame 7 could not be read", "frame 7 is damaged"])
    assert sum("source frame 7 could not be read" in line for line in lines) == 1


@pytest.mark.long
@pytest.mark.parametrize("value", [float("nan"), float("inf"), 50.0])
def test_an_absurd_sample_damages_its_own_frame_only(core, value):
    clip = as_format(core, vs.RGBS, num_frames=7)

    def spoil(n, f):
        frame = f.copy()
        if n == 3:
            np.asarray(frame[1])[20, 30] = value
        return frame

    good, bad = (one.rbvsr.Upscale() for one in (clip, core.std.ModifyFrame(clip, clip, spoil)))
    for n in range(7):
        one, other = (np.stack([np.asarray(plane) for plane in out.get_frame(n)]) for out in (good, bad))
        assert np.isfinite(other).all()
        changed = np.abs(one - other).max(0)
        if n == 3:
            changed[4 * 20 - 24 : 4 * 20 + 28, 4 * 30 - 24 : 4 * 30 + 28] = 0  # about the pixel
        # A white dot of a pixel shows where its neighbours in time look for it.
        assert (changed > 0.05).mean() < 0.001, n
        assert changed.max() < 0.2, n


def test_nothing_is_written_to_standard_output(core, tiny_model, capfd):
    list(photograph(core, num_frames=3).rbvsr.Upscale(model=tiny_model).frames())
    captured = capfd.readouterr()
    assert captured.out == ""
    assert captured.err == ""


def test_the_log_says_once_what_will_be_done(core, tiny_model):
    lines: list[str] = []
    handle = core.add_log_handler(lambda kind, text: lines.append(text))
    try:
        list(photograph(core, num_frames=3).rbvsr.Upscale(model=tiny_model, device="cpu").frames())
    finally:
        core.remove_log_handler(handle)
    ours = [line for line in lines if line.startswith("rbvsr.Upscale: ")]
    assert len(ours) == 1
    assert "64x48 to 256x192 on cpu in float32, 1 window of 3 frames" in ours[0]
    assert ours[0].endswith("frames")


@pytest.mark.parametrize(
    ("num_frames", "arguments", "said"),
    [
        (4, {}, "1 window of 4 frames"),
        (1, {}, "1 window of 1 frame"),
        (30, {"length": 30, "overlap": 2}, "1 window of 30 frames"),
        (31, {"length": 30, "overlap": 2}, "2 windows of 30 frames + 2 on each side"),
        (3, {"length": 1, "overlap": 1}, "3 windows of 1 frame + 1 on each side"),
    ],
)
def test_the_log_counts_as_people_do(core, tiny_model, num_frames, arguments, said):
    lines: list[str] = []
    handle = core.add_log_handler(lambda kind, text: lines.append(text))
    try:
        photograph(core, num_frames=num_frames).rbvsr.Upscale(model=tiny_model, device="cpu", **arguments)
    finally:
        core.remove_log_handler(handle)
    (line,) = [line for line in lines if line.startswith("rbvsr.Upscale: ")]
    assert line.endswith(f" in float32, {said}")


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (RuntimeError("CUDA out of memory. Tried to allocate"), "does not fit on the device (CUDA out of memory"),
        (MemoryError("no pages"), "does not fit on the device (no pages"),
        (
            RuntimeError("mat1 and mat2\n shapes\x1b[0m differ"),
            "not be loaded onto the device (mat1 and",
        ),
    ],
)
def test_only_want_of_memory_is_called_so_when_the_filter_is_made(core, tiny_model, monkeypatch, error, said):
    def fail(*_, **__):
        raise error

    monkeypatch.setattr(entry, "WindowUpscaler", fail)
    with pytest.raises(vs.Error) as caught:
        photograph(core, num_frames=3).rbvsr.Upscale(model=tiny_model, device="cpu")
    check_message(str(caught.value), [said, 'device="cpu"'])


def test_version_tells_everything_that_decides_the_pixels(core):
    version = core.rbvsr.Version()
    assert {"rbvsr", "torch", "vapoursynth", "python", "kernels", "triton", "devices"} <= version.keys()
    assert "cpu" in version["devices"]


# ---- what is given in the wrong way is shown as it can be read -------------------------------------------------------


@pytest.mark.parametrize("name", ["model", "device", "precision", "scene_cuts"])
@pytest.mark.parametrize(
    "given",
    ["x" * 5000, "\x1b[31mred\x07", "a  b", b"caf\xe9", "\u202ereversed"],
    ids=["long", "escape", "spaces", "latin", "bidi"],
)
def test_any_text_that_is_no_argument_is_shown_in_one_printable_line_that_ends_in_the_way_out(core, name, given):
    clip = core.std.BlankClip(format=vs.RGB24, width=16, height=16, length=2)
    with pytest.raises(vs.Error) as caught:
        clip.rbvsr.Upscale(**{name: given})
    text = str(caught.value)
    assert text.startswith("rbvsr.Upscale: ")
    assert text.isprintable()
    assert len(text) < 1100
    ends = {
        "model": ('Use "default" or the path of a .safetensors or .pth file.', "Check the path and its permissions."),
        "device": ("Use one of these.",),
        "precision": ('".',),
        "scene_cuts": ('".',),
    }
    assert text.endswith(ends[name])
    assert ("must be one of" in text) == (name in ("precision", "scene_cuts"))


def test_a_model_in_a_folder_with_a_name_in_latin_1_is_found(core, tiny_model, tmp_path):
    path = os.fsencode(tmp_path) + b"/caf\xe9.safetensors"
    try:
        Path(os.fsdecode(path)).write_bytes(tiny_model.read_bytes())
    except OSError:
        pytest.skip("this file system takes UTF-8 only")
    clip = photograph(core, num_frames=1)
    assert digest(clip.rbvsr.Upscale(model=path).get_frame(0)) == digest(
        clip.rbvsr.Upscale(model=tiny_model).get_frame(0)
    )
