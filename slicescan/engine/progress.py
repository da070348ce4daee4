"""How far a run is: a bar on a terminal, lines elsewhere."""

import sys
import time


class Progress:
    """A bar with the time left on a terminal, plain lines with it elsewhere.

    Args:
        step: Where the run goes on.
        of: Its last step.
        on: Show anything: of several processes only the first one does.
    """

    def __init__(self, step: int, of: int, *, on: bool = True):
        from tqdm import tqdm

        self.of, self.on, self.plain = of, on, not sys.stderr.isatty()
        self.first, self.start = step, time.monotonic()
        self.bar = tqdm(total=of, initial=step, unit="step", disable=self.plain or not on)

    def show(self, step: int, loss: float) -> None:
        """Show where the run is."""
        self.bar.update(step - self.bar.n)
        self.bar.set_postfix(loss=f"{loss:.4f}")
        if self.plain and self.on:
            print(f"step {step}/{self.of}, loss {loss:.4f}, {self.left(step)} left", file=sys.stderr, flush=True)

    def left(self, step: int) -> str:
        """Hours and minutes, or minutes and seconds, that the steps to come will take at the mean speed so far."""
        seconds = (time.monotonic() - self.start) / max(1, step - self.first) * (self.of - step)
        minutes, second = divmod(round(seconds), 60)
        hours, minute = divmod(minutes, 60)
        return f"{hours} h {minute} min" if hours else f"{minutes} min {second} s"

    def note(self, text: str) -> None:
        """Print a line without disturbing the bar."""
        if self.on:
            self.bar.write(text, file=sys.stderr)

    def close(self) -> None:
        """Leave the last state on the screen."""
        self.bar.close()
