"""Networks of a user's own, named in tests as model.architecture=networks:NAME."""

from __future__ import annotations

import torch


class Small(torch.nn.Module):
    """Two convolutions, a pool padded as ResNet's is, and a linear layer."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.features = torch.nn.Sequential(
            torch.nn.Conv2d(3, 8, 3, stride=2, padding=1, bias=False), torch.nn.BatchNorm2d(8), torch.nn.ReLU(),
            torch.nn.MaxPool2d(3, stride=2, padding=1),
            torch.nn.Conv2d(8, 16, 3, stride=4, padding=1), torch.nn.ReLU(), torch.nn.AdaptiveAvgPool2d(1),
        )  # fmt: skip
        self.classifier = torch.nn.Linear(16, num_classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.classifier(self.features(x).flatten(1))


class Odd(Small):
    """Uses an operator that litert-torch has no translation for, and ONNX has."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        logits = super().forward(x)
        square = logits[:, :9].reshape(-1, 3, 3)
        return logits + torch.linalg.det(square)[:, None]


def small(num_classes: int) -> torch.nn.Module:
    return Small(num_classes)


def odd(num_classes: int) -> torch.nn.Module:
    return Odd(num_classes)
