"""The conformance suite of pod backends: what every pod promises, whatever isolates it, checked through its gate."""
