"""The log shipped to Debian's rsyslog (TCP, TLS) and moto's S3, and read as OTLP by OpenTelemetry's messages."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from sinks.given import Book, Web, certificate, secret  # of our tests

PYTHON = str(Path(os.environ["NUCLEUS_SINKS"]) / "venv" / "bin" / "python")
RSYSLOG = """
global(workDirectory="{directory}" maxMessageSize="64k")
module(load="imtcp" {tls})
input(type="imtcp" port="{port}" address="127.0.0.1" {driver})
template(name="ours" type="string" string="%msgid% %msg%\\n")
action(type="omfile" file="{directory}/out" template="ours")
"""


@pytest.fixture
def book(tmp_path: Path) -> Iterator[Book]:
    made = Book(tmp_path)
    yield made
    made.close()


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def reached(port: int, process: subprocess.Popen[bytes]) -> None:
    for _ in range(400):
        assert process.poll() is None
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
        except OSError:
            time.sleep(0.05)
        else:
            return
    raise AssertionError("it does not listen")


@pytest.mark.parametrize("tls", [False, True], ids=["tcp", "tls"])
def test_rsyslog(tls: bool, book: Book, tmp_path: Path) -> None:
    port = free_port()
    _, roots = certificate(tmp_path)
    directory = tmp_path / "rsyslog"
    directory.mkdir()
    chain = (tmp_path / "chain.pem").read_text()
    at = chain.index("-----BEGIN CERTIFICATE")
    (directory / "key.pem").write_text(chain[:at])
    (directory / "cert.pem").write_text(chain[at:])
    settings = RSYSLOG.format(
        directory=directory, port=port,
        tls='StreamDriver.Name="gtls" StreamDriver.Mode="1" StreamDriver.AuthMode="anon"' if tls else "",
        driver="",
    )  # fmt: skip
    if tls:
        settings = (
            f'global(defaultNetstreamDriverCAFile="{roots}" defaultNetstreamDriverCertFile="{directory}/cert.pem" '
            f'defaultNetstreamDriverKeyFile="{directory}/key.pem")\n'
        ) + settings
    (directory / "conf").write_text(settings)
    argv = ["/usr/sbin/rsyslogd", "-n", "-i", f"{directory}/pid", "-f", f"{directory}/conf"]
    with subprocess.Popen(argv) as process:
        try:
            reached(port, process)
            book.write(300)
            more = ("--roots", roots) if tls else ()
            assert (
                book.ship(f"syslog+{'tls' if tls else 'tcp'}://localhost:{port}{'?close=abrupt' if tls else ''}", *more)
                == 0
            )
            out, deadline = directory / "out", time.monotonic() + 20
            while time.monotonic() < deadline:
                if out.exists() and out.read_bytes().count(b"\n") >= 301:
                    break
                time.sleep(0.1)
        finally:
            process.terminate()
            process.wait(20)
    found = out.read_text().splitlines()
    assert [line.partition(" ")[2].encode() + b"\n" for line in found[:300]] == book.lines()
    assert found[300].startswith("checkpoint ")


def test_s3_of_moto_which_checks_signatures(book: Book, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    port = free_port()
    argv = [PYTHON, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    environment = {"PATH": os.environ["PATH"], "INITIAL_NO_AUTH_ACTION_COUNT": "4"}
    with subprocess.Popen(argv, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            reached(port, process)
            who = json.loads(talk(port, "create", "x", "x"))
            keys = secret(tmp_path, *who)
            to = f"s3://audit-logs/pods?region=eu-central-1&endpoint=http://127.0.0.1:{port}"
            for count in (20, 1):
                book.write(count)
                assert book.ship(to, "--secret", keys) == 0
            objects = json.loads(talk(port, "list", *who))
            assert sorted(objects) == [
                "pods/000000000001-000000000020.jsonl", "pods/000000000021-000000000021.jsonl",
                "pods/checkpoints/000000000020", "pods/checkpoints/000000000021",
            ]  # fmt: skip
            lines = "".join(objects[name] for name in sorted(objects) if name.endswith("jsonl"))
            assert lines.encode().splitlines(keepends=True) == book.lines()
            book.write(1)
            assert book.ship(to, "--secret", secret(tmp_path, who[0], "another" + who[1][7:])) == 1
            assert "the store answers 403" in capsys.readouterr().out
            assert json.loads(talk(port, "list", *who)) == objects
        finally:
            process.terminate()
            process.wait(20)


TALK = """
import boto3, json, sys
from botocore.config import Config
_, port, what, key_id, key = sys.argv
common = dict(endpoint_url=f"http://127.0.0.1:{port}", region_name="eu-central-1", aws_access_key_id=key_id,
              aws_secret_access_key=key)
s3 = boto3.client("s3", config=Config(s3={"addressing_style": "path"}), **common)
if what == "create":
    iam = boto3.client("iam", **common)
    iam.create_user(UserName="shipper")
    made = iam.create_access_key(UserName="shipper")["AccessKey"]
    rule = {"Effect": "Allow", "Action": "s3:*", "Resource": "*"}
    iam.put_user_policy(UserName="shipper", PolicyName="all",
                        PolicyDocument=json.dumps({"Version": "2012-10-17", "Statement": [rule]}))
    print(json.dumps([made["AccessKeyId"], made["SecretAccessKey"]]))
    s3.create_bucket(Bucket="audit-logs", CreateBucketConfiguration={"LocationConstraint": "eu-central-1"})
else:
    found = s3.list_objects_v2(Bucket="audit-logs")["Contents"]
    read = lambda name: s3.get_object(Bucket="audit-logs", Key=name)["Body"].read().decode()
    print(json.dumps({o["Key"]: read(o["Key"]) for o in found}))
"""


def talk(port: int, what: str, *keys: str) -> str:
    done = subprocess.run(
        [PYTHON, "-I", "-c", TALK, str(port), what, *keys], check=True, capture_output=True, text=True,
        env={"PATH": os.environ["PATH"]},
    )  # fmt: skip
    return done.stdout


READ = """
import sys
from google.protobuf import json_format
from opentelemetry.proto.collector.logs.v1 import logs_service_pb2 as logs
found = json_format.Parse(sys.stdin.read(), logs.ExportLogsServiceRequest())
for resource in found.resource_logs:
    for scope in resource.scope_logs:
        for record in scope.log_records:
            print(record.event_name, record.severity_number, record.time_unix_nano, len(record.body.string_value))
"""


def test_otlp_is_read_by_opentelemetrys_own_messages(book: Book) -> None:
    web = Web(lambda *_: (200, {}, b"{}"))
    try:
        book.write(12)
        assert book.ship(f"otlp+http://127.0.0.1:{web.port}") == 0
    finally:
        web.close()
    said = []
    for *_, body in web.seen:
        done = subprocess.run(
            [PYTHON, "-I", "-c", READ], input=body.decode(), check=True, capture_output=True, text=True
        )
        said += done.stdout.splitlines()
    assert len(said) == 13
    first = json.loads(book.lines()[0])
    assert said[0] == f"nucleus.audit.outcome 9 {first['time_ns']} {len(book.lines()[0]) - 1}"
    assert said[12].startswith("nucleus.audit.checkpoint 9 ")
