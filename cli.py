"""The command under its earlier name, which console scripts of earlier installations call."""

from .shell.main import main

__all__ = ["main"]
