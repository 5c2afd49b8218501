"""Expected times of a round's stages, from a laptop to hundreds of GPUs: the arithmetic of
docs/scaling.md.

    python benchmarks/scaling.py

What was measured is marked so, with the command; the rest is assumed, and can be given:
`--tokens 300 --sampling 8000`. A round is `--prompts` times `--samples` completions.
"""

import argparse
from dataclasses import dataclass

DRIVER = 40e-6
"""Seconds of the driver a sample, all verbs; measured: benchmarks/driver.py, see RESULTS.md."""
JUDGE = {"number": 20e-6, "math": 10e-3}
"""Seconds of one core a sample; `number` measured by the same command, `math` assumed."""
DISK = 3e9
SHARED = 2e9
NETWORK = 40e9
"""Bytes a second: a local disk, a shared file system in all, and a card's network (400 Gbit/s at
80 %)."""
PEAK = 989e12
"""bf16 FLOP/s of one H100 (SXM, dense)."""
BYTES_PER_SAMPLE = 45
"""Beside 4 bytes a token and the text (about 4 characters a token)."""


@dataclass(frozen=True, slots=True)
class Machine:
    """Where a round runs; `sampled` and `trained` in tokens a second, of all together."""

    name: str
    parameters: float
    gpus: int
    sampled: float
    trained: float
    judges: int
    """Cores that judge."""


def machines(args: argparse.Namespace) -> list[Machine]:
    """The ladder. Tokens a second of the laptop are those of RESULTS.md, on 2 cores."""
    model = args.parameters
    trained = args.mfu * PEAK / (6 * model)
    rungs = [Machine("2 cores, 135M", 135e6, 0, 400, 250, 1)]
    for gpus in (1, 8, 64, 512):
        # One card is shared by turns; of more, an eighth trains and the rest sample.
        training = 1 if gpus == 1 else max(1, gpus // 8)
        sampling = 1 if gpus == 1 else gpus - training
        name = f"{gpus} H100, {model / 1e9:.0f}B"
        rungs.append(
            Machine(name, model, gpus, args.sampling * sampling, trained * training, 8 * gpus)
        )
    return rungs


def row(m: Machine, args: argparse.Namespace) -> list[float]:
    """Seconds to generate, judge, train and sync (from shared storage; by broadcast), those of the
    driver, and its megabytes a second while the engines sample."""
    samples = args.prompts * args.samples
    tokens = samples * args.tokens
    kept = args.kept * samples * args.tokens * 1.3 * args.epochs
    weights = 2 * m.parameters
    engines = max(1, m.gpus - max(1, m.gpus // 8)) if m.gpus > 1 else 1
    judging = samples * (JUDGE["math"] if m.gpus else JUDGE["number"]) / m.judges
    generate = tokens / m.sampled
    crossing = samples * (BYTES_PER_SAMPLE + 8 * args.tokens) / generate / 1e6
    stored = weights / min(DISK, SHARED / engines)
    return [
        generate,
        judging,
        kept / m.trained,
        stored,
        weights / NETWORK if m.gpus else 0.0,
        samples * DRIVER,
        crossing,
    ]


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n\n")[0])
    parser.add_argument("--prompts", type=int, default=7500)
    parser.add_argument("--samples", type=int, default=32, help="of a prompt")
    parser.add_argument("--tokens", type=int, default=300, help="of a sample")
    parser.add_argument("--kept", type=float, default=0.2, help="share that is trained on")
    parser.add_argument("--epochs", type=float, default=2)
    parser.add_argument("--parameters", type=float, default=8e9)
    parser.add_argument("--sampling", type=float, default=8000, help="tokens/s of one GPU")
    parser.add_argument("--mfu", type=float, default=0.4, help="share of the peak that trains")
    args = parser.parse_args()
    samples = args.prompts * args.samples
    print(f"{samples:,} samples of {args.tokens} tokens; seconds, and MB/s through the driver")
    names = ("generate", "judge", "train", "weights", "broadcast", "driver", "MB/s")
    print(f"{'':<16}" + "".join(f"{name:>11}" for name in names))
    for machine in machines(args):
        print(f"{machine.name:<16}" + "".join(f"{v:>11,.1f}" for v in row(machine, args)))


if __name__ == "__main__":
    main()
