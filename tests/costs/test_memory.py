import torch

from nestling.costs.memory import peak_bytes


def test_only_what_lives_at_once_counts():
    def chain():
        x = torch.zeros(1000)
        for _ in range(5):
            x = x + 1
        return x

    assert peak_bytes(lambda: torch.zeros(1000)) == 4000
    assert peak_bytes(chain) == 8000


def test_views_and_inputs_are_free():
    given = torch.zeros(1000)
    assert peak_bytes(lambda: given.view(10, 100).t()) == 0
    assert peak_bytes(lambda: given.add_(1)) == 0
    kept = []
    assert peak_bytes(lambda: kept.extend(given + n for n in range(3))) == 12_000
