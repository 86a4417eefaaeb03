"""The tests, in folders that mirror the code; the modules of this folder hold what tests of several folders share."""

from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]

TIMEOUT_SECONDS = 240
"""A deadlock is a test that fails, not a test that hangs."""
