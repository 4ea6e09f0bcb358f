"""Images that torch-fidelity and the evaluator take from memory."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset


def pictures(n: int, seed: int) -> Tensor:
    """Blobs of colour, darker for a higher seed, uint8 (n, 3, 32, 32)."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(n, 3, 4, 4, generator=generator) * 255 * (1.1 - 0.1 * seed)
    return torch.nn.functional.interpolate(coarse, size=(32, 32), mode="bicubic").clamp(0, 255).to(torch.uint8)


class InMemory(Dataset[Tensor]):
    """Images for torch-fidelity and, as relgan's Images, for the evaluator."""

    def __init__(self, images: Tensor) -> None:
        self.images, self.size = images, tuple(images.shape[2:])
        self.fingerprint = str(hash(tuple(images.flatten().tolist())))
        self.meta = {"name": "memory"}
        self.labels = None

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Tensor:
        return self.images[index]

    def batches(self, indices: np.ndarray, batch_size: int) -> list[Tensor]:
        return list(self.images[torch.from_numpy(indices)].split(batch_size))
