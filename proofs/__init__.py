"""Laws of the capability lattice, proved on the functions that production runs: `python -m proofs` (docs/adr/0005)."""
