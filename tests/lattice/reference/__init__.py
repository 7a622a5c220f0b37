"""A second, slow and obvious `decide`, written from the specification, and what compares the two.

`python -m tests.lattice.reference --cases 1000000` from the root of the repository is the long run.
"""
