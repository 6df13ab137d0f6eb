"""The handwritten digits that come with scikit-learn, laid out as an image folder: 1,198 for train, 599 for test.

``python benchmarks/images/digits.py FOLDER`` writes ``FOLDER/train/CLASS/*.png`` and ``FOLDER/test/CLASS/*.png``, which
``catalign bench images RUN evaluation.images.folder=FOLDER`` reads.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from PIL import Image
from sklearn.datasets import load_digits

TRAIN = 1198  # two thirds, in the data's own order


def write(folder: Path) -> None:
    """Write the folder, one PNG of 8 × 8 px per digit."""
    digits = load_digits()
    for number, (pixels, label) in enumerate(zip(digits.images, digits.target, strict=True)):
        path = folder / ("train" if number < TRAIN else "test") / str(label) / f"{number:04}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray((pixels / 16 * 255).round().astype(np.uint8)).save(path)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    write(Path(sys.argv[1]))
