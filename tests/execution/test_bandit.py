"""The bandit against the same rules in plain Python."""

import math
import random

import pytest
import torch

from nestling.execution.bandit import PERIODS, Bandit
from nestling.spec import Axis

AXES = [Axis("one", 7, "channels", tuple(range(1, 8))), Axis("two", 3, "heads", (1, 2, 3))]


class Plain:
    """CUCB with a discount, with lists and loops."""

    def __init__(self, size, exploration, discount):
        self.size, self.exploration, self.discount = size, exploration, discount
        self.rewards = [[] for _ in range(size)]  # (round, reward)
        self.now = 0

    def weight(self, arm):
        return sum(self.discount ** (self.now - when) for when, _ in self.rewards[arm])

    def mean(self, arm):
        total = sum(r * self.discount ** (self.now - w) for w, r in self.rewards[arm])
        return total / self.weight(arm)

    def choose(self, count):
        past = sum(self.discount**k for k in range(self.now))
        index = []
        for arm in range(self.size):
            if not self.rewards[arm]:
                index.append(math.inf)
                continue
            bonus = math.sqrt(1.5 * math.log(max(past, 1.0)) / self.weight(arm))
            index.append(self.mean(arm) + self.exploration * bonus)
        ranked = sorted(range(self.size), key=lambda arm: (-index[arm], arm))
        return set(ranked[:count])

    def learn(self, rewards):
        self.now += 1
        for arm, reward in rewards.items():
            self.rewards[arm].append((self.now, reward))


@pytest.mark.parametrize(("exploration", "discount"), [(1.0, 1.0), (0.3, 0.9), (0.0, 0.99)])
def test_arms_are_chosen_as_the_rules_say(exploration, discount):
    bandit = Bandit(AXES, exploration=exploration, discount=discount)
    plain = [Plain(axis.size, exploration, discount) for axis in AXES]
    generator, counts = random.Random(0), (3, 2)
    for _ in range(120):
        units = bandit.choose(counts)
        parts = units.split(list(counts))
        assert [set(part.tolist()) for part in parts] == [
            each.choose(n) for each, n in zip(plain, counts, strict=True)
        ]
        rewards = torch.tensor([generator.random() * (1 + int(u)) for u in units]).double()
        bandit.learn(units, counts, rewards, 0)
        for each, part, given in zip(plain, parts, rewards.split(list(counts)), strict=True):
            each.learn(dict(zip(part.tolist(), given.tolist(), strict=True)))
    means = bandit.scores()
    for axis, each in zip(AXES, plain, strict=True):
        assert means[axis.name].tolist() == pytest.approx(
            [each.mean(arm) for arm in range(axis.size)], rel=1e-9
        )
        start = 0 if axis is AXES[0] else AXES[0].size
        assert bandit.plays[start : start + axis.size].tolist() == pytest.approx(
            [each.weight(arm) for arm in range(axis.size)], rel=1e-9
        )


def test_every_unit_is_played_first():
    bandit, counts, seen = Bandit(AXES), (2, 1), set()
    for _ in range(4):
        units = bandit.choose(counts)
        seen |= set(units[:2].tolist())
        bandit.learn(units, counts, torch.tensor([100.0, 100.0, 1.0]), 0)
    assert seen == set(range(7))
    assert bandit.unplayed() == 0


def test_a_unit_that_stays_keeps_its_slot():
    bandit = Bandit(AXES)
    torch.manual_seed(0)
    before = None
    for _ in range(60):
        units = bandit.choose((4, 2))
        again = bandit.again((4, 2))
        assert torch.equal(units, again)
        if before is not None:
            for low, high in ((0, 4), (4, 6)):
                old, new = before[low:high].tolist(), units[low:high].tolist()
                assert all(new[old.index(unit)] == unit for unit in set(old) & set(new))
                assert len(set(new)) == len(new)
        before = units
        bandit.learn(units, (4, 2), torch.rand(6), 0)
    bandit.rise()
    assert bandit.again((4, 2)) is None
    assert bandit.choose((4, 2))[:4].tolist() == sorted(bandit.choose((4, 2))[:4].tolist())


def test_best_and_history():
    bandit = Bandit(AXES)
    bandit.means.copy_(torch.tensor([0, 3, 1, 3, 2, 0, 0, 1, 5, 1], dtype=torch.float64))
    assert bandit.best((3, 2)).tolist() == [1, 3, 4, 0, 1]
    bandit.rise()
    bandit.watch(bandit.best((3, 2)), (3, 2), PERIODS - 1)
    bandit.watch(bandit.best((3, 2)), (3, 2), PERIODS - 1)
    assert bandit.history[-1].tolist() == [0, 2, 0, 2, 2, 0, 0, 2, 2, 0]
    assert bandit.steps[-1] == 2
    assert int(bandit.rounds) == 0


def test_a_blind_bandit_looks_at_no_reward():
    torch.manual_seed(0)
    bandit, times = Bandit(AXES, blind=True), torch.zeros(7)
    for _ in range(700):
        units = bandit.choose((3, 2))
        times[units[:3]] += 1
        bandit.learn(units, (3, 2), units.double() * 100, 0)
    assert times.min() > 250
    assert times.max() < 350


def test_axes_without_rewards_are_silent():
    bandit = Bandit(AXES)
    bandit.learn(bandit.choose((7, 3)), (7, 3), torch.tensor([0.0] * 7 + [1.0, 0.0, 0.0]), 0)
    assert bandit.silent() == ["one"]
