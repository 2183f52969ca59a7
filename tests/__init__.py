"""Tests: one file for each module, in the module's folder; what several tests share is in `support/`."""

from pathlib import Path

ROOT = Path(__file__).parents[1]
"""The repository."""
