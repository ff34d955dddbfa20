"""The lowest point of a measured curve over log(x): known parabolas, edges, ties, and what has diverged."""

import math

import pytest

from gpt2_ablate.utils.log_parabola import lowest

NOTHING = (math.nan, math.inf, -math.inf)


def parabola(best, curvature=0.3, least=4.0):
    return lambda x: least + curvature * math.log(x / best) ** 2


@pytest.mark.parametrize("best", [1.3e-3, 2e-3, 2.7e-3, 3.95e-3])
@pytest.mark.parametrize("rates", [(1e-3, 2e-3, 4e-3), (1e-3, 1.5e-3, 4e-3), (5e-4, 1e-3, 2e-3, 4e-3, 8e-3)])
def test_of_a_known_parabola(best, rates):
    """In uneven steps too; and whatever lies outside of the three points around the lowest."""
    found = lowest({x: parabola(best)(x) for x in rates})
    assert found.x == pytest.approx(best, rel=0.005)  # three digits
    assert found.y == pytest.approx(4.0, abs=1e-4)


def test_three_digits_are_enough():
    assert lowest({x: parabola(0.00271828)(x) for x in (1e-3, 2e-3, 4e-3)}).x == 0.00272


def test_only_the_points_around_the_lowest_count():
    true = parabola(2.5e-3)
    rates = {x: true(x) for x in (1e-3, 2e-3, 4e-3)}
    assert lowest({**rates, 1e-4: 5.0, 3e-2: 11.0}) == lowest(rates)


@pytest.mark.parametrize(("best", "edge"), [(1e-5, 1e-3), (1.0, 8e-3)])
def test_beyond_the_range_it_is_the_edge(best, edge):
    found = lowest({x: parabola(best)(x) for x in (1e-3, 2e-3, 4e-3, 8e-3)})
    assert found.x == edge and found.y == pytest.approx(parabola(best)(edge))


def test_between_the_edge_and_its_neighbour_it_is_there():
    assert lowest({x: parabola(1.2e-3)(x) for x in (1e-3, 2e-3, 4e-3)}).x == pytest.approx(1.2e-3, rel=0.005)


def test_rounding_does_not_leave_the_range():
    edge = 1.23456e-3
    assert lowest({x: parabola(1.23457e-3)(x) for x in (edge, 2 * edge, 4 * edge)}).x >= edge


@pytest.mark.parametrize("losses", [(4.0, 4.1), (4.1, 4.0)])
def test_of_two_it_is_the_lower_one(losses):
    found = lowest(dict(zip((1e-3, 2e-3), losses, strict=True)))
    assert (found.x, found.y) == ((1e-3, 2e-3)[losses.index(4.0)], 4.0)


@pytest.mark.parametrize("losses", [(4.0, 4.3, 4.4), (4.4, 4.3, 4.0), (4.1, 4.3, 4.0)])
def test_where_the_parabola_opens_downwards_it_is_the_lowest_measured(losses):
    assert lowest(dict(zip((1e-3, 2e-3, 4e-3), losses, strict=True))).y == 4.0


def test_ties():
    """Two equal ones have the best between them; where all are equal, the lowest rate is as good as any."""
    assert lowest({1e-3: 5.0, 2e-3: 4.0, 4e-3: 4.0, 8e-3: 5.0}).x == pytest.approx(math.sqrt(8) * 1e-3, rel=0.005)
    assert lowest(dict.fromkeys((1e-3, 2e-3, 4e-3), 4.0)).x == 1e-3


def test_the_order_in_which_they_were_measured_does_not_matter():
    points = {x: parabola(2.3e-3)(x) for x in (4e-3, 1e-3, 8e-3, 2e-3)}
    assert lowest(points) == lowest(dict(sorted(points.items())))


@pytest.mark.parametrize("nothing", NOTHING)
class TestDiverged:
    def test_it_is_never_the_best_and_breaks_no_fit(self, nothing):
        rates = {x: parabola(2.5e-3)(x) for x in (1e-3, 2e-3, 4e-3)}
        for place in (1e-4, 3e-3, 1.0):
            assert lowest({**rates, place: nothing}) == lowest(rates)

    def test_two_others(self, nothing):
        assert lowest({1e-3: 4.1, 2e-3: 4.0, 4e-3: nothing}).x == 2e-3

    def test_one_other(self, nothing):
        assert lowest({1e-3: 4.1, 2e-3: nothing, 4e-3: nothing}).x == 1e-3

    def test_no_other(self, nothing):
        assert lowest({1e-3: nothing, 2e-3: nothing}) is None


def test_nearly_diverged_is_finite_and_far_from_the_best():
    found = lowest({1e-3: 4.1, 2e-3: 4.0, 4e-3: 1e308})
    assert 1e-3 <= found.x <= 2e-3 and math.isfinite(found.y)
