"""gRPC status codes and the exceptions that carry them, as handlers raise them.

The types are purerpc's own, so that a servicer reads the same whether it runs here or under purerpc.
What a handler did not mean for the client (any other exception) reaches it as INTERNAL with the name of
the exception's class; the text and the traceback go to the log only.
"""

from collections.abc import Iterator

import purerpc
from purerpc import RpcFailedError, Status, StatusCode

__all__ = ["RpcFailedError", "Status", "StatusCode", "rpc_error", "status_of"]


def _error_class(code: StatusCode) -> type[RpcFailedError]:
    name = "".join(word.capitalize() for word in code.name.split("_")) + "Error"
    found: type[RpcFailedError] = getattr(purerpc, name)
    return found


_ERRORS = {code: _error_class(code) for code in StatusCode if code is not StatusCode.OK}


def rpc_error(code: StatusCode, message: str) -> RpcFailedError:
    """Make the exception that ends a call with `code` and `message`.

    Args:
        code: any status code but OK.
        message: what is wrong and what to do next, for the caller.

    Raises:
        ValueError: `code` is OK.
    """
    if code is StatusCode.OK:
        raise ValueError("a call that ends with OK returns, it does not raise")
    return _ERRORS[code](message)


def status_of(error: BaseException) -> "Status | None":
    """Return the status the handler meant for the client, or None if `error` is a defect.

    A handler with nurseries raises exception groups; one in which every leaf carries a status speaks with
    the first of them.
    """
    statuses = []
    for leaf in leaves(error):
        if not isinstance(leaf, RpcFailedError):
            return None
        statuses.append(leaf.status)
    return statuses[0]


def leaves(error: BaseException) -> Iterator[BaseException]:
    """Yield the exceptions that make up an exception group, or the exception itself."""
    # On Python 3.10 exception groups come from a backport, so they are told by their attribute.
    inner = getattr(error, "exceptions", None)
    if isinstance(inner, tuple):
        for exception in inner:
            yield from leaves(exception)
    else:
        yield error
