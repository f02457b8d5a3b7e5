"""A server with TLS, client certificates and a policy, and clients with a name."""

from __future__ import annotations

import os
import socket
import ssl
from pathlib import Path
from typing import Any

import grpc
import trustme
from cryptography import x509
from harness import Server

MODEL = """\
[request_definition]
r = sub, obj, act

[policy_definition]
p = sub, obj, act

[policy_effect]
e = some(where (p.eft == allow))

[matchers]
m = r.sub == p.sub && r.obj == p.obj && r.act == p.act
"""


class Files:
    """Certificates, model and policy in a directory."""

    def __init__(self, directory: Path) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self.directory = directory
        self.ca = trustme.CA()
        self.ca.cert_pem.write_to_path(str(directory / "ca.pem"))
        self.model = directory / "model.conf"
        self.model.write_text(MODEL)
        self.policy = directory / "policy.csv"
        self.issue_server()

    def issue_server(self) -> int:
        """A new certificate for the server; returns its serial number."""
        pair = self.ca.issue_cert("127.0.0.1", "localhost")
        self.put("server.key", pair.private_key_pem.bytes())
        self.put("server.pem", pair.cert_chain_pems[0].bytes())
        return serial_of(pair.cert_chain_pems[0].bytes())

    def put(self, name: str, data: bytes | str) -> None:
        """Replace a file in one step."""
        new = self.directory / f"{name}.new"
        new.write_bytes(data.encode() if isinstance(data, str) else data)
        os.replace(new, self.directory / name)

    def write_policy(self, *rules: str) -> None:
        """Replace the policy; every rule is a line."""
        self.put("policy.csv", "".join(f"{rule}\n" for rule in rules))

    def config(self, *, authz: bool = True, **more: Any) -> dict[str, Any]:
        """What a server needs to use these files."""
        config: dict[str, Any] = {
            "tls.key": str(self.directory / "server.key"),
            "tls.cert": str(self.directory / "server.pem"),
            "tls.client.auth.enabled": True,
            "tls.client.auth.ca": str(self.directory / "ca.pem"),
        }
        if authz:
            config["tls.client.authz.enabled"] = True
            config["tls.client.authz.model"] = str(self.model)
            config["tls.client.authz.policy"] = str(self.policy)
        return config | {key.replace("_", "."): value for key, value in more.items()}

    def credentials(self, name: str | None) -> grpc.ChannelCredentials:
        """grpcio credentials of a client with a common name; None is one without."""
        pair = self.ca.issue_cert(f"{name or 'nobody'}@example.org", common_name=name)
        return grpc.ssl_channel_credentials(
            self.ca.cert_pem.bytes(), pair.private_key_pem.bytes(), pair.cert_chain_pems[0].bytes()
        )

    def api(self, server: Server, name: str | None) -> Any:
        """Stubs of a client with that common name."""
        return server.api(self.credentials(name))

    def context(self, name: str) -> ssl.SSLContext:
        """A context for raw connections of a client with that common name."""
        context = ssl.create_default_context()
        self.ca.configure_trust(context)
        self.ca.issue_cert(f"{name}@example.org", common_name=name).configure_cert(context)
        context.set_alpn_protocols(["h2"])
        return context

    def shown_serial(self, server: Server, name: str) -> int:
        """The serial number of the certificate that a new connection is shown."""
        with socket.create_connection(("127.0.0.1", server.grpc_port), timeout=30) as plain:
            with self.context(name).wrap_socket(plain, server_hostname="localhost") as tls:
                certificate = tls.getpeercert()
                assert certificate is not None
                return int(str(certificate["serialNumber"]), 16)


def serial_of(pem: bytes) -> int:
    """The serial number of a certificate."""
    return x509.load_pem_x509_certificate(pem).serial_number
