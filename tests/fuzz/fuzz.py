"""Every op with arguments drawn at random, in child processes that may die: python tests/fuzz/fuzz.py --help

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
from importlib import import_module
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from random import Random

OPS = (
    "atrous_conv2d", "aspp_sum", "upsample_argmax", "upsample_softmax", "permutohedral_filter", "dense_crf",
    "pairwise_energy",
)  # fmt: skip
HANGS_AFTER = 600  # seconds: a machine may be busy
sys.path.append(str(Path(__file__).resolve().parents[1] / "support"))


@dataclass
class Started:
    """A child's first message."""

    isa: str


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


def fuzz(
    op: str, cases: Sequence[int], seed: int, threads: int = 1, progress: bool = False, module: str = "fuzz_cases"
) -> Outcome:
    """Run these cases of the op, in child processes; `module` has what draws and checks them."""
    outcome, remaining = Outcome(op), list(cases)
    while remaining:
        done, end = _work_until_the_end(outcome, remaining, seed, threads, progress, module)
        if done < len(remaining):
            outcome.crashed.append((remaining[done], end))
            print(f"{op} --seed {seed} --case {remaining[done]}: {end}", file=sys.stderr)
            done += 1
        remaining = remaining[done:]
    return outcome


def _work_until_the_end(
    outcome: Outcome, cases: Sequence[int], seed: int, threads: int, progress: bool, module: str
) -> tuple[int, str]:
    """One child, from the first case until all are done, or it dies: how many are done, and how it ended."""
    context, began, done = get_context("spawn"), time.monotonic(), 0
    ours, theirs = context.Pipe(duplex=False)
    child = context.Process(target=work, args=(theirs, outcome.op, cases, seed, threads, module), daemon=True)
    child.start()
    theirs.close()
    try:
        while done < len(cases) and ours.poll(HANGS_AFTER):
            message = ours.recv()
            if isinstance(message, Started):
                outcome.isa = message.isa
                continue
            if message is None:
                outcome.right += 1
            else:
                outcome.wrong.append((cases[done], message))
                print(f"{outcome.op} --seed {seed} --case {cases[done]}: {message}", file=sys.stderr)
            done += 1
            if progress and done % 1000 == 0:
                seconds = time.monotonic() - began
                print(f"{outcome.op}: {done} of {len(cases)}, {seconds:.0f} s", file=sys.stderr)
        if done < len(cases):
            child.kill()
            return done, f"hung for {HANGS_AFTER} s"
    except EOFError:
        pass
    finally:
        ours.close()
        child.join()
    return done, f"the process ended with {child.exitcode}"


def work(connection: Connection, op: str, cases: Sequence[int], seed: int, threads: int, module: str) -> None:
    """The child: for each case None, or what is wrong."""
    import torch

    torch.set_num_threads(threads)
    # Memory that nothing was written to is NaN.
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    draw, check = import_module(module).OPS[op]
    connection.send(Started(instruction_sets()))
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
