"""Trains the demo weights: MobileNetV3-small on scikit-learn's digits at 96 px.

Run `python -m compiler.zoo.digits` (or `make zoo`). It trains on the `train` split of `conf/data/digits.yaml`
alone and prints the accuracy on the other splits. The weights record the digest of the split they
were trained on, so that a build can refuse to report accuracy on samples the network has seen.
"""

from __future__ import annotations

import argparse
import hashlib
import json
from pathlib import Path
from typing import Any

SIDE = 96
SPLITS = {"train": 1000, "calibration": 100, "selection": 297, "report": 400}
SPLIT_SEED = 0
DEFAULT_OUT = Path(__file__).with_name("mobilenetv3_digits.safetensors")


def train(out: Path, epochs: int, seed: int) -> dict[str, float]:
    """Trains from scratch on the CPU and writes `out`; returns top-1 accuracy in percent by split."""
    import numpy as np
    import torch
    import torchvision
    from safetensors.torch import save_file

    from compiler.data.digits import Digits
    from compiler.data.splits import digest, split

    torch.manual_seed(seed)
    torch.use_deterministic_algorithms(True)
    source = Digits(SIDE)
    splits = split(len(source.ids), SPLITS, SPLIT_SEED)
    images = np.stack([source.image(i) for i in range(len(source.ids))]).transpose(0, 3, 1, 2)
    everything = torch.from_numpy(images.copy()).float().div_(127.5).sub_(1.0)
    labels = torch.tensor(source.labels)

    model = torchvision.models.mobilenet_v3_small(weights=None, num_classes=10)
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = 0.1  # torchvision's 0.01 needs more steps than this small set gives
    model = model.to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=2e-2)
    train_indices = torch.tensor(splits["train"])
    batch = 50
    steps = epochs * (len(train_indices) // batch)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=4e-3, total_steps=steps)
    for epoch in range(epochs):
        model.train()
        order = train_indices[torch.randperm(len(train_indices))]
        total = 0.0
        for chunk in order.split(batch):
            x = augment(everything[chunk]).contiguous(memory_format=torch.channels_last)
            loss = torch.nn.functional.cross_entropy(model(x), labels[chunk], label_smoothing=0.05)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            total += float(loss.detach())
        print(f"epoch {epoch + 1:3d}/{epochs}  loss {total * batch / len(order):.4f}", flush=True)

    model.eval()
    accuracy = {}
    with torch.inference_mode():
        for name, indices in splits.items():
            hits = [
                (model(everything[chunk]).argmax(1) == labels[chunk]).float()
                for chunk in torch.tensor(indices).split(100)
            ]
            accuracy[name] = round(float(torch.cat(hits).mean()) * 100, 2)
    metadata = {
        "architecture": "mobilenet_v3_small",
        "dataset": "digits",
        "train_split": digest([source.ids[i] for i in splits["train"]]),
        "kind": "demo",
    }
    state = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    out.parent.mkdir(parents=True, exist_ok=True)
    save_file(state, out, metadata={"training": json.dumps(metadata)})  # one entry: several come in any order
    return accuracy


def augment(x: Any) -> Any:
    """`x`, float32 (n, 3, side, side), shifted, scaled, rotated and sheared by a few percent at random (seeded)."""
    import torch

    n = x.shape[0]
    angle = (torch.rand(n) - 0.5) * 0.5
    scale = 1.0 + (torch.rand(n) - 0.5) * 0.3
    shear = (torch.rand(n) - 0.5) * 0.3
    theta = torch.zeros(n, 2, 3)
    theta[:, 0, 0] = torch.cos(angle) * scale
    theta[:, 0, 1] = -torch.sin(angle) + shear
    theta[:, 1, 0] = torch.sin(angle)
    theta[:, 1, 1] = torch.cos(angle) * scale
    theta[:, :, 2] = (torch.rand(n, 2) - 0.5) * 0.25
    grid = torch.nn.functional.affine_grid(theta, list(x.shape), align_corners=False)
    return torch.nn.functional.grid_sample(x, grid, padding_mode="border", align_corners=False)


def main() -> None:
    """Command line of the training script."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=DEFAULT_OUT)
    parser.add_argument("--epochs", type=int, default=40)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    accuracy = train(args.out, args.epochs, args.seed)
    print(json.dumps(accuracy))
    print(f"{args.out}\nsha256 {hashlib.sha256(args.out.read_bytes()).hexdigest()}")


if __name__ == "__main__":
    main()
