"""A progress bar for the inner steps of an adapter's job. It is shown if stderr is a terminal."""

from typing import Any

from tqdm import tqdm

from quickstudy import EndEvent, Event, StatusEvent, StepEvent


class AdaptProgress:
    """A progress bar to pass as `on_progress` to the client, which calls it with every event of a job."""

    def __init__(self) -> None:
        self._bar: tqdm[Any] = tqdm(unit="step", desc="adapting", disable=None)

    def __call__(self, event: Event) -> None:
        match event:
            case StatusEvent(status=status):
                self._bar.reset()  # a new attempt starts again at the first step
                self._bar.set_description(status)
            case StepEvent(step=step, support_loss=loss):
                self._bar.update(step - self._bar.n)
                self._bar.set_postfix(support_loss=f"{loss:.3f}")
            case EndEvent():
                self._bar.close()
