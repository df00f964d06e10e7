"""Numbers for people."""

from __future__ import annotations

import pytest

from toolkit.wording import speed


@pytest.mark.parametrize(("per_s", "text"), [(1204.4, "1,204"), (35.55, "35.5"), (1.0, "1.0"), (0.0784, "0.078")])
def test_slow_and_fast_speeds_keep_their_digits(per_s: float, text: str) -> None:
    assert speed(per_s) == text
