"""CAs in temporary directories."""

from __future__ import annotations

from pathlib import Path

import pytest

from nucleus.identity.ca import CertificateAuthority

from .certificates import NOW, TRUST_DOMAIN


@pytest.fixture
def ca(tmp_path: Path) -> CertificateAuthority:
    return CertificateAuthority.load_or_create(tmp_path / "ca", TRUST_DOMAIN, now=NOW)


@pytest.fixture
def other_ca(tmp_path: Path) -> CertificateAuthority:
    return CertificateAuthority.load_or_create(tmp_path / "other-ca", "other.test", now=NOW)
