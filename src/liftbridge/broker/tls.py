"""TLS contexts from the configuration: towards gRPC clients, towards other servers and towards NATS.

The files are read here, at start-up, so that a missing or unusable one stops the server with an error that
names the key and the file. TLS 1.2 is the lowest version. A private key with a pass phrase is refused: a
server has nobody to ask for it.
"""

from __future__ import annotations

import ssl
from pathlib import Path

from liftbridge.broker.config import ClusteringConfig, ConfigError, NatsConfig, TlsConfig


def server_ssl_context(tls: TlsConfig) -> ssl.SSLContext | None:
    """Return the context for the gRPC listener (ALPN h2), or None if TLS is off.

    With client authentication on, a client needs a certificate signed by `tls.client.auth.ca` or, without
    that, by one of the system's authorities.

    Raises:
        ConfigError: a file cannot be read or used.
    """
    if tls.key is None or tls.cert is None:
        return None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["h2"])
    _load_pair(context, "tls.cert", tls.cert, "tls.key", tls.key)
    if tls.client_auth_enabled:
        context.verify_mode = ssl.CERT_REQUIRED
        if tls.client_auth_ca is None:
            context.load_default_certs(ssl.Purpose.CLIENT_AUTH)
        else:
            _load_authorities(context, "tls.client.auth.ca", tls.client_auth_ca)
    return context


def peer_ssl_context(tls: TlsConfig, clustering: ClusteringConfig) -> ssl.SSLContext | None:
    """Return the context for connections to other servers of the cluster, or None if TLS is off.

    The server's own certificate is shown there too. Those of the others are verified, and have to name the
    host that was connected to, against `clustering.tls.ca`, `tls.client.auth.ca` or the system's authorities.

    Raises:
        ConfigError: a file cannot be read or used.
    """
    if tls.key is None or tls.cert is None:
        return None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["h2"])
    _load_pair(context, "tls.cert", tls.cert, "tls.key", tls.key)
    if clustering.tls_ca is not None:
        _load_authorities(context, "clustering.tls.ca", clustering.tls_ca)
    elif tls.client_auth_ca is not None:
        _load_authorities(context, "tls.client.auth.ca", tls.client_auth_ca)
    else:
        context.load_default_certs(ssl.Purpose.SERVER_AUTH)
    return context


def nats_ssl_context(nats: NatsConfig) -> ssl.SSLContext | None:
    """Return the context for connections to NATS, or None if nothing asks for TLS.

    TLS is asked for by any of the `nats.tls` keys or by a `tls://` URL. Servers are verified against
    `nats.tls.ca` or, without that, the system's authorities.

    Raises:
        ConfigError: a file cannot be read or used.
    """
    pair = (nats.tls_cert, nats.tls_key)
    if pair == (None, None) and nats.tls_ca is None and not any(u.startswith("tls://") for u in nats.servers):
        return None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    if nats.tls_ca is None:
        context.load_default_certs(ssl.Purpose.SERVER_AUTH)
    else:
        _load_authorities(context, "nats.tls.ca", nats.tls_ca)
    if nats.tls_cert is not None and nats.tls_key is not None:
        _load_pair(context, "nats.tls.cert", nats.tls_cert, "nats.tls.key", nats.tls_key)
    return context


def _load_pair(context: ssl.SSLContext, cert_key: str, cert: Path, key_key: str, key: Path) -> None:
    _check_readable(cert_key, cert)
    _check_readable(key_key, key)
    try:
        # Without a password OpenSSL would prompt on the terminal for the one of an encrypted key.
        context.load_cert_chain(cert, key, password="")
    except (ssl.SSLError, ValueError, OSError) as error:
        raise ConfigError(
            f"{cert_key} {cert} and {key_key} {key} cannot be used: {_reason(error)}; give a certificate and "
            "its private key in PEM form, the key without a pass phrase"
        ) from None


def _load_authorities(context: ssl.SSLContext, key: str, path: Path) -> None:
    _check_readable(key, path)
    try:
        context.load_verify_locations(cafile=path)
    except (ssl.SSLError, ValueError, OSError) as error:
        raise ConfigError(
            f"{key} {path} cannot be used: {_reason(error)}; give certificates in PEM form"
        ) from None


def _check_readable(key: str, path: Path) -> None:
    try:
        with path.open("rb") as file:
            file.read(1)
    except OSError as error:
        raise ConfigError(f"{key}: cannot read {path}: {error.strerror or error}") from None


def _reason(error: Exception) -> str:
    reason = getattr(error, "reason", None)
    return str(reason or error).lower().replace("_", " ")
