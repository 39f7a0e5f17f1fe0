"""The one exception that people are meant to read: what was found, where, and what to do, in one line."""


class PostTrainError(Exception):
    """A mistake in the input or the setup. The command line prints its message without a traceback and exits with 2.

    The message is one line: what was found, where (`file:line` if there is one), and the remedy.
    """
