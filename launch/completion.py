"""Print a completion of the command `toolkit` for bash: its commands, their options, and files."""

from __future__ import annotations

import contextlib
import importlib
import io
import re
from collections.abc import Sequence

from launch.cli.parser import COMMANDS, make_parser, run_script
from toolkit.errors import EXIT_OK

EXAMPLES = """\
  python launch/completion.py        # save it as FILE, and in ~/.bashrc: source FILE"""
SCRIPT = """\
# bash completion of `toolkit`, made by `toolkit completion`.
_toolkit() {{
  local word=${{COMP_WORDS[COMP_CWORD]}} words=
  if ((COMP_CWORD == 1)); then
    words="{commands} --help --version"
  else
    case ${{COMP_WORDS[1]}} in
{cases}
    esac
    [[ $word == -* ]] || words=
  fi
  mapfile -t COMPREPLY < <(compgen -W "$words" -- "$word")
}}
complete -o default -o bashdefault -F _toolkit toolkit
"""


def options_of(name: str) -> list[str]:
    """Return the long options of a command, from its help."""
    module = importlib.import_module("shards.cli" if name == "shards" else f"launch.{name}")
    shown = io.StringIO()
    with contextlib.redirect_stdout(shown), contextlib.suppress(SystemExit):
        module.main(["--help"])
    text = shown.getvalue().partition("\nexamples:\n")[0]
    heads = re.findall(r"^ {1,4}(-.*?)(?:  |$)", text, re.MULTILINE)  # an option's names, before its help
    return sorted({*re.findall(r"--[a-z][a-z-]+", " ".join(heads)), "--help"})


def main(argv: Sequence[str] | None = None) -> int:
    """Run the script; returns the exit code."""
    make_parser("completion.py", "Print a completion of the command toolkit for bash.", EXAMPLES).parse_args(argv)
    cases = [f'      {name}) words="{" ".join(options_of(name))}" ;;' for name in COMMANDS if name != "completion"]
    print(SCRIPT.format(commands=" ".join(COMMANDS), cases="\n".join(cases)), end="")
    return EXIT_OK


if __name__ == "__main__":
    run_script(main)
