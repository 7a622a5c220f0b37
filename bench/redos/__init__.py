"""How well the ReDoS scan does on public corpora of patterns, and what RE2 does with what it lets pass."""
