"""What the package costs on this machine, measured side by side: `python -m scripts.benchmark network`, or better."""
