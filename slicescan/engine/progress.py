"""How far a run is: a bar on a terminal, lines elsewhere."""

import sys


class Progress:
    """A bar with the time left on a terminal, plain lines elsewhere."""

    def __init__(self, step: int, of: int):
        from tqdm import tqdm

        self.of, self.plain = of, not sys.stderr.isatty()
        self.bar = tqdm(total=of, initial=step, unit="step", disable=self.plain)

    def show(self, step: int, loss: float) -> None:
        """Show where the run is."""
        self.bar.update(step - self.bar.n)
        self.bar.set_postfix(loss=f"{loss:.4f}")
        if self.plain:
            print(f"step {step}/{self.of}, loss {loss:.4f}", file=sys.stderr, flush=True)

    def note(self, text: str) -> None:
        """Print a line without disturbing the bar."""
        self.bar.write(text, file=sys.stderr)

    def close(self) -> None:
        """Leave the last state on the screen."""
        self.bar.close()
