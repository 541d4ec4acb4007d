"""The command ``adafilter``: one verb a file in ``commands/``."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Sequence

from adafilter_dist.errors import UserError, nearest, shown
from adafilter_dist.system.exit_code import exit_code
from adafilter_dist.system.openmp import set_wait_policy
from adafilter_dist.version import __version__

set_wait_policy()  # before torch is imported

VERBS = (
    *("prepare", "train", "resume", "submit", "status", "logs", "rm"),
    *("compare", "evaluate", "report", "predict", "export", "compact", "inspect", "doctor"),
    "completion",
)


def _helps() -> dict[str, str]:
    """The verbs, each with what it is for."""
    modules = {verb: importlib.import_module(f"adafilter_dist.commands.{verb}") for verb in VERBS}
    return {verb: module.HELP for verb, module in modules.items()}


def _usage() -> str:
    lines = ["usage: adafilter VERB [recipe=NAME] [key=value ...]", ""]
    lines += [f"  {verb:<10} {help}" for verb, help in _helps().items()]
    lines += ["", "e.g. adafilter train recipe=demo optim.lr=0.02"]
    lines += ["adafilter VERB --help says more; adafilter --version tells the version."]
    return "\n".join(lines)


# What other tools call it.
_OTHER_NAMES = {
    **dict.fromkeys(("run", "fit", "start", "finetune", "fine-tune"), "train"),
    **dict.fromkeys(("continue", "restart"), "resume"),
    **dict.fromkeys(("sbatch", "slurm", "launch", "sweep"), "submit"),
    **dict.fromkeys(("ls", "list", "ps", "queue", "show"), "status"),
    **dict.fromkeys(("log", "tail", "follow"), "logs"),
    **dict.fromkeys(("delete", "remove", "clean"), "rm"),
    **dict.fromkeys(("eval", "test", "validate"), "evaluate"),
    **dict.fromkeys(("infer", "classify", "inference"), "predict"),
    **dict.fromkeys(("page", "html", "plot", "dashboard"), "report"),
    **dict.fromkeys(("info", "summary", "describe"), "inspect"),
    **dict.fromkeys(("download", "fetch", "data"), "prepare"),
    **dict.fromkeys(("check", "env", "version", "info-env"), "doctor"),
}


def _no_verb(word: str, rest: Sequence[str]) -> str:
    """What to say of a first word that is no verb: the verb, or the command, that was meant."""
    from adafilter_dist.recipe.find import recipe_names
    from adafilter_dist.recipe.keys import means_recipe

    verb = next((known for known in VERBS if known == word.strip("-").lower()), "")
    verb = verb or _OTHER_NAMES.get(word.strip("-").lower(), "")
    if not verb and word.rstrip(",") in recipe_names():
        return f"{shown(word)}: a verb comes first: adafilter train recipe={word.rstrip(',')}"
    key, sign, value = word.partition("=")
    if sign or (means_recipe(key) and rest):
        right = f"recipe={value or rest[0]}" if means_recipe(key) else word
        return f"{shown(word)}: a verb comes first, e.g. adafilter train {shown(right)}"
    hint = f" (did you mean {verb!r}?)" if verb else nearest(word, VERBS)
    return f"{shown(word)!r} is not a verb{hint}; there are: {', '.join(VERBS)}"


def main(words: Sequence[str] | None = None) -> int:
    """Run a verb; 0 done, 1 bug (with traceback), 2 bad input, 75 stopped and resumable."""
    words = list(sys.argv[1:] if words is None else words)
    if "_ARGCOMPLETE" in os.environ:  # a shell asks what may come next; see commands/completer.py
        from adafilter_dist.commands.completer import begin

        words = [begin(_helps)]
    verb, rest = (words[0], words[1:]) if words else ("", [])

    def command() -> int:
        if verb in ("", "-h", "--help", "help"):
            print(_usage())
            return 0 if verb else 2
        if verb == "--version":
            print(__version__)
            return 0
        if verb not in VERBS:
            raise UserError(_no_verb(verb, rest))
        module = importlib.import_module(f"adafilter_dist.commands.{verb}")
        return int(module.run(rest))

    return exit_code(command)


if __name__ == "__main__":
    sys.exit(main())
