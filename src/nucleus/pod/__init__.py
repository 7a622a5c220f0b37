"""Pods: how they are specified, built from parts of this machine, confined, and taken away again."""
