"""``adafilter completion``: the script with which a shell completes what is typed, on TAB."""

from __future__ import annotations

from adafilter_dist.commands.parser import Parser

HELP = "TAB in bash, zsh or fish: verbs, options, recipes, keys and runs"

_MORE = """\
bash    in ~/.bashrc: eval "$(adafilter completion bash)"
zsh     in ~/.zshrc, after compinit: eval "$(adafilter completion zsh)"
fish    in ~/.config/fish/config.fish: adafilter completion fish | source"""


def run(words: list[str]) -> int:
    """Parse ``bash | zsh | fish`` and print the script."""
    parser = Parser(
        prog="adafilter completion",
        description="Print the script with which a shell completes verbs, options, recipes, keys "
        "and their values, and run folders, on TAB.",
        examples=["adafilter completion bash"],
        more=_MORE,
    )
    parser.add_argument("shell", choices=("bash", "zsh", "fish"))
    shell = parser.parse_args(words).shell
    import argcomplete

    print(argcomplete.shellcode(["adafilter"], shell=shell), end="")
    return 0
