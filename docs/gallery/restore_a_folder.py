"""
Restore a folder on many machines
=================================

``slicescan restore`` takes folders, keeps names and formats, goes on after a bad file, and knows two options for
large jobs: ``--shard i/n`` takes every n-th file from the i-th on, and ``--skip-existing`` leaves out what is there
already. Machines that see one folder need nothing else: no server, no list, no lock.

.. code-block:: sh

   slicescan restore /shared/photos -o /shared/sharp --skip-existing --shard 0/2 --json > 0.jsonl   # on one machine
   slicescan restore /shared/photos -o /shared/sharp --skip-existing --shard 1/2 --json > 1.jsonl   # on the other
"""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from PIL import Image

import slicescan

examples = Path(slicescan.__file__).parents[1] / "examples" / "photos"
workplace = tempfile.TemporaryDirectory()
photos, sharp = Path(workplace.name, "photos"), Path(workplace.name, "sharp")
for source, corners in {
    "red_panda": [(290, 170), (350, 230)],
    "berlin_cathedral": [(150, 180)],
}.items():
    (photos / source).mkdir(parents=True)
    for number, (left, top) in enumerate(corners):
        crop = Image.open(examples / f"{source}.jpg").crop((left, top, left + 80, top + 64))
        crop.save(photos / source / f"{number}.png")
_ = (photos / "broken.png").write_bytes(b"no picture at all")

# %%
# Two machines
# ------------
#
# Two processes stand for them here. With ``--json`` each prints one object for every file, and a last one.


def start(shard):
    command = [sys.executable, "-m", "slicescan", "restore", photos, "-o", sharp, "--skip-existing", "--json"]
    surroundings = os.environ | {"PYTHONPATH": str(Path(slicescan.__file__).parents[1]), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [*command, "--shard", shard], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=surroundings
    )


def finish(machine):
    """The exit code, and what became of each file."""
    output, _ = machine.communicate()
    return machine.returncode, [json.loads(line) for line in output.splitlines()]


for machine in [start("0/2"), start("1/2")]:
    code, (*files, total) = finish(machine)
    print(f"exit code {code}, {total}")
    for file in files:
        print(f"   {Path(file['input']).relative_to(photos).as_posix():<22} {file['status']}")

# %%
# One machine found a file that is no picture. It went on, named it at the end, and its exit code is not 0, so that a
# queue of jobs notices. The next run, with the file replaced, does only what is missing; with one machine gone, the
# other takes all.

crop.save(photos / "broken.png")
code, (*files, total) = finish(start("0/1"))
print(
    f"exit code {code}, {total}, restored: {[Path(file['input']).name for file in files if file['status'] == 'done']}"
)

# %%
# A result appears under its name only when it is complete, so a machine that dies in the middle leaves nothing that
# would be taken for done.

import matplotlib.pyplot as plt

results = sorted(sharp.rglob("*.png"))
figure, axes = plt.subplots(2, len(results), figsize=(12, 3.4), layout="constrained")
for column, result in enumerate(results):
    name = result.relative_to(sharp).as_posix()
    axes[0, column].imshow(Image.open(photos / name))
    axes[1, column].imshow(Image.open(result))
    axes[0, column].set_title(name, fontsize=8)
for axis in axes.flat:
    axis.set(xticks=[], yticks=[])
axes[0, 0].set_ylabel("given")
axes[1, 0].set_ylabel("restored")
workplace.cleanup()
