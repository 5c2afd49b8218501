"""python -m tests.chaos --kills 30 --seed 1 [--model SmolLM2-135M-Instruct] [--keep DIR]"""

import argparse
import sys
import tempfile
import time
from pathlib import Path

from tests.chaos.monkey import Hunt, plan
from tests.chaos.world import real_world, tiny_world


def main() -> int:
    """Hunt, and print every kill and what it broke; 1 if anything did."""
    parser = argparse.ArgumentParser(prog="python -m tests.chaos")
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--model", help="a pretrained model, on vLLM; default: a tiny one")
    parser.add_argument("--keep", type=Path, help="an empty folder to leave everything in")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="chaos-") as temporary:
        folder = options.keep or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        world = real_world(folder, options.model) if options.model else tiny_world(folder)
        hunt = Hunt(world, {} if options.model else {"OMP_THREAD_LIMIT": "1"})
        started = time.monotonic()
        problems = hunt.calm() or hunt.through(plan(options.seed, options.kills))
        print(*problems, sep="\n")
        longest = max(hunt.seconds, default=0.0)
        print(
            f"seed {options.seed}: {options.kills} kills in {time.monotonic() - started:.0f} s, "
            f"{len(problems)} problems; drivers ended within {longest:.1f} s"
        )
    return bool(problems)


if __name__ == "__main__":
    sys.exit(main())
