"""Data sets by random access over an index."""
