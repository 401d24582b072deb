"""Write what the solar cells' recipes read: handwritten digits, a ResNet with fresh weights, and a list of photographs.

The photographs are those of elpv-dataset (Buerhop et al. 2018), licensed for non-commercial use. They stay where the
package lies; solar_cells.csv holds their paths.
"""

from __future__ import annotations

import argparse
import csv
from importlib.util import find_spec
from pathlib import Path

import torch
from PIL import Image
from sklearn.datasets import load_digits
from transformers import ResNetConfig, ResNetForImageClassification, ViTImageProcessorPil

SIDE = 64
"""Of the images that the ResNet sees, in pixels."""


def photographs() -> Path:
    """Find the installed photographs without importing the package."""
    spec = find_spec("elpv_dataset")
    if spec is None or not spec.submodule_search_locations:
        raise SystemExit(
            "error: elpv-dataset is not installed; run "
            "`pip install --no-deps -r examples/solar_cells/requirements.txt` (not for commercial use)."
        )
    return Path(spec.submodule_search_locations[0]) / "data"


def write_digits(folder: Path) -> None:
    """Write scikit-learn's digits as PNG files, a folder for each digit."""
    digits = load_digits()
    for number, (pixels, digit) in enumerate(zip(digits.images, digits.target, strict=True)):
        target = folder / str(digit) / f"{number:04}.png"
        target.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray((pixels * (255 / 16)).astype("uint8")).save(target)
    print(f"{folder}: {len(digits.target)} images of digits")


def write_resnet(folder: Path) -> None:
    """Write a small ResNet with fresh weights, and the processor of its images."""
    torch.manual_seed(0)
    config = ResNetConfig(embedding_size=16, hidden_sizes=[16, 32, 64, 128], depths=[2, 2, 2, 2], layer_type="basic")
    ResNetForImageClassification(config).save_pretrained(folder)
    ViTImageProcessorPil(size={"height": SIDE, "width": SIDE}).save_pretrained(folder)
    print(f"{folder}: a ResNet with fresh weights")


def write_cells(file: Path) -> None:
    """Write the photographs' paths with what experts said of the cells."""
    source = photographs()
    file.parent.mkdir(parents=True, exist_ok=True)
    partial = file.with_name(file.name + ".partial")
    with partial.open("w", newline="") as out:
        rows = csv.writer(out)
        rows.writerow(["image", "label"])
        count = 0
        for line in (source / "labels.csv").read_text().split("\n"):
            if line.strip():
                image, probability, _ = line.split()
                rows.writerow([source / image, "defective" if float(probability) > 0.5 else "functional"])
                count += 1
    partial.replace(file)
    print(f"{file}: {count} photographs")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("runs/data"), metavar="FOLDER")
    arguments = parser.parse_args()
    write_digits(arguments.output / "digits")
    write_resnet(arguments.output / "resnet")
    write_cells(arguments.output / "solar_cells" / "solar_cells.csv")  # last: the others do without its package


if __name__ == "__main__":
    main()
