"""Failures that are mistakes in the input or the setup, shown in one line; all others keep their traceback."""

from __future__ import annotations

import errno

from lit_posttrain.errors import PostTrainError

BEFORE_STEPS = "before a step was taken"  # what an interrupted run says

# errors of connections and programming mistakes, whatever exception class a library raises for them
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
    """The PostTrainError that a library has wrapped in `problem`, as jsonargparse wraps errors of constructors."""
    seen: BaseException | None = problem
    while seen is not None and not isinstance(seen, PostTrainError):
        seen = seen.__cause__ or (None if seen.__suppress_context__ else seen.__context__)
    return seen


def of_system(failure: Exception) -> PostTrainError | None:
    """A one-line error for what the system refuses, such as an unreadable file, a full disk, or one more process; None
    for other errors, such as those of connections, or of files that were closed."""
    if not isinstance(failure, OSError) or failure.strerror is None:
        return None
    if failure.filename is None and (failure.errno in _OF_ONES_OWN_CODE or _of_a_connection(failure)):
        return None
    name = str(failure.filename or failure.filename2 or "")
    place = f"{name[:80]}...: " if len(name) > 200 else f"{name}: " if name else ""
    remedy = next((f"; {told}" for told, numbers in _REMEDIES.items() if failure.errno in numbers), "")
    return PostTrainError(f"{place}{failure.strerror}{remedy} (--traceback shows where in the code)")


def _of_a_connection(failure: OSError) -> bool:
    """True for the classes of connection errors, which have error numbers of their own."""
    import socket
    import ssl

    return isinstance(failure, (ConnectionError, TimeoutError, socket.gaierror, socket.herror, ssl.SSLError))
