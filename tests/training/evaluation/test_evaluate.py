"""The evaluation: the same numbers every time, fair to both sides, with words for what cannot be measured."""

import argparse
import json
import shutil

import cv2
import numpy as np
import pytest
import skimage.data
import torch

from training import imagenet
from training.commands import evaluate
from training.data import dataset as store
from training.degradations import SCALE
from training.evaluation import enlarging, metrics, scoring, sheets
from training.evaluation.pairs import CHAINS, degrade, read_footage
from training.evaluation.scoring import AGAINST, BICUBIC, OURS, TRUTH, Scorer
from training.run_folder import find_weights

CROP_PX, NUM_FRAMES = 24, 3
TOP, LEFT, HEIGHT, WIDTH = 50, 60, 200, 216  # of the view that pans by 2 pixels a frame
FIXED = ("mild", "usual", "harsh", "clean", "evaluation")


def entry(name, frames, kind):
    return store.Clip(
        file=name,
        kind=kind,
        source=f"{kind}s/of.{name}",
        first_frame=0,
        num_frames=len(frames),
        height=frames.shape[1],
        width=frames.shape[2],
        top=0,
        left=0,
        frames_per_second=25.0,
    )


def write_store(folder, clips):
    """A prepared folder of {file name: (frames, kind)}."""
    folder.mkdir(exist_ok=True)
    for name, (frames, _) in clips.items():
        store.write_clip_file(folder / name, frames)
    entries = tuple(entry(name, frames, kind) for name, (frames, kind) in clips.items())
    store.write_index(folder, store.Index({}, {}, entries))
    return folder


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    """A photograph, a panning video that is larger than the crop, and one that is smaller and shorter."""
    coffee, cat = skimage.data.coffee(), skimage.data.chelsea()
    pan = np.stack([coffee[TOP:, LEFT + 2 * t :][:HEIGHT, :WIDTH] for t in range(5)])
    return write_store(
        tmp_path_factory.mktemp("held_out") / "clips",
        {
            "coffee.npy": (pan, "video"),
            "cat.npy": (cat[None, :200, :220], "photograph"),
            "short.npy": (pan[:2, :74, :81], "video"),
        },
    )


def middle_of_view(t, side):
    """What the panning video shows in the middle of frame t."""
    top, left = TOP + (HEIGHT - side) // 2, LEFT + (WIDTH - side) // 2 + 2 * t
    return skimage.data.coffee()[top : top + side, left : left + side]


def pairs(folder, *, chain="evaluation", num_clips=None, seed=0, crop_px=CROP_PX):
    footage = read_footage(folder, num_clips=num_clips, num_frames=NUM_FRAMES, crop_px=crop_px, seed=seed)
    return [degrade(clip, chain) for clip in footage]


def command(*words):
    parser = argparse.ArgumentParser()
    evaluate.add_arguments(parser)
    return parser.parse_args([str(word) for word in words])


def run_tiny(tiny_model, clips, out, *words, crop_px=48):
    small = ("--crop", crop_px, "--num-frames", NUM_FRAMES, "--device", "cpu")
    assert evaluate.run(command(tiny_model, "--data", clips, "--out", out, *small, *words)) == 0
    return json.loads((out / "results.json").read_text())


CHOSEN = ("--chains", "clean,evaluation", "--no-jod")


@pytest.fixture(scope="module", autouse=True)
def no_weights_of_other_networks(tmp_path_factory):
    """Neither in torch's cache nor in a package, whatever is installed here."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TORCH_HOME", str(tmp_path_factory.mktemp("torch")))
        patch.setattr(imagenet, "PACKAGE", "no_such_package")
        yield


@pytest.fixture(scope="module")
def results(tiny_model, clips, tmp_path_factory):
    out = tmp_path_factory.mktemp("evaluation")
    return out, run_tiny(tiny_model, clips, out, "--against", tiny_model, *CHOSEN)


# ---- clips -----------------------------------------------------------------------------------------------------------


def test_the_truth_is_the_middle_of_the_first_frames_untouched(clips):
    pair = next(pair for pair in pairs(clips) if pair.name == "coffee")
    expected = np.stack([middle_of_view(t, 96) for t in range(NUM_FRAMES)])
    assert np.array_equal((pair.truth * 255).round().byte().permute(0, 2, 3, 1).numpy(), expected)
    assert pair.lr.shape == (NUM_FRAMES, 3, CROP_PX, CROP_PX)


def test_a_clip_that_is_smaller_or_shorter_than_asked_for_is_taken_as_it_is(clips):
    pair = next(pair for pair in pairs(clips) if pair.name == "short")
    assert pair.truth.shape == (2, 3, 72, 80)
    assert pair.lr.shape == (2, 3, 18, 20)


def test_a_photograph_moves_and_always_moves_the_same_way(clips):
    first, again, other = (next(pair for pair in pairs(clips, seed=seed) if pair.name == "cat") for seed in (0, 0, 1))
    assert torch.equal(first.truth, again.truth)
    assert not torch.equal(first.truth, other.truth)
    assert not torch.equal(first.truth[0], first.truth[-1])


@pytest.mark.parametrize("chain", CHAINS)
def test_every_chain_degrades_to_a_quarter_of_the_size_the_same_way_each_time(clips, chain):
    once, again = pairs(clips, chain=chain, num_clips=1), pairs(clips, chain=chain, num_clips=1)
    assert once[0].recipe == again[0].recipe
    assert torch.equal(once[0].lr, again[0].lr)
    assert once[0].lr.shape[-2:] == tuple(side // SCALE for side in once[0].truth.shape[-2:])


def test_the_chains_do_what_their_names_say(clips):
    """From harsh to clean each leaves more of the truth; clean is a bicubic of torch and nothing else."""
    found = {chain: next(p for p in pairs(clips, chain=chain) if p.name == "coffee") for chain in FIXED}
    left = [metrics.psnr_db(enlarging.bicubic(found[chain].lr, SCALE), found[chain].truth) for chain in FIXED[2::-1]]
    left.append(metrics.psnr_db(enlarging.bicubic(found["clean"].lr, SCALE), found["clean"].truth))
    assert min(np.diff(left)) > 0.3
    truth = found["clean"].truth
    expected = torch.nn.functional.interpolate(truth, scale_factor=1 / SCALE, mode="bicubic", antialias=True)
    assert torch.equal(found["clean"].lr, metrics.to_bytes(expected))
    assert [step.name for step in found["mild"].recipe.steps] == ["resize", "video_codec"]
    assert [step.name for step in found["usual"].recipe.steps] == ["blur", "resize", "gaussian_noise", "video_codec"]
    crfs = {chain: found[chain].recipe.steps[-1].crf for chain in FIXED if chain != "clean"}
    assert crfs == {"mild": 23, "usual": 28, "harsh": 35, "evaluation": 28}


def test_a_chain_does_not_depend_on_the_chains_before_it(clips):
    footage = next(read_footage(clips, num_clips=1, num_frames=NUM_FRAMES, crop_px=CROP_PX, seed=0))
    first = degrade(footage, "usual")
    for chain in CHAINS:
        degrade(footage, chain)
    assert torch.equal(degrade(footage, "usual").lr, first.lr)


def test_what_befalls_a_clip_does_not_depend_on_the_other_clips(clips, tmp_path):
    index = store.read_index(clips)
    alone = tmp_path / "alone"
    alone.mkdir()
    kept = next(clip for clip in index.clips if clip.file == "cat.npy")
    shutil.copy(clips / "cat.npy", alone)
    store.write_index(alone, store.Index({}, {}, (kept,)))
    assert torch.equal(pairs(alone)[0].lr, next(pair for pair in pairs(clips) if pair.name == "cat").lr)


def test_clips_of_one_name_in_two_folders_are_kept_apart(tiny_model, clips, tmp_path):
    """As DSC0001.jpg of two cameras: the second overwrote the inputs and the sheet of the first."""
    cat = skimage.data.chelsea()[None, :200, :220]
    other = write_store(tmp_path / "other", {"cat.npy": (255 - cat, "photograph")})
    words = ("--data", clips, other, "--chains", "clean", "--crop", CROP_PX, "--write-inputs", tmp_path / "inputs")
    assert evaluate.run(command(tiny_model, *words)) == 0
    assert sorted(path.name for path in (tmp_path / "inputs" / "clean").iterdir()) == [
        "cat",
        "cat_2",
        "coffee",
        "short",
    ]
    named = {pair.name: pair.lr for pair in pairs([clips, other], chain="clean")}
    alone = {pair.name: pair.lr for pair in pairs(clips, chain="clean")}
    assert all(torch.equal(named[name], lr) for name, lr in alone.items())
    assert not torch.equal(named["cat_2"], named["cat"])


def test_fewer_clips_are_spread_over_all(clips):
    assert [pair.name for pair in pairs(clips, num_clips=2)] == ["cat", "short"]
    assert len(pairs(clips, num_clips=99)) == 3


# ---- numbers ---------------------------------------------------------------------------------------------------------


@pytest.mark.long
def test_a_perfect_enlargement_has_perfect_scores(clips):
    pair = pairs(clips)[0]
    enlarged = {BICUBIC: metrics.to_bytes(enlarging.bicubic(pair.lr, SCALE)), OURS: pair.truth}
    measures = scoring.load_measures(lpips_weights=None, device=torch.device("cpu"), jod=True)
    record = Scorer(pair.footage, measures).measure(pair, enlarged)
    ours, truth, bicubic = (record.scores[name] for name in (OURS, TRUTH, BICUBIC))
    assert (ours.psnr_db, ours.psnr_rgb_db, ours.jod, ours.sharpness) == (120, 120, 10, 1)
    for best in (ours.ssim, ours.haarpsi, ours.high_band_correlation):
        assert best == pytest.approx(1, abs=1e-5)
    assert ours.gmsd == pytest.approx(0, abs=1e-6)
    assert (ours.niqe, ours.flicker_255, ours.brisque) == (truth.niqe, truth.flicker_255, truth.brisque)
    assert (truth.psnr_db, truth.jod, truth.sharpness) == (None, 10, 1)
    assert record.gain_db == 120 - bicubic.psnr_db
    assert ours.colour_shift_255 == metrics.colour_shift_255(pair.truth, enlarged[BICUBIC]) == truth.colour_shift_255
    assert bicubic.colour_shift_255 == 0
    assert bicubic.jod < 9
    assert bicubic.haarpsi < 0.95
    assert bicubic.sharpness < 0.9


def test_the_network_sees_only_the_degraded_clip_and_answers_in_8_bits(clips, tiny_model):
    pair = pairs(clips)[0]
    model = evaluate.load_model(tiny_model)
    enlarged = enlarging.enlargements({OURS: model}, pair, theta=5.0)
    assert set(enlarged) == {BICUBIC, OURS}
    for clip in enlarged.values():
        assert clip.shape == pair.truth.shape
        assert torch.equal(clip, metrics.to_bytes(clip))
    assert torch.equal(enlarged[OURS], metrics.to_bytes(enlarging.super_resolve(model, pair.lr, 5.0)))
    uncleaned = enlarging.enlargements({OURS: model}, pair, theta=5.0, cleaning=0)[OURS]
    with torch.inference_mode():
        assert torch.equal(uncleaned, metrics.to_bytes(model.super_resolve(pair.lr[None])[0]))
    assert not torch.equal(uncleaned, enlarged[OURS])


@pytest.mark.long
def test_the_same_arguments_give_the_same_numbers(results, tiny_model, clips, tmp_path):
    again = run_tiny(tiny_model, clips, tmp_path, "--against", tiny_model, *CHOSEN)
    assert again["clips"] == results[1]["clips"]
    assert again["recipes"] == results[1]["recipes"]


@pytest.mark.long
def test_a_network_against_itself_scores_the_same_and_bicubic_comes_first(results):
    for clip in results[1]["clips"]:
        assert list(clip["scores"]) == [BICUBIC, AGAINST, OURS, TRUTH]
        assert clip["scores"][AGAINST] == clip["scores"][OURS]
    assert [list(chain["means"]) for chain in results[1]["chains"].values()] == [[BICUBIC, AGAINST, OURS, TRUTH]] * 2


@pytest.mark.parametrize("chain", ["clean", "evaluation"])
def test_means_and_the_worst_clip_follow_from_the_clips_of_the_chain(results, chain):
    summary = results[1]["chains"][chain]
    records = [clip for clip in results[1]["clips"] if clip["chain"] == chain]
    assert [clip["clip"] for clip in records] == ["cat", "coffee", "short"]
    gains = {clip["clip"]: clip["gain_db"] for clip in records}
    assert summary["mean_gain_db"] == pytest.approx(np.mean(list(gains.values())))
    assert summary["worst"] == {"clip": min(gains, key=gains.get), "gain_db": min(gains.values())}
    mean = summary["means"][OURS]
    assert mean["ssim"] == pytest.approx(np.mean([clip["scores"][OURS]["ssim"] for clip in records]))
    # the short clip is smaller than a patch: the mean is over the others
    measured = [clip["scores"][OURS]["niqe"] for clip in records if clip["clip"] != "short"]
    assert None not in measured
    assert mean["niqe"] == pytest.approx(np.mean(measured))


# ---- what is shown and written ---------------------------------------------------------------------------------------


@pytest.mark.long
def test_the_table_has_a_line_for_every_chain_and_method(tiny_model, clips, tmp_path, capsys):
    results = run_tiny(tiny_model, clips, tmp_path, *CHOSEN, crop_px=CROP_PX)
    lines = capsys.readouterr().out.splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith("chain "))
    table = lines[start : start + 7]
    assert {len(line) for line in table} == {len(table[0])}  # aligned
    assert len(table[0]) <= 120
    assert table[0].split()[:6] == ["chain", "method", "PSNR", "gain", "SSIM", "HaarPSI"]
    assert [line.split()[0] for line in table[1:]] == ["clean", OURS, TRUTH, "evaluation", OURS, TRUTH]
    ours = results["chains"]["evaluation"]["means"][OURS]
    assert table[5].split()[1:4] == [
        f"{ours['psnr_db']:.2f}",
        f"{results['chains']['evaluation']['mean_gain_db']:+.2f}",
        f"{ours['ssim']:.3f}",
    ]
    assert "JOD" not in table[0]  # a column without a number is none
    text = " ".join(lines)
    assert "clean: worst of 3 clips" in text
    assert "LPIPS is absent: AlexNet's weights are not at" in text
    assert "--lpips-weights" in text
    assert "JOD is absent: --no-jod was given" in text
    assert "NIQE is absent: frames of 96 px hold no two patches. Use --crop 48 or more." in text


@pytest.mark.long
def test_another_program_is_run_on_the_inputs_that_are_written_and_compared(tiny_model, clips, tmp_path, capsys):
    """The program: OpenCV's nearest neighbours. A second one is handed the truth."""
    inputs, outputs = tmp_path / "in", tmp_path / "nearest"
    small = ("--data", clips, "--chains", "usual", "--crop", CROP_PX, "--num-frames", NUM_FRAMES, "--device", "cpu")
    assert evaluate.run(command(tiny_model, *small, "--write-inputs", inputs)) == 0
    files = sorted(inputs.rglob("*.png"))
    assert [path.name for path in files[:NUM_FRAMES]] == [f"{number:08d}.png" for number in range(NUM_FRAMES)]
    for pair in pairs(clips, chain="usual"):
        for number, frame in enumerate(pair.lr):
            rgb = cv2.imread(str(inputs / "usual" / pair.name / f"{number:08d}.png"))[:, :, ::-1]
            assert np.array_equal(rgb, (frame * 255).round().byte().permute(1, 2, 0).numpy())
        sheets.write_frames(tmp_path / "truth" / "usual" / pair.name, pair.truth)
    for path in files:
        place = outputs / path.relative_to(inputs)
        place.parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(place), cv2.imread(str(path)).repeat(SCALE, axis=0).repeat(SCALE, axis=1))
    peers = ("--peers", f"nearest={outputs}", f"cheat={tmp_path / 'truth'}")
    assert evaluate.run(command(tiny_model, *small, *peers, "--no-jod", "--out", tmp_path / "out")) == 0
    means = json.loads((tmp_path / "out" / "results.json").read_text())["chains"]["usual"]["means"]
    assert list(means) == [BICUBIC, "nearest", "cheat", OURS, TRUTH]
    assert means["nearest"]["psnr_db"] < means[BICUBIC]["psnr_db"] < means["cheat"]["psnr_db"] == 120
    assert "nearest" in capsys.readouterr().out


def test_what_is_absent_is_null_with_its_reason_and_never_a_number(results):
    assert results[1]["chains"]["clean"]["means"][OURS]["lpips"] is None
    assert set(results[1]["absent"]["lpips"]) == {"reason", "cure"}
    assert results[1]["chains"]["clean"]["means"][OURS]["jod"] is None
    short = next(clip for clip in results[1]["clips"] if clip["clip"] == "short")
    assert short["scores"][OURS]["niqe"] is None
    assert short["scores"][OURS]["psnr_db"] > 0


def test_a_sheet_shows_the_frame_the_detail_enlarged_and_a_row_over_time(results):
    folder, plain = results
    truth = np.stack([middle_of_view(t, 192) for t in range(NUM_FRAMES)])
    sheet = cv2.imread(str(folder / "clean" / "coffee.png"))[:, :, ::-1]
    label, gap = sheets.LABEL_HEIGHT_PX, sheets.GAP_PX
    assert sheet.shape == (label + 192 + 192 + 96 + 4 * gap, 4 * 192 + 3 * gap, 3)
    column = sheet[:, -192:]
    assert column[:label].min() < 128  # its name
    frame, crop, strip = (column[y : y + h] for y, h in ((label + gap, 192), (216 + gap, 192), (412 + gap, 96)))
    assert np.array_equal(frame, truth[1])
    top, left, height, width = sheets.most_detailed(truth[1])
    shown = truth[:, top : top + height, left : left + width]
    assert np.array_equal(crop[1::3, 1::3], shown[1])
    assert np.array_equal(strip[[0, 40, 95], 1::3], shown[:, height // 2])
    for clip in plain["clips"]:
        assert (folder / clip["chain"] / f"{clip['clip']}.png").is_file()


def test_the_enlarged_part_is_where_the_detail_is():
    frame = np.full((90, 120, 3), 100, dtype=np.uint8)
    frame[50:75, 80:110] = np.random.default_rng(0).integers(0, 255, (25, 30, 3))
    top, left, height, width = sheets.most_detailed(frame)
    assert (height, width) == (30, 40)
    assert top <= 50 <= 75 <= top + height
    assert left <= 80 <= 110 <= left + width


def test_a_run_is_named_by_its_folder(tmp_path, tiny_model):
    with pytest.raises(ValueError, match=r"holds no ema\.safetensors"):
        find_weights(str(tmp_path))
    shutil.copy(tiny_model, tmp_path / "ema.safetensors")
    assert find_weights(str(tmp_path)) == tmp_path / "ema.safetensors"
    assert find_weights("default") == "default"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--num-frames", 0), "--num-frames must be at least 1, got 0"),
        (("--num-clips", 0), "--num-clips must be at least 1"),
        (("--crop", 4), "--crop must be at least 16"),
        (("--device", "gpu"), '--device "gpu" cannot be used'),
        (("--device", "mps"), '--device "mps" cannot be used'),
        (("--detail", 0.5), "holds one set of weights"),
        (("--theta", -1), "--theta must be at least 0, got -1"),
        (("--theta", "nan"), "--theta must be at least 0, got nan"),
        (("--cleaning", 2), "--cleaning must be between 0 and 1, got 2"),
        (("--chains", "usual,foul"), "--chains: unknown 'foul'. Known are mild, usual"),
        (("--peers", "esrgan"), "--peers: unknown peer 'esrgan'. Known are realesrgan-x4plus"),
    ],
)
def test_a_wrong_argument_gets_one_clear_line(words, message, clips, tiny_model):
    with pytest.raises(ValueError, match=message):
        evaluate.run(command(tiny_model, "--data", clips, *words))


def test_a_folder_without_clips_gets_one_clear_line(tmp_path, tiny_model):
    with pytest.raises(ValueError, match="prepare"):
        evaluate.run(command(tiny_model, "--data", tmp_path, "--out", tmp_path))
