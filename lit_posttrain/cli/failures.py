"""Which failures are mistakes in the input or the setup, to be told in one line; all others keep their traceback."""

from __future__ import annotations

import errno

from lit_posttrain.errors import PostTrainError

# what the system says of connections and of what a program does wrong, in whatever class a library puts it
_OF_ONES_OWN_CODE = frozenset(
    {errno.ECONNREFUSED, errno.ECONNRESET, errno.ECONNABORTED, errno.ENOTCONN, errno.ETIMEDOUT, errno.EPIPE}
    | {errno.EADDRINUSE, errno.EADDRNOTAVAIL, errno.ENETDOWN, errno.ENETUNREACH, errno.EHOSTDOWN, errno.EHOSTUNREACH}
    | {errno.EAFNOSUPPORT, errno.ENOTSOCK, errno.EBADF, errno.EINVAL, errno.ECHILD, errno.ESRCH}
)
_REMEDIES = {
    "free some, or write to another disk": (errno.ENOSPC, errno.EDQUOT),
    "allow more of them (ulimit -n)": (errno.EMFILE, errno.ENFILE),
    "free some memory, or allow more processes (ulimit -u)": (errno.ENOMEM, errno.EAGAIN),
}


def buried(problem: BaseException) -> PostTrainError | None:
    """The PostTrainError that a library wrapped in `problem`, as jsonargparse does with those of constructors."""
    seen: BaseException | None = problem
    while seen is not None and not isinstance(seen, PostTrainError):
        seen = seen.__cause__ or (None if seen.__suppress_context__ else seen.__context__)
    return seen


def of_system(failure: Exception) -> PostTrainError | None:
    """What the system refused, such as a file that cannot be read, a full disk, or one more process; None for other
    errors, such as of a connection that code of one's own makes, or of a file that it has closed."""
    if not isinstance(failure, OSError) or failure.strerror is None:
        return None
    if failure.filename is None and (failure.errno in _OF_ONES_OWN_CODE or _of_a_connection(failure)):
        return None
    name = str(failure.filename or failure.filename2 or "")
    place = f"{name[:80]}...: " if len(name) > 200 else f"{name}: " if name else ""
    remedy = next((f"; {told}" for told, numbers in _REMEDIES.items() if failure.errno in numbers), "")
    return PostTrainError(f"{place}{failure.strerror}{remedy} (--traceback shows where in the code)")


def _of_a_connection(failure: OSError) -> bool:
    """By its class: these have error numbers of their own."""
    import socket
    import ssl

    return isinstance(failure, (ConnectionError, TimeoutError, socket.gaierror, socket.herror, ssl.SSLError))
