"""Work of a cluster's job as JSON: what comes back is what was given, or it is refused."""

import dataclasses
import json
from fractions import Fraction
from functools import cached_property

import numpy as np
import pytest

from shards import UsageError
from shards.plain import from_plain, to_plain


class Empty:
    def __eq__(self, other):
        return type(other) is Empty

    def __hash__(self):
        return 0


class WithFields:
    def __init__(self, folder="", side=4):
        self.folder, self.side = folder, side


class WithSlots:
    __slots__ = ("side",)

    def __init__(self):
        self.side = 4


@dataclasses.dataclass
class WithMore:
    side: int
    area: int = dataclasses.field(init=False, default=0)

    def __post_init__(self):
        self.area = self.side**2


@dataclasses.dataclass(frozen=True)
class WithCaches:
    folder: str = "data"
    seen: dict = dataclasses.field(init=False, compare=False, repr=False, default_factory=dict)

    @cached_property
    def letters(self):
        return list(self.folder)


class WithCachesBelow(WithCaches):
    pass


class PlainWithCache:
    @cached_property
    def number(self):
        return 4


def returned(value):
    return from_plain(json.loads(json.dumps(to_plain(value))), __name__)


def test_what_can_be_made_again_comes_back():
    assert returned([Empty(), (1, 2.5, "x"), np.float32(3), WithMore(3)]) == [Empty(), (1, 2.5, "x"), 3, WithMore(3)]
    assert (returned(WithFields()).side, returned(WithSlots()).side) == (4, 4)


@pytest.mark.parametrize("kind", [WithCaches, WithCachesBelow])
def test_caches_are_left_behind(kind):
    used = kind("abc")
    used.seen["x"] = used.letters
    plain = PlainWithCache()
    assert plain.number == 4
    back, nested, other = returned([used, {"inner": used}, plain])
    assert back == used and nested == {"inner": used} and type(other) is PlainWithCache
    assert vars(back) == {"folder": "abc", "seen": {}} and vars(other) == {} and back.letters == ["a", "b", "c"]
    assert used.seen and "letters" in vars(used)


def changed(value, **fields):
    for name, field in fields.items():
        setattr(value, name, field)
    return value


@pytest.mark.parametrize(
    "value",
    [
        WithFields("data"),
        WithFields(side=5),
        changed(WithFields(), more=1),
        changed(WithSlots(), side=5),
        changed(WithMore(3), area=1),
        changed(WithMore(3), more=1),
        changed(PlainWithCache(), more=1),
        {1: {2}}[1],
        b"bytes",
        Fraction(1, 3),
        lambda: 1,
        np.zeros(2),
    ],
)
def test_what_would_lose_something_is_refused(value):
    with pytest.raises(UsageError, match=r"can't be handed to the jobs of a cluster .* or use --workers"):
        to_plain({"a": [value]})
