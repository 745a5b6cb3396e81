"""The device in words: one text for people and for the fingerprint."""

from types import SimpleNamespace

import jax

from jaxdp.trainer import device
from jaxdp.trainer.device import describe_device, describe_processor, free_memory


def test_a_cpu_is_told_with_its_cores_and_model():
    said = describe_device()
    assert said.startswith("CPU with ")
    assert " cores (" in said
    assert said == describe_device()


def test_accelerators_are_told_with_their_number(monkeypatch):
    device = SimpleNamespace(platform="gpu", device_kind="NVIDIA H100")
    monkeypatch.setattr(jax, "devices", lambda: [device] * 2)
    monkeypatch.setattr(jax, "device_count", lambda: 2)
    assert describe_device() == "2 x NVIDIA H100"


def test_a_divided_cpu_says_so(monkeypatch):
    """Sums over several devices are in another order."""
    one = describe_device()
    monkeypatch.setattr(jax, "device_count", lambda: 4)
    assert describe_device() == f"{one}, as 4 devices"


X86 = "vendor_id\t: A\nmodel name\t: AMD EPYC\ncpu MHz\t\t: {mhz}\nflags\t\t: {flags}\n"


def test_virtual_cpus_of_one_name_are_told_apart(monkeypatch, tmp_path):
    """Other instructions add up in another order, and the clock's speed changes nothing."""

    def told(text):
        (tmp_path / "cpuinfo").write_text(f"{text}\n{text}")
        return describe_processor()

    monkeypatch.setattr(device, "CPU_INFO", tmp_path / "cpuinfo")
    first = told(X86.format(mhz=2500, flags="fma avx2"))
    assert first == told(X86.format(mhz=2600, flags="fma avx2")) == "A; fma avx2"
    assert first != told(X86.format(mhz=2500, flags="fma avx2 avx512f"))
    assert told("CPU part\t: 0xd4f\nFeatures\t: fp sve2\n") == "0xd4f; fp sve2"
    monkeypatch.setattr(jax, "devices", lambda: [SimpleNamespace(platform="gpu")])
    assert describe_processor() is None


def test_free_memory_of_an_accelerator_is_what_nobody_has_taken(monkeypatch):
    told = {"bytes_limit": 1000, "bytes_in_use": 300}
    one = SimpleNamespace(platform="gpu", memory_stats=lambda: told)
    monkeypatch.setattr(jax, "local_devices", lambda: [one])
    assert free_memory() == 700
    one.memory_stats = lambda: None  # it does not tell
    assert free_memory() is None


def test_free_memory_of_a_machine_is_what_its_container_leaves(monkeypatch, tmp_path):
    """Files that nobody needs any more are free, too."""
    machine = tmp_path / "meminfo"
    monkeypatch.setattr(device, "MEMORY_INFO", machine)
    containers = [(tmp_path, *names) for _, *names in device.CONTAINERS]
    monkeypatch.setattr(device, "CONTAINERS", containers)
    assert free_memory() is None  # as on a Mac
    machine.write_text("MemTotal:  90 kB\nMemAvailable:   8 kB\n")
    assert free_memory() == 8192
    (tmp_path / "memory.current").write_text("5000\n")
    (tmp_path / "memory.stat").write_text("anon 3000\ninactive_file 1000\n")
    for limit, free in (("max", 8192), ("6000", 2000), ("3000", 0)):
        (tmp_path / "memory.max").write_text(f"{limit}\n")
        assert free_memory() == free
    (tmp_path / "memory.max").unlink()
    (tmp_path / "memory.limit_in_bytes").write_text("7000")
    (tmp_path / "memory.usage_in_bytes").write_text("5000")
    (tmp_path / "memory.stat").write_text("total_inactive_file 500\n")
    assert free_memory() == 2500
