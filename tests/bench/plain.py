"""MMARE as one would first write it: a loop over slots, concatenation, torch's default Adam."""

import torch
from torch import nn


class PlainMMARE(nn.Module):
    def __init__(self, widths, classes, width=512):
        super().__init__()
        self.adapters = nn.ModuleList(
            nn.Identity() if given == width else nn.Sequential(nn.Linear(given, width), nn.ReLU())
            for given in widths
        )
        self.gamma, self.beta = nn.Linear(len(widths), width), nn.Linear(len(widths), width)
        self.norm, self.fused_norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.merge = nn.Sequential(nn.Linear(2 * width, width), nn.ReLU(), nn.Linear(width, width))
        self.head = nn.Sequential(
            nn.Linear(width, width // 2),
            nn.ReLU(),
            nn.Linear(width // 2, width // 4),
            nn.ReLU(),
            nn.Dropout(0.3),
            nn.Linear(width // 4, classes),
        )

    def forward(self, embedding, present):
        missing = (~present).float()
        gamma, beta = 0.05 * self.gamma(missing), 0.05 * self.beta(missing)
        fused, started = None, torch.zeros(len(present), 1, dtype=torch.bool)
        for slot in torch.randperm(present.shape[1]).tolist():
            adapted = self.adapters[slot](embedding[slot])
            conditioned = self.norm(adapted + gamma * adapted + beta)
            here = present[:, slot : slot + 1]
            if fused is None:
                fused = torch.zeros_like(conditioned)
            merged = self.fused_norm(fused + self.merge(torch.cat([fused, conditioned], dim=1)))
            fused = torch.where(here & started, merged, torch.where(here, conditioned, fused))
            started = started | here
        return self.head(fused)
