"""The estimate of how long forward passes take, against an exact line."""

import random
import sys
import threading

import pytest
from pytest import approx

from service.predicting.pace import Pace


def test_the_line_through_passes_of_several_sizes_is_found() -> None:
    pace, rng = Pace(1000), random.Random(0)
    for _ in range(50):
        tokens = rng.choice([10, 200, 1000])
        pace.observe(tokens, 0.02 + tokens / 5000)
    assert pace.efficient_tokens == approx(9 * 0.02 * 5000, rel=1e-6)
    assert pace.seconds(2500) == approx(3 * 0.02 + 0.5, rel=1e-6)


def test_without_passes_of_several_sizes_full_ones_are_assumed_to_take_as_long() -> None:
    pace = Pace(1000)
    for _ in range(4):
        pace.observe(100, 0.1)
    assert pace.seconds(10**6) == 0.0 and pace.efficient_tokens == 125  # nothing is known yet
    pace.observe(100, 0.1)
    assert pace.seconds(2500) == approx(0.3) and pace.efficient_tokens == 125


def test_a_machine_that_gets_slower_is_followed() -> None:
    pace = Pace(1000)
    for speed in (1, 4):
        for number in range(30):
            tokens = 100 if number % 2 else 1000
            pace.observe(tokens, speed * (0.01 + tokens / 10_000))
    assert pace.seconds(1000) == approx(4 * 0.11)


@pytest.mark.parametrize("held_up", [20.0, 300.0])
def test_a_few_passes_that_were_held_up_do_not_matter(held_up: float) -> None:
    pace = Pace(4096)
    for number in range(24):
        tokens = 50 + 150 * (number % 8)
        pace.observe(tokens, held_up if number in (0, 9, 16) else 0.05 + 1e-4 * tokens)
    assert pace.seconds(100_000) == approx(25 * 0.05 + 10, rel=0.1)


def test_noise_makes_no_estimate_absurd() -> None:
    """Let a quiet tenant with one row and a busy one alternate, with a noise of 10 %."""
    pace, rng, worst = Pace(4096), random.Random(0), 0.0
    for number in range(800):
        tokens = 4096 if number % 2 else max(12, min(4096, pace.efficient_tokens))
        pace.observe(tokens, (0.05 + 1e-5 * tokens) * rng.uniform(0.9, 1.1))
        worst = max(worst, pace.seconds(100_000) if number > 24 else 0.0)
    assert worst < 2 * (25 * 0.05 + 1.0)


def test_the_estimates_can_be_read_while_a_pass_is_taken_into_account() -> None:
    pace, ended, interval = Pace(1000), threading.Event(), sys.getswitchinterval()

    def observe() -> None:
        for _ in range(3_000):
            pace.observe(100, 0.1)
        ended.set()

    sys.setswitchinterval(1e-6)
    try:
        thread = threading.Thread(target=observe)
        thread.start()
        while not ended.is_set():
            assert pace.seconds(2500) in (0.0, approx(0.3))
        thread.join()
    finally:
        sys.setswitchinterval(interval)
