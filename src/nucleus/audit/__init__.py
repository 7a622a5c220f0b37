"""The tamper-evident log, without its file: what a line is (`record`), how lines hang together (`chain`), `verify`."""
