"""Energy readers, on made counters: machines for tests have none."""

import sys
from types import SimpleNamespace

import pytest
import torch

from nestling import energy
from nestling.energy import Meter, find_meter, joules_of

CPU = torch.device("cpu")


@pytest.fixture
def machine(tmp_path):
    """A root folder with two packages, each with cores and memory, and a platform counter."""

    def domain(place, name, count, wrap=1000):
        folder = tmp_path / "sys/class/powercap" / place
        folder.mkdir(parents=True)
        for file, content in (
            ("name", name),
            ("energy_uj", count),
            ("max_energy_range_uj", wrap - 1),
        ):
            (folder / file).write_text(f"{content}\n")

    domain("intel-rapl:0", "package-0", 100)
    domain("intel-rapl:0:0", "core", 50)  # is in the package
    domain("intel-rapl:0:1", "dram", 10)
    domain("intel-rapl:1", "package-1", 900)
    domain("intel-rapl:2", "psys", 5000)  # holds the packages
    return tmp_path


def turn(machine, place, count):
    (machine / "sys/class/powercap" / place / "energy_uj").write_text(f"{count}\n")


def test_packages_and_memory_are_added_and_may_wrap(machine):
    meter = find_meter(CPU, machine)
    assert meter.name == "rapl: package-0, dram, package-1"
    assert meter.joules() == 0
    turn(machine, "intel-rapl:0", 160)
    turn(machine, "intel-rapl:0:0", 90)
    turn(machine, "intel-rapl:0:1", 13)
    turn(machine, "intel-rapl:2", 9000)
    assert meter.joules() == pytest.approx(63e-6)
    turn(machine, "intel-rapl:1", 20)  # from 900 past 1000
    assert meter.joules() == pytest.approx(183e-6)


def test_what_cannot_be_read_is_not_there(machine, tmp_path):
    assert find_meter(CPU, tmp_path / "elsewhere") is None
    assert find_meter(torch.device("meta"), machine) is None
    counter = machine / "sys/class/powercap/intel-rapl:1/energy_uj"
    counter.unlink()
    counter.mkdir()  # as unreadable as a file that is root's
    assert find_meter(CPU, machine) is None


def test_no_domain_at_all(tmp_path):
    (tmp_path / "sys/class/powercap").mkdir(parents=True)
    assert find_meter(CPU, tmp_path) is None


def test_a_gpu_by_its_uuid(monkeypatch):
    counts = iter([5000, 5000, 7500])
    asked = []

    def handle(uuid):
        asked.append(uuid)
        return "handle"

    nvml = SimpleNamespace(
        NVMLError=RuntimeError,
        nvmlInit=lambda: None,
        nvmlDeviceGetHandleByUUID=handle,
        nvmlDeviceGetTotalEnergyConsumption=lambda handle: next(counts),
    )
    monkeypatch.setitem(sys.modules, "pynvml", nvml)
    properties = SimpleNamespace(uuid="1234")
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "some GPU")
    meter = find_meter("cuda")
    assert asked == ["GPU-1234"]
    assert meter.name == "nvml: some GPU"
    assert [meter.joules(), meter.joules()] == [0, 2.5]

    def broken():
        raise RuntimeError("no driver")

    nvml.nvmlInit = broken
    assert find_meter("cuda") is None
    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert find_meter("cuda") is None


def test_joules_of_one_call():
    state = SimpleNamespace(now=0.0, joules=100)

    def call():
        state.now += 0.1
        state.joules += 3

    meter = Meter("made up", [lambda: state.joules], 1.0, [0])
    found = joules_of(call, meter, seconds=1.0, clock=lambda: state.now)
    assert found == pytest.approx(3)
    assert 11 <= round(state.now / 0.1) <= 12


def test_names():
    assert energy.names() == ["nvml", "rapl"]
