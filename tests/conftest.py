"""Every test: warnings are errors, uninitialised memory is NaN, examples are drawn the same way in every run.

``--require-backend NAME`` (repeatable) stops the run if that backend cannot run here; without it, lines below the
results say which backends were not tested, and why.
"""

import logging
from collections.abc import Iterator

import pytest
import torch
from hypothesis import settings

from slicescan.ops import dispatch

settings.register_profile("slicescan", deadline=None, derandomize=True, database=None, max_examples=50)
settings.load_profile("slicescan")

# pytest listens to loggers that do not propagate, and once somebody listens here PyTorch writes each step of a trace.
_trace = logging.getLogger("torch.__trace")
_trace.propagate = True
_trace.handlers.clear()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--require-backend", action="append", default=[], metavar="NAME", help="fail if this scan backend cannot run"
    )


def _missing() -> dict[str, str]:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    reports = {where: dispatch.report(where) for where in dict.fromkeys(["cpu", device])}
    able = {status.name for report in reports.values() for status in report if status.reason is None}
    return {status.name: status.reason for status in reports[device] if status.reason and status.name not in able}


def pytest_sessionstart(session: pytest.Session) -> None:
    required = session.config.getoption("--require-backend")
    missing = _missing()
    for name in required:
        if name not in dispatch.ALL:
            raise pytest.UsageError(f"--require-backend {name}: there are {', '.join(dispatch.ALL)}")
        if name in missing:
            raise pytest.UsageError(f"--require-backend {name}: {missing[name]}")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    for name, reason in _missing().items():
        terminalreporter.write_line(f"backend {name} was not tested: {reason}")


@pytest.fixture(autouse=True, scope="session")
def _memory_starts_as_nan() -> Iterator[None]:
    """PyTorch fills what ``torch.empty`` and its kin return, in deterministic mode."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    assert torch.empty(3).isnan().all()
    yield
    torch.use_deterministic_algorithms(False)
