"""The device in words: one text for people and for the fingerprint."""

from types import SimpleNamespace

import jax

from jaxdp.trainer.device import describe_device


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
