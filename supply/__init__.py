"""What the project ships beside its own code, checked: `python -m supply` (docs/release.md). Not part of the wheel."""
