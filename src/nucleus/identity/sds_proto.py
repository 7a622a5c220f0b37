"""The messages of Envoy's Secret Discovery Service that we use, by the field numbers of its API, version 3.

Sources: envoy/service/discovery/v3/discovery.proto, envoy/config/core/v3/{base,extension}.proto,
envoy/extensions/transport_sockets/tls/v3/{secret,common,tls_spiffe_validator_config}.proto, google/rpc/status.proto,
google/protobuf/any.proto. Fields that we neither read nor send are left out: protobuf passes over what it does not
know.
Names have no package here; on the wire there are none.
Imports `google.protobuf`, as `workload_proto`, whose descriptors these are made with.
"""

from __future__ import annotations

from nucleus.identity import workload_proto

_pool = workload_proto.pool(
    "nucleus/sds.proto",
    {
        "DiscoveryRequest": (
            ("version_info", 1, "text"),
            ("resource_names", 3, "[text]"),
            ("type_url", 4, "text"),
            ("response_nonce", 5, "text"),
            ("error_detail", 6, "Status"),
        ),
        "Status": (("code", 1, "int32"), ("message", 2, "text")),
        "DiscoveryResponse": (
            ("version_info", 1, "text"),
            ("resources", 2, "[Any]"),
            ("type_url", 4, "text"),
            ("nonce", 5, "text"),
        ),
        "Any": (("type_url", 1, "text"), ("value", 2, "bytes")),
        "Secret": (
            ("name", 1, "text"),
            ("tls_certificate", 2, "TlsCertificate"),
            ("validation_context", 4, "CertificateValidationContext"),
        ),
        "TlsCertificate": (("certificate_chain", 1, "DataSource"), ("private_key", 2, "DataSource")),
        "CertificateValidationContext": (
            ("trusted_ca", 1, "DataSource"),
            ("custom_validator_config", 12, "TypedExtensionConfig"),
        ),
        "TypedExtensionConfig": (("name", 1, "text"), ("typed_config", 2, "Any")),
        "TrustDomain": (("name", 1, "text"), ("trust_bundle", 2, "DataSource")),
        "SPIFFECertValidatorConfig": (("trust_domains", 1, "[TrustDomain]"),),
        "DataSource": (("inline_bytes", 2, "bytes"),),
    },
)
DiscoveryRequest = workload_proto.message("DiscoveryRequest", _pool)
DiscoveryResponse = workload_proto.message("DiscoveryResponse", _pool)
Any = workload_proto.message("Any", _pool)
Secret = workload_proto.message("Secret", _pool)
TlsCertificate = workload_proto.message("TlsCertificate", _pool)
CertificateValidationContext = workload_proto.message("CertificateValidationContext", _pool)
TypedExtensionConfig = workload_proto.message("TypedExtensionConfig", _pool)
TrustDomain = workload_proto.message("TrustDomain", _pool)
SPIFFECertValidatorConfig = workload_proto.message("SPIFFECertValidatorConfig", _pool)
DataSource = workload_proto.message("DataSource", _pool)
