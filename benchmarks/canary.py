"""What the check after a weight update sees: right weights, and three ways of stale ones.

    python benchmarks/canary.py RUN

For every policy of a run, prints the largest mean difference in nats between vLLM's and the
trainer's log-probabilities of the canary, by what vLLM holds: the new weights; the old weights; the
new weights with the old output head (vLLM's reload alone, where embeddings are tied); or the new
weights with the old prompts' keys and values. `CANARY_LIMIT` in `selfkd/sampling/pool.py` has to
lie between the first column and the others.
"""

import argparse
import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import yaml

from selfkd.hardware import compute_dtype
from selfkd.models import resolve_model
from selfkd.sampling.actor import Canary, EngineOptions, SamplerActor

COLUMNS = ("new weights", "old weights", "old head", "old prefixes")


@contextlib.contextmanager
def fault(kind: str, sampler: SamplerActor) -> Iterator[None]:
    """Leave out the part of a weight update that prevents `kind`."""
    from selfkd.sampling import vllm

    llm = sampler._engine._llm  # type: ignore[attr-defined]
    patches = {
        "old head": mock.patch.object(vllm, "_repack", lambda model: None),
        "old prefixes": mock.patch.object(llm, "reset_prefix_cache", lambda: True),
    }
    with patches.get(kind, contextlib.nullcontext()):
        yield


def measure(sampler: SamplerActor, old: Path, new: Path, canary: Canary) -> dict[str, float]:
    """The canary's difference by column, for an engine that holds `old`."""
    row = {"old weights": sampler.canary(canary)}
    for kind in ("old head", "old prefixes", "new weights"):
        with fault(kind, sampler):
            sampler.load(f"{new} with {kind}", str(new), canary)
        row[kind] = sampler.canary(canary)
        if kind != "new weights":
            sampler.load(f"{old} after {kind}", str(old), canary)
    return row


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path, help="a run directory with trained policies")
    parser.add_argument("--dtype", default="auto", help="what vLLM computes in")
    arguments = parser.parse_args()
    dtype = compute_dtype(arguments.dtype)
    manifests = sorted(arguments.run.glob("policies/round-*/MANIFEST.json"))
    old = resolve_model(yaml.safe_load((arguments.run / "run.yaml").read_text())["model"])
    sampler = SamplerActor(EngineOptions("vllm", {"dtype": dtype}), "base", str(old), 0)
    print(f"{dtype:<12}" + "".join(f"{name:>14}" for name in COLUMNS))
    for manifest in manifests:
        canary = json.loads(manifest.read_text())["canary"]
        row = measure(sampler, old, manifest.parent, canary)
        print(f"{manifest.parent.name:<12}" + "".join(f"{row[name]:>14.4f}" for name in COLUMNS))
        old = manifest.parent


if __name__ == "__main__":
    main()
