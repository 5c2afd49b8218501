"""Runs that are shot at: `python -m tests.chaos --kills 30 --seed 1`.

A short loop runs for real through the command line. Again and again a process of it is killed at a
random moment, and the run is resumed; at its end nothing may be lost, doubled or changed.
"""
