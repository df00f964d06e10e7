"""Splits of archives without a clock: by folder or file names (train, val, test), or by shares of whole sequences.

A sequence lies in one split, and so do all sequences that belong together (`--keep-together`). Which ones depends on
their names and the seed alone: the same names give the same splits, in any order and on any machine.
"""

from __future__ import annotations

import argparse
import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass

from shards.errors import UsageError
from shards.sources.inputs import plural

SPLIT_WORDS = {
    "train": ("train", "training"),
    "val": ("val", "valid", "validation"),
    "test": ("test", "testing"),
}
DEFAULT_VAL, DEFAULT_TEST = 0.1, 0.1
_OF_WORD = {word: split for split, words in SPLIT_WORDS.items() for word in words}


@dataclass(frozen=True)
class Shares:
    """How much of an archive is kept for validation and test; the rest trains."""

    val: float
    test: float

    def counts(self, total: int) -> dict[str, int]:
        """How many of `total` each split gets, in the order train, val, test; a share above 0 gets at least one of
        three.
        """
        least = 1 if total >= 3 else 0
        val, test = (max(int(total * share + 0.5), least if share else 0) for share in (self.val, self.test))
        if val + test > total:
            raise UsageError(
                f"--val-fraction {self.val:g} and --test-fraction {self.test:g} ask for {val} and {test} of {total}; "
                "lower one of them"
            )
        return {"train": total - val - test, "val": val, "test": test}


@dataclass(frozen=True)
class Grouping:
    """What the options say. `shares` is None when names may decide."""

    shares: Shares | None
    together: str | None
    seed: int


def add_share_arguments(parser: argparse.ArgumentParser, what: str) -> None:
    """--val-fraction and --test-fraction; `what` says what is divided, and how."""
    for split, default in (("val", DEFAULT_VAL), ("test", DEFAULT_TEST)):
        parser.add_argument(
            f"--{split}-fraction", type=float, metavar="SHARE", help=f"of {what} (default: {default:g}, unless named)"
        )


def add_grouping_arguments(parser: argparse.ArgumentParser) -> None:
    """For archives of independent sequences."""
    add_share_arguments(parser, "the sequences, drawn by --split-seed; folders train, val and test decide otherwise")
    parser.add_argument(
        "--keep-together",
        metavar="REGEX",
        help="sequences whose names match in the same text share a split, such as person\\d+",
    )
    parser.add_argument("--split-seed", type=int, default=0, metavar="N", help="(default: %(default)s)")


def shares_of(args: argparse.Namespace) -> Shares | None:
    """The shares asked for, or None if neither was. Raises UsageError outside 0..1."""
    if args.val_fraction is None and args.test_fraction is None:
        return None
    val = DEFAULT_VAL if args.val_fraction is None else args.val_fraction
    test = DEFAULT_TEST if args.test_fraction is None else args.test_fraction
    if min(val, test) < 0 or val + test > 1:
        raise UsageError(f"--val-fraction {val:g} and --test-fraction {test:g}: shares of 0..1, together 1 at most")
    return Shares(val, test)


def grouping_of(args: argparse.Namespace) -> Grouping:
    """What `add_grouping_arguments` asked. Raises UsageError for a pattern that is none."""
    if args.keep_together is not None:
        try:
            re.compile(args.keep_together)
        except re.error as error:
            raise UsageError(f"--keep-together {args.keep_together!r} is no regular expression ({error})") from None
    return Grouping(shares_of(args), args.keep_together, args.split_seed)


def divide(names: Sequence[str], grouping: Grouping) -> tuple[dict[str, str], list[str]]:
    """The split of every name, and notes for the user. Names are relative paths.

    Raises UsageError when only some names say their split, or a group is named for two.
    """
    groups = {name: _group(name, grouping.together) for name in names}
    if grouping.shares is None:
        named = {name: split for name in names if (split := named_split(name)) is not None}
        if named:
            return _by_name(names, named, groups), ["splits: by the names of folders and files"]
    shares = grouping.shares or Shares(DEFAULT_VAL, DEFAULT_TEST)
    order = sorted(set(groups.values()), key=lambda group: lot(grouping.seed, group))
    counts = shares.counts(len(order))
    split_of_group: dict[str, str] = {}
    begin = 0
    for split in ("test", "val", "train"):  # from the front, so that the test split doesn't depend on --val-fraction
        for group in order[begin : begin + counts[split]]:
            split_of_group[group] = split
        begin += counts[split]
    what = "sequence" if grouping.together is None else "group"
    note = ", ".join(f"{split} {plural(count, what)}" for split, count in counts.items() if count)
    return {name: split_of_group[group] for name, group in groups.items()}, [
        f"splits: {note}, drawn by name with seed {grouping.seed}"
    ]


def lot(seed: int, name: str) -> bytes:
    """What a name draws. Sorted by it, names stand in a random order in which a new one moves no other."""
    return hashlib.sha256(f"{seed}:{name}".encode()).digest()


def named_split(name: str) -> str | None:
    """The split that a relative path names: by its first folder, or by a word of a lone file's name."""
    folder, _, _ = name.partition("/")
    if folder.lower() in _OF_WORD:
        return _OF_WORD[folder.lower()]
    if "/" in name:
        return None
    words = {_OF_WORD[word] for word in re.split(r"[^a-z]+", name.lower()) if word in _OF_WORD}
    return words.pop() if len(words) == 1 else None


def _by_name(names: Sequence[str], named: dict[str, str], groups: dict[str, str]) -> dict[str, str]:
    unnamed = [name for name in names if name not in named]
    if unnamed:
        raise UsageError(
            f"{len(named)} of {len(names)} sequences are named for a split, {unnamed[0]} and {len(unnamed) - 1} more "
            "are not; move them, or let shares decide with --val-fraction 0.1 --test-fraction 0.1"
        )
    split_of_group: dict[str, str] = {}
    for name in names:
        first = split_of_group.setdefault(groups[name], named[name])
        if first != named[name]:
            raise UsageError(
                f"--keep-together: {groups[name]!r} is in {first} and in {named[name]} ({name}); move its sequences to "
                "one split, or leave that option out"
            )
    return named


def _group(name: str, together: str | None) -> str:
    if together is None:
        return name
    found = re.search(together, name)
    return found[0] if found else name
