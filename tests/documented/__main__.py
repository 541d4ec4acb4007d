"""python -m tests.documented: every documented command, and how it is tried."""

from __future__ import annotations

from collections import Counter

from tests.documented.marks import MARKS, mark_of
from tests.documented.pages import collected
from tests.documented.ways import way_of

commands, blocks = collected()
ways = {command.text: way_of(command) for command in commands}
for command in commands:
    way = ways[command.text]
    print(f"{way.name if way else 'NOT AT ALL':10} {command}")
python = sum(block.is_python for block in blocks)
print(f"\n{len(commands)} different commands; {python} of {len(blocks)} other blocks are Python")
for way, count in Counter(ways.values()).most_common():
    print(f"{count:4}  {way.name}: {way}" if way else f"{count:4}  not tried at all")
print("\nnot run:")
for place in (*commands, *blocks):
    if pattern := mark_of(place):
        print(f"  {place}: {MARKS[pattern]}")
