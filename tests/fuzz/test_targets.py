"""Each fuzzing target on its seeds and on everything that was ever found, without the fuzzer."""

from __future__ import annotations

from pathlib import Path

import pytest
from fuzz.targets import TARGETS

CORPUS = Path(__file__).resolve().parents[2] / "fuzz" / "corpus"
INPUTS = sorted(path for path in CORPUS.rglob("*") if path.is_file())


@pytest.mark.parametrize("path", INPUTS, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_it_holds(path: Path) -> None:
    TARGETS[path.parent.name](path.read_bytes())


def test_every_target_has_seeds() -> None:
    assert {path.parent.name for path in INPUTS} == set(TARGETS)


def test_a_program_of_an_odd_name_is_not_listed_by_its_words() -> None:
    """Found by fuzzing: ``nice "./x > git"`` was listed as git."""
    from fuzz.targets import CONTEXT, RANK, policy

    from nucleus.lattice.decision import decide
    from nucleus.model.operation import Run

    plain, wrapped = (
        decide(policy(), Run(argv=argv), CONTEXT).verdict for argv in (("./x > git",), ("nice", "./x > git"))
    )
    assert RANK[wrapped] >= RANK[plain] > 0
