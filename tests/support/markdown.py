"""README.md and docs/ as tests read them: blocks, links, and commands, which their parsers take but do not run."""

from __future__ import annotations

import argparse
import importlib
import re
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

from launch.cli.parser import COMMANDS
from shards import cli as shards_cli
from shards.sources import SOURCES
from shards.sources.choose import AUTO

PLAIN = (".", "bash", "cd", "git", "ip", "pip", "sacct", "sbatch", "scancel", "scontrol", "slurm/devcluster/cluster")
NO_SHELL = ("python", "yaml", "text", "diff", "json", "{eval-rst}")


@dataclass(frozen=True)
class Block:
    """A fenced block; `mark` is the HTML comment on the line before it."""

    language: str
    code: str
    mark: str


def blocks(text: str) -> list[Block]:
    found = re.findall(r"(?:^<!-- (.*?) -->\n)?^```([\w{}-]*)\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL)
    return [Block(language, code, mark) for mark, language, code in found]


def commands(code: str) -> list[str]:
    """The commands of a shell block, one each: continuation lines joined, comments left out."""
    lines = [line.strip() for line in code.replace("\\\n", " ").splitlines()]
    return [line for line in lines if line and not line.startswith("#")]


def links(text: str) -> list[tuple[str, str]]:
    """(file, anchor) of every link that stays in the repository; the file is empty within a page."""
    prose = re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)
    targets = re.findall(r"\]\((?![a-z]+:)([^)\s]+)\)", prose)
    return [(file, anchor) for file, _, anchor in (target.partition("#") for target in targets)]


def anchors(text: str) -> set[str]:
    """What GitHub makes of the headings."""
    heads = re.findall(r"^#+ (.*)$", re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in heads}


def check(command: str, root: Path) -> None:
    """Raise unless a command can be typed: its parser takes it, and the files of the checkout that it names exist."""
    words = [word for word in shlex.split(command, comments=True) if not re.fullmatch(r"[A-Z_]+=.*", word)]
    program, *rest = words
    if program == "torchrun":
        first = next(i for i, word in enumerate(rest) if re.match(r"launch[./]", word))
        parse(rest[first].removesuffix(".py")[7:], rest[first + 1 :])
    elif program == "make":
        targets = re.findall(r"^([a-z-]+):", (root / "Makefile").read_text(), flags=re.MULTILINE)
        assert all(word in targets for word in rest), command
    elif program == "slurm/devcluster/cluster" and rest[:2] == ["exec", "python"]:
        check(shlex.join(rest[1:]), root)
    elif program == "toolkit":
        parse(rest[0], rest[1:])
    elif program == "python" and rest[:2] == ["-m", "shards"]:
        parse("shards", rest[2:])
    elif program == "python" and rest[:2] == ["-m", "pytest"]:
        assert all((root / word).exists() for word in rest[2:] if word.startswith("tests/")), command
    elif program == "python" and rest[0] == "-m" and rest[1].startswith("launch."):
        parse(rest[1].removeprefix("launch."), rest[2:])
    elif program == "python" and rest[0].startswith("launch/"):
        parse(rest[0].removesuffix(".py").removeprefix("launch/").replace("/", "."), rest[1:])
    elif program == "python" and rest[0].startswith(("benchmarks/", "docs/examples/")):
        assert (root / rest[0]).exists(), command
    else:
        assert program in PLAIN, f"{command}: nobody knows how to check {program}"


JOB = "jobs.job"  # what jobs run: typed where there is another scheduler


class _Parsed(BaseException):
    """Carries nothing: the arguments were taken."""


def parse(name: str, words: Sequence[str]) -> None:
    """Give words to the parser of a command, and stop there. Raises SystemExit where it refuses them."""
    if name == "shards":
        parser = shards_cli._parser(SOURCES)
        # What `auto` finds decides which options there are; a file of one's own is a source that isn't here.
        if words[:2] == ["convert", AUTO]:
            parser.parse_known_args(words)
        elif not (words[:1] == ["convert"] and words[1].endswith(".py")):
            parser.parse_args(words)
        return
    assert name in COMMANDS or name == JOB, f"{name} is no command"
    true_parse = argparse.ArgumentParser.parse_intermixed_args

    def parse_only(self: argparse.ArgumentParser, args: Sequence[str] | None = None) -> None:
        true_parse(self, args)
        raise _Parsed

    with mock.patch.multiple(argparse.ArgumentParser, parse_args=parse_only, parse_intermixed_args=parse_only):
        try:
            importlib.import_module(f"launch.{name}").main(list(words))
        except _Parsed:
            return
    raise AssertionError(f"{name} parses no arguments")


def pages(root: Path) -> Iterator[Path]:
    """What people read."""
    yield from (root / "README.md", root / "slurm" / "README.md", *sorted((root / "docs").glob("*.md")))
