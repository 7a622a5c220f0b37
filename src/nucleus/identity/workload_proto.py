"""The messages of the SPIFFE Workload API, by the field numbers of the standard (SPIFFE_Workload_API, section 3).

Promises: nothing but the standard's messages; the descriptors are made here, so no generated file has to be kept.
Relies on: `protobuf` (its C core parses what a caller sent, in the one process that holds no key: ADR 14).
Does not: bound a message: `workload_api` does, before it is parsed.
Imports `google.protobuf`: only the Workload API's own process and its tests do.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory, struct_pb2

SERVICE = "SpiffeWorkloadAPI"  # the standard's service has no package
_STRUCT = ".google.protobuf.Struct"
# message -> (field, number, type): "text", "bytes", "int32", "int64", "bool", "[text]",
# "{bytes}" (map<string, bytes>), or a message
Messages = Mapping[str, tuple[tuple[str, int, str], ...]]
_MESSAGES: Messages = {
    "X509SVIDRequest": (),
    "X509SVID": (
        ("spiffe_id", 1, "text"),
        ("x509_svid", 2, "bytes"),
        ("x509_svid_key", 3, "bytes"),
        ("bundle", 4, "bytes"),
        ("hint", 5, "text"),
    ),
    "X509SVIDResponse": (("svids", 1, "[X509SVID]"), ("crl", 2, "[bytes]"), ("federated_bundles", 3, "{bytes}")),
    "X509BundlesRequest": (),
    "X509BundlesResponse": (("crl", 1, "[bytes]"), ("bundles", 2, "{bytes}")),
    "JWTSVIDRequest": (("audience", 1, "[text]"), ("spiffe_id", 2, "text")),
    "JWTSVID": (("spiffe_id", 1, "text"), ("svid", 2, "text"), ("hint", 3, "text")),
    "JWTSVIDResponse": (("svids", 1, "[JWTSVID]"),),
    "JWTBundlesRequest": (),
    "JWTBundlesResponse": (("bundles", 1, "{bytes}"),),
    "ValidateJWTSVIDRequest": (("audience", 1, "text"), ("svid", 2, "text")),
    "ValidateJWTSVIDResponse": (("spiffe_id", 1, "text"), ("claims", 2, _STRUCT)),
}
_Field = descriptor_pb2.FieldDescriptorProto
_SCALARS = {
    "text": _Field.TYPE_STRING,
    "bytes": _Field.TYPE_BYTES,
    "int32": _Field.TYPE_INT32,
    "int64": _Field.TYPE_INT64,
    "bool": _Field.TYPE_BOOL,
}


def pool(name: str, messages: Messages) -> descriptor_pool.DescriptorPool:
    """The messages as a pool of their own: a client in this process (a test's) may have its in the default one."""
    made = descriptor_pool.DescriptorPool()
    made.AddSerializedFile(struct_pb2.DESCRIPTOR.serialized_pb)
    made.AddSerializedFile(_describe(name, messages).SerializeToString())
    return made


def _describe(file_name: str, messages: Messages) -> descriptor_pb2.FileDescriptorProto:
    file = descriptor_pb2.FileDescriptorProto(name=file_name, syntax="proto3", dependency=[struct_pb2.DESCRIPTOR.name])
    for name, fields in messages.items():
        message = file.message_type.add(name=name)
        for field, number, kind in fields:
            _add(message, field, number, kind)
    return file


def _add(message: descriptor_pb2.DescriptorProto, name: str, number: int, kind: str) -> None:
    field = message.field.add(name=name, number=number, label=_Field.LABEL_OPTIONAL)
    if kind.startswith("{"):
        # A map is a repeated message of keys and values, marked as one (the language guide, "maps").
        entry = message.nested_type.add(name="".join(part.capitalize() for part in name.split("_")) + "Entry")
        entry.options.map_entry = True
        _add(entry, "key", 1, "text")
        _add(entry, "value", 2, kind.strip("{}"))
        kind = f"[.{message.name}.{entry.name}]"
    if kind.startswith("["):
        field.label = _Field.LABEL_REPEATED
        kind = kind.strip("[]")
    if kind in _SCALARS:
        field.type = _SCALARS[kind]
    else:
        field.type = _Field.TYPE_MESSAGE
        field.type_name = kind if kind.startswith(".") else f".{kind}"


_pool = pool("nucleus/workload.proto", _MESSAGES)


def message(name: str, of: descriptor_pool.DescriptorPool = _pool) -> Any:
    """The class of a message; KeyError: the pool has none of that name."""
    return message_factory.GetMessageClass(of.FindMessageTypeByName(name))


X509SVIDRequest = message("X509SVIDRequest")
X509SVIDResponse = message("X509SVIDResponse")
X509BundlesRequest = message("X509BundlesRequest")
X509BundlesResponse = message("X509BundlesResponse")
JWTSVIDRequest = message("JWTSVIDRequest")
JWTSVIDResponse = message("JWTSVIDResponse")
JWTBundlesRequest = message("JWTBundlesRequest")
JWTBundlesResponse = message("JWTBundlesResponse")
ValidateJWTSVIDRequest = message("ValidateJWTSVIDRequest")
ValidateJWTSVIDResponse = message("ValidateJWTSVIDResponse")
