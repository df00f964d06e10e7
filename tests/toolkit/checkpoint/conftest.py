"""What the toolkit logs, for tests of checkpoints."""

import logging
from collections.abc import Iterator

import pytest


class Messages(logging.Handler):
    """Keeps the text of each record."""

    def __init__(self) -> None:
        super().__init__()
        self.texts: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.texts.append(record.getMessage())


@pytest.fixture
def logged() -> Iterator[list[str]]:
    """What the toolkit logs during a test."""
    messages = Messages()
    logging.getLogger("toolkit").addHandler(messages)
    yield messages.texts
    logging.getLogger("toolkit").removeHandler(messages)
