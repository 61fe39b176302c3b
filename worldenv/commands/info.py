"""`worldenv-info`: what is installed, what the machine has, and which face each op would run."""

import argparse
import json
import pkgutil
import platform
import sys
from importlib import metadata

import torch

from worldenv import __version__, kernels, ops
from worldenv.errors import UserError
from worldenv.nn import attention, int8
from worldenv.terminal import patient_streams, print_result


def op_names() -> list[str]:
    """The ops, discovered from the modules in worldenv/ops."""
    return sorted(module.name for module in pkgutil.iter_modules(ops.__path__) if module.name not in ops.NOT_OPS)


def why_no_cuda() -> str | None:
    """Why no tensor can be on a CUDA device; None if one can."""
    if torch.version.cuda is None:
        return "this torch is built without CUDA"
    if not torch.cuda.is_available():
        return "torch finds no CUDA device"
    return None


def face(name: str) -> dict[str, str | None]:
    """The face that op `name` runs on this machine's best device, and why no better one does (None: it is the best).

    Raises ModuleNotFoundError if there is no such op.
    """
    cuda_reason = why_no_cuda()
    device = "cpu" if cuda_reason else "cuda"
    has_face = ops.has_face(name, torch.device(device))
    if ops.BACKEND == "reference":
        return {"op": name, "device": device, "face": "reference", "why_not_better": "WORLDENV_BACKEND=reference"}
    if not has_face:
        reason = f"the op has no {device} face"
        if device == "cuda" and kernels.TRITON_ERROR:
            reason += f" that loads; triton: {kernels.TRITON_ERROR}"
        return {"op": name, "device": device, "face": "reference", "why_not_better": reason}
    if cuda_reason:
        return {"op": name, "device": device, "face": "C++", "why_not_better": cuda_reason}
    if name in kernels.RUNS:
        reason = f"CUDA C++: {ops.CUDA_ERROR}" if ops.CUDA_ERROR else None
        return {"op": name, "device": device, "face": "Triton", "why_not_better": reason}
    return {"op": name, "device": device, "face": "CUDA C++", "why_not_better": None}


def collect() -> dict:
    """Everything `worldenv-info --json` prints."""
    cuda_reason = why_no_cuda()
    devices = [] if cuda_reason else [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    triton_version = None if kernels.TRITON_ERROR else metadata.version("triton")
    return {
        "worldenv": __version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "torch": torch.__version__,
        "triton": triton_version,
        "why_no_triton": kernels.TRITON_ERROR,
        "cpu_isa": torch.backends.cpu.get_cpu_capability(),
        "int8": int8.is_fast(),
        "threads": torch.get_num_threads(),
        "cuda_devices": devices,
        "why_no_cuda": cuda_reason,
        "attention": {backend: attention.why_not(backend) for backend in attention.BACKENDS},
        "ops": [face(name) for name in op_names()],
    }


def report(info: dict) -> str:
    """The report for people: one fact per line, then one op per line."""
    asked = "; --precision int8 is allowed" if int8.is_allowed() else ""
    imagines = "imagines in 8 bits" if info["int8"] else f"imagines in floats: none of {', '.join(int8.FAST)}{asked}"
    facts = {
        "worldenv": info["worldenv"],
        "python": f"{info['python']} on {info['platform']}",
        "torch": info["torch"],
        "triton": info["triton"] or f"no: {info['why_no_triton']}",
        "cpu": f"{info['cpu_isa']}, {info['threads']} threads, {imagines}",
        "cuda": ", ".join(info["cuda_devices"]) or f"no: {info['why_no_cuda']}",
    }
    lines = [f"{name:<9} {value}" for name, value in facts.items()]
    lines.append("")
    for backend, why_not in info["attention"].items():
        lines.append(f"attention {backend:<13} {'can be used' if why_not is None else f'no: {why_not}'}")
    lines.append(f"attention in use        {attention.WANTED}")
    lines.append("")
    for op in info["ops"]:
        why = f"   (nothing better: {op['why_not_better']})" if op["why_not_better"] else ""
        lines.append(f"op {op['op']:<20} {op['face']} on {op['device']}{why}")
    return "\n".join(lines)


def _fits(words: list[str], parser: argparse.ArgumentParser) -> str | None:
    from worldenv.commands import fits, options  # they import all parts, which nothing else here needs

    fits.add_options(parser)
    given, rest = parser.parse_known_args(words[1:])
    try:
        document = {"preset": words[0]} | fits.predict(options.training([words[0], *rest]), given)
    except UserError as error:
        print(f"worldenv-info: {' '.join(str(error).split())}", file=sys.stderr)
        raise SystemExit(2) from None
    return print_result(json.dumps(document) if given.json else fits.report(document))


def main(arguments: list[str] | None = None) -> None:
    """Print the report; with --json, one JSON document. With a preset: what it needs, and what fits (fits.py)."""
    words = sys.argv[1:] if arguments is None else list(arguments)
    parser = argparse.ArgumentParser(
        prog="worldenv-info",
        description=__doc__,
        usage="%(prog)s [--json] | PRESET [--json] [--card-gb GB] [--tflops N | --measure] [options of worldenv-train]",
        allow_abbrev=False,
    )
    parser.add_argument("--json", action="store_true", help="print one JSON document instead of lines to read")
    has_preset = bool(words) and not words[0].startswith("-")
    with patient_streams():
        if has_preset:
            problem = _fits(words, parser)
        else:
            options = parser.parse_args(words)
            info = collect()
            problem = print_result(json.dumps(info) if options.json else report(info))
        if problem:
            print(f"worldenv-info: {problem}", file=sys.stderr)
            raise SystemExit(1)


if __name__ == "__main__":
    main()
