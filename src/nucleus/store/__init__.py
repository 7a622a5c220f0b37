"""What lasts: budgets and approvals (`ledger`), the audit log's file (`audit_log`), profiles (`policies`)."""
