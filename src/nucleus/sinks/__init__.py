"""Where copies of the audit log go (`nucleus-audit ship`): files, PostgreSQL, S3, syslog, OTLP."""
