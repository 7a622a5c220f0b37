"""The claims that `make prove` gives to Z3, on ints: the same functions, without the prover."""

from __future__ import annotations

import importlib.util
import itertools
import random
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nucleus.lattice import capability as cap

from .pools import element, spread

_PROOFS = Path(__file__).resolve().parents[2] / "proofs"


def load(name: str) -> ModuleType:
    # By its place: `proofs` is no installed package.
    spec = importlib.util.spec_from_file_location(f"nucleus_proofs_{name}", _PROOFS / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


claims, mutants = load("claims"), load("mutants")
PROVED = [claim for claim in claims.CLAIMS if claim.holds]
REFUTED = [claim for claim in claims.CLAIMS if not claim.holds]
CONTEXTS = list(claims.CONTEXTS.values())
PAIRS = [(a, b) for a, b in itertools.product(CONTEXTS, repeat=2) if claims.within(a, b)]
elements = spread(6**12).map(element)
outsides = st.integers(0, 7)


def variants(a: int, b: int, c: int, place: Any) -> list[tuple[int, int, int]]:
    """The same elements, and such that stand in an order or are fixed, so that assumptions are met."""
    nu = place.nu
    return [
        (a, b, c), (a & b, b, c), (a, b, a & b & c), (a, a | b, a | b | c), (a, a, b), (nu(a), nu(b), c),
        (nu(a & b), nu(b), nu(c)), (nu(a) & nu(b), nu(b), c),
    ]  # fmt: skip


def met(claim: Any, a: int, b: int, c: int, here: Any, wider: Any) -> bool | None:
    """Does the claim hold here? None: its assumptions do not."""
    values = {"a": a, "b": b, "c": c, "here": here, "wider": wider}
    law = claim.law(**{name: values[name] for name in claim.variables})
    return all(law.conclude) if all(law.assume) else None


@pytest.mark.parametrize("claim", PROVED, ids=lambda claim: claim.name.replace(" ", "_"))
def test_what_is_proved_holds_on_ints(claim: Any) -> None:
    held = 0

    @given(elements, elements, elements, st.sampled_from(PAIRS), outsides, outsides)
    @settings(max_examples=30, deadline=None, suppress_health_check=list(HealthCheck))
    def check(a: int, b: int, c: int, pair: Any, x: int, y: int) -> None:
        nonlocal held
        here, wider = claims.Place(pair[0], x & y), claims.Place(pair[1], y)
        for place in (here, wider):
            for values in variants(a, b, c, place):
                found = met(claim, *values, here, wider)
                assert found is not False, (values, here, wider)
                held += found is True

    check()
    assert held > 20, "assumptions that are hardly ever met show nothing"


def search(claim: Any, tries: int) -> bool:
    """Is there a counterexample among `tries` random ones?"""
    rng = random.Random(7)
    for _ in range(tries):
        a, b, c = (element(rng.randrange(6**12)) for _ in range(3))
        legs = rng.choice(PAIRS)
        y = rng.randrange(8)
        here, wider = claims.Place(legs[0], y & rng.randrange(8)), claims.Place(legs[1], y)
        for values in variants(a, b, c, here):
            if met(claim, *values, here, wider) is False:
                return True
    return False


def narrow(rng: random.Random) -> int:
    """A few capabilities, as a policy can say them: where legs are rare, asks are lost."""
    names = rng.sample(cap.NAMES, 3)
    return cap.pack({name: rng.choice((cap.LOW_RISK, cap.ALWAYS)) for name in names}, frozenset(names[:1]))


@pytest.mark.parametrize("claim", REFUTED, ids=lambda claim: claim.name.replace(" ", "_"))
def test_what_is_refuted_fails_on_ints(claim: Any) -> None:
    rng = random.Random(11)
    for _ in range(20_000):
        a, b, c = (narrow(rng) for _ in range(3))
        here = claims.Place(rng.choice(CONTEXTS), 0)
        wider = claims.Place(cap.WORST, rng.randrange(8))
        for values in variants(a, b, c, here):
            if met(claim, *values, here, wider) is False:
                assert all(all(claims.sayable(value)) for value in (a, b, c))
                return
    pytest.fail("no counterexample: is it true by now?")


@pytest.mark.parametrize("name", list(mutants.MUTANTS))
def test_a_wrong_algebra_breaks_a_claim(name: str) -> None:
    with mutants.mutant(name):
        assert any(search(claim, 300) for claim in PROVED)
    assert (cap.nu, cap.meet, cap.leq, cap.trifecta) == RIGHT


RIGHT = (cap.nu, cap.meet, cap.leq, cap.trifecta)


@given(st.integers(0, (1 << (cap.WIDTH + 2)) - 1), elements)
@settings(max_examples=500, deadline=None)
def test_well_formed_is_what_production_calls_well_formed(number: int, good: int) -> None:
    assert claims.wellformed(number) == cap.is_wellformed(number)
    assert claims.wellformed(good)
    assert cap.is_wellformed(good)


@given(
    st.fixed_dictionaries({name: st.sampled_from((0b00, 0b01, 0b11)) for name in cap.NAMES}),
    st.frozensets(st.sampled_from(cap.NAMES)),
)
def test_what_a_policy_says_is_sayable(levels: dict[str, int], approve: frozenset[str]) -> None:
    assert all(claims.sayable(cap.pack(levels, approve)))


def test_the_prover_covers_every_context() -> None:
    tables = {
        (egress, trusted): cap.legs(egress=egress, trusted_workspace=trusted)
        for egress in (False, True)
        for trusted in (False, True)
    }
    assert len(claims.CONTEXTS) == 4
    assert set(claims.CONTEXTS.values()) == set(tables.values())
    assert len(PAIRS) == 9
    assert {claim.holds for claim in claims.CLAIMS} == {True, False}
