"""C2SP signed notes, checkpoints and cosignatures: published ones, and what is refused."""

from __future__ import annotations

import base64

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nucleus.audit.checkpoint import Checkpoint, Reader, cosignature, cosigned, cosigned_message
from nucleus.audit.note import COSIGNATURE, ED25519, Note, Signature, VerifierKey, encode, parse, verified
from nucleus.errors import InvalidError
from nucleus.store.note_keys import SigningKey

# Go's sumdb/note, note_test.go: key, text and signatures that its Sign makes.
PETER = "PeterNeumann+c74f20a3+ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW"
PETERS_SECRET = "AYEKFALVFGyNhPJEMzD1QIDr+Y7hfZx09iUvxdXHKDFz"
ENOCH = "EnochRoot+af0cfe78+ATtqJ7zOtqQtYqOo0CpvDXNlMhV3HeJDpjrASKGLWdop"
TEXT = "If you think cryptography is the answer to your problem,\nthen you don't know what your problem is.\n"
PETERS = "— PeterNeumann x08go/ZJkuBS9UG/SffcvIAQxVBtiFupLLr8pAcElZInNIuGUgYN1FFYC2pZSNXgKvqfqdngotpRZb6KE6RyyBwJnAM=\n"
ENOCHS = "— EnochRoot rwz+eBzmZa0SO3NbfRGzPCpDckykFXSdeX+MNtCOXm2/5n2tiOHp+vAF1aGrQ5ovTG01oOTGwnWLox33WWd1RvMc+QQ=\n"
# The example of C2SP tlog-cosignature.
COSIGNED = """\
example.com/behind-the-sofa
20852163
CsUYapGGPo4dkMgIAUqom/Xajj7h2fB2MPA3j2jxq2I=

— example.com/behind-the-sofa Az3grlgtzPICa5OS8npVmf1Myq/5IZniMp+ZJurmRDeOoRDe4URYN7u5/Zhcyv2q1gGzGku9nTo+zyWE+xeMcTOAYQ8=
— witness.example.com/w1 jWbPPwAAAABkGFDLEZMHwSRaJNiIDoe9DYn/zXcrtPHeolMI5OWXEhZCB9dlrDJsX3b2oyin1nPZqhf5nNo0xUe+mbIUBkBIfZ+qnA==
"""  # noqa: E501


def peter() -> SigningKey:
    return SigningKey("PeterNeumann", ED25519, base64.b64decode(PETERS_SECRET)[1:])


def test_a_published_note_verifies_and_is_made_the_same() -> None:
    key = VerifierKey.parse(PETER)
    assert str(key) == PETER
    assert key == peter().public()
    note = parse(f"{TEXT}\n{PETERS}{ENOCHS}".encode())
    assert note.text == TEXT
    assert verified(note, key)
    assert verified(note, VerifierKey.parse(ENOCH))
    assert encode(Note(TEXT, (peter().signature(TEXT),))).decode() == f"{TEXT}\n{PETERS}"


def test_a_wrong_signature_of_a_known_key_refuses_the_note_and_an_unknown_key_does_not() -> None:
    key, enoch = VerifierKey.parse(PETER), VerifierKey.parse(ENOCH)
    note = parse(f"{TEXT}\n{PETERS}".encode())
    assert not verified(note, enoch)
    with pytest.raises(InvalidError) as caught:
        verified(Note(TEXT.replace("answer", "Answer"), note.signatures), key)
    assert caught.value.rule == "audit.signature"
    bad = Signature(key.name, key.key_id, bytes(64))
    for signatures in ((bad,), (*note.signatures, bad), (Signature(key.name, key.key_id, b"x"),)):
        with pytest.raises(InvalidError):
            verified(Note(TEXT, signatures), key)
    renamed = Note(TEXT, (Signature("Peter", key.key_id, note.signatures[0].data),))
    assert not verified(renamed, key)  # a name or an id alone is another key
    assert not verified(Note(TEXT, (Signature(key.name, b"abcd", bytes(64)),)), key)


def test_malformed_notes_are_refused() -> None:
    good = f"{TEXT}\n{PETERS}"
    for bad in (
        "", TEXT, TEXT + "\n", good[:-1], "\x01" + good, good + "x", good + "\n", good + "Unexpected line.\n",
        TEXT + PETERS, good.replace("—", "-"), good.replace("— P", "—  P"), good.replace("PeterNeumann", "Peter+N"),
        good.replace("PeterNeumann", "Peter\u00a0N"), good.replace("=\n", "\n"), good.replace("x08g", "x0 g"),
        f"{TEXT}\n— PeterNeumann\n", f"{TEXT}\n— PeterNeumann x08g\n", f"\n\n{PETERS}"[1:], good.replace("\n", "\r\n"),
        f"{TEXT}\n" + PETERS * 65, good.replace("AM=", "AN="),
    ):  # fmt: skip
        with pytest.raises(InvalidError):
            parse(bad.encode())
    with pytest.raises(InvalidError):
        parse(b"\xff" + good.encode())
    with pytest.raises(InvalidError):
        parse(b"x" * 70_000)
    assert len(parse((TEXT + "\n" + PETERS * 16).encode()).signatures) == 16


def test_malformed_keys_are_refused() -> None:
    for start in range(0, len(PETER), 5):
        for end in range(start + 1, len(PETER) + 1, 3):
            if (start, end) != (0, len(PETER)):
                with pytest.raises(InvalidError):
                    VerifierKey.parse(PETER[start:end])
    for at in range(len(PETER)):
        changed = PETER[:at] + chr(ord(PETER[at]) + 1) + PETER[at + 1 :]
        with pytest.raises(InvalidError):
            VerifierKey.parse(changed)
    with pytest.raises(InvalidError):  # an algorithm that is none of ours, with its right id
        VerifierKey.parse("PeterNeumann+173116ae+ZRpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW")


def test_the_published_checkpoint_reads_back() -> None:
    note = parse(COSIGNED.encode())
    checkpoint = Checkpoint.parse(note.text)
    assert (checkpoint.origin, checkpoint.size) == ("example.com/behind-the-sofa", 20852163)
    assert checkpoint.text == note.text
    assert encode(note) == COSIGNED.encode()
    assert [s.name for s in note.signatures] == ["example.com/behind-the-sofa", "witness.example.com/w1"]
    assert int.from_bytes(note.signatures[1].data[:8], "big") == 1679315147
    assert cosigned_message(note.text, 1679315147).startswith(b"cosignature/v1\ntime 1679315147\nexample.com/")


def test_malformed_checkpoints_are_refused() -> None:
    root = base64.b64encode(bytes(32)).decode()
    assert Checkpoint.parse(f"o\n0\n{root}\nmore\n") == Checkpoint("o", 0, bytes(32), ("more",))
    for text in (
        "", "o\n1\n", f"o\n1\n{root}", f"\n1\n{root}\n", f"o\n01\n{root}\n", f"o\n-1\n{root}\n", f"o\n+1\n{root}\n",
        f"o\n1\n{root}\n\n", f"o\n{1 << 63}\n{root}\n", f"o\n1\n{root[:-4]}\n", f"o\n\u0661\n{root}\n",
        f"o\n1 \n{root}\n",        f"o\n1\n{root[:-2]}B=\n", f"o\n{'1' * 30}\n{root}\n",
    ):  # fmt: skip
        with pytest.raises(InvalidError):
            Checkpoint.parse(text)


def test_a_cosignature_says_when_and_is_of_its_text() -> None:
    log, witness = peter(), SigningKey("witness.example/w", COSIGNATURE, b"w" * 32)
    text = Checkpoint("PeterNeumann", 3, bytes(32)).text
    line = cosignature(witness.public(), 17, witness.sign(cosigned_message(text, 17)))
    note = Note(text, (log.signature(text), line))
    assert cosigned(parse(encode(note)), witness.public()) == 17
    assert verified(note, log.public())
    assert not cosigned(Note(text, (log.signature(text),)), witness.public())
    assert witness.public().key_id != VerifierKey(witness.name, ED25519, witness.public().public).key_id
    later = line._replace(data=(18).to_bytes(8, "big") + line.data[8:])
    short = line._replace(data=line.data[:-1])
    for signatures in ((later,), (short,), (line._replace(data=bytes(72)),)):
        with pytest.raises(InvalidError):
            cosigned(Note(text, signatures), witness.public())
    with pytest.raises(InvalidError):
        cosigned(Note(text.replace("3", "4"), (line,)), witness.public())


def test_a_private_key_is_in_no_repr() -> None:
    key = SigningKey("n", ED25519, b"secret-seed-secret-seed-secret-s")
    key.sign(b"x")
    assert "secret" not in repr(key)


@given(st.lists(st.integers(0, 1000), min_size=1, max_size=6), st.data())
def test_a_file_of_notes_in_any_pieces(sizes: list[int], data: st.DataObject) -> None:
    key = SigningKey("o", ED25519, b"k" * 32)
    notes = []
    for size in sizes:
        text = Checkpoint("o", size, bytes(32)).text
        notes.append(encode(Note(text, (Signature(key.name, b"abcd", bytes(64)),))))
    stream = b"".join(note + b"\n" for note in notes)
    end = data.draw(st.integers(0, len(stream)))
    cuts = sorted(data.draw(st.lists(st.integers(0, end), max_size=5)))
    reader, found = Reader(), []
    for begin, stop in zip([0, *cuts], [*cuts, end], strict=True):
        found += [entry[0] for entry in reader.feed(stream[begin:stop])]
    whole = b"".join(note + b"\n" for note in found)
    assert stream.startswith(whole)
    assert found == notes[: len(found)]
    assert reader.offset == len(whole)
    assert reader.torn == end - len(whole)
    assert end < len(stream) or len(found) == len(notes)


@given(st.binary(max_size=300))
def test_hostile_bytes_are_refused_as_such(data: bytes) -> None:
    for prefix in (b"", TEXT.encode() + b"\n", b"o\n1\n"):
        try:
            note = parse(prefix + data)
            Checkpoint.parse(note.text)
        except InvalidError:
            continue
