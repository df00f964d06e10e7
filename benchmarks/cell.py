"""How fast the recurrent cells train, beside their plain forms, in one run.

    python benchmarks/cell.py                      ModeRNN (both), PredRNN, ConvLSTM at 4x64, batch 8: about an hour
    python benchmarks/cell.py --models modernn_released --rounds 3 --no-learning          a quarter of it
    python benchmarks/cell.py --layers 1 --hidden 16 --frames 4 --rounds 1 --no-learning  a minute, to see that it works
    python benchmarks/cell.py --device cuda

Every form (the plain one of benchmarks/plain.py in fp32; ours in fp32 and bf16; all under `step` checkpointing) makes
whole training steps: forward, backward, Adam on fp32 weights. The forms take turns, each in a child process of its own;
rates are medians over the rounds, peaks those of the process (CPU: resident set, whole and less what it had before the
first step; CUDA: allocated). GFLOP/s count the convolutions and products of toolkit/models/cost.py, twice a MAC and
three times a forward; the roof is a large convolution in the same run, in bf16 and fp32. `--learning` steps compare the
loss in bf16 with fp32's. With `--predrnn-pytorch` that repository's own PredRNN is timed beside ours, which must have
the same losses. Prints a table and writes benchmarks/cell-DATE-DEVICE.md and .json.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.report import device, in_child, table, write_report  # noqa: E402

MODELS = ("modernn_released", "modernn", "convlstm", "predrnn")
FORMS = ("plain fp32", "ours fp32", "ours bf16", "plain fp32 step", "ours fp32 step", "ours bf16 step")
PEER = "predrnn-pytorch fp32"
HEAD = (
    "model",
    "form",
    "seq/s",
    "x plain",
    "x plain, processor time",
    "GFLOP/s",
    "of bf16 roof",
    "peak GiB",
    "x plain",
    "activations GiB",
    "x plain",
)
ROOF = (256, 256, 3, 32)  # channels in and out, kernel, side: large enough that only arithmetic counts


def prepare(options: argparse.Namespace, form: str) -> tuple[Any, Any, Any]:
    """The model on its device, a batch of sequences with something to learn, and one training step as a function."""
    import torch

    from benchmarks.plain import plain_model
    from shards.manifest import FrameSpec
    from toolkit.checkpoint.weights import untrained_model
    from toolkit.config import make_config
    from toolkit.models.base import Noise, Sampling, StepSequence

    kind, precision, *policy = form.split()
    device = torch.device(options.device)
    torch.manual_seed(0)
    tree = {"name": options.model, "layers": options.layers, "hidden": options.hidden}
    config = make_config(
        {"model": tree, "train": {"activation_checkpointing": {"policy": policy[0] if policy else "none"}}}, "benchmark"
    )
    master = untrained_model(config, FrameSpec(1, options.size, options.size))
    assert isinstance(master, StepSequence)
    if kind == "plain":
        master = plain_model(master)
    master.to(device)
    if form == PEER:
        from benchmarks.peer import training_step

        return (
            config,
            device,
            training_step(Path(options.predrnn_pytorch), config, master, options.size, options.frames),
        )
    adam = torch.optim.Adam(master.parameters(), lr=3e-4, fused=True)
    model = master
    if precision == "bf16":  # as DeepSpeed trains: the passes in bf16, the weights and Adam in fp32
        model = untrained_model(config, FrameSpec(1, options.size, options.size)).to(device, torch.bfloat16)
    if options.compile != "none" and kind == "ours":
        model.cell.compile()

    def step(frames: Any) -> float:
        if model is not master:
            with torch.no_grad():
                for own, exact in zip(model.parameters(), master.parameters(), strict=True):
                    own.copy_(exact)
        noise = Noise(range(options.batch), device)
        loss = sum(model(frames, options.frames // 2, Sampling(noise=noise)).losses.values())
        loss.backward()
        if model is not master:
            for own, exact in zip(model.parameters(), master.parameters(), strict=True):
                exact.grad = own.grad.float()
                own.grad = None
        adam.step()
        adam.zero_grad()
        if device.type == "cuda":
            torch.cuda.synchronize()
        return float(loss.detach())

    return config, device, step


def drifting(options: argparse.Namespace, number: int, device: Any) -> Any:
    """Frames [B, T, 1, S, S] of a few smooth blobs, each drifting steadily."""
    import torch

    generator = torch.Generator().manual_seed(number)
    start, speed = (torch.rand(options.batch, 3, 2, generator=generator) for _ in range(2))
    t = torch.arange(options.frames).view(1, -1, 1, 1)
    place = (start[:, None] + 0.04 * t * (2 * speed[:, None] - 1)) % 1 * options.size  # [B, T, 3, 2]
    axis = torch.arange(options.size).float()
    near = torch.exp(-((axis - place[..., None]) ** 2) / (options.size / 12) ** 2)  # [B, T, 3, 2, S]
    frames = torch.einsum("btky,btkx->btyx", near[:, :, :, 0], near[:, :, :, 1]).clamp(max=1)
    return frames.unsqueeze(2).to(device)


def measure(options: argparse.Namespace, form: str) -> dict[str, float]:
    """A few training steps in this process."""
    import torch

    if options.device == "cpu":
        torch.set_num_threads(options.threads)
    _, device, step = prepare(options, form)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    frames = drifting(options, 0, device)
    if options.device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    times, processor, losses = [], [], []
    for _ in range(options.steps + 1):
        began, began_processor = time.perf_counter(), time.process_time()
        losses.append(step(frames))
        times.append(time.perf_counter() - began)
        processor.append(time.process_time() - began_processor)
    if options.device == "cuda":
        peak, before = torch.cuda.max_memory_allocated() / 2**30, 0.0
    else:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    return {
        "seconds": statistics.median(times[1:]),
        "processor": statistics.median(processor[1:]),
        "peak": peak,
        "activations": peak - before,
        "loss": losses[-1],
    }


def learn(options: argparse.Namespace, form: str) -> dict[str, float]:
    """Mean loss of the last tenth of `--learning` steps over fresh sequences."""
    import torch

    torch.set_num_threads(options.threads)
    _, device, step = prepare(options, form)
    losses = [step(drifting(options, 1 + number, device)) for number in range(options.learning)]
    last = losses[-max(1, options.learning // 10) :]
    return {"first": losses[0], "loss": sum(last) / len(last)}


def roof(options: argparse.Namespace) -> dict[str, float]:
    """GFLOP/s of the forward and backward of a large convolution, in each precision."""
    import torch

    if options.device == "cpu":
        torch.set_num_threads(options.threads)
    inputs, outputs, kernel, side = ROOF
    rates = {}
    for name, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
        conv = torch.nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2).to(options.device, dtype)
        x = torch.randn(8, inputs, side, side, device=options.device, dtype=dtype)
        x = x.contiguous(memory_format=torch.channels_last).requires_grad_()
        times = []
        for _ in range(7):
            began = time.perf_counter()
            torch.autograd.grad(conv(x).sum(), [x, *conv.parameters()])
            if options.device == "cuda":
                torch.cuda.synchronize()
            times.append(time.perf_counter() - began)
        flop = 3 * 2 * 8 * side**2 * kernel**2 * inputs * outputs
        rates[name] = flop / statistics.median(times[1:]) / 1e9
    return rates


def gigaflop(options: argparse.Namespace) -> float:
    """A training step of one sequence: twice the MACs of the forward, three times."""
    from toolkit.config import make_config
    from toolkit.models.cost import count_macs

    model = {"name": options.model, "layers": options.layers, "hidden": options.hidden}
    context = options.frames // 2
    data = {"context": context, "horizon": options.frames - context}
    config = make_config({"model": model, "data": data}, "benchmark")
    return 6 * count_macs(config.model, frame(options), config.data.context, config.data.horizon) / 1e9


def frame(options: argparse.Namespace) -> Any:
    from shards.manifest import FrameSpec

    return FrameSpec(1, options.size, options.size)


def child(options: argparse.Namespace, task: str, model: str, form: str = "") -> Any:
    """A task in a process of its own."""
    settings = {**vars(options), "task": task, "model": model, "form": form, "out": None}
    return in_child([__file__, "--child", json.dumps(settings)], f"{task} {model} {form}")


def run_child(text: str) -> None:
    from toolkit.config.sections import TrainConfig
    from toolkit.distributed.device import set_arithmetic

    set_arithmetic(TrainConfig())  # fp32 is fp32 on a GPU too, in every form and in the roof
    options = argparse.Namespace(**json.loads(text))
    tasks = {
        "measure": lambda: measure(options, options.form),
        "learn": lambda: learn(options, options.form),
        "roof": lambda: roof(options),
        "gigaflop": lambda: gigaflop(options),
    }
    print(json.dumps(tasks[options.task]()))


def rows_of(
    model: str, found: dict[str, list[dict[str, float]]], flop: float, top: dict[str, float], batch: int
) -> Any:
    """One row for each form; ratios to the plain form without checkpointing."""
    middle = {
        form: {key: statistics.median(one[key] for one in rounds) for key in rounds[0]}
        for form, rounds in found.items()
    }
    plain = middle[FORMS[0]]
    for form, values in middle.items():
        rate = batch / values["seconds"]
        yield {
            "model": model,
            "form": form,
            "sequences_per_second": rate,
            "x_plain": plain["seconds"] / values["seconds"],
            "x_plain_processor": plain["processor"] / values["processor"],
            "gflops": rate * flop,
            "share_of_bf16_roof": rate * flop / top["bf16"],
            "peak_gib": values["peak"],
            "activations_gib": values["activations"],
            "memory_x_plain": values["peak"] / plain["peak"],
            "activations_x_plain": values["activations"] / plain["activations"],
            "loss": values["loss"],
        }


def cells(row: dict[str, Any]) -> list[str]:
    """A line of the table."""
    return [
        row["model"],
        row["form"],
        f"{row['sequences_per_second']:.3g}",
        f"{row['x_plain']:.2f}",
        f"{row['x_plain_processor']:.2f}",
        f"{row['gflops']:.0f}",
        f"{row['share_of_bf16_roof']:.0%}",
        f"{row['peak_gib']:.2f}",
        f"{row['memory_x_plain']:.2f}",
        f"{row['activations_gib']:.2f}",
        f"{row['activations_x_plain']:.2f}",
    ]


def device_name(options: argparse.Namespace) -> str:
    if options.device == "cuda":
        return device(accelerator=True)
    return f"{device().rpartition(',')[0]}, {options.threads} threads"


def write(options: argparse.Namespace, results: dict[str, Any], notes: list[str]) -> Path:
    """The table and the same as JSON, beside this file."""
    settings = {key: value for key, value in vars(options).items() if key not in ("child", "out", "predrnn_pytorch")}
    title = (
        f"Cells, {options.layers}x{options.hidden}, {options.size}x{options.size}, patch 4, {options.frames} frames, "
    )
    title += f"batch {options.batch}"
    roof = (
        f"{options.rounds} rounds of {options.steps} steps, compile {options.compile}. Roof: "
        f"{results['roof']['bf16']:.0f} GFLOP/s in bf16, {results['roof']['fp32']:.0f} in fp32."
    )
    facts = {"settings": settings, **results}
    lines = [cells(row) for row in results["rows"]]
    out = Path(options.out) if options.out else None
    return write_report("cell", title, HEAD, lines, facts, out, device_name(options), [roof, *notes])


def arguments() -> argparse.Namespace:
    """The command line; checked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", default=",".join(MODELS), help=f"of {', '.join(MODELS)}")
    parser.add_argument("--forms", default=",".join(FORMS), help=f"of {', '.join(FORMS)}; the first is needed")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)), help="CPU threads (all cores)")
    parser.add_argument("--compile", choices=("none", "default"), default="none", help="of our forms")
    for name, default in (("size", 64), ("layers", 4), ("hidden", 64), ("frames", 20), ("batch", 8)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--rounds", type=int, default=3, help="children per form, in turns")
    parser.add_argument("--steps", type=int, default=2, help="training steps per child, after one that isn't counted")
    parser.add_argument(
        "--learning", type=int, default=200, help="steps over which bf16's loss is compared (default 200)"
    )
    parser.add_argument("--no-learning", dest="learning", action="store_const", const=0, help="leave that out")
    parser.add_argument(
        "--predrnn-pytorch",
        type=Path,
        metavar="FOLDER",
        help="a clone of github.com/thuml/predrnn-pytorch: its own PredRNN beside ours, from the same weights",
    )
    parser.add_argument("--out", type=Path, help="where to write the report (default: beside this file)")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    options = parser.parse_args()
    for key in ("out", "predrnn_pytorch"):
        path = getattr(options, key)
        setattr(options, key, str(path.resolve()) if path else None)
    if options.forms.split(",")[0] != FORMS[0]:
        parser.error(f"--forms must begin with {FORMS[0]!r}, which the others are compared with")
    return options


def rounds(options: argparse.Namespace, model: str) -> dict[str, list[dict[str, float]]]:
    """Every form's measurements, the forms in turns."""
    beside = [PEER] if options.predrnn_pytorch and model == "predrnn" else []
    found: dict[str, list[dict[str, float]]] = {form: [] for form in (*options.forms.split(","), *beside)}
    for _ in range(options.rounds):
        for form in found:
            found[form].append(child(options, "measure", model, form))
    if beside and abs(found[PEER][0]["loss"] / found[FORMS[0]][0]["loss"] - 1) > 1e-4:
        raise SystemExit(f"loss {found[PEER][0]['loss']} of {PEER}, {found[FORMS[0]][0]['loss']} of {FORMS[0]}")
    return found


def main() -> int:
    options = arguments()
    if options.child:
        run_child(options.child)
        return 0
    top = child(options, "roof", "")
    print(f"{device_name(options)}: roof {top['bf16']:.0f} GFLOP/s in bf16, {top['fp32']:.0f} in fp32\n")
    rows: list[dict[str, Any]] = []
    learning: dict[str, Any] = {}
    for model in options.models.split(","):
        made = list(rows_of(model, rounds(options, model), child(options, "gigaflop", model), top, options.batch))
        rows += made
        print(table(HEAD, [cells(row) for row in made]), flush=True)
        if options.learning:
            fp32, bf16 = (child(options, "learn", model, f"ours {precision}") for precision in ("fp32", "bf16"))
            off = bf16["loss"] / fp32["loss"] - 1
            learning[model] = {"fp32": fp32, "bf16": bf16, "relative": off}
            print(
                f"\nloss after {options.learning} steps: {fp32['loss']:.5f} fp32, {bf16['loss']:.5f} bf16, {off:+.2%}\n"
            )
    notes = [
        f"- {model}: loss after {options.learning} steps {one['fp32']['loss']:.5f} in fp32 (at first "
        f"{one['fp32']['first']:.5f}), {one['bf16']['loss']:.5f} in bf16: {one['relative']:+.2%}"
        for model, one in learning.items()
    ]
    print(f"\nwritten: {write(options, {'roof': top, 'rows': rows, 'learning': learning}, notes)}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
