"""Calls that replace parameters of the base model, beside calls that do not."""

import threading

import torch

from metatrain.models.base import Base


def test_replaced_parameters_are_not_seen_by_another_thread(tiny: Base) -> None:
    batch = tiny.inputs.collate(tiny.inputs.encode(["order pizza", "close my account now"]))
    update = {name: parameter + 1.0 for name, parameter in tiny.parameters(["encoder.layer.1.output.*"]).items()}
    with torch.no_grad():
        plain, updated = tiny.features(None, batch), tiny.features(None, batch, updated=update)
    assert not torch.allclose(plain, updated, atol=1e-3)
    stop, wrong = threading.Event(), list[str]()

    def run_updated() -> None:
        with torch.no_grad():
            while not stop.is_set():
                if not torch.allclose(tiny.features(None, batch, updated=update), updated, atol=1e-5):
                    wrong.append("updated")

    thread = threading.Thread(target=run_updated)
    thread.start()
    try:
        with torch.no_grad():
            for _ in range(200):
                if not torch.allclose(tiny.features(None, batch), plain, atol=1e-5):
                    wrong.append("plain")
    finally:
        stop.set()
        thread.join()
    assert wrong == []
