"""The tree that searches are measured on: synthetic source text, the same bytes on every machine."""

from __future__ import annotations

import random
from pathlib import Path

FILES = 3_580
BYTES = 63_000_000
NEEDLE = "needle_in_the_hay"
NEEDLES = 24  # files that hold it, once each
_WORDS = """
self value return import config request result handler buffer length offset stream reader writer parse encode decode
policy session window context update create remove insert lookup header payload socket channel worker thread process
signal memory pointer vector matrix column record journal commit branch remote origin target
""".split()  # noqa: SIM905


def build(root: Path, files: int = FILES, size: int = BYTES, seed: int = 7) -> None:
    """Make `files` files of about `size` bytes together below `root`, in directories of about nine."""
    chance = random.Random(seed)
    lines = [_line(chance) for _ in range(4_000)]
    weights = [chance.lognormvariate(0, 1) for _ in range(files)]
    whole = sum(weights)
    hold = set(chance.sample(range(files), min(NEEDLES, files)))
    directory = root
    for number in range(files):
        if number % 9 == 0:
            directory = root / f"part{number // 360:02}" / f"module_{number // 36:03}" / f"d{number // 9:03}"
            directory.mkdir(parents=True, exist_ok=True)
        wanted, have, text = int(size * weights[number] / whole), 0, []
        while have < wanted:
            text.append(chance.choice(lines))
            have += len(text[-1]) + 1
        if number in hold:
            text.insert(len(text) // 2, f"    {NEEDLE} = {number}")
        suffix = chance.choice(("py", "py", "py", "c", "h", "md", "txt", "json"))
        (directory / f"{chance.choice(_WORDS)}_{number:04}.{suffix}").write_text("\n".join(text) + "\n")


def _line(chance: random.Random) -> str:
    words = [chance.choice(_WORDS) for _ in range(chance.randrange(1, 11))]
    shape = chance.randrange(6)
    if shape == 0:
        return ""
    if shape == 1:
        return f"def {'_'.join(words[:3])}({', '.join(words[3:6])}) -> None:"
    if shape == 2:
        return f"    {words[0]}.{words[-1]} = {chance.randrange(100_000)}"
    return "    " * chance.randrange(1, 4) + " ".join(words)
