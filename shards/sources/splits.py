"""Splits of archives without a clock: by folder or file names (train, val, test), by shares of whole sequences, or, of
one or two long sequences, by shares of each one's frames.

A sequence lies in one split, and so do all sequences that belong together (`--keep-together`). Which ones depends on
their names and the seed alone: the same names give the same splits, in any order and on any machine.
"""

from __future__ import annotations

import argparse
import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from shards.errors import UsageError
from shards.sources.inputs import plural

SPLIT_WORDS = {
    "train": ("train", "training"),
    "val": ("val", "valid", "validation"),
    "test": ("test", "testing"),
}
DEFAULT_VAL, DEFAULT_TEST = 0.1, 0.1
DEFAULT_GAP = 20  # frames
_OF_WORD = {word: split for split, words in SPLIT_WORDS.items() for word in words}


@dataclass(frozen=True)
class Shares:
    """How much of an archive is kept for validation and test; the rest trains."""

    val: float
    test: float

    def counts(self, total: int) -> dict[str, int]:
        """Return how many of `total` each split gets, in the order train, val, test; a share above 0 gets at least one
        of three.
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
    """What the options say. `shares` is None when names may decide; `gap` is in frames."""

    shares: Shares | None
    together: str | None
    seed: int
    gap: int = DEFAULT_GAP


def add_share_arguments(parser: argparse.ArgumentParser, what: str) -> None:
    """Add --val-fraction and --test-fraction; `what` says what is divided, and how."""
    for split, default in (("val", DEFAULT_VAL), ("test", DEFAULT_TEST)):
        parser.add_argument(
            f"--{split}-fraction", type=float, metavar="SHARE", help=f"of {what} (default: {default:g}, unless named)"
        )


def add_grouping_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of archives of independent sequences."""
    add_share_arguments(parser, "the sequences, drawn by --split-seed; folders train, val and test decide otherwise")
    parser.add_argument(
        "--keep-together",
        metavar="REGEX",
        help="sequences whose names match in the same text share a split, such as person\\d+",
    )
    parser.add_argument("--split-seed", type=int, default=0, metavar="N", help="(default: %(default)s)")
    parser.add_argument(
        "--split-gap",
        type=int,
        default=argparse.SUPPRESS,  # so that the manifests of stores without it stay as they were
        metavar="FRAMES",
        help="where too few sequences are there to share out, each is divided in time, and this many frames between "
        f"the parts are left out (default: {DEFAULT_GAP})",
    )


def shares_of(args: argparse.Namespace) -> Shares | None:
    """Return the shares asked for, or None if neither was. Raises UsageError outside 0..1."""
    if args.val_fraction is None and args.test_fraction is None:
        return None
    val = DEFAULT_VAL if args.val_fraction is None else args.val_fraction
    test = DEFAULT_TEST if args.test_fraction is None else args.test_fraction
    if not (min(val, test) >= 0 and val + test <= 1):  # which is also not a number
        raise UsageError(f"--val-fraction {val:g} and --test-fraction {test:g}: shares of 0..1, together 1 at most")
    return Shares(val, test)


def grouping_of(args: argparse.Namespace) -> Grouping:
    """Return what `add_grouping_arguments` asked. Raises UsageError for a pattern that is none, and a gap below 0."""
    gap = getattr(args, "split_gap", DEFAULT_GAP)
    if gap < 0:
        raise UsageError(f"--split-gap {gap}: a number of frames, 0 or more")
    if args.keep_together is not None:
        try:
            re.compile(args.keep_together)
        except re.error as error:
            raise UsageError(f"--keep-together {args.keep_together!r} is no regular expression ({error})") from None
    return Grouping(shares_of(args), args.keep_together, args.split_seed, gap)


@dataclass(frozen=True)
class Part:
    """Frames [begin, end) of a sequence belong to `split`."""

    split: str
    begin: int
    end: int


def divide(lengths: Mapping[str, int], grouping: Grouping) -> tuple[dict[str, list[Part]], list[str]]:
    """Return the parts of every sequence, and notes for the user. Names are relative paths; lengths are in frames.

    Where a split would get no sequence, because there are only one or two, each sequence is divided in time. Raises
    UsageError when only some names say their split, or a group is named for two.
    """
    names = list(lengths)
    groups = {name: _group(name, grouping.together) for name in names}
    if grouping.shares is None:
        named = {name: split for name in names if (split := named_split(name)) is not None}
        if named:
            split_of = _by_name(names, named, groups)
            whole = {name: [Part(split_of[name], 0, length)] for name, length in lengths.items()}
            return whole, ["splits: by the names of folders and files"]
    shares = grouping.shares or Shares(DEFAULT_VAL, DEFAULT_TEST)
    order = sorted(set(groups.values()), key=lambda group: lot(grouping.seed, group))
    counts = shares.counts(len(order))
    if any(share and not counts[split] for split, share in (("val", shares.val), ("test", shares.test))):
        return _in_time(lengths, shares, grouping.gap)
    split_of_group: dict[str, str] = {}
    begin = 0
    for split in ("test", "val", "train"):  # from the front, so that the test split doesn't depend on --val-fraction
        for group in order[begin : begin + counts[split]]:
            split_of_group[group] = split
        begin += counts[split]
    what = "sequence" if grouping.together is None else "group"
    note = ", ".join(f"{split} {plural(count, what)}" for split, count in counts.items() if count)
    return {name: [Part(split_of_group[groups[name]], 0, length)] for name, length in lengths.items()}, [
        f"splits: {note}, drawn by name with seed {grouping.seed}"
    ]


def _in_time(lengths: Mapping[str, int], shares: Shares, gap: int) -> tuple[dict[str, list[Part]], list[str]]:
    """Divide every sequence into train, then val, then test, with `gap` frames left out between them; one too short
    for parts of `gap` frames is train.
    """
    parts: dict[str, list[Part]] = {}
    notes = []
    for name, length in lengths.items():
        wanted = [(split, share) for split, share in (("val", shares.val), ("test", shares.test)) if share]
        sizes = {split: int((length - gap * len(wanted)) * share + 0.5) for split, share in wanted}
        train = length - sum(sizes.values()) - gap * len(wanted)
        if min(train, *sizes.values()) < max(gap, 1):
            parts[name] = [Part("train", 0, length)]
            notes.append(
                f"splits: all of {name} is train: {plural(length, 'frame')} are too few to be divided in time with "
                f"gaps of {gap}; lower --split-gap, or convert more sequences"
            )
            continue
        found, begin = [Part("train", 0, train)], train
        for split, size in sizes.items():
            found.append(Part(split, begin + gap, begin + gap + size))
            begin += gap + size
        parts[name] = found
        told = ", ".join(f"{part.split} {part.begin}..{part.end - 1}" for part in found)
        notes.append(f"splits: {name} is divided in time, frames {told}; {gap * len(wanted)} between them are left out")
    return parts, notes


def lot(seed: int, name: str) -> bytes:
    """Return what a name draws. Sorted by it, names stand in a random order in which a new one moves no other."""
    return hashlib.sha256(f"{seed}:{name}".encode()).digest()


def named_split(name: str) -> str | None:
    """Return the split that a relative path names: by its first folder, or by a word of a lone file's name."""
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
