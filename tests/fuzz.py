"""Every op with arguments drawn at random, in child processes that may die: python tests/fuzz.py --help

A case is the op's name, a seed and a number, and is drawn from these alone. A child works on cases one after the other
and says which; when it dies, or hangs, the parent knows at which, and goes on with the next. Results are compared with
float64 (fuzz_cases.py). DEEPLAB_FAST_ISA, ONEDNN_MAX_CPU_ISA and ATEN_CPU_CAPABILITY choose instruction sets.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
import traceback
from collections.abc import Sequence
from dataclasses import dataclass, field
from multiprocessing import get_context
from multiprocessing.connection import Connection
from random import Random

OPS = (
    "atrous_conv2d", "aspp_sum", "upsample_argmax", "upsample_softmax", "permutohedral_filter", "dense_crf",
    "pairwise_energy",
)  # fmt: skip
HANGS_AFTER = 120  # seconds


@dataclass
class Outcome:
    """What became of the cases of one op: the number that were right, and the others with what was found."""

    op: str
    right: int = 0
    wrong: list[tuple[int, str]] = field(default_factory=list)
    crashed: list[tuple[int, str]] = field(default_factory=list)
    isa: str = ""

    def __str__(self) -> str:
        cases = self.right + len(self.wrong) + len(self.crashed)
        return f"{self.op}: {cases} cases, {len(self.crashed)} crashes, {len(self.wrong)} wrong ({self.isa})"


def fuzz(op: str, cases: Sequence[int], seed: int, threads: int = 1, progress: bool = False) -> Outcome:
    """Run these cases of the op, in child processes."""
    outcome, began, remaining = Outcome(op), time.monotonic(), list(cases)
    while remaining:
        ours, theirs = get_context("spawn").Pipe(duplex=False)
        child = get_context("spawn").Process(target=work, args=(theirs, op, remaining, seed, threads), daemon=True)
        child.start()
        theirs.close()
        done = 0
        try:
            outcome.isa = ours.recv() if ours.poll(HANGS_AFTER) else outcome.isa
            while done < len(remaining) and ours.poll(HANGS_AFTER):
                problem = ours.recv()
                if problem is None:
                    outcome.right += 1
                else:
                    outcome.wrong.append((remaining[done], problem))
                    print(f"{op} --seed {seed} --case {remaining[done]}: {problem}", file=sys.stderr)
                done += 1
                if progress and done % 500 == 0:
                    print(f"{op}: {done} of {len(remaining)}, {time.monotonic() - began:.0f} s", file=sys.stderr)
        except EOFError:
            pass
        if done < len(remaining):
            child.kill()
            child.join()
            end = f"hung, or ended with {child.exitcode}"
            outcome.crashed.append((remaining[done], end))
            print(f"{op} --seed {seed} --case {remaining[done]}: the process {end}", file=sys.stderr)
            done += 1
        child.join()
        remaining = remaining[done:]
    return outcome


def work(connection: Connection, op: str, cases: Sequence[int], seed: int, threads: int) -> None:
    """The child: for each case None, or what is wrong."""
    import torch
    from fuzz_cases import OPS as FUNCTIONS

    torch.set_num_threads(threads)
    # Memory that nothing was written to is NaN.
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    draw, check = FUNCTIONS[op]
    connection.send(instruction_sets())
    for number in cases:
        case = draw(Random(f"{op} {seed} {number}"))
        try:
            check(case)
            problem = None
        except Exception as error:  # whatever the op raises is a finding
            where = traceback.extract_tb(error.__traceback__)[-1]
            place = f"{os.path.basename(where.filename)}:{where.lineno}"
            problem = f"{type(error).__name__}: {str(error)[:300]} ({place})\n  {case}"
        connection.send(problem)


def instruction_sets() -> str:
    """What our kernels, torch and oneDNN use here."""
    import torch

    from deeplab_fast import _native

    ours = _native.status()["numpy"].rpartition(" ")[2]
    onednn = os.environ.get("ONEDNN_MAX_CPU_ISA", "no limit")
    return f"kernels {ours}, torch {torch.backends.cpu.get_cpu_capability()}, oneDNN {onednn}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--op", action="append", choices=OPS, help="which; all unless given, and may be given again")
    parser.add_argument("--cases", type=int, default=20000, help="how many of each op")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--case", type=int, help="only this one, as a run with this seed printed it")
    parser.add_argument("--threads", type=int, default=1, help="that torch and the kernels use")
    options = parser.parse_args()
    cases = range(options.cases) if options.case is None else [options.case]
    failed = False
    for op in options.op or OPS:
        outcome = fuzz(op, cases, options.seed, options.threads, progress=True)
        print(f"{outcome}, seed {options.seed}, {options.threads} threads", flush=True)
        failed |= bool(outcome.wrong or outcome.crashed)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
