"""The order of the gallery's pages: layers, networks, then what is done with them."""

PAGES = (
    "plug_a_layer",
    "nafnet_block",
    "timm_encoder",
    "replace_mambair_scan",
    "register_a_model",
    "write_a_backend",
    "restore_a_photo",
    "restore_a_folder",
    "huge_image",
    "load_a_checkpoint",
    "train_on_photos",
    "onnx_export",
    "comfyui_and_chainner",
)


class Order:
    """What sphinx-gallery sorts the files of a folder by."""

    def __init__(self, folder: str):
        self.folder = folder

    def __call__(self, file: str) -> int:
        """The place of a page; a page that is not listed is an error."""
        return PAGES.index(str(file).removesuffix(".py"))
