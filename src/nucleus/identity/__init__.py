"""Who is who: SPIFFE IDs, the CA, X.509-SVIDs and their verification, TLS contexts, the Workload socket.

`spiffe_id`, `svid` and `workload` are light (no ssl, no cryptography). `ca`, `verify` and `tls` are heavy: import them
where they are used, inside functions. This package imports none of them for you.
"""
