"""Which of several results are best when more than one score counts: the Pareto front, and its knee."""

from collections.abc import Mapping, Sequence


def dominates(one: Sequence[float], other: Sequence[float]) -> bool:
    """Return whether `one` is nowhere below `other` and somewhere above it; larger is better."""
    return all(a >= b for a, b in zip(one, other, strict=True)) and any(a > b for a, b in zip(one, other, strict=True))


def front(points: Mapping[str, Sequence[float]]) -> list[str]:
    """Return the names of the points that no other dominates, in the order given."""
    return [name for name, point in points.items() if not any(dominates(other, point) for other in points.values())]


def knee(points: Mapping[str, Sequence[float]]) -> str:
    """Return the point of the front nearest to the best of every score, each scaled to the range it has there.

    Of equals the first is returned, and of one score the best.
    """
    names = front(points)
    ends = [(min(axis), max(axis)) for axis in zip(*(points[name] for name in names), strict=True)]

    def distance(name: str) -> float:
        return sum(
            ((high - value) / (high - low) if high > low else 0.0) ** 2
            for value, (low, high) in zip(points[name], ends, strict=True)
        )

    return min(names, key=distance)
