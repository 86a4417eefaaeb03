"""From a run's moving average (ema.pt) to weights for core.rbvsr.Upscale(model=...)."""

import argparse
import json
from pathlib import Path

import torch

from vsrealbasicvsr.weights import load_model, write_weights


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("ema", type=Path, help="a run's ema.pt")
    parser.add_argument("out", type=Path, help="the .safetensors to write")
    parser.add_argument("--trained-on", default="", help="what it was trained on and how, for the metadata")
    parser.add_argument("--license", default="", help="licence of the weights, for the metadata")
    parser.add_argument("--full", action="store_true", help="float32 instead of float16")
    arguments = parser.parse_args()
    settings = arguments.ema.with_name("settings.json")
    metadata = {
        "trained_on": arguments.trained_on,
        "license": arguments.license,
        "training_settings": json.dumps(json.loads(settings.read_text())) if settings.exists() else "",
    }
    dtype = torch.float32 if arguments.full else torch.float16
    write_weights(load_model(arguments.ema), arguments.out, metadata=metadata, dtype=dtype)
    print(f"{arguments.out}: {arguments.out.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
