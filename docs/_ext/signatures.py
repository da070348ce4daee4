"""What autodoc writes of signatures and bases, without what is of no use to a reader."""

from typing import Any

from sphinx.application import Sphinx

import slicescan.layers


def setup(app: Sphinx) -> dict[str, bool]:
    """Listen to autodoc."""
    app.connect("autodoc-process-signature", plain_defaults)
    app.connect("autodoc-process-bases", public_bases)
    app.connect("autodoc-skip-member", fields_of_tuples)
    return {"parallel_read_safe": True, "parallel_write_safe": True}


def plain_defaults(
    app: Sphinx, what: str, name: str, obj: Any, options: Any, signature: str | None, returns: str | None
):
    """Write ``...`` for defaults of dataclasses that are made anew each time: ``<factory>`` is not Python."""
    return signature.replace("<factory>", "...") if signature else signature, returns


def public_bases(app: Sphinx, name: str, obj: type, options: Any, bases: list[type]) -> None:
    """Name the nearest public base in place of one that layers share among themselves."""
    public = {getattr(slicescan.layers, layer) for layer in slicescan.layers.__all__}
    while any(
        private := [base for base in bases if base.__module__.startswith("slicescan.layers") and base not in public]
    ):
        place = bases.index(private[0])
        bases[place : place + 1] = private[0].__bases__


def fields_of_tuples(app: Sphinx, what: str, name: str, obj: Any, skip: bool, options: Any) -> bool | None:
    """Leave out the fields of named tuples, which the class describes already."""
    return True if (getattr(obj, "__doc__", None) or "").startswith("Alias for field number") else None
