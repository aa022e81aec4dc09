"""Exports models as files that serving can read: ONNX to run, safetensors to keep. Checks each against the model."""

import warnings
from pathlib import Path

import numpy as np
import onnxruntime
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

TOLERANCE = 1e-4


class ExportError(Exception):
    """Raised where the exported model does not answer as the trained one does."""


def export(model: nn.Module, path: Path, inputs: dict[str, Tensor], *, output: str) -> None:
    """Writes `model` to `path` (.onnx) and its weights beside it (.safetensors).

    inputs: example tensors by name, in the order of forward(), of any number of rows above 1. Raises ExportError when
    the answers of ONNX Runtime differ from the model's by more than TOLERANCE, absolute and relative.
    """
    model = model.eval()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            model,
            tuple(inputs.values()),
            path,
            input_names=list(inputs),
            output_names=[output],
            dynamic_axes={name: {0: "rows"} for name in (*inputs, output)},
            # Traced, not compiled: these models have no branches, and it takes 0.1 s instead of 4 s a model.
            dynamo=False,
        )
    save_file(
        {name: value.contiguous() for name, value in model.state_dict().items()}, path.with_suffix(".safetensors")
    )
    with torch.no_grad():
        expected = model(*inputs.values()).numpy()
    answers = open_onnx(path).run(None, {name: value.numpy() for name, value in inputs.items()})[0]
    if not np.allclose(expected, answers, atol=TOLERANCE, rtol=TOLERANCE):
        worst = float(np.abs(expected - answers).max())
        raise ExportError(
            f"{path.name} answers differ from those of its model by up to {worst:.2g}, so it must not be served"
        )


def open_onnx(path: Path) -> onnxruntime.InferenceSession:
    """Opens an ONNX file on the CPU."""
    return onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
