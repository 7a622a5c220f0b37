"""The authority: the one process that signs SVIDs, holds budgets and approvals, and writes the audit log."""
