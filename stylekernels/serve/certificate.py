"""A certificate that the server signs itself, so that browsers give the page a camera."""

import datetime
import ipaddress
import ssl
import tempfile
from collections.abc import Iterable
from pathlib import Path

_DAYS = 30


def own_certificate(certificate: Path, key: Path) -> ssl.SSLContext:
    """Return a server's context with a certificate and its key, files in PEM.

    Raises:
        ValueError: if they cannot be read, or do not belong together.
    """
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    try:
        context.load_cert_chain(certificate, key, password="")
    except OSError as error:  # ssl.SSLError is one
        raise ValueError(
            f"certificate: expected a certificate and its key in PEM, without a password, got "
            f"{certificate} and {key}: {error.strerror or error}"
        ) from error
    return context


def self_signed(names: Iterable[str]) -> tuple[ssl.SSLContext, str]:
    """Return a server's context with a new certificate, and the certificate's fingerprint.

    Args:
        names: host names and addresses that it is for.

    Raises:
        ModuleNotFoundError: if the package cryptography is not installed.
    """
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "stylekernels serve")])
    now = datetime.datetime.now(datetime.timezone.utc)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=_DAYS))
        .add_extension(x509.SubjectAlternativeName(map(_general_name, names)), critical=False)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(
            x509.ExtendedKeyUsage([x509.ExtendedKeyUsageOID.SERVER_AUTH]), critical=False
        )
        .sign(key, hashes.SHA256())
    )
    with tempfile.TemporaryDirectory(prefix="stylekernels-") as folder:
        paths = Path(folder, "certificate.pem"), Path(folder, "key.pem")
        paths[0].write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
        paths[1].write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM,
                serialization.PrivateFormat.PKCS8,
                serialization.NoEncryption(),
            )
        )
        context = own_certificate(*paths)
    return context, certificate.fingerprint(hashes.SHA256()).hex(":").upper()


def _general_name(name: str):
    from cryptography import x509

    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)
