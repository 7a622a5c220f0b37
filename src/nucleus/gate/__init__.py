"""The gate, sans-I/O: one generator that yields effects, and the pure helpers that it uses."""
