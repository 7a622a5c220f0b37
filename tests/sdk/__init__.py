"""The in-pod library."""
