"""What a file calls the entries that a message is about, for whoever has that file before them.

Published names differ from ours, and each file has its own wrappers and prefixes around them. So an entry that is in a
file is told by its name there, one that is missing by the name that its neighbours make likely, and ours stands beside
where it is another.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

from torch import Tensor

Shape = tuple[int, ...]
FIRST = "patch_embed.proj.weight"  # beside it stand an encoder's tokens and positions
OUTSIDE = "mask_token"  # alone stands beside the encoder


class FileNames:
    """The names of a file's entries, by the plain ones under which they are looked for; without a file the same."""

    def __init__(self, names: Iterable[str] = (), plain: Callable[[str], str] = str) -> None:
        """Take the names of a file and what makes one plain. Raises ValueError where two of them become one."""
        self.there: dict[str, str] = {}
        for name in names:
            first = self.there.setdefault(plain(name), name)
            if first != name:
                raise ValueError(
                    f"a file holds each entry once, but {first} and {name} are the same one; leave one of them out"
                )

    def likely(self, name: str, otherwise: str = "") -> str:
        """Return the file's name of an entry by its plain name, or the one that it would have beside the others.

        Where no other begins alike, it stands beside the patch embedding if it is the encoder's own; else that is
        `otherwise`, or the name itself, behind what all names of the file begin with.
        """
        if name in self.there:
            return self.there[name]
        parts = name.split(".")
        for same in range(len(parts) - 1, 0, -1):
            begin, end = (".".join(part) for part in (parts[:same], parts[same:]))
            for plain, there in self.there.items():
                rest = plain.removeprefix(begin)
                if plain.startswith(f"{begin}.") and there.endswith(rest):
                    return f"{there.removesuffix(rest)}.{end}"
        if len(parts) == 1 and name != OUTSIDE and FIRST in self.there:
            return self.there[FIRST].removesuffix(FIRST) + name
        wrappers = sorted((there.removesuffix(plain) for plain, there in self.there.items()), key=len)
        shortest = wrappers[0] if wrappers else ""
        return (shortest if all(wrapper.startswith(shortest) for wrapper in wrappers) else "") + (otherwise or name)


class Entries(dict[str, Tensor]):
    """A file's tensors by plain name, to tell its model by: ValueError where one of those is missing or misshapen."""

    def __init__(self, state: Mapping[str, Tensor], names: FileNames | None = None) -> None:
        super().__init__(state)
        self.names = names or FileNames(state)

    def __missing__(self, name: str) -> Tensor:
        missing = self.names.likely(name)
        raise ValueError(f"not in the file: {missing}, by which its model is told; it is damaged, or of another model")

    def sizes(self, name: str, *axes: int) -> Shape:
        """Return the shape of an entry that has one of these numbers of axes."""
        shape = tuple(self[name].shape)
        if len(shape) not in axes:
            numbers, entry = " or ".join(map(str, axes)), self.names.likely(name)
            raise ValueError(
                f"other shapes: {entry}, by which the model is told, must have {numbers} axes, but is {shape}"
            )
        return shape


@dataclass(frozen=True)
class Filed:
    """What a file calls a task's parameters, by our names, and its entries' shapes; empty: as the task has them."""

    names: Mapping[str, str] = field(default_factory=dict)
    shapes: Mapping[str, Shape] = field(default_factory=dict)

    def grouped(self, ours: Iterable[str]) -> dict[str, list[str]]:
        """Return our names by the file's: queries, keys and values may be one entry there."""
        found: dict[str, list[str]] = {}
        for name in ours:
            found.setdefault(self.names.get(name, name), []).append(name)
        return found

    def told(self, ours: Iterable[str]) -> list[str]:
        """Return each entry's name in the file, with ours beside where it is another."""
        return [_beside(there, here) for there, here in self.grouped(ours).items()]

    def misshapen(self, state: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> list[str]:
        """Return the entries of `state` (names ours) that are not shaped as the model's, with both shapes."""
        wrong = {name for name in own.keys() & state.keys() if own[name].shape != state[name].shape}
        told = []
        for there, here in self.grouped(own).items():
            if wrong.isdisjoint(here):
                continue
            shape = self.shapes.get(there) or tuple(state[min(wrong.intersection(here))].shape)
            rows = sum(len(own[name]) for name in here) if here[1:] else 0
            expected = (rows, *own[here[0]].shape[1:]) if rows else tuple(own[here[0]].shape)
            told.append(f"{_beside(there, here)}: {shape} in the file, {expected} in the model")
        return sorted(told)


def _beside(there: str, here: list[str]) -> str:
    return there if here == [there] else f"{there} (ours: {', '.join(here)})"
