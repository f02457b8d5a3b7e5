"""Authorization: which client may call what, by the model and policy files of the original server.

`actions` says which action on which resource each RPC is, `matcher` compiles the expression of a model,
`files` reads model and policy, `policy` decides, `audit` writes decisions to the log, and `authorizer` puts
them between the gRPC server and its handlers. Why the files are not evaluated by the library they were made
for: docs/decisions/0017-authorization.md.
"""

from liftbridge.broker.authz.actions import ROWS, Row
from liftbridge.broker.authz.audit import Audit
from liftbridge.broker.authz.authorizer import Authorizer, identity_of
from liftbridge.broker.authz.errors import AuthzFileError
from liftbridge.broker.authz.policy import Policy, load_policy

__all__ = [
    "ROWS",
    "Audit",
    "Authorizer",
    "AuthzFileError",
    "Policy",
    "Row",
    "identity_of",
    "load_policy",
]
