"""The nouns that every room shares: operation, decision, grant, receipt, principal."""
