"""A bar on stderr over an adapter's inner steps; none where stderr is no terminal."""

from typing import Any

from tqdm import tqdm

from quickstudy import EndEvent, Event, StatusEvent, StepEvent


class AdaptProgress:
    """To be told of every event."""

    def __init__(self) -> None:
        self._bar: tqdm[Any] = tqdm(unit="step", desc="adapting", disable=None)

    def __call__(self, event: Event) -> None:
        match event:
            case StatusEvent(status=status):
                self._bar.reset()  # a further attempt starts over
                self._bar.set_description(status)
            case StepEvent(step=step, support_loss=loss):
                self._bar.update(step - self._bar.n)
                self._bar.set_postfix(support_loss=f"{loss:.3f}")
            case EndEvent():
                self._bar.close()
