"""`worldenv-export`: encoders, decoders and one denoising step as ONNX files, each checked against torch."""

import argparse
import logging
import os
import warnings
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from worldenv import ops
from worldenv.assemble import Parts, load
from worldenv.commands.convert import Parser
from worldenv.data.paths import as_path
from worldenv.errors import UserError, nearest
from worldenv.files import cannot_be_written, sync, temporary_folder
from worldenv.interfaces.pieces import Piece
from worldenv.nn import compiled
from worldenv.records.model_files import ROLES

OPSET = 20
TRACED, CHECKED = 2, (1, 3)  # rows
TOLERANCE = 1e-4  # of what torch gives; relative to the largest number of an output, where that is above 1
ENGINE_ROWS = (1, 8, 64)  # least, usual and most, that an engine of TensorRT is built for


def parsed(words: Sequence[str]) -> argparse.Namespace:
    """The options of a command line. Raises UserError, or SystemExit at --help."""
    parser = Parser(
        "worldenv-export",
        description="Write vision encoders, autoencoders and one denoising step of a policy, a world model or a "
        "reflector as ONNX files with a batch of any size.",
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("folder", type=Path, help="a new folder")
    add("--models", type=Path, help="folder of the models; default: the weights in the package")
    add("--suite", default="tabletop", help="as in worldenv-train; it says which pictures there are")
    for role in ROLES:
        add(f"--{role}", help="as in worldenv-train; only what is named here is exported")
    add("--pieces", help="of these, only some: world-decoder,world-denoising-step")
    add("--tensorrt", action="store_true", help="also build an engine of each")
    return parser.parse_args(list(words))


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Do what the options say; returns what was written. Raises UserError."""
    target = as_path(options.folder)
    given = {role: name for role in ROLES if (name := getattr(options, role)) is not None}
    if not given:
        raise UserError(f"nothing to export: name at least one of {', '.join(f'--{role}' for role in ROLES)}")
    _check_new(target)
    parts = load(options.models, options.suite, **given)
    only = None if options.pieces is None else options.pieces.split(",")
    return export_onnx(parts, target, tuple(given), only, options.tensorrt)


def export_onnx(
    parts: Parts,
    folder: Path | str,
    roles: Collection[str] = ROLES,
    only: Collection[str] | None = None,  # ROLE-PIECE; None: all pieces of these roles
    tensorrt: bool = False,
) -> dict[str, Any]:
    """Write ROLE-PIECE.onnx for every piece into a folder that is not there yet; it appears whole or not at all.

    Each file is run by onnxruntime at two batch sizes: outputs are finite, and as torch gives them within TOLERANCE.
    Returns inputs, outputs and the largest difference of each. Raises UserError naming the piece and the output that is
    not so, for weights that are not float32 on the CPU, and for a piece that the exporter cannot take.
    """
    target = _check_new(as_path(folder))
    for name in ("onnx", "onnxscript", "onnxruntime"):
        _library(name)
    if compiled.WANTED:
        raise UserError("WORLDENV_COMPILE is 1: compiled networks have no export; leave it unset")
    pieces = _chosen(_pieces(parts, roles), only)
    reason, files = why_no_tensorrt() if tensorrt else "not asked for", {}
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with temporary_folder(target) as made, _plainly():
            for name, piece in pieces.items():
                files[f"{name}.onnx"] = _write(name, piece, made / f"{name}.onnx")
                if reason is None:
                    build_engine(made / f"{name}.onnx", made / f"{name}.engine")
            os.replace(made, target)
        sync(target.parent)
    except OSError as error:
        raise cannot_be_written(target, error) from error
    return {"folder": str(target), "files": files, "tensorrt": reason or "engines built, and not run"}


def _check_new(target: Path) -> Path:
    if os.path.lexists(target):
        raise UserError(f"{target} is there already; give a folder that is not")
    return target


def _pieces(parts: Parts, roles: Collection[str]) -> dict[str, Piece]:
    out = {}
    for role in roles:
        part = getattr(parts, role)
        if not hasattr(part, "pieces"):
            raise UserError(
                f"the {role} is {type(part).__name__}, which offers no pieces(size) to export; leave it out"
            )
        out |= {f"{role}-{name}": piece for name, piece in part.pieces(tuple(parts.world.size)).items()}
    return out


def _chosen(pieces: dict[str, Piece], only: Collection[str] | None) -> dict[str, Piece]:
    for name in only or ():
        if name not in pieces:
            raise UserError(f"there is no piece {name!r}{nearest(name, pieces)}; there are {', '.join(pieces)}")
    return pieces if only is None else {name: pieces[name] for name in only}


class _Call(nn.Module):
    """A piece as the exporter takes it: inputs are one tuple, whatever their number."""

    def __init__(self, piece: Piece):
        super().__init__()
        self.network, self.call = piece.network, piece.call

    def forward(self, inputs: tuple[Tensor, ...]) -> Tensor | tuple[Tensor, ...]:
        return self.call(*inputs)


def _write(name: str, piece: Piece, path: Path) -> dict[str, Any]:
    """Export one piece and compare; inputs, outputs and the largest difference."""
    _check_weights(name, piece.network)
    wanted = {rows: _computed(name, piece, rows) for rows in (TRACED, *CHECKED)}
    inputs, outputs = wanted[TRACED]
    batch = torch.export.Dim("batch", min=1, max=piece.most)
    dynamic = tuple({0: batch} for _ in inputs)
    try:
        with torch.no_grad(), _silence():
            torch.onnx.export(
                _Call(piece).eval(),
                (tuple(inputs.values()),),
                path,
                dynamo=True,
                opset_version=OPSET,
                input_names=list(inputs),
                output_names=list(piece.outputs),
                dynamic_shapes=(dynamic,),
                optimize=False,  # the optimiser breaks linear attention (AutoencoderDC): not finite
                verbose=False,
            )
    except Exception as error:  # of many kinds, each of several pages
        raise UserError(f"{name} cannot be exported: {_cause(error)}") from error
    difference = max(_compared(name, path, *wanted[rows]) for rows in CHECKED)
    return {"inputs": _about(inputs), "outputs": _about(outputs), "difference": difference}


def _check_weights(name: str, network: nn.Module) -> None:
    for parameter in network.parameters():
        if parameter.dtype != torch.float32 or parameter.device.type != "cpu":
            raise UserError(
                f"{name} has weights of {parameter.dtype} on {parameter.device}; export takes float32 on the CPU: set "
                'dtype "float32" in the folder\'s worldenv.json'
            )


def _computed(name: str, piece: Piece, rows: int) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Inputs and what torch gives, by name."""
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(rows)
        inputs = piece.example(rows)
        found = piece.call(*inputs.values())
    outputs = dict(zip(piece.outputs, found if isinstance(found, tuple) else (found,), strict=True))
    for output, tensor in outputs.items():
        if not tensor.isfinite().all():
            raise UserError(f"{name}: {output} is not finite in torch; take another checkpoint, nothing was exported")
    return inputs, outputs


def _compared(name: str, path: Path, inputs: dict[str, Tensor], wanted: dict[str, Tensor]) -> float:
    """The largest difference between onnxruntime and torch."""
    runtime = _library("onnxruntime")
    options = runtime.SessionOptions()
    options.log_severity_level = 3  # errors
    try:
        session = runtime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        taken = {one.name for one in session.get_inputs()}
        found = session.run(list(wanted), {key: tensor.numpy() for key, tensor in inputs.items() if key in taken})
    except Exception as error:  # onnxruntime has a class for every kind
        rows = next(iter(inputs.values())).shape[0]
        raise UserError(f"{name} does not run under onnxruntime with a batch of {rows}: {_cause(error)}") from error
    worst = 0.0
    for (output, right), numbers in zip(wanted.items(), found, strict=True):
        got, right = torch.from_numpy(numbers).double(), right.double()
        if got.shape != right.shape:
            raise UserError(f"{name}: {output} is {list(got.shape)} under onnxruntime, {list(right.shape)} in torch")
        if not got.isfinite().all():
            raise UserError(f"{name}: {output} is not finite under onnxruntime, and is in torch")
        difference = float((got - right).abs().max() / right.abs().max().clamp(min=1))
        if difference > TOLERANCE:
            raise UserError(
                f"{name}: {output} differs between onnxruntime and torch by {difference:.1e}, more than {TOLERANCE:.0e}"
            )
        worst = max(worst, difference)
    return worst


def _about(tensors: dict[str, Tensor]) -> dict[str, str]:
    return {
        name: f"{str(t.dtype).removeprefix('torch.')} [{', '.join(['batch', *map(str, t.shape[1:])])}]"
        for name, t in tensors.items()
    }


def _cause(error: BaseException) -> str:
    while error.__cause__ is not None:
        error = error.__cause__
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"


@contextmanager
def _plainly() -> Iterator[None]:
    """Inside, every op is its reference: ONNX does not know the compiled ones."""
    before, ops.BACKEND = ops.BACKEND, "reference"
    try:
        yield
    finally:
        ops.BACKEND = before


@contextmanager
def _silence() -> Iterator[None]:
    """Without the exporter's reports: what it cannot do is an error here."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


def _library(name: str) -> ModuleType:
    try:
        return import_module(name)
    except ImportError as error:
        raise UserError(f'export needs {error.name or name}: pip install "worldenv[export]"') from error


def why_no_tensorrt() -> str | None:
    """Why no engine of TensorRT can be built here; None if one can."""
    try:
        import_module("tensorrt")
    except ImportError:
        return "no engines: TensorRT is not installed (pip install tensorrt), and it needs an NVIDIA card"
    return None if torch.cuda.is_available() else "no engines: TensorRT is installed, but torch finds no CUDA device"


def build_engine(path: Path, target: Path) -> None:
    """Build an engine for batches of 1 to 64 rows from an ONNX file. Raises UserError with what TensorRT says."""
    trt = import_module("tensorrt")
    builder = trt.Builder(trt.Logger(trt.Logger.ERROR))
    network = builder.create_network(0)
    parser = trt.OnnxParser(network, trt.Logger(trt.Logger.ERROR))
    if not parser.parse_from_file(str(path)):
        raise UserError(f"{path.name}: TensorRT cannot read it: {parser.get_error(0).desc()}")
    profile, config = builder.create_optimization_profile(), builder.create_builder_config()
    for i in range(network.num_inputs):
        given = network.get_input(i)
        profile.set_shape(given.name, *((rows, *tuple(given.shape)[1:]) for rows in ENGINE_ROWS))
    config.add_optimization_profile(profile)
    engine = builder.build_serialized_network(network, config)
    if engine is None:
        raise UserError(f"{path.name}: TensorRT builds no engine; its log says why")
    target.write_bytes(bytes(engine))
