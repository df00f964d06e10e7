"""Public text uses the standard terms of the field: strings, --help, docs, config comments and report templates."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.markdown import pages
from tests.support.process import ROOT

# Pattern -> the standard term. Case is ignored; word boundaries keep other uses (floor(x), 0.1 s, stand-alone) allowed.
TERMS = {
    r"\bwhat came\b(?! from| in)": "observation",
    r"\bless truth\b|\btruth less\b": "error (forecast - observation)",
    r"\brepeat(?:s|ed|ing)? the last frame\b": "persistence",
    r"\btoo sure\b": "under-dispersive",
    r"\bendlessly many\b": "infinite ensemble",
    r"\bfloors?\b(?!\(| *division)": "baseline",
    r"\bwith(?:out)? chance\b": "stochastic, deterministic",
    r"\bforecasts of each sequence\b(?! in)": "ensemble size",
    r"\bsaid\b|\btold\b(?! apart)": "logged, reported",
    r"\bfor ever\b": "permanently",
    r"\bso many\b": "N, this many",
    r"\bwithout a (?:last )?word\b|\blast words?\b": "without a final status; exit reason",
    r"\bkilled as if\b": "killed by the out-of-memory killer",
    r"\b(?:go|goes|went|gone|going) on\b(?! to the page)": "resume, continue",
    r"\bstay, and\b": "watch the folder",
    r"\bwhat (?:a|the) run will need\b": "resource estimate",
    r"\banew\b": "again, regenerate",
    r"\bmend(?:s|ed|ing)?\b": "fix",
    r"\b(?:what )?(?:came|comes|come) of\b|\bbecomes? of\b": "results, what happens to",
    r"\b(?:laid|lay|lays) (?:on|over|onto)\b": "merged, applied",
    r"\bwho am I\b": "distributed context",
    r"\bwhat a run tells\b": "metrics logging",
    r"\bvouch(?:es|ed)?\b": "check",
    r"\bthe \d+\. of (?:this|that|the) run\b": "the first in this run",
    r"(?<![\w.,:-])(?<!- )1 (?:runs|ranks|windows|samples|sequences|frames|seeds|jobs|nodes|steps)\b": "count()",
    r"\bby its paper's text\b": "from the paper",
    r"\bchose nothing\b": "never used for model selection",
    r"\bthe house\b|\bbeside others\b|\btake it for\b": "repository layout, comparison, best suited for",
    r"\bleads? nowhere\b": "does not exist",
    r"\bcan't meet\b|\bcannot meet\b": "cannot rendezvous",
    r"\bhasn't got\b|\baren't yours\b|\bbelongs into\b": "lacks, need not, belongs in",
    r"\bby heart\b|\bfor nothing\b": "overfit, for free",
    r"\bsome seconds each\b|\bscore apart\b": "a few seconds, evaluate separately",
    r"\bpassed over\b|\bthe text is open\b": "skipped, ambiguous",
    r"\bchosen by the truth\b": "selected using the observation",
    r"\bnothing like (?:it|them) has run\b": "no comparable run",
}
# Identifier -> its replacement.
NAMES = {
    "call_out": "set_flag", "heard": "is_flag_set", "whole": "gathered_parameters", "_agree": "_reduce_step_status",
    "_sound_gradients": "_gradients_are_finite", "to_the_end": "fit", "introduce": "log_run_summary",
    "OwnTime": "ForwardTimer", "survey": "collect_status", "foresee": "estimate", "conclude": "report_outcome",
    "Unwritten": "UninitialisedNoise", "_at_rest": "_is_final", "_take_over": "_acquire_lock",
    "_vouch": "_evaluate_and_mark_done", "last_words": "exit_reason", "say": "logger", "Say": "logger", "tell": "log",
    "together": "run_on_rank_zero",
}  # fmt: skip
CODE = sorted(file for package in ("launch", "shards", "toolkit") for file in (ROOT / package).rglob("*.py"))


def strings(file: Path) -> Iterator[tuple[int, str]]:
    """Yield (line, text) of all strings of a module, docstrings included; values that are filled in become `…`."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.JoinedStr):
            parts = (str(part.value) if isinstance(part, ast.Constant) else "…" for part in node.values)
            yield node.lineno, "".join(parts)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.lineno, node.value


def lines(file: Path, comments: bool = False) -> Iterator[tuple[int, str]]:
    """Yield (line, text) of a text file; of YAML and shell scripts only the comments."""
    for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), 1):
        text = line.partition("#")[2] if comments else line
        if text:
            yield number, text


def texts() -> Iterator[tuple[Path, Iterator[tuple[int, str]]]]:
    """Yield every file with its public text."""
    yield from ((file, strings(file)) for file in CODE)
    yield from ((page, lines(page)) for page in pages(ROOT))
    yield from ((file, lines(file)) for file in sorted((ROOT / "toolkit").rglob("templates/*.html")))
    for folder, kind in (("configs", "*.yaml"), ("slurm/profiles", "*.yaml"), ("launch", "*.sh")):
        yield from ((file, lines(file, comments=True)) for file in sorted((ROOT / folder).rglob(kind)))


def found_terms(file: Path, text: Iterator[tuple[int, str]]) -> list[str]:
    return [
        f"{file.relative_to(ROOT)}:{line}: {match[0]!r}: {better}"
        for line, part in text
        for pattern, better in TERMS.items()
        for match in [re.search(pattern, " ".join(part.split()), re.IGNORECASE)]
        if match
    ]


def test_public_text_uses_standard_terms() -> None:
    files = list(texts())
    assert len(files) > 60
    wrong = [fault for file, text in files for fault in found_terms(file, text)]
    assert not wrong, "\n".join(wrong)


def defined_names(file: Path) -> Iterator[tuple[int, str]]:
    """Yield (line, name) of the functions, classes and parameters of a module."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield node.lineno, node.name
        elif isinstance(node, ast.arg):
            yield node.lineno, node.arg


def test_names_are_standard_terms() -> None:
    wrong = [
        f"{file.relative_to(ROOT)}:{line}: {name}: {NAMES[name]}"
        for file in CODE
        for line, name in defined_names(file)
        if name in NAMES and not (name in ("together", "whole") and file.is_relative_to(ROOT / "shards"))
    ]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize(
    ("text", "is_wrong"),
    [
        ("the run goes on", True),
        ("is said and tried again", True),
        ("1 ranks x 1 x 8", True),
        ("kept for ever", True),
        ("floor(255 x)", False),
        ("a stand-alone page, mean ± std", False),
        ("11 ranks, 0.1 runs", False),
        ("recommended", False),
    ],
)
def test_patterns_are_precise(text: str, is_wrong: bool) -> None:
    assert any(re.search(pattern, text, re.IGNORECASE) for pattern in TERMS) == is_wrong
