"""What the pages hold and no test runs: the one list, each with its reason.

A pattern is matched with a command from its beginning to its end, or with the first line of a block
that is no command. One that matches nothing any more fails a test.
"""

from __future__ import annotations

import re
from collections import Counter

from tests.documented.pages import Block, Command

MARKS = {
    # commands
    r"git clone URL adafilter-dist": "needs the network, and URL is not said",
    r"cd adafilter-dist": "the shell's",
    r"source \.venv/bin/activate": "for the shell; tests/test_setup.py makes such a folder",
    r"sudo (apt-get|dnf) install .*": "installs into the system, by root",
    r"conda install .*": "needs conda and the network",
    r"pip wheel --no-deps ffcv": "compiles FFCV for minutes",
    r"uv pip compile .*": "asks the registry for all newest versions, and writes them down",
    r"uv cache prune": "removes from the cache of whoever runs the tests",
    r"pip install pillow-heif": "a reader of one format; the pictures of the tests need none",
    r"scancel 4242": "needs a cluster's job; tests/cluster cancels real ones",
    r"sbatch --test-only": "what `adafilter submit` asks by itself; tests/cluster",
    r"python tools/keys_page\.py": "writes docs/keys.md; tests/recipe/test_keys_page.py",
    r"python examples/\w+\.py .*": "needs weights; tests/methods/test_own_loop.py",
    r'eval "\$\(adafilter completion bash\)" .*': "the shell's; tests/commands/test_completion.py",
    r"adafilter completion fish \| source.*": "the shell's; tests/commands/test_completion.py",
    # blocks
    r"flowchart TD": "a drawing",
    r"picture\.jpg +Pullover .*": "printed by `adafilter predict --explain`",
    r"submitted job 4242: .*": "printed by a submission",
    r"RUN +STATE +STEP .*": "printed by `adafilter status`",
    r"\.\.\.": "printed by `adafilter status RUN`",
    r"failed: rank 3 on node7 hung in .*": "printed by `adafilter status RUN`",
    r"engine\.config: zero_optimization\.stage=3, .*": "messages",
    r"rank 3 on n2 cannot reach rank 0 .*": "messages",
    r"P = sqrt\(2 cost mtbi\) .*": "a formula",
    r"ROOT/train/CLASS/\*\.jpg .*": "a layout of folders",
}


def mark_of(place: Command | Block) -> str | None:
    """The pattern that a command or block is marked by."""
    line = place.text.splitlines()[0]
    return next((pattern for pattern in MARKS if re.fullmatch(pattern, line)), None)


def marked(places: list[Command] | list[Block]) -> Counter[str]:
    """How many places each pattern marks."""
    return Counter(pattern for place in places if (pattern := mark_of(place)))
