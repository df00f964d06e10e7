"""Exit codes, and the errors that carry them.

Errors caused by users derive from ValueError; their message states the problem, where it is, both values if there are
two, and what to do. Commands print it to stderr without a traceback and exit with its code.
"""

from __future__ import annotations

EXIT_OK = 0
EXIT_FAILURE = 1
EXIT_USAGE = 2  # an invalid config, option or file
EXIT_REQUEUE = 3  # stopped by a signal after a checkpoint; run again to resume
EXIT_NONFINITE = 4  # NaN or inf in the loss or gradient; nothing was updated
EXIT_DATA = 5  # a store or archive is damaged
EXIT_HANG = 6  # a rank made no progress for longer than `train.watchdog` allows
EXIT_BUSY = 7  # another job or training uses this run directory; nothing was changed

EXIT_MEANING = {
    EXIT_OK: "done",
    EXIT_FAILURE: "failed",
    EXIT_USAGE: "usage or config error",
    EXIT_REQUEUE: "stopped after writing a checkpoint: run the same command to resume",
    EXIT_NONFINITE: "the loss or gradient is not finite",
    EXIT_DATA: "damaged data",
    EXIT_HANG: "hung: a rank made no progress",
    EXIT_BUSY: "busy: another job uses this run",
}


# What Python raises for values from a file that are not what they should be.
CONTENT_ERRORS = (
    *(ValueError, KeyError, TypeError, IndexError, AttributeError, ArithmeticError, RecursionError, MemoryError),
)


class ToolkitError(ValueError):
    """Base of errors that a user can fix; `exit_code` is the exit code of the command."""

    exit_code = EXIT_FAILURE


def exit_code_of(error: BaseException) -> int:
    """Return the exit code of a command that ends with an error, of this toolkit, of shards or any other."""
    return int(getattr(error, "exit_code", EXIT_FAILURE))


class ConfigError(ToolkitError):
    """An invalid config, option or override."""

    exit_code = EXIT_USAGE


class CheckpointError(ToolkitError):
    """A checkpoint that is missing, incomplete or does not match the model."""


class NonFiniteError(ToolkitError):
    """The loss or the gradient norm is NaN or infinite."""

    exit_code = EXIT_NONFINITE


class StoreReplacedError(ToolkitError):
    """The store is no longer the one that a run, or a checkpoint of it, was trained on."""

    exit_code = EXIT_DATA


class StalledError(ToolkitError):
    """A read took longer than `train.watchdog` allows."""

    exit_code = EXIT_HANG


class StoppedError(ToolkitError):
    """Stopped before there was anything to save; run the same command to start again."""

    exit_code = EXIT_REQUEUE


class PeerError(ToolkitError):
    """Another rank failed or died, so this one exits; `exit_code` is that rank's, if known."""

    def __init__(self, text: str, exit_code: int = EXIT_FAILURE) -> None:
        super().__init__(text)
        self.exit_code = exit_code


class PeerFaultError(PeerError):
    """Another rank failed, and all ranks know it at this same point: they can still act together."""


class MemoryShortageError(ToolkitError):
    """A device or the host ran out of memory."""
