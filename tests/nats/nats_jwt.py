"""NATS' decentralised authentication, made from nothing: operator, account and user as JWTs signed with
NKeys."""

import base64
import json
import os
import time

import nkeys

UNLIMITED = {"subs": -1, "data": -1, "payload": -1}


class Identity:
    """A key pair and the JWT that somebody signed for it. `kind` is operator, account or user."""

    def __init__(self, kind, issuer=None, **claims):
        prefix = getattr(nkeys, f"PREFIX_BYTE_{kind.upper()}")
        self.seed = nkeys.encode_seed(os.urandom(32), prefix)
        self.keys = nkeys.from_seed(self.seed)
        self.public = self.keys.public_key.decode()
        signer = issuer or self
        self.jwt = signer.sign(
            {
                "jti": self.public,
                "iat": int(time.time()),
                "iss": signer.public,
                "name": kind,
                "sub": self.public,
                "nats": {"type": kind, "version": 2, **claims},
            }
        )

    def sign(self, claims):
        text = ".".join(
            _part(json.dumps(part).encode()) for part in ({"typ": "JWT", "alg": "ed25519-nkey"}, claims)
        )
        return f"{text}.{_part(self.keys.sign(text.encode()))}"

    def credentials(self):
        """The content of a credentials file."""
        return (
            f"-----BEGIN NATS USER JWT-----\n{self.jwt}\n------END NATS USER JWT------\n\n"
            f"-----BEGIN USER NKEY SEED-----\n{self.seed.decode()}\n------END USER NKEY SEED------\n"
        )


def _part(data):
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def decentralised():
    """A configuration of nats-server, and the user that may connect to it."""
    operator = Identity("operator")
    limits = {**UNLIMITED, "imports": -1, "exports": -1, "wildcards": True, "conn": -1, "leaf": -1}
    account = Identity("account", operator, limits=limits)
    user = Identity("user", account, **UNLIMITED)
    preload = f'resolver_preload: {{ {account.public}: "{account.jwt}" }}'
    config = f'operator: "{operator.jwt}"\nresolver: MEMORY\n{preload}'
    return config, user
