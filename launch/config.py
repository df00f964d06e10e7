"""Print every key of a config with its type, bounds, default and meaning. Does not import torch."""

from __future__ import annotations

from collections.abc import Sequence

from launch.cli.parser import make_parser, run_script
from toolkit.config.reference import as_markdown, as_text
from toolkit.errors import EXIT_OK, ConfigError

EXAMPLES = """\
  python launch/config.py --keys                  # all keys
  python launch/config.py --keys train.checkpoint # those of a section
  python launch/config.py --keys --markdown       # docs/config-keys.md"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the script; returns the exit code."""
    parser = make_parser("config.py", "Print the keys of a config: type, bounds, default, meaning.", EXAMPLES)
    parser.add_argument("--keys", nargs="?", const="", required=True, metavar="PREFIX", help="keys that begin so")
    parser.add_argument("--markdown", action="store_true", help="the whole reference as Markdown")
    arguments = parser.parse_args(argv)
    if arguments.markdown and arguments.keys:
        raise ConfigError(f"--keys {arguments.keys} --markdown: the Markdown has all keys: leave one out")
    text = as_markdown().rstrip() if arguments.markdown else as_text(arguments.keys)
    if len(text.splitlines()) < 2:
        raise ConfigError(f"--keys {arguments.keys}: no key begins so; --keys alone prints all")
    print(text)
    return EXIT_OK


if __name__ == "__main__":
    run_script(main)
