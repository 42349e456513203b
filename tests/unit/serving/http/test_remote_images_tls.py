"""Images behind https URLs: the certificate is checked against the name in the URL."""

import datetime
import ssl
from collections.abc import Callable
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from tests.support.image_host import IMAGE, Host, fetch, refusal


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A certificate of photos.example, signed by itself, and its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "photos.example")])
    now = datetime.datetime.now(datetime.UTC)
    signed = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("photos.example")]), False)
        .sign(key, hashes.SHA256())
    )
    path = tmp_path_factory.mktemp("tls") / "host.pem"
    path.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
        + signed.public_bytes(serialization.Encoding.PEM)
    )
    return path


@pytest.fixture
def tls_host(certificate: Path) -> Host:
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(certificate)
    host = Host(tls=tls)
    names: Callable[..., None] = lambda _, name, __: host.server_names.append(name)  # noqa: E731
    tls.sni_callback = names
    return host


def test_tls_asks_for_the_name_and_checks_it(tls_host: Host, certificate: Path) -> None:
    trusting = ssl.create_default_context(cafile=certificate)

    assert fetch(tls_host, "https://photos.example:PORT/", tls=trusting) == IMAGE
    assert tls_host.server_names == ["photos.example"]


def test_a_certificate_of_another_name_is_refused(tls_host: Host, certificate: Path) -> None:
    trusting = ssl.create_default_context(cafile=certificate)

    status, message = refusal(tls_host, "https://cdn.photos.example:PORT/", tls=trusting)

    assert (status, "connection failed" in message) == (422, True)
    assert tls_host.requests == []


def test_a_certificate_that_nobody_signed_is_refused(tls_host: Host) -> None:
    assert refusal(tls_host, "https://photos.example:PORT/")[0] == 422
    assert tls_host.requests == []
