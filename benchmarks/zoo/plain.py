"""Nets of torch's own layers: transformers, recurrent nets, a U-Net, 1-D and 3-D convolutions."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.registry import Case, architecture


class Encoder(nn.Module):
    """Token classifier: embedding, learned positions, `nn.TransformerEncoder`, mean, head."""

    def __init__(self, width: int = 64, heads: int = 4, layers: int = 2) -> None:
        super().__init__()
        self.embedding = nn.Embedding(64, width)
        self.positions = nn.Parameter(torch.randn(1, 16, width) * 0.02)
        layer = nn.TransformerEncoderLayer(width, heads, 4 * width, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, layers)
        self.head = nn.Linear(width, 10)

    def forward(self, numbers: Tensor) -> Tensor:
        """Return (batch, 10) scores of (batch, length) token numbers."""
        x = self.embedding(numbers) + self.positions[:, : numbers.shape[1]]
        return self.head(self.encoder(x).mean(1))


class Translator(nn.Module):
    """`nn.Transformer` between two embeddings, with a causal mask."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.source = nn.Embedding(64, width)
        self.target = nn.Embedding(64, width)
        self.transformer = nn.Transformer(width, 4, 1, 1, 64, batch_first=True)
        self.head = nn.Linear(width, 64)

    def forward(self, source: Tensor, target: Tensor) -> Tensor:
        """Return (batch, length, 64) scores."""
        mask = nn.Transformer.generate_square_subsequent_mask(target.shape[1])
        mask = mask.to(self.head.weight.dtype)
        return self.head(self.transformer(self.source(source), self.target(target), tgt_mask=mask))


class Recurrent(nn.Module):
    """Token classifier over a recurrent layer of torch."""

    def __init__(self, kind: type[nn.RNNBase], width: int = 32, **options: bool | int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(64, width)
        self.layer = kind(width, width, batch_first=True, **options)
        directions = 2 if options.get("bidirectional") else 1
        self.head = nn.Linear(directions * width, 10)

    def forward(self, numbers: Tensor) -> Tensor:
        """Return (batch, 10) scores."""
        hidden, _ = self.layer(self.embedding(numbers))
        return self.head(hidden.mean(1))


class CellLoop(nn.Module):
    """An LSTM cell called in a Python loop, its first state made of zeros."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.cell = nn.LSTMCell(16, width)
        self.head = nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Return (batch, 10) scores of (batch, length, 16) features."""
        hidden = x.new_zeros(x.shape[0], self.cell.hidden_size)
        cell = torch.zeros_like(hidden)
        for step in range(x.shape[1]):
            hidden, cell = self.cell(x[:, step], (hidden, cell))
        return self.head(hidden)


class DoubleConv(nn.Sequential):
    """Two convolutions with batch norm."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(
            nn.Conv2d(inputs, outputs, 3, padding=1),
            nn.BatchNorm2d(outputs),
            nn.ReLU(inplace=True),
            nn.Conv2d(outputs, outputs, 3, padding=1),
            nn.BatchNorm2d(outputs),
            nn.ReLU(inplace=True),
        )


class UNet(nn.Module):
    """Down twice and up twice, with transposed convolutions and concatenated shortcuts."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.down1 = DoubleConv(3, width)
        self.down2 = DoubleConv(width, 2 * width)
        self.bottom = DoubleConv(2 * width, 4 * width)
        self.up2 = nn.ConvTranspose2d(4 * width, 2 * width, 2, stride=2)
        self.conv2 = DoubleConv(4 * width, 2 * width)
        self.up1 = nn.ConvTranspose2d(2 * width, width, 2, stride=2)
        self.conv1 = DoubleConv(2 * width, width)
        self.head = nn.Conv2d(width, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Return (batch, 2, height, width) scores."""
        one = self.down1(x)
        two = self.down2(F.max_pool2d(one, 2))
        x = self.bottom(F.max_pool2d(two, 2))
        x = self.conv2(torch.cat([two, self.up2(x)], 1))
        return self.head(self.conv1(torch.cat([one, self.up1(x)], 1)))


class Waves(nn.Sequential):
    """1-D convolutions over sound, with grouped and dilated ones."""

    def __init__(self) -> None:
        super().__init__(
            nn.Conv1d(1, 32, 9, stride=4, padding=4),
            nn.BatchNorm1d(32),
            nn.GELU(),
            nn.Conv1d(32, 32, 5, padding=4, dilation=2, groups=32),
            nn.Conv1d(32, 64, 1),
            nn.GroupNorm(8, 64),
            nn.GELU(),
            nn.AdaptiveAvgPool1d(1),
            nn.Flatten(),
            nn.Linear(64, 10),
        )


class Volumes(nn.Sequential):
    """3-D convolutions, up and down again."""

    def __init__(self) -> None:
        super().__init__(
            nn.Conv3d(1, 16, 3, padding=1),
            nn.InstanceNorm3d(16, affine=True),
            nn.LeakyReLU(0.1),
            nn.MaxPool3d(2),
            nn.Conv3d(16, 32, 3, padding=1),
            nn.BatchNorm3d(32),
            nn.LeakyReLU(0.1),
            nn.ConvTranspose3d(32, 16, 2, stride=2),
            nn.LeakyReLU(0.1),
            nn.Conv3d(16, 2, 1),
        )


class SuperResolution(nn.Module):
    """Pixel shuffle: channels become pixels."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.head = nn.Conv2d(3, width, 3, padding=1)
        self.body = nn.ModuleList(nn.Conv2d(width, width, 3, padding=1) for _ in range(2))
        self.up = nn.Conv2d(width, 4 * width, 3, padding=1)
        self.shuffle = nn.PixelShuffle(2)
        self.tail = nn.Conv2d(width, 3, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """Return pictures twice as large."""
        x = self.head(x)
        for conv in self.body:
            x = x + F.relu(conv(x))
        return self.tail(F.relu(self.shuffle(self.up(x))))


class Autoencoder(nn.Module):
    """A variational autoencoder in evaluation: returns a picture, a mean and a variance."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 32))
        self.decoder = nn.Sequential(nn.Linear(16, 64), nn.Tanh(), nn.Linear(64, 64), nn.Sigmoid())

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Return picture, mean and log-variance."""
        mean, variance = self.encoder(x).chunk(2, -1)
        code = mean
        if self.training:
            code = mean + torch.randn_like(mean) * (0.5 * variance).exp()
        return {"picture": self.decoder(code).view_as(x), "mean": mean, "variance": variance}


@architecture("plain/transformer-encoder")
def transformer_encoder() -> Case:
    """See `Encoder`."""
    return Case(Encoder(), (torch.randint(64, (2, 8)),))


@architecture("plain/transformer")
def transformer() -> Case:
    """See `Translator`."""
    return Case(Translator(), (torch.randint(64, (2, 7)), torch.randint(64, (2, 5))))


@architecture("plain/lstm")
def lstm() -> Case:
    """An LSTM of two layers."""
    return Case(Recurrent(nn.LSTM, num_layers=2), (torch.randint(64, (2, 6)),))


@architecture("plain/lstm-bidirectional")
def lstm_bidirectional() -> Case:
    """An LSTM that runs both ways."""
    return Case(Recurrent(nn.LSTM, bidirectional=True), (torch.randint(64, (2, 6)),))


@architecture("plain/gru")
def gru() -> Case:
    """A GRU."""
    return Case(Recurrent(nn.GRU, num_layers=2), (torch.randint(64, (2, 6)),))


@architecture("plain/rnn")
def rnn() -> Case:
    """A plain recurrent layer."""
    return Case(Recurrent(nn.RNN), (torch.randint(64, (2, 6)),))


@architecture("plain/lstm-cell")
def lstm_cell() -> Case:
    """See `CellLoop`."""
    return Case(CellLoop(), (torch.randn(2, 5, 16),))


@architecture("plain/unet")
def unet() -> Case:
    """See `UNet`."""
    return Case(UNet(), (torch.randn(2, 3, 16, 16),))


@architecture("plain/conv1d")
def conv1d() -> Case:
    """See `Waves`."""
    return Case(Waves(), (torch.randn(2, 1, 64),))


@architecture("plain/conv3d")
def conv3d() -> Case:
    """See `Volumes`."""
    return Case(Volumes(), (torch.randn(2, 1, 8, 8, 8),))


@architecture("plain/pixel-shuffle")
def pixel_shuffle() -> Case:
    """See `SuperResolution`."""
    return Case(SuperResolution(), (torch.randn(2, 3, 8, 8),))


@architecture("plain/autoencoder")
def autoencoder() -> Case:
    """See `Autoencoder`; only the picture keeps its size."""
    return Case(Autoencoder(), (torch.randn(2, 1, 8, 8),), outputs="picture")
