"""The garbage collector while engines live."""

import gc

import pytest

import nestling
from nestling.engine import collector


class Cycle:
    pass


@pytest.fixture(autouse=True)
def _nothing_frozen():
    gc.unfreeze()
    yield
    gc.unfreeze()


def collectable():
    """Whether a full collection looks at an object that was there before."""
    return any(isinstance(each, Cycle) for each in gc.get_objects())


def test_what_was_there_is_passed_over_until_the_last_holder_lets_go():
    known = Cycle()
    assert collectable()
    collector.hold()
    collector.hold()
    assert not collectable()
    later = Cycle()
    assert collectable()  # what comes later is looked at
    collector.release()
    del later
    assert not collectable()
    collector.release()
    assert collectable()
    assert known is not None


def test_what_others_froze_stays_frozen():
    known = Cycle()
    gc.freeze()
    collector.hold()
    collector.release()
    assert not collectable()
    assert known is not None


def test_an_engine_holds_while_it_is_open(small, tmp_path):
    net = small.supernet()
    menu = nestling.make_menu(net, [net.space.full], calibrate=small.batches())
    path = menu.save(tmp_path / "one.nest")
    model = nestling.load(path, model=small.ConvNet())
    known = Cycle()
    engine = nestling.Engine(model, "fixed", subnet="full", measure=True)
    assert not collectable()
    engine.close()
    engine.close()  # a second one lets go of nothing
    assert collectable()
    assert known is not None
