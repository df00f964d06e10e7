"""Exit codes and the errors that carry them.

Every error that a user can cause derives from ValueError, says what is wrong and where, gives both numbers where there
are two, and ends with what to do next. Scripts print it to stderr without a traceback and exit with its code.
"""

from __future__ import annotations

EXIT_OK = 0
EXIT_FAILURE = 1
EXIT_USAGE = 2  # a config, flag or file that can't be used as given
EXIT_REQUEUE = 3  # "run me again": stopped by a signal after a checkpoint
EXIT_NONFINITE = 4  # NaN or inf in the loss or gradient; nothing was updated
EXIT_DATA = 5  # a store or archive is damaged
EXIT_HANG = 6  # a rank made no progress for longer than `train.watchdog` allows
EXIT_BUSY = 7  # another job or training has this run directory; nothing was touched

EXIT_MEANING = {
    EXIT_OK: "done",
    EXIT_FAILURE: "failed",
    EXIT_USAGE: "usage or config error",
    EXIT_REQUEUE: "stopped with a checkpoint: run the same command again",
    EXIT_NONFINITE: "the loss or gradient is not finite",
    EXIT_DATA: "damaged data",
    EXIT_HANG: "hung: a rank made no progress",
    EXIT_BUSY: "busy: another job has this run",
}


class ToolkitError(ValueError):
    """Base of the errors that a user can mend; `exit_code` is what a script returns."""

    exit_code = EXIT_FAILURE


class ConfigError(ToolkitError):
    """A config, flag or override that can't be used."""

    exit_code = EXIT_USAGE


class CheckpointError(ToolkitError):
    """A checkpoint that is missing, incomplete or doesn't fit the model."""


class NonFiniteError(ToolkitError):
    """The loss or the gradient norm is NaN or infinite."""

    exit_code = EXIT_NONFINITE


class StoppedError(ToolkitError):
    """Asked to stop before there was anything to save; the same command begins again."""

    exit_code = EXIT_REQUEUE


class PeerError(ToolkitError):
    """Another rank failed or died, and this one ends because of it; `exit_code` is that rank's, where it is known."""

    def __init__(self, text: str, exit_code: int = EXIT_FAILURE) -> None:
        super().__init__(text)
        self.exit_code = exit_code


class MemoryShortageError(ToolkitError):
    """A device or the host ran out of memory."""
