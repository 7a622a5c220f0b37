"""The in-pod executor: what the gate decided, done inside the work compartment. Untrusted by everyone else."""
