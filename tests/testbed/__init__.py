"""A character model on addition: small enough to run whole loops for real in a test."""

import os

SEEDS = [int(s) for s in os.environ.get("SELFKD_TESTBED_SEEDS", "0").split(",")]
