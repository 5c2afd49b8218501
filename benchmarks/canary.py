"""What the check after a weight update sees: right weights, and three ways of stale ones.

    python benchmarks/canary.py RUN

For every policy of a run, prints the two figures of `Agreement` (selfkd/sampling/actor.py) by what
vLLM holds: the new weights; the old weights; the new weights with the old output head (vLLM's
reload alone, where embeddings are tied); the new weights with the old prompts' keys and values.
The limits in selfkd/sampling/pool.py lie between right and stale.

After a small round an old head is hidden by bfloat16's rounding, which is why the engine looks at
its packed weights itself; here that is switched off.
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
from selfkd.sampling.actor import Agreement, Canary, EngineOptions, SamplerActor

COLUMNS = ("new weights", "old weights", "old head", "old prefixes")


@contextlib.contextmanager
def fault(kind: str, sampler: SamplerActor) -> Iterator[None]:
    """Leave out the part of a weight update that prevents `kind`."""
    from selfkd.sampling import vllm

    llm = sampler._engine._llm  # type: ignore[attr-defined]
    parts = {
        "old head": [(vllm, "_repack", None), (vllm, "_stale_copies", [])],
        "old prefixes": [(llm, "reset_prefix_cache", True)],
    }
    with contextlib.ExitStack() as stack:
        for target, name, value in parts.get(kind, []):
            stack.enter_context(mock.patch.object(target, name, lambda *_, value=value: value))
        yield


def measure(sampler: SamplerActor, old: Path, new: Path, canary: Canary) -> dict[str, Agreement]:
    """Agreement by column, for an engine that holds `old`; it holds `new` afterwards."""
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
    parser = argparse.ArgumentParser(description="Figures of the weight check")
    parser.add_argument("run", type=Path, help="a run directory with trained policies")
    parser.add_argument("--dtype", default="auto", help="what vLLM computes in")
    arguments = parser.parse_args()
    dtype = compute_dtype(arguments.dtype)
    old = resolve_model(yaml.safe_load((arguments.run / "run.yaml").read_text())["model"])
    sampler = SamplerActor(EngineOptions("vllm", {"dtype": dtype}), "base", str(old), 0)
    print(f"{dtype + ', nats':<24}" + "".join(f"{name:>14}" for name in COLUMNS))
    for manifest in sorted(arguments.run.glob("policies/round-*/MANIFEST.json")):
        new = manifest.parent
        row = measure(sampler, old, new, json.loads(manifest.read_text())["canary"])
        for figure in ("weights", "caches"):
            values = [getattr(row[name], figure) for name in COLUMNS]
            print(f"{new.name + ' ' + figure:<24}" + "".join(f"{v:>14.4f}" for v in values))
        old = new


if __name__ == "__main__":
    main()
