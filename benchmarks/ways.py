"""The ways in which our client sends, and the certificate for measurements over TLS."""

from __future__ import annotations

import datetime
import ipaddress
import sys
from pathlib import Path

OURS = {
    "ours, h11": "httpx",
    "ours, httptools": "httpx",
    "ours, httpx2": "httpx2",
    "ours, fast": "fast",
}
"""What is measured of ours, and the client's setting `transport` for it."""

NEEDS = {
    "ours, httpx2": "httpx2",
    "one httpx2.AsyncClient": "httpx2",
    "aiohttp": "aiohttp",
    "aiohttp by hand": "aiohttp",
}
"""What must be installed for some."""


def transport(name: str) -> str:
    """The transport of one of ours. Call it before the library is imported: one of them does without `httptools`."""
    if name == "ours, h11":
        sys.modules["httptools"] = None  # type: ignore[assignment]  # as if it were not installed
    return OURS[name]


def here(names: tuple[str, ...]) -> list[str]:
    """Those that can be measured here."""
    from .harness import installed

    return [name for name in names if installed(NEEDS.get(name, "httpx"))]


def certificate(folder: Path) -> Path:
    """Make a self-signed certificate for this machine: one file with the key and the certificate."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "benchmarks")])
    names = [x509.DNSName("localhost"), x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]
    now = datetime.datetime.now(datetime.UTC)
    made = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    path = folder / "certificate.pem"
    path.write_bytes(private + made.public_bytes(serialization.Encoding.PEM))
    return path
