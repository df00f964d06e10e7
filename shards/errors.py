"""What can go wrong with archives and stores.

Every message names the file, the key or the shard, gives both numbers where two disagree, and ends with what to do
next. All are ValueErrors, so that a caller who does not care which one it is can catch that. Names from files may hold
anything: control characters in a message are escaped, so that no file forges a line on the terminal or in a log.
"""

import re

_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


def printable(text: str) -> str:
    """Return `text` with control characters, direction marks and lone surrogates escaped."""
    return _CONTROL.sub(lambda match: match[0].encode("unicode_escape").decode(), text)


class ShardError(ValueError):
    """Anything that this package refuses, in one line; `exit_code` is what the command line then ends with."""

    exit_code = 1

    def __init__(self, message: str) -> None:
        super().__init__(printable(message))


class UsageError(ShardError):
    """The request itself can't be met: options that contradict each other, an output folder that holds something
    else.
    """

    exit_code = 2


class UnnamedSourceError(UsageError):
    """A source that only a record names, and not the user: it is not run."""


class SourceError(ShardError):
    """An archive that is unreadable or not what its format says."""

    exit_code = 5


class NoArchiveError(SourceError):
    """A path that leads to no archive: mistyped rather than damaged."""

    exit_code = 2


class ManifestError(ShardError):
    """A manifest that is absent, of another version, or not a manifest."""

    exit_code = 5


class NoStoreError(ManifestError):
    """A path that leads to no store: mistyped, or not converted yet."""

    exit_code = 2


class StoreError(ShardError):
    """A store whose files don't hold what its manifest and indexes say.

    `shard` (the file below the store), `key` (the event) and `offset` (a byte of that file) say where, each None where
    it is not known; the message says the same in words.
    """

    exit_code = 5

    def __init__(
        self, message: str, *, shard: str | None = None, key: str | None = None, offset: int | None = None
    ) -> None:
        super().__init__(message)
        self.shard, self.key, self.offset = shard, key, offset


class ContentError(StoreError):
    """Bytes that aren't those that were written."""


class TransportError(StoreError):
    """A server that doesn't give what was asked for, after as many attempts as are allowed. Its store may be whole."""

    exit_code = 1


def verify_hint(path: object) -> str:
    """Return the end of every message about a damaged store."""
    return f"run: python -m shards verify {path}"
