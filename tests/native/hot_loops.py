"""Reads a disassembly (objdump -dC, 64-bit ARM): the dense CRF's innermost loops over points, of slice and splat.

Exit code 1 if one of them keeps a vector on the stack, or none is found.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from typing import NamedTuple

MOVES = {"ldr", "str", "ldp", "stp", "ldur", "stur"}
FEWEST = 6  # multiply-adds of a loop over points


class Instruction(NamedTuple):
    address: int
    name: str
    operands: str


def functions(lines: Iterator[str]) -> dict[str, list[Instruction]]:
    """Instructions by function."""
    found: dict[str, list[Instruction]] = {}
    name = ""
    for line in lines:
        if start := re.match(r"[0-9a-f]+ <(.*)>:$", line):
            name = start[1]
        elif instruction := re.match(r"\s+([0-9a-f]+):\s+(\S+)\s*(.*)$", line):
            found.setdefault(name, []).append(Instruction(int(instruction[1], 16), instruction[2], instruction[3]))
    return found


def innermost_loops(body: list[Instruction]) -> list[list[Instruction]]:
    """From the target of a backward jump to the jump, without another such inside."""
    at = {instruction.address: index for index, instruction in enumerate(body)}
    loops = []
    for index, (_, name, operands) in enumerate(body):
        target = re.search(r"([0-9a-f]+) <", operands)
        if (name == "b" or name.startswith(("b.", "cb", "tb"))) and target:
            begin = at.get(int(target[1], 16), index + 1)
            if begin <= index:
                loops.append((begin, index))
    return [body[a : b + 1] for a, b in loops if not any((c, d) != (a, b) and a <= c and d <= b for c, d in loops)]


def main() -> int:
    """The table; 1 if a loop spills."""
    found, spilling = 0, 0
    for function, body in functions(iter(sys.stdin)).items():
        if not re.search(r"(Slice|Splat)Kernel::\w+<\d+>|splat_lanes<|slice_lanes<", function):
            continue
        for loop in innermost_loops(body):
            adds = sum(one.name in ("fmla", "fmul") for one in loop)
            vectors = sum(one.name in MOVES and "[sp" in one.operands and one.operands[0] == "q" for one in loop)
            if adds < FEWEST:
                continue
            found, spilling = found + 1, spilling + (vectors > 0)
            if vectors:
                print(f"{adds} multiply-adds, {len(loop)} instructions, {vectors} vectors on the stack: {function}")
    print(f"{found} loops over points, {spilling} with vectors on the stack")
    return int(spilling > 0 or found == 0)


if __name__ == "__main__":
    sys.exit(main())
