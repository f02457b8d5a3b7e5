"""SIGHUP: certificates and policy are read again while the server runs.

Connections stay open and keep the certificate of their handshake; those that come afterwards get the new one.
Each part is replaced as a whole or not at all: a file that is missing, half written or of another key leaves
what was in force, with an error in the log that names the file.
"""

from __future__ import annotations

import logging
from datetime import datetime, timezone
from pathlib import Path

import trio
from cryptography import x509

from liftbridge.broker.authz import Authorizer
from liftbridge.broker.config import ClusteringConfig, ConfigError, TlsConfig
from liftbridge.broker.peers import Peers
from liftbridge.broker.tls import peer_ssl_context, server_ssl_context
from liftbridge.rpc import RpcServer

logger = logging.getLogger("liftbridge")


class Reloader:
    """Reloads when asked; several requests while one is served become one more."""

    def __init__(self, tls: TlsConfig, clustering: ClusteringConfig) -> None:
        self._tls = tls
        self._clustering = clustering
        self._asked = trio.Event()

    def request(self) -> None:
        """Ask for a reload; may come before `run`."""
        self._asked.set()

    async def run(self, server: RpcServer, peers: Peers, authorizer: Authorizer | None) -> None:
        """Serve requests for ever.

        Args:
            server, peers: what gets the new certificate, to be connected to and to connect with.
            authorizer: what reads the policy again, None without authorization.
        """
        while True:
            await self._asked.wait()
            self._asked = trio.Event()
            if not self._tls.enabled:
                logger.info("SIGHUP: there is nothing to reload")
                continue
            await self._reload_certificates(server, peers)
            if authorizer is not None:
                await authorizer.reload()

    async def _reload_certificates(self, server: RpcServer, peers: Peers) -> None:
        try:
            context = await trio.to_thread.run_sync(server_ssl_context, self._tls)
            to_peers = await trio.to_thread.run_sync(peer_ssl_context, self._tls, self._clustering)
        except ConfigError as error:
            logger.error("the certificate stays as it was: %s", error)  # noqa: TRY400  # not a defect of ours
            return
        assert context is not None, "TLS is on"
        assert to_peers is not None, "TLS is on"
        server.use_tls(context)
        peers.use_tls(to_peers)
        assert self._tls.cert is not None, "TLS is on"
        described = await trio.to_thread.run_sync(_described, self._tls.cert)
        logger.info("new connections get the certificate of %s: %s", self._tls.cert, described)


def _described(path: Path) -> str:
    """Serial number and end of the first certificate in a file, for people."""
    try:
        certificate = x509.load_pem_x509_certificate(path.read_bytes())
    except (OSError, ValueError) as error:
        return f"not shown, {error}"
    end = certificate.not_valid_after_utc
    expired = ", which is over" if end < datetime.now(timezone.utc) else ""
    return f"serial number {certificate.serial_number:x}, valid until {end:%Y-%m-%d %H:%M} UTC{expired}"
