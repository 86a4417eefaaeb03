"""Prepared clips: no change of scene inside, nothing half-written, the same every time, and a reason for what is not
there.
"""

from __future__ import annotations

import json
import resource
import signal
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import skimage.data

from tests import TIMEOUT_SECONDS
from tests.clips import MakeClip
from tests.training.data.footage import Bytes, panned, start_preparing, write_pictures, write_video
from training.__main__ import main
from training.data.cutting import CutSettings, auto_shrink, tiles
from training.data.dataset import ClipDataset, ClipError, read_index
from training.data.scenes import has_scene_cut

SMALL = ["--min-px", "40", "--tile-px", "64", "--min-frames", "5", "--max-frames", "12", "--workers", "1"]


@pytest.fixture(scope="module")
def photograph() -> Bytes:
    return np.asarray(skimage.data.coffee(), dtype=np.uint8)


@pytest.fixture(scope="module")
def footage(tmp_path_factory: pytest.TempPathFactory, make_clip: MakeClip) -> Path:
    """One of everything, good and bad."""
    folder = tmp_path_factory.mktemp("footage")
    coffee, astronaut = skimage.data.coffee(), skimage.data.astronaut()
    scenes = ((coffee, 20), (astronaut, 9), (coffee[100:], 3))
    pans = [panned(image, num_frames=number, height=96, width=128) for image, number in scenes]
    write_video(folder / "scenes.mp4", np.concatenate(pans))
    write_pictures(folder / "walk", panned(astronaut, num_frames=9, height=64, width=80))
    (folder / "walk" / "frame_003.png").write_bytes(b"not a picture")
    write_pictures(folder, coffee[None, :150, :200], "photograph.png")
    (folder / "deep").mkdir()
    vp9 = {"codec": "libvpx-vp9", "options": {"cpu-used": "8"}}
    make_clip(folder / "deep" / "vp9.webm", num_frames=8, **vp9)
    make_clip(folder / "tiny.mkv", num_frames=8, width=10, height=10, codec="ffv1", pixel_format="yuv444p")
    whole = make_clip(folder / "cut_off.mkv", num_frames=40, options={"g": "10"})
    whole.write_bytes(whole.read_bytes()[: whole.stat().st_size * 6 // 10])
    (folder / "text.mp4").write_text("this is no video")
    (folder / "readme.txt").write_text("nor is this")
    return folder


@pytest.fixture(scope="module")
def prepared(footage: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("prepared") / "clips"
    assert main(["prepare", str(footage), str(out), *SMALL]) == 0
    return out


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def clips_of(store: ClipDataset, source: str) -> list[int]:
    return [number for number in range(len(store)) if store[number].source == source]


def test_scenes_become_clips_without_a_change_of_scene_inside(prepared: Path) -> None:
    store = ClipDataset.open(prepared)
    spans = {(store[n].first_frame, store[n].num_frames) for n in clips_of(store, "scenes.mp4")}
    assert spans == {(0, 12), (12, 8), (20, 9)}, "12 at most; the last scene of 3 frames is too short"
    for number in range(len(store)):
        assert not has_scene_cut(store.read(number))


def test_clips_show_what_their_source_shows(footage: Path, prepared: Path) -> None:
    """Lossless pictures, not shrunk: tiles are pieces of them, to the bit."""
    store = ClipDataset.open(prepared)
    coffee = skimage.data.coffee()[:150, :200]
    covered = np.zeros(coffee.shape[:2], dtype=int)
    for number in clips_of(store, "photograph.png"):
        clip = store[number]
        assert clip.kind == "photograph"
        place = (slice(clip.top, clip.top + clip.height), slice(clip.left, clip.left + clip.width))
        assert np.array_equal(store.read(number)[0], coffee[place])
        covered[place] += 1
    assert (covered == 1).all(), "every pixel once"
    (number,) = clips_of(store, "walk/frame_[001-009].png")
    astronaut = panned(skimage.data.astronaut(), num_frames=9, height=64, width=80)
    assert np.array_equal(store.read(number), astronaut[3:])


def test_compressed_footage_is_shrunk_and_lossless_footage_is_not() -> None:
    assert auto_shrink(1080, 1920, 256, is_lossless=False) == 1.5
    assert auto_shrink(1080, 1920, 256, is_lossless=True) == 1
    assert auto_shrink(288, 512, 256, is_lossless=False) == 288 / 256, "no further than the crop needs"
    assert auto_shrink(100, 100, 256, is_lossless=False) == 1


def test_the_index_tells_where_clips_come_from(prepared: Path) -> None:
    index = json.loads((prepared / "index.json").read_text())
    assert index["version"] == 1
    clip = next(clip for clip in index["clips"] if clip["source"] == "scenes.mp4" and clip["first_frame"] == 12)
    assert clip["frames_per_second"] == 25
    assert clip["pts_seconds"] == pytest.approx(np.arange(12, 20) / 25)
    assert (clip["num_frames"], clip["height"], clip["width"]) == np.load(prepared / clip["file"]).shape[:3]


def test_what_is_broken_or_too_small_is_skipped_with_its_reason(prepared: Path) -> None:
    index = read_index(prepared)
    troubles = {name: record.trouble for name, record in index.sources.items() if record.trouble}
    assert troubles.pop("text.mp4") == (
        "cannot read the file: Invalid data found when processing input. Leave it out or encode it again."
    )
    assert troubles.pop("tiny.mkv") == "is 10x10, smaller than --min-px 40"
    assert troubles.pop("walk/frame_[001-009].png") == "frame_003.png holds no readable picture"
    assert troubles.pop("cut_off.mkv").startswith("ends after ")
    assert troubles == {}
    used = {clip.source for clip in index.clips}
    assert used == {"scenes.mp4", "walk/frame_[001-009].png", "photograph.png", "deep/vp9.webm", "cut_off.mkv"}


def test_the_summary_counts_everything(footage: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for _ in range(2):  # the second time nothing is cut again, and the words are the same
        assert main(["prepare", str(footage), str(tmp_path / "out"), *SMALL]) == 0
        lines = capsys.readouterr().out.splitlines()
        assert lines[0].startswith(f"{tmp_path / 'out'}: ")
        assert "from 5 sources" in lines[0]
        assert "skipped: 2" in lines
        assert "used in part: 2" in lines
        assert lines[-1] == "files that are neither video nor picture: 1 .txt"


@pytest.mark.long
def test_the_same_footage_gives_the_same_bytes_whoever_cuts_it(footage: Path, prepared: Path, tmp_path: Path) -> None:
    assert main(["prepare", str(footage), str(tmp_path / "out"), *SMALL[:-1], "2"]) == 0
    assert contents(tmp_path / "out") == contents(prepared)


def test_what_is_there_is_not_made_again_and_what_is_missing_is(footage: Path, prepared: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    for name, content in contents(prepared).items():
        (out / name).write_bytes(content)
    (out / "x.npy.123.partial").touch()
    store = ClipDataset.open(out)
    lost, kept = (store.path(clips_of(store, source)[0]) for source in ("scenes.mp4", "photograph.png"))
    lost.unlink()
    stamp = kept.stat().st_mtime_ns
    assert main(["prepare", str(footage), str(out), *SMALL]) == 0
    assert kept.stat().st_mtime_ns == stamp
    assert contents(out) == contents(prepared)


def test_a_folder_cut_otherwise_or_from_elsewhere_is_left_alone(
    footage: Path, prepared: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], photograph: Bytes
) -> None:
    before = contents(prepared)
    assert main(["prepare", str(footage), str(prepared), *SMALL, "--shrink", "1"]) == 2
    assert "cut with other settings (shrink 0.0). Name another folder" in capsys.readouterr().err
    write_pictures(tmp_path / "other", photograph[None], "other.png")
    assert main(["prepare", str(tmp_path / "other"), str(prepared), *SMALL]) == 2
    assert "5 sources that are not in this folder" in capsys.readouterr().err
    assert contents(prepared) == before


def test_clips_of_sources_that_are_gone_are_removed_on_request(tmp_path: Path, photograph: Bytes) -> None:
    write_pictures(tmp_path / "in", np.stack([photograph, photograph]), "p{}.png")
    command = ["prepare", str(tmp_path / "in"), str(tmp_path / "out"), *SMALL]
    assert main(command) == 0
    (tmp_path / "in" / "p1.png").unlink()
    assert main(command) == 2
    assert main([*command, "--remove-missing"]) == 0
    assert {clip.source for clip in read_index(tmp_path / "out").clips} == {"p2.png"}
    assert not list((tmp_path / "out").glob("p1*"))


def test_held_out_sources_are_never_trained_from(tmp_path: Path, photograph: Bytes) -> None:
    pictures = np.stack([np.roll(photograph[:64, :64], 20 * number, axis=1) for number in range(5)])
    write_pictures(tmp_path / "in", pictures, "p{}.png")
    names = {}
    for part in ("train", "held-out", "all"):
        options = [*SMALL, "--images", "photographs", "--part", part, "--held-out-every", "3"]
        assert main(["prepare", str(tmp_path / "in"), str(tmp_path / part), *options]) == 0
        names[part] = {clip.source for clip in read_index(tmp_path / part).clips}
    assert names["held-out"] == {"p1.png", "p4.png"}
    assert names["train"] == names["all"] - names["held-out"]


def test_an_empty_folder_is_one_line_that_names_the_cure(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "in").mkdir()
    assert main(["prepare", str(tmp_path / "in"), str(tmp_path / "out")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "holds no videos and no pictures. Name a folder that holds some" in line
    assert not (tmp_path / "out").exists()


def test_a_folder_of_useless_files_is_an_error_after_its_reasons(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "text.mp4").write_text("no video")
    assert main(["prepare", str(tmp_path), str(tmp_path / "out")]) == 2
    captured = capsys.readouterr()
    assert "text.mp4: cannot read" in captured.out
    assert "no clip came out" in captured.err.splitlines()[-1]


@pytest.mark.parametrize(
    ("option", "value", "words"),
    [("--min-frames", "70", "--min-frames"), ("--shrink", "0.5", "--shrink"), ("--tile-px", "100", "--min-px")],
)
def test_settings_that_make_no_sense_are_named(
    option: str, value: str, words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["prepare", str(tmp_path), str(tmp_path / "out"), option, value]) == 2
    assert words in capsys.readouterr().err


@pytest.mark.parametrize("size", [(720, 1280), (256, 256), (700, 500), (2160, 3840), (300, 1000)])
def test_tiles_cover_the_frame_once_and_are_about_as_large_as_asked_for(size: tuple[int, int]) -> None:
    covered = np.zeros(size, dtype=int)
    for tile in tiles(*size, 480):
        covered[tile.top : tile.top + tile.height, tile.left : tile.left + tile.width] += 1
        for side, whole in ((tile.height, size[0]), (tile.width, size[1])):
            assert min(whole, 360) <= side <= 720
    assert (covered == 1).all()


def test_frames_can_be_left_out_between_clips(tmp_path: Path, photograph: Bytes) -> None:
    write_pictures(tmp_path / "in", panned(photograph, num_frames=30, height=48, width=64))
    assert main(["prepare", str(tmp_path / "in"), str(tmp_path / "out"), *SMALL, "--gap-frames", "4"]) == 0
    spans = [(clip.first_frame, clip.num_frames) for clip in read_index(tmp_path / "out").clips]
    assert spans == [(0, 12), (16, 12)]


@pytest.fixture
def files_of_at_most_50_kb() -> Iterator[None]:
    """As a full disk does, writing fails after a while; Python ignores the signal that comes with it."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_full_disk_is_one_clear_line_and_leaves_nothing_half_written(
    tmp_path: Path, footage: Path, capsys: pytest.CaptureFixture[str], request: pytest.FixtureRequest
) -> None:
    out = tmp_path / "out"
    request.getfixturevalue("files_of_at_most_50_kb")
    assert main(["prepare", str(footage), str(out), *SMALL]) == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert "cannot write" in line
    assert "Make room and run the same command again." in line
    assert not list(out.glob("*.partial"))
    for path in out.glob("*.npy"):
        assert np.load(path).ndim == 4


@pytest.mark.long
def test_ctrl_c_leaves_whole_files_and_the_same_command_goes_on(
    tmp_path: Path, photograph: Bytes, capsys: pytest.CaptureFixture[str]
) -> None:
    frames = np.concatenate([panned(photograph, num_frames=60, height=96, width=128)] * 3)
    process = start_preparing(tmp_path, frames, num_videos=12, words=[*SMALL[:-1], "2"])
    assert main(["prepare", str(tmp_path / "in"), str(tmp_path / "out"), *SMALL]) == 2
    assert "another training prepare is at work" in capsys.readouterr().err
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=TIMEOUT_SECONDS)
    assert process.returncode == 130, errors
    assert "interrupted" in errors.splitlines()[-1]
    assert "Traceback" not in errors
    assert not list((tmp_path / "out").glob("*.partial"))
    assert len(read_index(tmp_path / "out").sources) < 12
    assert main(["prepare", str(tmp_path / "in"), str(tmp_path / "out"), *SMALL]) == 0
    assert main(["prepare", str(tmp_path / "in"), str(tmp_path / "whole"), *SMALL]) == 0
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


def test_a_piece_of_a_clip_is_what_slicing_it_gives(prepared: Path) -> None:
    store = ClipDataset.open(prepared)
    (number, *_) = clips_of(store, "scenes.mp4")
    whole = np.load(store.path(number))
    piece = store.read(number, first_frame=1, num_frames=4, step=2, top=3, left=5, height=20, width=30)
    assert np.array_equal(piece, whole[1:9:2, 3:23, 5:35])
    with pytest.raises(IndexError, match="frames 1 to 13"):
        store.read(number, first_frame=1, num_frames=13)


@pytest.mark.parametrize("damage", ["missing", "cut", "other", "text"])
def test_a_damaged_clip_is_named(damage: str, prepared: Path, tmp_path: Path) -> None:
    for name, content in contents(prepared).items():
        (tmp_path / name).write_bytes(content)
    store = ClipDataset.open(tmp_path)
    path = store.path(0)
    match damage:
        case "missing":
            path.unlink()
        case "cut":
            path.write_bytes(path.read_bytes()[:-1])
        case "other":
            np.save(path, np.zeros((1, 2, 3, 3), dtype=np.uint8))
        case "text":
            path.write_text("no clip")
    with pytest.raises(ClipError, match=path.name):
        store.read(0)


def test_a_folder_without_an_index_or_with_a_damaged_one_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"holds no prepared clips.*python -m training prepare"):
        ClipDataset.open(tmp_path)
    bare = '{"version": 1, "settings": {}, "sources": {}, "clips": [{}]}'
    for text in ("{", "[]", '{"version": 0}', '{"version": 1}', bare):
        (tmp_path / "index.json").write_text(text)
        with pytest.raises(ValueError, match=r"index\.json"):
            ClipDataset.open(tmp_path)


def test_several_folders_are_one_store(prepared: Path) -> None:
    one, two = ClipDataset.open(prepared), ClipDataset.open([prepared, prepared])
    assert len(two) == 2 * len(one)
    assert two.path(len(one)) == one.path(0)
    assert one.identity() != two.identity()


def test_settings_are_checked_once_when_made() -> None:
    with pytest.raises(ValueError, match="--held-out-every"):
        CutSettings(held_out_every=1)
