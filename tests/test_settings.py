"""A run's settings: JSON there and back, the command line, and what is refused."""

import argparse
import dataclasses
import json
import re

import pytest

from training.settings import PRESETS, Settings, SettingsError, add_options, changed


def from_command_line(preset: str, *words: str) -> Settings:
    parser = argparse.ArgumentParser()
    add_options(parser)
    return changed(PRESETS[preset], vars(parser.parse_args(list(words))))


@pytest.mark.parametrize("preset", sorted(PRESETS))
def test_every_preset_comes_back_from_its_json(preset):
    assert Settings.from_json(PRESETS[preset].to_json()) == PRESETS[preset]


def test_stage_1_and_2_are_the_papers():
    one, two = PRESETS["stage1"], PRESETS["stage2"]
    assert (one.iterations, one.batch, one.num_frames, one.crop_px) == (300_000, 16, 30, 64)
    assert (one.learning_rate, one.final_learning_rate, one.ema_decay) == (1e-4, 1e-4, 0.999)
    assert (two.iterations, two.batch, two.learning_rate, two.discriminator_learning_rate) == (150_000, 8, 5e-5, 1e-4)
    assert (two.output_weight, two.cleaning_weight, two.perceptual_weight, two.adversarial_weight) == (1, 1, 1, 0.05)
    assert one.num_loaded_frames == two.num_loaded_frames == 15
    assert not two.cleaning_gets_perceptual


def test_any_field_can_be_set_on_the_command_line():
    settings = from_command_line(
        "smoke", "--learning-rate", "3e-4", "--no-stochastic", "--architecture.mid-channels", "8",
        "--adam-betas", "0.8,0.9", "--distance", "l1",
    )  # fmt: skip
    assert settings.learning_rate == 3e-4
    assert not settings.stochastic
    assert settings.architecture.mid_channels == 8
    assert settings.adam_betas == (0.8, 0.9)
    assert settings.distance == "l1"
    assert settings.num_loaded_frames == settings.num_frames


def every_plain_field(value, prefix=""):
    for entry in dataclasses.fields(value):
        inner = getattr(value, entry.name)
        if dataclasses.is_dataclass(inner):
            yield from every_plain_field(inner, f"{prefix}{entry.name}.")
        else:
            yield f"{prefix}{entry.name}", inner


@pytest.mark.parametrize("preset", ["stage1", "compact"])
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
    words = [word.replace("--degradations.no-", "--no-degradations.") for word in words]
    assert from_command_line(preset, *words) == PRESETS[preset]


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["--batch", "0"], "batch must be at least 1, got 0"),
        (["--batch", "many"], "batch must be of type int"),
        (["--ema-decay", "1.5"], "ema_decay must be from 0 to 1"),
        (["--still-probability", "25"], "still_probability must be from 0 to 1"),
        (["--distance", "l2"], "distance must be one of charbonnier, l1"),
        (["--adam-betas", "0.9"], "adam_betas takes 2 values"),
        (["--learning-rate", "-1"], "learning_rate must be at least 0"),
        (["--learning-rate", "inf"], "learning_rate must be a finite number, got inf"),
        (["--colour-weight", "nan"], "colour_weight must be a finite number, got nan"),
        (["--degradations.blur1-probability", "inf"], "degradations.blur1_probability must be a finite number"),
        (["--adam-betas", "0.9,1.5"], "adam_betas must be from 0 to below 1, got 0.9,1.5"),
        (["--architecture.cleaning-channels", "-3"], "architecture.cleaning_channels must be from 1 to 1024, got -3"),
        (["--architecture.num-forward-blocks", "0"], "architecture.num_forward_blocks must be from 1 to 200, got 0"),
        (["--architecture.flow-channels", "4,0,4,4"], "architecture.flow_channels[1] must be from 1 to 1024, got 0"),
        (["--architecture.num-flow-levels", "99"], "architecture.num_flow_levels must be from 1 to 12, got 99"),
        (["--pool-crop-px", "16"], "smaller than the crops"),
        (["--flicker-weight", "1", "--num-frames", "1"], "the flicker loss needs num_frames of 2 or more, got 1"),
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
