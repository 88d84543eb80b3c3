"""SLCA and SLCA++ the plain way, as the papers and the authors' release describe them: what the project is compared with.

One `MultivariateNormal` with a full covariance per class and alignment epoch; one DataLoader per class for the
statistics; the test set through the backbone after every alignment epoch; training and test set evaluated every fifth
epoch; images go one by one through PIL and torchvision; LoRA forms W + s B A. Only the arithmetic is shared with the
project; none of its code is used here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import timm
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.distributions import MultivariateNormal
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset, Subset
from torchvision import transforms

EVALUATE_EVERY = 5  # epochs
RIDGE = 1e-4


def align(heads: Sequence[nn.Linear], means: Tensor, covariances: Tensor, *, epochs: int = 5, samples: int = 256, lr: float = 0.01,
          weight_decay: float = 5e-4, tau: float | None = 0.1, scale=None, after_epoch=None) -> None:
    """Stage 2 with full covariances: (K, D) means, (K, D, D) covariances; `scale(features, labels)` as SLCA++ has it."""
    parameters = [p for head in heads for p in head.parameters()]
    optimizer = torch.optim.SGD(parameters, lr=lr, momentum=0.9, weight_decay=weight_decay)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=epochs)
    for _ in range(epochs):
        drawn, labels = [], []
        for label in range(len(means)):
            normal = MultivariateNormal(means[label], covariances[label])
            drawn.append(normal.sample((samples,)))
            labels += [label] * samples
        features, targets = torch.cat(drawn), torch.tensor(labels, device=means.device)
        if scale is not None:
            features = scale(features, targets)
        order = torch.randperm(len(features), device=features.device)
        features, targets = features[order], targets[order]
        for step in range(len(means)):
            batch, batch_targets = features[step * samples:(step + 1) * samples], targets[step * samples:(step + 1) * samples]
            per_task = [head(batch) for head in heads]
            logits = torch.cat(per_task, dim=1)
            if tau is not None:
                norms = torch.cat([part.norm(p=2, dim=-1, keepdim=True) + 1e-7 for part in per_task], dim=-1)
                logits = logits / norms.mean(dim=-1, keepdim=True) / tau
            loss = F.cross_entropy(logits, batch_targets)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        schedule.step()
        if after_epoch is not None:
            after_epoch()


class FormedLoRA(nn.Module):
    """A linear layer whose weight W + s B A is formed in every forward pass."""

    def __init__(self, base: nn.Linear, rank: int = 4, scale: float = 0.8) -> None:
        super().__init__()
        self.base, self.scale = base, scale
        self.lora_A = nn.Parameter(torch.linalg.svd(base.weight.detach(), full_matrices=False).Vh[:rank].clone())
        self.lora_B = nn.Parameter(torch.zeros(base.out_features, rank))

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.base.weight + self.scale * self.lora_B @ self.lora_A, self.base.bias)


class Images(Dataset):
    """One PIL image and one chain of transforms at a time."""

    def __init__(self, images: np.ndarray, labels: np.ndarray, mean: Sequence[float], std: Sequence[float]) -> None:
        self.images, self.labels = images, labels
        self.chain = transforms.Compose([transforms.ToTensor(), transforms.Normalize(mean, std)])

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.chain(Image.fromarray(self.images[index])), int(self.labels[index])


@dataclass
class Plain:
    """SLCA (plus_plus False) or SLCA++ on arrays of grey images, by a config of the project read as a plain dict."""

    config: dict
    plus_plus: bool

    def run(self, seed: int) -> float:
        """Train over all tasks; returns the last accuracy in percent."""
        c = self.config
        data = np.load(c["dataset"]["root"])
        order = np.random.RandomState(seed).permutation(10)
        new_label = np.argsort(order)
        mean, std = c["dataset"]["mean"], c["dataset"]["std"]
        self.train_set = Images(data["x_train"], new_label[data["y_train"]], mean, std)
        self.test_set = Images(data["x_test"], new_label[data["y_test"]], mean, std)
        torch.manual_seed(1)
        self.vit = timm.create_model(c["convnet_type"]["timm"], num_classes=0, **c["convnet_type"]["args"])
        self.vit.load_state_dict(load_file(c["convnet_type"]["weights"]))
        if self.plus_plus:
            for name, parameter in self.vit.named_parameters():
                parameter.requires_grad_(any(word in name for word in ("norm", "bias", "cls_token")))
            for block in self.vit.blocks:
                block.attn.qkv = FormedLoRA(block.attn.qkv)
        self.heads = nn.ModuleList()
        self.scales: list[float] = []
        means, covariances = [], []
        size, accuracy, before = c["increment"], 0.0, None
        for task in range(10 // size):
            if before is not None:  # alignment starts from the heads as they were
                self.heads.load_state_dict(before)
            self._learn(task, task * size, (task + 1) * size)
            for label in range(task * size, (task + 1) * size):  # one loader per class
                features = self._features(self._loader(self.train_set, label, label + 1, shuffle=False))
                means.append(features.mean(dim=0))
                covariances.append(torch.cov(features.T) + RIDGE * torch.eye(features.shape[1]))
            if task > 0:
                before = {name: tensor.clone() for name, tensor in self.heads.state_dict().items()}
                self._align(task, size, torch.stack(means), torch.stack(covariances))
            accuracy = self._accuracy(self.test_set, 0, (task + 1) * size)
        return accuracy

    def _learn(self, task: int, first: int, last: int) -> None:
        c = self.config
        head = nn.Linear(self.vit.num_features, last - first)
        nn.init.trunc_normal_(head.weight, std=0.02)
        nn.init.zeros_(head.bias)
        for old in self.heads:
            old.requires_grad_(False)
        self.heads.append(head)
        self.scales = [1.0] * len(self.heads)
        base = c["lr"] * c["bcb_lrscale"]
        lora = [p for name, p in self.vit.named_parameters() if "lora_" in name]
        others = [p for name, p in self.vit.named_parameters() if "lora_" not in name and p.requires_grad]
        groups = [{"params": others, "lr": base}, {"params": head.parameters(), "lr": c["lr"]}]
        if lora:
            groups.append({"params": lora, "lr": c["lr"] * (c["lora_lrscale_first"] if task == 0 else c["bcb_lrscale"])})
        optimizer = torch.optim.SGD(groups, lr=c["lr"], momentum=0.9, weight_decay=5e-4)
        floor = c["lr"] * c["bcb_lrscale"]
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=c["epochs"], eta_min=floor) if self.plus_plus else None
        loader = self._loader(self.train_set, first, last, shuffle=True)
        for epoch in range(c["epochs"]):
            self.vit.train()
            for images, labels in loader:
                logits = head(self.vit(images))
                loss = self._loss(logits, labels - first)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
            if schedule is not None:
                schedule.step()
            if (epoch + 1) % EVALUATE_EVERY == 0:
                self._accuracy(self.train_set, first, last)
                self._accuracy(self.test_set, 0, last)

    def _loss(self, logits: Tensor, targets: Tensor) -> Tensor:
        loss = F.cross_entropy(logits, targets)
        if not self.plus_plus:
            return loss
        p = logits.softmax(dim=1).clamp(1e-7, 1)
        q = F.one_hot(targets, logits.shape[1]).float().clamp(1e-4, 1)
        return self.config["sce_a"] * loss + self.config["sce_b"] * -(p * q.log()).sum(dim=1).mean()

    def _align(self, task: int, size: int, means: Tensor, covariances: Tensor) -> None:
        c = self.config
        self.heads.requires_grad_(True)
        task_of_class = torch.arange(len(means)) // size
        if self.plus_plus:
            def scale(features: Tensor, labels: Tensor) -> Tensor:
                u = c["fc_scale_mu"] + 0.02 * (torch.rand(len(labels)) - 0.5)
                return features / (1 + u * (task - task_of_class[labels]))[:, None]
        else:
            scale = None
            means = means * (0.9 + 0.1 * (task_of_class + 1) / (task + 1))[:, None]
        align(self.heads, means, covariances, epochs=c["ca_epochs"], lr=c["lr"], tau=c["ca_with_logit_norm"], scale=scale,
              after_epoch=lambda: self._accuracy(self.test_set, 0, (task + 1) * size))
        if self.plus_plus:
            self.scales = [1 + c["fc_scale_mu"] * (task - t) for t in range(task + 1)]

    def _loader(self, images: Images, first: int, last: int, *, shuffle: bool) -> DataLoader:
        chosen = np.flatnonzero((images.labels >= first) & (images.labels < last))
        size = self.config["batch_size"] if shuffle else self.config["test_batch_size"]
        return DataLoader(Subset(images, chosen.tolist()), batch_size=size, shuffle=shuffle)

    @torch.no_grad()
    def _features(self, loader: DataLoader) -> Tensor:
        self.vit.eval()
        return torch.cat([self.vit(images) for images, _ in loader])

    @torch.no_grad()
    def _accuracy(self, images: Images, first: int, last: int) -> float:
        self.vit.eval()
        right, count = 0, 0
        for batch, labels in self._loader(images, first, last, shuffle=False):
            features = self.vit(batch)
            logits = torch.cat([head(features * scale) for head, scale in zip(self.heads, self.scales, strict=True)], dim=1)
            right += (logits.argmax(dim=1) == labels).sum().item()
            count += len(labels)
        return 100 * right / count
