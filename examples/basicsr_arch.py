"""Our networks in BasicSR and forks that have its registry: copy this file to ``basicsr/archs/slicescan_arch.py``.

An option file then says ``network_g: {type: XYScanNet, dim: 24}``. BasicSR imports files whose names end in
``_arch.py`` by itself. Networks that the registry has already stay as they are.
"""

from basicsr.utils.registry import ARCH_REGISTRY

from slicescan.registry import FAMILIES

for family in FAMILIES:
    if family.__name__ not in ARCH_REGISTRY:
        ARCH_REGISTRY.register(family)
