"""Coverage-guided tests of everything that reads what an attacker wrote (atheris).

    make fuzz [FUZZ_SECONDS=60 | FUZZ_RUNS=1000000] [TARGET=name] [REPLAY=file]

A target is a function of bytes in `targets`: it raises AssertionError where a property does not hold, and lets only
what nobody expected escape. `corpus/<target>/` has small hand-written seeds and every finding so far; the ordinary
tests tell them again without atheris (tests/fuzz). What grows, and what is found, is in `.fuzz`, outside git.
"""
