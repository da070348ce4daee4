"""ComfyUI: put this folder into ``custom_nodes``; the node "Load Upscale Model" then opens XYScanNet's weights as well.

It needs ``pip install "slicescan[spandrel]"`` in ComfyUI's environment, and adds no node of its own.
"""

from slicescan.integrations.spandrel import install

install()
NODE_CLASS_MAPPINGS: dict[str, type] = {}
