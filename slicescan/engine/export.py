"""Models as files that other runtimes open: ONNX, or a program of PyTorch, both with any height and width."""

from collections.abc import Callable, Mapping
from io import BytesIO
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from torch import nn

from slicescan.checkpoint.write import replacing
from slicescan.layers import LocalMean2d

OPSET = 18

_NOTHING: Mapping[str, str] = MappingProxyType({})


def export(model: nn.Module, path: str | Path, *, size: tuple[int, int] | None = None) -> Path:
    """Write a model as a file: ``input``, ``(b, c, h, w)``, to ``output``; batch, height and width are free.

    Height and width of what is restored must be multiples of the model's ``size_multiple``, at least two of them:
    padding stays outside. A scan becomes one ``Scan`` node of ONNX whatever its length; in a PyTorch program it stays
    one operator, so that :func:`torch.export.load` needs ``import slicescan`` before. A PyTorch program refuses sizes
    for which the model would have taken another branch than in the trace.

    Args:
        model: Any registered model; it is traced in evaluation mode.
        path: Ends in ``.onnx`` or ``.pt2``. The file appears under its name only when it is complete.
        size: Height and width of the example that the model is traced with; any sizes serve afterwards.

    Returns:
        ``path``.

    Raises:
        ValueError: The suffix is another, or ``size`` is no multiple of the model's ``size_multiple``, or the model
            averages over windows.
        ImportError: The ``onnx`` extra is not installed.

    Example:
        >>> import tempfile
        >>> from slicescan import create_model
        >>> model = create_model("nafnet_w32", width=4, enc_blocks=(1,), middle_blocks=1, dec_blocks=(1,))
        >>> path = export(model, Path(tempfile.mkdtemp()) / "nafnet.pt2")
        >>> torch.export.load(path).module()(torch.rand(2, 3, 16, 48)).shape
        torch.Size([2, 3, 16, 48])
    """
    path = Path(path)
    check_suffix(path)
    _check_windows(model)
    if path.suffix == ".onnx":  # tracing takes long, so what is missing is said before
        _translations()
    program = export_program(model, size=size)
    if path.suffix == ".onnx":
        write_onnx(program, path, about(model))
    else:
        archive = BytesIO()  # it takes files only by their final suffix
        torch.export.save(program, archive, extra_files=about(model))
        with replacing(path) as temporary:
            temporary.write_bytes(archive.getvalue())
    return path


def _check_windows(model: nn.Module) -> None:
    """Refuse what a file would do wrongly, and not say so, at sizes on the other side of a window's."""
    for name, module in model.named_modules():
        if isinstance(module, LocalMean2d) and module.window is not None:
            raise ValueError(
                f"{name} averages over windows of {module.window} pixels, or over all of a smaller image, and an "
                "exported file cannot choose: build the model with tlc=False"
            )


def check_suffix(path: str | Path) -> None:
    """Raise ValueError unless the name of a file is one that :func:`export` takes."""
    if (suffix := Path(path).suffix) not in (".onnx", ".pt2"):
        raise ValueError(f"{path}: the name of an exported model ends in .onnx or .pt2, not in {suffix or 'nothing'}")


def write_onnx(program: torch.export.ExportedProgram, path: Path, about: Mapping[str, str] = _NOTHING) -> None:
    """Write a program with scans in it as ONNX; its first argument becomes ``input``, its first result ``output``.

    Args:
        program: Without gradients.
        path: The file.
        about: Metadata of the file.
    """
    made = torch.onnx.export(
        program,
        input_names=["input"],
        output_names=["output"],
        custom_translation_table=_translations(),
        dynamo=True,
        opset_version=OPSET,
        verbose=False,
    )
    assert made is not None
    for node in made.model.graph.all_nodes():  # where each came from in Python takes as much room as the weights
        node.metadata_props.clear()
    made.model.metadata_props.update(about)
    with replacing(path) as temporary:
        made.save(temporary)


def _translations() -> dict[Callable[..., Any], Callable[..., Any]]:
    try:
        import onnx  # noqa: F401  what the exporter itself needs

        from slicescan.engine import onnx_scan
    except ImportError as error:
        raise ImportError(f"ONNX files need {error.name}: pip install 'slicescan[onnx]'") from error
    return {
        torch.ops.slicescan.slice_scan.default: onnx_scan.translate,
        torch.ops.aten.log_sigmoid.default: onnx_scan.log_sigmoid,
    }


def export_program(model: nn.Module, *, size: tuple[int, int] | None = None) -> torch.export.ExportedProgram:
    """The program of a model for any batch and any multiples of its ``size_multiple`` as height and width.

    Args:
        model: Any registered model; it is traced in evaluation mode.
        size: Height and width of the example that it is traced with; multiples of ``size_multiple``.

    Raises:
        ValueError: ``size`` is no multiple of the model's ``size_multiple``.
    """
    multiple = int(getattr(model, "size_multiple", 1))
    h, w = size or (4 * multiple, 6 * multiple)
    if h % multiple or w % multiple:
        raise ValueError(f"size must be multiples of {multiple}, got {h} x {w}")
    weight = next(model.parameters(), torch.empty(0))
    x = torch.zeros(2, getattr(model, "in_chans", 3), h, w, dtype=weight.dtype, device=weight.device)
    b, rows, columns = (torch.export.Dim(name, min=1) for name in ("batch", "rows", "columns"))
    sizes = {0: b, 2: multiple * rows, 3: multiple * columns} if multiple > 1 else {0: b, 2: rows, 3: columns}
    trained = model.training
    try:
        with torch.no_grad():
            return torch.export.export(model.eval(), (x,), dynamic_shapes=(sizes,))
    finally:
        model.train(trained)


def about(model: nn.Module) -> dict[str, str]:
    """What a user of the file must know, as its metadata."""
    return {
        "producer": "slicescan",
        "architecture": getattr(model, "architecture", type(model).__name__),
        "size_multiple": str(getattr(model, "size_multiple", 1)),
        "scale": str(getattr(model, "scale", 1)),
        "input_range": "RGB from 0 to 1",
    }
