"""Our networks in BasicSR and its forks, NAFNet's and Restormer's code among them: copy this file beside theirs.

In BasicSR to ``basicsr/archs/slicescan_arch.py``, in the two others to ``basicsr/models/archs/slicescan_arch.py``.
An option file then says ``network_g: {type: XYScanNet, dim: 24}``. All of them import files whose names end in
``_arch.py`` by themselves; BasicSR then looks into its registry, the others into the files. Networks that are there
already stay as they are.
"""

from pathlib import Path

from slicescan.registry import FAMILIES

try:
    from basicsr.utils.registry import ARCH_REGISTRY as registry
except ImportError:  # the forks have none
    registry = None

theirs = [file.read_text(encoding="utf-8") for file in Path(__file__).parent.glob("*_arch.py")]
for family in FAMILIES:
    name = family.__name__
    if not any(f"class {name}(" in text for text in theirs):
        globals()[name] = family
        if registry is not None and name not in registry:
            registry.register(family)
