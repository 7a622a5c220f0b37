"""Tell stories until there are enough steps (``python -m simulate --seed N --steps N``).

A failing one says how it can be told again.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import tempfile
import time
import traceback
from collections import Counter
from pathlib import Path

from simulate.story import Story

EPISODE = 2_000
CHANCES = ((0, 0), (2_000, 0), (300, 0), (8_000, 300), (0, 60), (800, 150))  # (crash, fail): one in so many calls


def episode(seed: int, number: int, steps: int) -> Story:
    """One story, in a directory of its own. Raises what it runs into."""
    memory = "/dev/shm"  # noqa: S108 -- a directory of our own in it; a sync costs nothing there
    top = Path(tempfile.mkdtemp(prefix="nucleus-simulate-", dir=memory if os.access(memory, os.W_OK) else None))
    crash, fail = CHANCES[number % len(CHANCES)]
    story = Story(f"{seed}.{number}", top, crash=crash, fail=fail)
    try:
        story.run(steps)
    finally:
        shutil.rmtree(top)
    return story


def main() -> int:
    """0, or 1 with the line that tells the failing story again."""
    parser = argparse.ArgumentParser(prog="simulate")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--steps", type=int, default=1_000_000)
    parser.add_argument("--episode", type=int, default=-1, help="this one alone")
    options = parser.parse_args()
    began, number = time.monotonic(), max(options.episode, 0)
    steps, counts = 0, Counter[str]()
    while steps < options.steps:
        try:
            story = episode(options.seed, number, EPISODE)
        except Exception:  # noqa: BLE001 -- whatever it is, the seed tells it again
            traceback.print_exc()
            print(f"\nFAILED. Again: python -m simulate --seed {options.seed} --episode {number}")
            return 1
        steps += story.steps
        counts.update({"crashes": story.disk.crashes, "failed calls": story.disk.failures, **story.counts})
        number += 1
        if number % 50 == 0:
            print(f"{number} episodes, {steps} steps", flush=True)
        if options.episode >= 0:
            break
    took = time.monotonic() - began
    told = ", ".join(f"{count} {name}" for name, count in counts.items())
    print(f"ok: seed {options.seed}, {number} episodes, {steps} steps in {took:.0f} s: {told}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
