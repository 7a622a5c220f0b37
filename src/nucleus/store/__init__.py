"""What lasts: the budget ledger and approvals (`ledger`), the audit log's file (`audit_log`). Owned by one authority."""
