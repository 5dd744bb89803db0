"""Where in a file the weights of a model are: the prefix that its names have there, found by comparing names."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from torch import Tensor

from deeplab_fast.models import imagenet

MSC = "base."  # before the names of a network in `deeplab_fast.nn.MSC`
COUNTER = ".num_batches_tracked"  # absent from older files, and used by no model
# What torch.compile, FSDP and activation checkpointing put into names, wherever they wrap a part.
_WRAPPED = ("_orig_mod.", "_fsdp_wrapped_module.", "_checkpoint_wrapped_module.")
_LAYOUT_MARKS = ("layer1.0.conv1.weight", "features.28.weight")  # of torchvision's networks, see `imagenet.layout`

_ADVICE = {
    "classifier": "pass classifier='fresh' to leave these layers as they are",
    "accept_stride": "make it with stride_in_3x3=True, or load with accept_stride=True",
    "key": "pass key= to say which",
}


class WeightsError(ValueError):
    """Weights that do not fit a model, or of which it is not clear which are meant.

    Attributes:
        reason: what is wrong.
        remedy: the argument of `load_weights` that would help, if one does.
    """

    def __init__(self, reason: str, remedy: str | None = None):
        self.reason, self.remedy = reason, remedy
        super().__init__(f"{reason}; {_ADVICE[remedy]}" if remedy else reason)

    def advising(self, advice: Mapping[str, str]) -> ValueError:
        """The same error for callers that have other means, a sentence for each remedy."""
        if self.remedy is None or self.remedy not in advice:
            return ValueError(self.reason)
        return ValueError(f"{self.reason}; {advice[self.remedy]}")


def plain(name: str) -> str:
    """A name without what wrappers put into it."""
    for wrapped in _WRAPPED:
        name = name.replace(wrapped, "")
    return name


def find_prefix(
    path: Path, state: Mapping[str, Tensor], own: Mapping[str, Tensor], key: str | None
) -> tuple[str, list[str]]:
    """What stands in the file before the names of the model, without `base.`: "state_dict.module." for example.

    It is that under which most of the model's tensors are, by name and shape; or under which there is one of
    torchvision's networks, if it holds less than half of the names.

    Args:
        path: for errors.
        state: of the file, its names `plain`.
        own: the model's.
        key: which, of more than one: see `load_weights`.

    Returns:
        the prefix, and notes: of others that hold more than half of the names.

    Raises:
        WeightsError: if more than one have equally many, and hold different numbers; or none has the key.
    """
    shapes = {name.removeprefix(MSC): tensor.shape for name, tensor in own.items() if not name.endswith(COUNTER)}
    named: Counter[str] = Counter()
    fitting: Counter[str] = Counter()
    for name, tensor in state.items():
        for prefix, rest in _splits(name):
            if rest in shapes:
                named[prefix] += 1
                fitting[prefix] += tensor.shape == shapes[rest]
    found = {prefix: (fitting[prefix], named[prefix]) for prefix in named}
    if not found or 2 * max(named.values()) < len(shapes):
        found = {prefix: (len(shapes), len(shapes)) for prefix in _of_torchvision(state)} or found
    if key is not None:
        found = _with_key(path, found, key)
    elif not found:
        return "", []
    most = max(found.values())
    best = [prefix for prefix in found if found[prefix] == most]
    # Of another network, some names agree by chance: what is missing says more.
    if len(best) > 1 and 2 * most[1] >= len(shapes) and not _same(state, best):
        raise several(path, best)
    others = [prefix for prefix in found if prefix not in best and 2 * found[prefix][1] >= len(shapes)]
    if not others:
        return best[0], []
    chosen, *less = map(repr, _labels([best[0], *others]))
    return best[0], [f"weights under {chosen} taken; those under {' and '.join(less)} fit less"]


def _splits(name: str) -> Iterable[tuple[str, str]]:
    """A dotted name cut before each of its parts."""
    start = 0
    while True:
        yield name[:start], name[start:]
        start = name.find(".", start) + 1
        if start == 0:
            return


def _of_torchvision(state: Mapping[str, Tensor]) -> list[str]:
    prefixes = [prefix for name in state for prefix, rest in _splits(name) if rest in _LAYOUT_MARKS]
    return [prefix for prefix in prefixes if imagenet.layout(under(state, prefix)) is not None]


def under(state: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """What has the prefix, without it."""
    return {name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)}


def has_key(prefix: str, key: str) -> bool:
    """Whether the dotted parts of `key` follow each other among those of the prefix."""
    return f".{key}." in f".{prefix}"


def _with_key(path: Path, found: dict[str, tuple[int, int]], key: str) -> dict[str, tuple[int, int]]:
    exact = f"{key}." if key else ""
    if exact in found:
        return {exact: found[exact]}
    chosen = {prefix: count for prefix, count in found.items() if has_key(prefix, key)}
    if not chosen:
        most = max((named for _, named in found.values()), default=0)
        places = _labels([prefix for prefix, (_, named) in found.items() if 2 * named >= most])
        there = f"there are weights under {', '.join(map(repr, places))}" if places else "there are none for the model"
        raise WeightsError(f"weights {path}: has none for the model under the key {key!r}; {there}")
    return chosen


def _same(state: Mapping[str, Tensor], prefixes: Sequence[str]) -> bool:
    first, *others = (under(state, prefix) for prefix in prefixes)
    return all(
        other.keys() == first.keys()
        and all(other[name].dtype == first[name].dtype and other[name].equal(first[name]) for name in first)
        for other in others
    )


def several(path: Path, prefixes: Sequence[str]) -> WeightsError:
    """The error of weights that are there more than once."""
    return WeightsError(
        f"weights {path}: holds weights for the model under {' and '.join(map(repr, _labels(prefixes)))}", "key"
    )


def _labels(prefixes: Sequence[str]) -> list[str]:
    """The keys that tell prefixes apart: without the parts that all of them begin and end with, and `base.`."""
    parts = [prefix.split(".")[:-1] for prefix in prefixes]
    parts = [one[:-1] if len(one) > 1 and one[-1] in ("base", "scale") else one for one in parts]
    if len(parts) > 1:
        for index in (-1, 0):
            while all(len(one) > 1 for one in parts) and len({one[index] for one in parts}) == 1:
                for one in parts:
                    del one[index]
    return [".".join(one) for one in parts]
