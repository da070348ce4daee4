"""Small data sets on disk in the layouts of the published ones and their re-packs."""

from pathlib import Path

import numpy as np
from PIL import Image


def picture(seed, h=12, w=16):
    return np.random.default_rng(seed).integers(0, 256, (h, w, 3), dtype=np.uint8)


def write(root, name, pixels=None, *, seed=0):
    """A PNG of random pixels under a relative name."""
    file = Path(root) / name
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(picture(seed) if pixels is None else pixels).save(file)
    return file


def write_store(folder, images, meta=True, encode=None):
    """A BasicSR LMDB of PNGs."""
    import io

    import lmdb

    folder.mkdir(parents=True)
    lines = []
    environment = lmdb.open(str(folder), map_size=1 << 24)
    with environment.begin(write=True) as transaction:
        for key, pixels in images.items():
            buffer = io.BytesIO()
            Image.fromarray(pixels).save(buffer, "PNG")
            transaction.put(key.encode(), encode(pixels) if encode else buffer.getvalue())
            lines.append(f"{key}.png ({pixels.shape[0]},{pixels.shape[1]},3) 1")
    environment.close()
    if meta:
        (folder / "meta_info.txt").write_text("\n".join(lines) + "\n")


def gopro_archive(root):
    for split, sequence in (("train", "GOPR0372_07_00"), ("train", "GOPR0374_11_00"), ("test", "GOPR0384_11_00")):
        for frame in ("000047", "000048"):
            for side in ("blur", "blur_gamma", "sharp"):
                write(root, f"{split}/{sequence}/{side}/{frame}.png")


def gopro_grouped(root):
    for sequence in ("GOPR0372_07_00", "GOPR0374_11_00"):
        for side in ("blur", "sharp"):
            write(root, f"train/{side}/{sequence}/000047.png")
    for side in ("testA", "testB"):
        write(root, f"test/{side}/GOPR0384_11_00/000001.png")


def gopro_mixed(root):
    write(root, "test/testA/GOPR0384_11_00/000001.png")
    write(root, "test/sharp/GOPR0384_11_00/000001.png")


def gopro_flat(root):
    for side in ("input", "target"):
        write(root, f"train/{side}/GOPR0372_07_00-000047.png")
        write(root, f"test/GoPro/{side}/GOPR0384_11_00-000001.png")


def gopro_crops(root):
    for side in ("blur_crops", "sharp_crops"):
        for number in range(3):
            write(root, f"train/{side}/GOPR0372_07_00-000047_s00{number}.png")


def gopro_stores(root):
    for side in ("blur_crops", "sharp_crops"):
        write_store(root / "train" / f"{side}.lmdb", {f"GOPR0372_07_00-00004{i}": picture(i) for i in (7, 8)})
    for side in ("input", "target"):
        write_store(root / "test" / f"{side}.lmdb", {"GOPR0384_11_00-000001": picture(1)}, meta=False)


def hide_archive(root):
    for name in ("train/1.png", "test/test-close-ups/2.png", "test/test-long-shot/3.png"):
        write(root, name)
        write(root, f"GT/{Path(name).name}")


def hide_flat(root):
    for number in (1, 2, 3):
        write(root, f"test/testA/{number}fromGOPR1028.png")
        write(root, f"test/testB/{number}fromGOPR1028.png")


def realblur_archive(root):
    top = "RealBlur-J_ECC_IMCORR_centroid_itensity_ref"
    lines = []
    for scene in ("scene001", "scene002", "scene003"):
        for number in (1, 2):
            sharp, blurred = f"{top}/{scene}/gt/gt_{number}.png", f"{top}/{scene}/blur/blur_{number}.png"
            write(root, sharp), write(root, blurred)
            lines.append(f"{sharp} {blurred} ")
    (root / "RealBlur_J_train_list.txt").write_text("\n".join(lines[:4]) + "\n")
    (root / "RealBlur_J_test_list.txt").write_text("\n".join(lines[4:]))


def realblur_scenes(root):
    for number in (1, 2):
        write(root, f"scene001/gt/gt_{number}.png"), write(root, f"scene001/blur/blur_{number}.png")


def realblur_repack(root):
    for number in (1, 2):
        write(root, f"train/trainA/scene001_blur_{number}.png"), write(root, f"train/trainB/scene001_gt_{number}.png")
    write(root, "test/testA/scene050_blur_1.png"), write(root, "test/testB/scene050_gt_1.png")


def rwbi(root):
    for number in (1, 2):
        write(root, f"20190213_10_23_28_{number}.png")


def rwbi_test(root):
    write(root, "test/testA/1.png")


def own(root):
    write(root, "blurred/holiday/a.png"), write(root, "sharp/holiday/a.bmp")


def beside(root):
    write(root, "a_blur.png"), write(root, "a_sharp.png"), write(root, "b_blur.png"), write(root, "b_sharp.png")
