"""The device in words: one text for people and for the fingerprint."""

from types import SimpleNamespace

import jax

from jaxdp.trainer import device
from jaxdp.trainer.device import describe_device, describe_processor


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
