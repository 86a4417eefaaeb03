"""Compile all Triton kernels of the CUDA backend for GPUs that are not here, and print what they take.

`python -m scripts.compile_triton [--targets 75,86,89,90,120] [--models published,default]`. Needs no GPU: Triton's
wheel has the assembler. Prints for each kernel and target the registers of a thread, the bytes that it spills, the
shared memory of a program, and how it multiplies and copies. The exit status is 1 if a kernel spills, takes more shared
memory than the GPU has, or if a convolution does without tensor cores or copies that run beside the products: such a
change is seen here before it is felt on a GPU.
"""

import argparse
import inspect
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from vsrealbasicvsr import load_model
from vsrealbasicvsr.backends.cuda import convolution_triton, epilogue_triton, flow_triton, join_triton
from vsrealbasicvsr.backends.cuda.convolution import pack
from vsrealbasicvsr.backends.cuda.convolution_task import Task, plan_for
from vsrealbasicvsr.backends.cuda.fused import LayerKind, flow_kinds_of, kinds_of
from vsrealbasicvsr.backends.cuda.steps import MIN_CAPABILITY
from vsrealbasicvsr.model import RealBasicVSR

SHARED_KIB = {75: 64, 80: 163, 86: 99, 89: 99, 90: 227, 100: 227, 120: 99}
"""Shared memory of one program at most, by compute capability."""

MAX_SPILLED_BYTES: Mapping[tuple[str, int], int] = {}
"""Bytes that are accepted, by kernel and target. None spills."""

POINTER_TYPES = {torch.float16: "*fp16", torch.float32: "*fp32"}


@dataclass(frozen=True, slots=True)
class Kernel:
    """A kernel as it is launched.

    Attributes:
        name: For the table.
        function: What is compiled.
        types: The types of its arguments, by name.
        constants: Its compile-time arguments, by name.
        options: Warps and stages.
        multiplies: Whether it is a convolution.
    """

    name: str
    function: Any
    types: Mapping[str, str]
    constants: Mapping[str, Any]
    options: Mapping[str, int]
    multiplies: bool = False


@dataclass(frozen=True, slots=True)
class Found:
    """What a compiled kernel takes.

    Attributes:
        registers: Of a thread.
        spilled_bytes: Of a thread.
        shared_kib: Of a program.
        product: The instruction that multiplies, "" if none does.
        is_asynchronous: Whether values are copied to shared memory while the kernel goes on.
    """

    registers: int
    spilled_bytes: int
    shared_kib: float
    product: str
    is_asynchronous: bool


def kernels(models: list[str], target: int) -> Iterator[Kernel]:
    """Yield the kernels of networks on GPUs of a compute capability, 90 for 9.0."""
    if target >= MIN_CAPABILITY:
        layers: set[tuple[LayerKind, torch.dtype]] = set()
        for name in models:
            model = RealBasicVSR() if name == "published" else load_model(name)
            layers |= {(kind, torch.float16) for kind in kinds_of(model) | flow_kinds_of(model)}
        convolutions = {(made := _convolution(kind, dtype, target)).name: made for kind, dtype in layers}
        yield from (convolutions[name] for name in sorted(convolutions))
        half, single = POINTER_TYPES[torch.float16], POINTER_TYPES[torch.float32]
        sizes = {"height": "i32", "width": "i32"}
        for channels, has_flow in ((64, True), (64, False), (0, False)):
            columns, pixels = join_triton.block_of(channels)
            constants = {"CHANNELS": channels, "COLUMNS": columns, "PIXELS": pixels, "HAS_STATE": channels > 0}
            yield Kernel(
                f"join {channels}{' along a flow' if has_flow else ''}",
                join_triton._join,
                {"frame": single, "state": half, "flow": single, "out": half, **sizes},
                {**constants, "HAS_FLOW": has_flow},
                {"num_warps": join_triton.NUM_WARPS},
            )
        maps = {"frames": single, "coarse": single, "joined": half, "flow": single}
        numbers = dict.fromkeys(("num", "height", "width", "coarse_height", "coarse_width"), "i32")
        for has_coarse in (True, False):
            yield Kernel(
                f"flow level{'' if has_coarse else ', the coarsest'}",
                flow_triton._prepare,
                {**maps, **numbers},
                {"HAS_COARSE": has_coarse, "PIXELS": flow_triton.PIXELS},
                {"num_warps": flow_triton.NUM_WARPS},
            )
    yield from _epilogues()


def _convolution(kind: LayerKind, dtype: torch.dtype, target: int) -> Kernel:
    packed = pack(
        torch.zeros(kind.channels_out, kind.channels, kind.side, kind.side),
        torch.zeros(kind.channels_out),
        dtype,
        shuffle=kind.shuffle,
    )
    plan, empty = plan_for(packed, target), torch.empty(0)
    task = Task(
        x=empty,
        packed=packed,
        slope=kind.slope,
        out=empty,
        residual=None if kind.residual == "none" else empty,
        residual_is_small=kind.residual == "small",
        shuffle=kind.shuffle,
        planar=kind.planar,
        limit=kind.limit,
    )
    half, single = POINTER_TYPES[dtype], POINTER_TYPES[torch.float32]
    result = single if kind.planar else half
    parts = [
        {"none": "", "map": "+ map", "small": "+ image"}[kind.residual],
        "shuffle" if kind.shuffle else "",
        "planar" if kind.planar else "",
    ]
    name = f"{kind.side}x{kind.side} {kind.channels} to {kind.channels_out} {' '.join(filter(None, parts))}".rstrip()
    numbers = dict.fromkeys(("height", "width", "tiles_across"), "i32")
    return Kernel(
        name,
        convolution_triton._convolution,
        {"x": half, "weight": half, "bias": single, "residual": result, "out": result, **numbers, "slope": "fp32"},
        convolution_triton.constants(task, plan),
        {"num_warps": plan.num_warps, "num_stages": plan.num_stages},
        multiplies=True,
    )


def _epilogues() -> Iterator[Kernel]:
    half = POINTER_TYPES[torch.float16]
    types = {**dict.fromkeys(("x", "bias", "residual", "out"), half), "slope": "fp32"}
    numbers = dict.fromkeys(("num_pixels", "height", "width"), "i32")
    for channels, has_residual, shuffle in ((64, True, False), (64, False, False), (256, False, True)):
        columns = triton.next_power_of_2(channels)
        yield Kernel(
            f"epilogue {channels}{' + map' if has_residual else ''}{' shuffle' if shuffle else ''}",
            epilogue_triton._epilogue,
            {**types, **numbers},
            {
                "CHANNELS": channels,
                "COLUMNS": columns,
                "ROWS": max(epilogue_triton.TILE // columns, 1),
                "HAS_RESIDUAL": has_residual,
                "SHUFFLE": shuffle,
            },
            {},
        )


def compiled(kernel: Kernel, target: int) -> Found:
    """Compile a kernel for GPUs of a compute capability."""
    source = _source(kernel)
    made = triton.compile(source, target=GPUTarget("cuda", target, 32), options=dict(kernel.options))
    used = _resources(made.asm["cubin"])
    products = re.findall(r"\b(wgmma\.mma_async|tcgen05\.mma|mma\.sync)", made.asm["ptx"])
    return Found(
        registers=used["REG"],
        spilled_bytes=used["STACK"] + used["LOCAL"],
        shared_kib=made.metadata.shared / 1024,
        product=products[0].split(".")[0] if products else "",
        is_asynchronous="cp.async.c" in made.asm["ptx"],
    )


def _resources(cubin: bytes) -> dict[str, int]:
    program = Path(triton.__file__).parent / "backends/nvidia/bin" / ("cuobjdump" + (".exe" if os.name == "nt" else ""))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kernel.cubin"
        path.write_bytes(cubin)
        done = subprocess.run(
            [str(program), "--dump-resource-usage", str(path)], capture_output=True, text=True, check=True
        )
    return {name: int(value) for name, value in re.findall(r"\b(REG|STACK|LOCAL):(\d+)", done.stdout)}


def _source(kernel: Kernel) -> ASTSource:
    """Return what Triton compiles. Tensors begin at multiples of 16 bytes, as it finds out of those of torch."""
    names = kernel.function.arg_names
    tensors = [i for i, name in enumerate(names) if kernel.types.get(name, "").startswith("*")]
    if "constexprs" in inspect.signature(ASTSource).parameters:
        signature = {name: "constexpr" if name in kernel.constants else kernel.types[name] for name in names}
        constants = {(names.index(name),): value for name, value in kernel.constants.items()}
        attributes = {(i,): [["tt.divisibility", 16]] for i in tensors}
        return ASTSource(fn=kernel.function, signature=signature, constexprs=constants, attrs=attributes)
    from triton.backends.compiler import AttrsDescriptor  # Triton 3.2, of torch 2.6

    signature = {name: kernel.types[name] for name in names if name not in kernel.constants}
    hints = AttrsDescriptor.from_hints(dict.fromkeys(tensors, 16))
    return ASTSource(fn=kernel.function, signature=signature, constants=dict(kernel.constants), attrs=hints)


def faults(kernel: Kernel, target: int, found: Found) -> list[str]:
    """Return what is wrong with a compiled kernel."""
    wrong = []
    if found.spilled_bytes > MAX_SPILLED_BYTES.get((kernel.name, target), 0):
        wrong.append("spills")
    if found.shared_kib > SHARED_KIB[target]:
        wrong.append(f"takes more shared memory than {SHARED_KIB[target]} KiB")
    if kernel.multiplies and not found.product:
        wrong.append("multiplies without tensor cores")
    if kernel.multiplies and not found.is_asynchronous:
        wrong.append("waits for its copies")
    return wrong


def main(arguments: list[str] | None = None) -> int:
    """Compile and print; 1 if something is wrong."""
    parser = argparse.ArgumentParser(description="compile the Triton kernels without a GPU")
    parser.add_argument("--targets", default="75,86,89,90,120", help="compute capabilities, 90 for 9.0")
    parser.add_argument("--models", default="published,default", help="published, or weights")
    given = parser.parse_args(arguments)
    targets, models = [int(target) for target in given.targets.split(",")], given.models.split(",")
    print(f"Triton {triton.__version__}, float16")
    print("| kernel | target | registers | spilled | shared | multiplies | copies |\n|---|---|---|---|---|---|---|")
    wrong = []
    for target in targets:
        for kernel in kernels(models, target):
            found = compiled(kernel, target)
            copies = "asynchronous" if found.is_asynchronous else ""
            taken = f"{found.registers} | {found.spilled_bytes} B | {found.shared_kib:g} KiB"
            print(f"| {kernel.name} | sm_{target} | {taken} | {found.product} | {copies} |", flush=True)
            wrong += [f"{kernel.name} on sm_{target} {fault}" for fault in faults(kernel, target, found)]
    for line in wrong:
        print(line, file=sys.stderr)
    return int(bool(wrong))


if __name__ == "__main__":
    raise SystemExit(main())
