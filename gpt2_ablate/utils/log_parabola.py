"""Where a curve that was measured at a few places is lowest, judged by a parabola over the logarithm of the place."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Lowest:
    """A place, and the curve's value there."""

    x: float
    y: float


def lowest(points: Mapping[float, float]) -> Lowest | None:
    """The lowest point of the parabola in log(x) through the three points around the lowest of all.

    It stays within the places that were measured, and has three significant digits. Of fewer than three points, or where the
    parabola opens downwards, it is the lowest measured. Values that are not finite do not count; None where no other is left.

    Args:
        points: x -> y, every x above 0.
    """
    known = sorted((x, y) for x, y in points.items() if math.isfinite(y))
    if not known:
        return None
    n = min(range(len(known)), key=lambda n: known[n][1])
    measured, edges = Lowest(*known[n]), (known[0][0], known[-1][0])
    first = min(max(n - 1, 0), max(len(known) - 3, 0))
    if len(near := known[first : first + 3]) < 3:
        return measured
    # Newton's form: y = y0 + slope (t - t0) + curvature (t - t0) (t - t1) with t = log x, exact where points are equal.
    (t0, y0), (t1, y1), (t2, y2) = ((math.log(x), y) for x, y in near)
    slope = (y1 - y0) / (t1 - t0)
    curvature = ((y2 - y1) / (t2 - t1) - slope) / (t2 - t0)
    if not 0 < curvature < math.inf:
        return measured
    bottom = (t0 + t1) / 2 - slope / (2 * curvature)
    if bottom <= math.log(edges[0]) or bottom >= math.log(edges[1]):
        return measured  # the measured one at that edge: it is the lowest of all
    x = min(max(float(f"{math.exp(bottom):.3g}"), edges[0]), edges[1])
    t = math.log(x)
    return Lowest(x, y0 + slope * (t - t0) + curvature * (t - t0) * (t - t1))
