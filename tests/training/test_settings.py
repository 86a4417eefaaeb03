"""A run's settings: JSON there and back, the command line, and what is refused."""

import dataclasses
import json
import re

import pytest

from training.fields import SettingsError
from training.options import parse
from training.presets import PRESETS
from training.settings import Settings, changed, upgraded


@dataclasses.dataclass(frozen=True, kw_only=True)
class Nothing:
    """A command without options of its own."""


def from_command_line(preset: str, *words: str) -> Settings:
    _, changes = parse(Nothing, words, program="train", description="")
    return changed(PRESETS[preset], changes)


@pytest.mark.parametrize("preset", sorted(PRESETS))
def test_every_preset_comes_back_from_its_json(preset):
    assert Settings.from_json(PRESETS[preset].to_json()) == PRESETS[preset]


def test_stage_1_and_2_are_the_papers():
    one, two = PRESETS["stage1"], PRESETS["stage2"]
    assert (one.iterations, one.batch, one.data.num_frames, one.data.crop_px) == (300_000, 16, 30, 64)
    assert (one.learning_rate, one.final_learning_rate, one.ema_decay) == (1e-4, 1e-4, 0.999)
    assert (two.iterations, two.batch, two.learning_rate, two.discriminator_learning_rate) == (150_000, 8, 5e-5, 1e-4)
    assert one.data.num_unique == two.data.num_unique == 15
    assert not two.losses.cleaning_gets_perceptual


def test_any_field_can_be_set_on_the_command_line():
    settings = from_command_line(
        "smoke", "--learning-rate", "3e-4", "--no-stochastic", "--architecture.mid-channels", "8",
        "--adam-betas", "0.8,0.9", "--distance", "l1",
    )  # fmt: skip
    assert settings.learning_rate == 3e-4
    assert not settings.data.stochastic
    assert settings.architecture.mid_channels == 8
    assert settings.adam_betas == (0.8, 0.9)
    assert settings.losses.distance == "l1"
    assert settings.data.num_unique == settings.data.num_frames


def every_plain_field(value, prefix=""):
    for entry in dataclasses.fields(value):
        inner = getattr(value, entry.name)
        if dataclasses.is_dataclass(inner):
            yield from every_plain_field(inner, f"{prefix}{entry.name}.")
        else:
            yield f"{prefix}{entry.name}", inner


@pytest.mark.parametrize("preset", ["stage1", "compact"])
@pytest.mark.long
def test_every_field_given_as_it_is_changes_nothing(preset):
    words = []
    for name, value in every_plain_field(PRESETS[preset]):
        option = name.replace("_", "-")
        if isinstance(value, bool):
            words.append(f"--{option}" if value else "--" + option.rpartition(".")[0] + "." * ("." in option)
                         + "no-" + option.rpartition(".")[2])  # fmt: skip
        else:
            written = ",".join(map(str, value)) if isinstance(value, tuple) else str(value)
            words.append(f"--{option}={written}")
    assert from_command_line(preset, *words) == PRESETS[preset]


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["--batch", "0"], "batch must be at least 1, got 0"),
        (["--batch", "many"], "--batch: must be of type int, got 'many'"),
        (["--ema-decay", "1.5"], "ema_decay must be from 0 to 1"),
        (["--still-probability", "25"], "still_probability must be from 0 to 1"),
        (["--distance", "l2"], "distance must be one of charbonnier, l1"),
        (["--adam-betas", "0.9"], "--adam-betas: takes 2 values"),
        (["--learning-rate", "-1"], "learning_rate must be at least 0"),
        (["--learning-rate", "inf"], "learning_rate must be a finite number, got inf"),
        (["--colour-weight", "nan"], "losses.colour_weight must be a finite number, got nan"),
        (["--degradations.blur1-probability", "inf"], "data.degradations.blur1_probability must be a finite number"),
        (["--adam-betas", "0.9,1.5"], "adam_betas must be from 0 to below 1, got 0.9,1.5"),
        (["--architecture.cleaning-channels", "-3"], "architecture.cleaning_channels must be from 1 to 1024, got -3"),
        (["--architecture.num-forward-blocks", "0"], "architecture.num_forward_blocks must be from 1 to 200, got 0"),
        (["--architecture.flow-channels", "4,0,4,4"], "architecture.flow_channels[1] must be from 1 to 1024, got 0"),
        (["--architecture.scale", "2"], "architecture.scale must be 4, to which the degradations shrink, got 2"),
        (["--architecture.num-flow-levels", "99"], "architecture.num_flow_levels must be from 1 to 12, got 99"),
        (["--architecture.num-cleaning-levels", "5"], "architecture.num_cleaning_levels must be from 1 to 4, got 5"),
        (["--pool-crop-px", "16"], "smaller than the crops"),
        (["--flicker-weight", "1", "--num-frames", "1"], "the flicker loss needs num_frames of 2 or more, got 1"),
        (["--style-weight", "1", "--crop-px", "7"], "the style loss needs a crop_px of 8 or more, got 7"),
        (
            ["--perceptual-weight", "1", "--perceptual-every", "4", "--num-frames", "3"],
            "perceptual_every must be at most num_frames, which is 3, got 4",
        ),
        (["--freeze-cleaning", "--freeze-basicvsr"], "freeze_cleaning and freeze_basicvsr leave nothing to train"),
        (
            ["--freeze-basicvsr", "--adversarial-weight", "0.1"],
            "adversarial_weight must be 0, for the paper keeps these losses from it",
        ),
    ],
)
def test_a_value_out_of_range_is_named(words, named):
    with pytest.raises(SettingsError, match=re.escape(named)):
        from_command_line("smoke", *words)


def test_an_unknown_field_is_an_error_that_names_the_known_ones():
    plain = json.loads(PRESETS["smoke"].to_json())
    with pytest.raises(SettingsError, match=r"unknown setting bach; known are .*batch"):
        Settings.from_json(json.dumps(plain | {"bach": 2}))
    plain["architecture"]["colour"] = 1
    with pytest.raises(SettingsError, match=r"unknown setting architecture\.colour"):
        Settings.from_json(json.dumps(plain))
    with pytest.raises(SettingsError, match="not JSON"):
        Settings.from_json("{")
    with pytest.raises(SettingsError, match="batch must be of type int, got '2'"):
        Settings.from_json(json.dumps(json.loads(PRESETS["smoke"].to_json()) | {"batch": "2"}))


@pytest.mark.long
def test_a_short_name_the_full_one_and_that_of_earlier_versions_are_the_same_option():
    for short, full in (
        (["--crop-px", "40"], ["--data.crop-px=40"]),
        (["--length", "5"], ["--data.num-frames", "5"]),
        (["--flicker-weight", "2"], ["--losses.flicker-weight", "2"]),
        (["--no-stochastic"], ["--data.no-stochastic"]),
        (["--degradations.codecs", "h264,mpeg2"], ["--data.degradations.codecs", "h264,mpeg2"]),
        (["--no-degradations.stochastic"], ["--data.degradations.no-stochastic"]),
        (["--degradation-mix", "usual:0.5,clean:0.2"], ["--data.degradation-mix", "usual:0.5,clean:0.2"]),
    ):
        words = ["--degradations.codec-probabilities", "0.5,0.5"]
        assert from_command_line("stage1", *short, *words) == from_command_line("stage1", *full, *words)
        assert from_command_line("stage1", *short, *words) != from_command_line("stage1", *words)


def test_of_an_option_that_is_given_twice_the_last_counts():
    """As argparse had it: scripts put their own options before those of who calls them."""
    first = ["--batch", "1", "--degradation-mix", "clean", "--unsharp", "--crop-px=40"]
    last = ["--batch", "2", "--degradation-mix", "usual", "--no-unsharp", "--data.crop-px", "44"]
    twice = from_command_line("smoke", *first, *last)
    assert (twice.batch, twice.data.degradation_mix, twice.data.unsharp) == (2, ("usual",), False)
    assert twice.data.crop_px == 44


@pytest.mark.long
def test_the_help_says_what_every_field_is(capsys):
    with pytest.raises(SystemExit) as ended:
        parse(Nothing, ["--help"], program="train", description="")
    assert ended.value.code == 0
    said = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert "--losses.flicker-weight" in said
    assert "Change of the output's error along the motion" in said
    assert "Side of the low-resolution crop" in said


def test_an_option_that_is_nearly_right_is_named_in_one_line():
    with pytest.raises(SettingsError, match=r"^Unknown option: --iterat. Did you mean --iterations\?$"):
        from_command_line("smoke", "--iterat", "2")


FLAT = """{"iterations": 7, "num_frames": 6, "crop_px": 24, "stochastic": false, "pool_clips": 3, "pool_crop_px": 32,
"degradations": {"blur1_probability": 0.25}, "degradation_mix": ["usual:0.5"], "seed": 4, "flicker_weight": 2.5,
"distance": "l1", "discriminator": "patch", "adversarial_weight": 0.05, "target_sharpening": 0.5, "ema_decay": 0.9}"""


def test_settings_that_were_written_flat_are_read():
    settings = Settings.from_json(FLAT)
    assert (settings.iterations, settings.ema_decay) == (7, 0.9)
    assert (settings.data.num_frames, settings.data.crop_px, settings.data.stochastic) == (6, 24, False)
    assert (settings.data.pool_clips, settings.data.seed, settings.data.degradation_mix) == (3, 4, ("usual:0.5",))
    assert settings.data.degradations.blur1_probability == 0.25
    assert (settings.losses.distance, settings.losses.flicker_weight) == ("l1", 2.5)
    assert (settings.losses.discriminator, settings.losses.adversarial_weight) == ("patch", 0.05)
    assert settings.losses.target_sharpening == 0.5
    assert upgraded(json.loads(settings.to_json())) == json.loads(settings.to_json())
    with pytest.raises(SettingsError, match="unknown setting bach"):
        Settings.from_json('{"bach": 2, "num_frames": 6}')


def test_a_loss_that_was_removed_is_passed_over_where_it_did_not_count():
    assert Settings.from_json('{"losses": {"fine_weight": 0.0, "texture_weight": 8.0}}').losses.texture_weight == 8
    with pytest.raises(SettingsError, match=r"unknown setting losses\.fine_weight"):
        Settings.from_json('{"losses": {"fine_weight": 1.0}}')
