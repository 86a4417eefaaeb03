"""Benchmarks of the package on this machine, measured side by side: `python -m scripts.benchmark PART`."""
