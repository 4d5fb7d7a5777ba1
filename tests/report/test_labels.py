from itertools import combinations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from nestling.report.labels import Box, place_labels

BOUNDS = Box(0, 0, 1000, 600)
points = st.tuples(st.integers(20, 980), st.integers(20, 580))


@settings(max_examples=20, deadline=None)
@given(st.lists(points, min_size=1, max_size=12), st.integers(20, 260))
def test_labels_never_meet(anchors, width):
    markers = [Box(x - 8, y - 8, x + 8, y + 8) for x, y in anchors]
    boxes = place_labels(
        anchors,
        [(width, 20)] * len(anchors),
        keep_off=markers,
        avoid=np.empty((0, 2)),
        bounds=BOUNDS,
    )
    placed = [box for box in boxes if box is not None]
    assert not any(one.meets(other) for one, other in combinations(placed, 2))
    assert not any(box.meets(marker) for box in placed for marker in markers)
    assert all(box.left >= 0 and box.right <= 1000 and box.top <= 600 for box in placed)


def test_two_points_at_one_place_both_get_a_label():
    boxes = place_labels(
        [(500, 300), (500, 300)],
        [(200, 20), (200, 20)],
        keep_off=[Box(492, 292, 508, 308)],
        avoid=np.empty((0, 2)),
        bounds=BOUNDS,
    )
    assert None not in boxes
    assert not boxes[0].meets(boxes[1])


def test_a_label_stays_off_lines():
    across = np.stack([np.linspace(0, 1000, 200), np.full(200, 290.0)], axis=1)
    (box,) = place_labels(
        [(500, 300)], [(100, 20)], keep_off=[Box(492, 292, 508, 308)], avoid=across, bounds=BOUNDS
    )
    assert box.bottom >= 290 or box.top < 290


def test_no_room_is_said():
    boxes = place_labels(
        [(10, 10)], [(2000, 20)], keep_off=[], avoid=np.empty((0, 2)), bounds=BOUNDS
    )
    assert boxes == [None]
