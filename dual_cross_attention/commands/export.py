"""`dcal export`: a trained model as a file that runs without this project."""

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

from dual_cross_attention.commands.inference_options import NamedModelOptions
from dual_cross_attention.commands.output import open_console
from dual_cross_attention.configs.arguments import read_options
from dual_cross_attention.text import escape


@dataclass(kw_only=True)
class ExportOptions(NamedModelOptions):
    """Exports a trained model to a file that runs without this project. An ONNX file is compared with PyTorch first: if
    it does not compute the same, it is not written and the numbers are printed."""

    EXAMPLE: ClassVar = "dcal export runs/birds --format onnx --output birds.onnx"
    GROUPS: ClassVar = {"what to export": "format branch dtype", "check": "data_root max_loss", "output": "output"}

    format: Literal["onnx", "timm", "pt2"] = "onnx"
    """onnx: one file for ONNX Runtime. timm: SA alone as a directory for timm.create_model("local-dir:DIR").
    pt2: torch.export's program for torch.export.load; such a file can hold code: load only files that you trust."""
    branch: Literal["sa", "glca"] | None = None
    """onnx, pt2: a graph of one branch alone. null: all branches that predict."""
    dtype: Literal["fp32", "fp16", "int8"] = "fp32"
    """onnx: of the weights. fp16 and int8 need the run's test images, on which their accuracy is measured."""
    data_root: str | None = None
    """Folder of the run's dataset, whose test images are compared. null: where the run found it; if it is not
    there, synthetic images are compared, and fp16 and int8 are refused."""
    max_loss: float | None = None
    """fp16, int8: percentage points of top-1, or of mAP and rank-1, that the file may lose to be written. null: 0.5."""
    output: str | None = None
    """File or directory to write. null: named after the model, in the current folder."""


def run(arguments: list[str]) -> None:
    """Exports, and prints what was compared."""
    options = read_options(ExportOptions, "export", arguments)
    console = open_console()
    from dual_cross_attention.export.exporting import export_model

    output, lines = export_model(
        options.model,
        options.format,
        options.branch,
        options.output and Path(options.output),
        options.data_root,
        options.dtype,
        options.max_loss,
        console,
    )
    for line in lines:
        console.print(line, soft_wrap=True, markup=False, highlight=False)
    console.print(f"wrote {escape(output)}", soft_wrap=True, markup=False, highlight=False)
