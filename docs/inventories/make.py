"""Write the inventories that links to other projects' pages are read from, so that the build needs no network.

``names.toml`` lists the names that our pages refer to, grouped by the page that documents them; this writes each
project's share as ``<project>.inv``, in the format of Sphinx's own ``objects.inv``.
"""

import tomllib
import zlib
from pathlib import Path

HERE = Path(__file__).parent


def inventory(project: str, pages: dict[str, list[str]]) -> bytes:
    """One project's names as an inventory of version 2: four lines of text, the rest compressed."""
    lines = []
    for page, entries in pages.items():
        for entry in entries:
            role, name = entry.split()
            lines.append(f"{name} py:{role} 1 {page.replace('$', name)} -\n")
    head = [
        "# Sphinx inventory version 2",
        f"# Project: {project}",
        "# Version: ",
        "# The remainder of this file is compressed using zlib.",
    ]
    return "".join(f"{line}\n" for line in head).encode() + zlib.compress("".join(sorted(lines)).encode(), 9)


def inventories() -> dict[str, bytes]:
    """Files' names and contents."""
    projects = tomllib.loads((HERE / "names.toml").read_text(encoding="utf-8"))
    return {f"{project}.inv": inventory(project, entry["pages"]) for project, entry in projects.items()}


if __name__ == "__main__":
    for name, content in inventories().items():
        (HERE / name).write_bytes(content)
