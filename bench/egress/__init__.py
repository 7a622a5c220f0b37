"""Egress from inside a pod, against the same machine without one and against peers."""
