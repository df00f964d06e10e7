"""DeepSpeed under every setting that we offer, against plain PyTorch; checkpoints that don't know who wrote them."""

from __future__ import annotations

import json
import math
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.support.process import PATIENCE_S, ROOT, one_thread
from tests.support.process_pool import forked_ranks
from tests.support.training import Train, cut_back, logged, plain_losses, weights_of
from toolkit.config import load_config
from toolkit.distributed.world import World
from toolkit.errors import ConfigError
from toolkit.rundir import RunDir
from toolkit.train.deepspeed_settings import check_precision, deepspeed_config, share_of
from toolkit.train.memory import is_shortage, remedies

FP32 = [["train.zero=0"], ["train.zero=1"], ["train.zero=2"], ["train.zero=0", "train.micro_batch=1"]]
FP32 += [
    ["train.zero=2", "train.micro_batch=1", f"train.activation_checkpointing.policy={policy}"]
    for policy in ("step", "recursive")
]
BF16 = [[f"train.zero={stage}", "train.precision=bf16"] for stage in (0, 1, 2)]

# DeepSpeed leaves small parameters whole unless told otherwise, and all are small here.
STAGE3 = ["train.zero=3", "train.deepspeed={zero_optimization: {stage3_param_persistence_threshold: 0}}"]
OFFLOAD, ACCUMULATE = "train.offload_optimizer=true", "train.micro_batch=1"
SHORT = ["model.layers=1", "data.context=2", "data.horizon=2", "train.steps=3"]
SHORT += ["train.validate_every=3", "train.checkpoint.every=3"]
TABLE = [STAGE3, [*STAGE3, ACCUMULATE, "train.activation_checkpointing.policy=step"]]
TABLE += [[*STAGE3, OFFLOAD, "train.activation_checkpointing.policy=recursive"], ["train.zero=1", OFFLOAD, ACCUMULATE]]
TABLE += [["train.zero=2", OFFLOAD, "train.activation_checkpointing.policy=recursive"]]
TABLE = [[*SHORT, *settings, f"train.precision={kind}"] for kind in ("fp32", "bf16") for settings in TABLE]
# Parameters of 9 numbers, which 2 ranks divide unequally.
ODD_WIDTH = ["model.layers=1", "model.hidden=9", "data.context=2", "data.horizon=2", "train.validate_every=6"]
# Frames that patches don't divide, and the shortest sequence that there is.
ODD = [*SHORT, "model.patch=3", "data.context=1", "data.horizon=1", "train.zero=2"]


@pytest.fixture(scope="session")
def on_two_ranks(
    tiny_config: Path, train_on: Train, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, list[float]]:
    """Losses of every setting on 2 ranks, by its overrides."""
    folder = tmp_path_factory.mktemp("two-ranks")
    jobs = [
        {"config": str(tiny_config), "set": settings, "run": str(folder / f"run{index}")}
        for index, settings in enumerate([*FP32, *BF16, *TABLE, ODD])
    ]
    train_on(jobs, 2)
    return {" ".join(job["set"]): logged(Path(job["run"])) for job in jobs}


def test_losses_on_two_ranks_equal_plain_pytorch(tiny_config: Path, on_two_ranks: dict[str, list[float]]) -> None:
    expected = plain_losses(load_config(tiny_config))
    assert expected[-1] < expected[0]
    for settings in FP32:
        assert on_two_ranks[" ".join(settings)] == pytest.approx(expected, rel=2e-6), settings


def test_bf16_losses_equal_bf16_with_fp32_master_weights(
    tiny_config: Path, on_two_ranks: dict[str, list[float]]
) -> None:
    """Nearly: two ranks average two bf16 gradients. An Adam that is off by one step is far outside."""
    expected = plain_losses(load_config(tiny_config), bf16=True)
    assert plain_losses(load_config(tiny_config), bf16=True, late=True) != pytest.approx(expected, rel=5e-3)
    for settings in BF16:
        assert on_two_ranks[" ".join(settings)] == pytest.approx(expected, rel=5e-3), settings
    assert on_two_ranks[" ".join(BF16[0])] == on_two_ranks[" ".join(BF16[1])] == on_two_ranks[" ".join(BF16[2])]


@pytest.mark.parametrize("settings", [*TABLE, ODD], ids=lambda settings: " ".join(settings[len(SHORT) :]))
def test_every_combination_equals_plain_pytorch(
    tiny_config: Path, on_two_ranks: dict[str, list[float]], settings: list[str]
) -> None:
    """Stage x precision x offload x accumulation x checkpointing. Every run has validated too, with more ranks than
    batches: under ZeRO-3 a forward pass of the trained module would have waited for the other rank for ever.
    """
    bf16 = "train.precision=bf16" in settings
    expected = plain_losses(load_config(tiny_config, settings), bf16=bf16)
    assert on_two_ranks[" ".join(settings)] == pytest.approx(expected, rel=5e-3 if bf16 else 2e-6)


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "tolerance"), [("fp32", 2e-6), ("bf16", 5e-3)])
def test_a_hundred_steps_stay_together(
    tiny_config: Path, train_on: Train, tmp_path: Path, kind: str, tolerance: float
) -> None:
    """2 ranks at every stage, and in accumulated parts, against plain PyTorch with the whole batch in one process. In
    bf16 rounding parts them, by much less than training moves the loss.
    """
    common = [*SHORT, "train.steps=100", "train.validate_every=100", "train.checkpoint.every=100", "train.lr=1e-3"]
    common += [f"train.precision={kind}", "train.clip=1e-4"]  # far below the norms at the end, too
    # All matrices divided, small vectors whole: a message for each of those takes most of the time here.
    stage3 = ["train.zero=3", "train.deepspeed={zero_optimization: {stage3_param_persistence_threshold: 100}}"]
    stages = [["train.zero=0"], ["train.zero=1"], ["train.zero=2"], stage3, ["train.zero=2", ACCUMULATE]]
    jobs = [
        {"config": str(tiny_config), "set": [*common, *stage], "run": str(tmp_path / str(number))}
        for number, stage in enumerate(stages)
    ]
    train_on(jobs, 2)
    expected = plain_losses(load_config(tiny_config, common), bf16=kind == "bf16")
    assert sum(expected[-10:]) < 0.8 * sum(expected[:10])
    for job in jobs:
        assert logged(Path(str(job["run"]))) == pytest.approx(expected, rel=tolerance), job["set"]


PROBED = [[f"train.zero={stage}", "train.micro_batch=1"] for stage in (0, 1, 2)]
PROBED += [["train.zero=2", "train.precision=bf16"], ["train.zero=1", OFFLOAD]]
PROBED += [[*STAGE3, "model.layers=1"], [*STAGE3, "model.layers=1", OFFLOAD]]


@pytest.fixture(scope="session")
def probed(tiny_config: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict]:
    """What tests/toolkit/train/probe.py saw under every setting on 2 ranks, by its overrides."""
    folder = tmp_path_factory.mktemp("probe")
    (folder / "settings.json").write_text(json.dumps(PROBED))
    done = forked_ranks(2, "tests.toolkit.train.probe", tiny_config, folder / "settings.json", folder / "out.json")
    assert done.returncode == 0, done.stderr[-4000:]
    return dict(zip(map(" ".join, PROBED), json.loads((folder / "out.json").read_text()), strict=True))


@pytest.mark.parametrize("settings", PROBED, ids=" ".join)
def test_the_gradients_norm_is_known_before_the_update(probed: dict[str, dict], settings: list[str]) -> None:
    """At every stage it is the norm that DeepSpeed goes on to use, and a gradient that isn't finite on one rank only
    is seen on all. Gradients can be thrown away without a trace, these and finite ones.
    """
    told, used = probed[" ".join(settings)]["told"], probed[" ".join(settings)]["used"]
    assert [math.isfinite(norm) for norm in told] == [True, True, False, True, True]
    if "train.zero=0" not in settings:  # without ZeRO, DeepSpeed tells none
        assert [told[i] for i in (0, 1, 4)] == pytest.approx([used[i] for i in (0, 1, 4)], rel=1e-5)
    if "model.layers=1" not in settings:
        tolerance = 1e-2 if "train.precision=bf16" in settings else 1e-5
        reference = probed[" ".join(PROBED[0])]["told"]
        assert [told[i] for i in (0, 1, 4)] == pytest.approx([reference[i] for i in (0, 1, 4)], rel=tolerance)
    assert probed[" ".join(settings)]["kept"] == [True, True]


def test_a_resumed_run_is_the_run_that_was_not_interrupted(tiny_config: Path, train_on: Train, tmp_path: Path) -> None:
    kinds = [["train.zero=0"], ["train.zero=2"], ["train.zero=1", "train.precision=bf16"]]
    kinds += [[*STAGE3, *ODD_WIDTH, "train.precision=bf16"], [*ODD_WIDTH, "train.zero=2", OFFLOAD]]
    wholes = [
        {"config": str(tiny_config), "set": settings, "run": str(tmp_path / f"whole{index}")}
        for index, settings in enumerate(kinds)
    ]
    parts = [{**job, "run": job["run"].replace("whole", "parts")} for job in wholes]
    train_on(wholes + parts, 2)
    for job in parts:
        cut_back(Path(job["run"]), 4)
    train_on(parts, 2)
    for whole, part in zip(wholes, parts, strict=True):
        a, b = (weights_of(Path(job["run"]), 6) for job in (whole, part))
        assert all(torch.equal(a[name], b[name]) for name in a), whole["set"]
        assert logged(Path(whole["run"])) == logged(Path(part["run"]))
        assert len(logged(Path(part["run"]))) == 6


def test_a_checkpoint_does_not_know_the_world_size_or_zero_stage(
    tiny_config: Path, train_on: Train, tmp_path: Path
) -> None:
    """2 ranks of ZeRO-2 or 3 and then 1 process of ZeRO-0; the other way round; against one setting all the way."""
    base = {"config": str(tiny_config)}
    started = {"two": ["train.zero=2"], "three": STAGE3, "one": ["train.zero=0"], "offloaded": ["train.zero=0"]}
    jobs = [{**base, "set": [*ODD_WIDTH, *how], "run": str(tmp_path / name)} for name, how in started.items()]
    train_on([*jobs, {**base, "set": [*ODD_WIDTH, "train.zero=0"], "run": str(tmp_path / "whole")}], 2)
    for ranks, changes in ((1, {"two": [], "three": []}), (2, {"one": STAGE3, "offloaded": ["train.zero=1", OFFLOAD]})):
        again = []
        for name, how in changes.items():
            cut_back(tmp_path / name, 4)
            settings = [*ODD_WIDTH, "train.zero=0", *how]
            RunDir(tmp_path / name).config_file.write_text(load_config(tiny_config, settings).to_yaml())
            again.append({**base, "config": str(RunDir(tmp_path / name).config_file), "run": str(tmp_path / name)})
        train_on(again, ranks)
    whole = weights_of(tmp_path / "whole", 6)
    for run in started:
        found = weights_of(tmp_path / run, 6)
        for name in whole:
            assert torch.allclose(found[name], whole[name], rtol=1e-5, atol=1e-6), (run, name)


def test_ranks_stay_in_step_over_a_cut_shard(
    tiny_store: Path, tiny_config: Path, train_on: Train, tmp_path: Path
) -> None:
    """Under `skip`, samples of a shard cut in half are replaced alike everywhere: 2 ranks train as 1 does."""
    store = tmp_path / "store"
    shutil.copytree(tiny_store, store)
    (tar,) = (store / "train").glob("*.tar")
    tar.write_bytes(tar.read_bytes()[: tar.stat().st_size // 2])
    job = {"config": str(tiny_config), "set": [f"data.store={store}", "data.on_error=skip"]}
    runs = {ranks: {**job, "run": str(tmp_path / f"on{ranks}")} for ranks in (1, 2)}
    told = {ranks: train_on([run], ranks).stderr for ranks, run in runs.items()}
    one, two = (logged(Path(str(run["run"]))) for run in runs.values())
    assert len(one) == 6
    assert two == pytest.approx(one, rel=2e-6)
    assert told[1].count("skipped a damaged sample") == told[2].count("skipped a damaged sample") > 0


def world_of(size: int) -> World:
    return World(0, size, 0, torch.device("cpu"))


def test_batches_that_cannot_be_divided_name_both_numbers(tiny_config: Path) -> None:
    with pytest.raises(ConfigError, match=r"train\.batch 4 can't be divided over 3 ranks: use 1, 2, 4 ranks"):
        share_of(load_config(tiny_config).train, world_of(3))
    with pytest.raises(ConfigError, match=r"train\.batch 4 is smaller than 6 ranks: use 1, 2, 4 ranks, or .*batch=6"):
        share_of(load_config(tiny_config).train, world_of(6))
    with pytest.raises(ConfigError, match=r"micro_batch 4 doesn't divide a rank's share of 2"):
        share_of(load_config(tiny_config, ["train.micro_batch=4"]).train, world_of(2))


def test_deepspeed_keys_are_accepted_but_not_ours(tiny_config: Path) -> None:
    def made(*settings: str) -> dict:
        config = load_config(tiny_config, settings).train
        return deepspeed_config(config, share_of(config, world_of(1)), 1000)

    ours = made("train.deepspeed={zero_optimization: {overlap_comm: true}, dump_state: true}", "train.zero=2")
    assert ours["zero_optimization"] == {"stage": 2, "reduce_bucket_size": 1000, "overlap_comm": True}
    assert ours["dump_state"] is True
    assert made("train.precision=bf16")["zero_optimization"] == {"stage": 1, "reduce_bucket_size": 1000}
    names_code = "{torch_autocast: {enabled: true, lower_precision_safe_modules: [antigravity.fly]}}"
    for text in ("{train_batch_size: 4}", "{zero_optimization: {stage: 3}}", "{fp16: {enabled: true}}", names_code):
        with pytest.raises(ConfigError, match=r"train\.deepspeed: [a-z_.0-9]+ can't be set here"):
            made(f"train.deepspeed={text}")


def test_what_cannot_be_computed_is_refused_at_the_start(tiny_config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match=r"train\.offload_optimizer is a part of ZeRO and train\.zero is 0"):
        load_config(tiny_config, [OFFLOAD])
    with pytest.raises(ConfigError, match=r"data\.horizon: .* greater than or equal to 1, got 0"):
        load_config(tiny_config, ["data.horizon=0"])
    config = load_config(tiny_config, ["train.precision=bf16"]).train
    check_precision(config, torch.device("cpu"))
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: False)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Tesla T4")
    with pytest.raises(ConfigError, match=r"Tesla T4 \(compute capability 7\.5\) has no bf16.*train\.precision=fp32"):
        check_precision(config, torch.device("cuda"))


SHORTAGE = """
import resource, sys, torch
from shards.manifest import FrameSpec
from toolkit.distributed.world import init_world
from toolkit.config import make_config
from toolkit.errors import MemoryShortageError
from toolkit.checkpoint.weights import untrained_model
from toolkit.models.base import Sampling
from toolkit.train.build import build_engine

world = init_world(group=True)
tree = {"model": {"name": "modernn", "hidden": 16}, "train": {"activation_checkpointing": {"policy": sys.argv[1]}}}
config = make_config(tree, "test")
engine = build_engine(untrained_model(config, FrameSpec(1, 64, 64)), config, world, None)
size = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (size + 200 * 2**20,) * 2)
frames = torch.rand(8, 20, 1, 64, 64)
try:
    engine.step([frames], lambda batch: engine.wrapped(batch, 10, Sampling()).losses["data"], False)
except MemoryShortageError as error:
    print(error)
world.close()
"""


def test_out_of_memory_says_what_to_change(tmp_path: Path) -> None:
    """For real: the address space of a child process is limited before its first step."""
    command = [sys.executable, "-c", SHORTAGE, "none"]
    done = subprocess.run(command, cwd=ROOT, env=one_thread(), capture_output=True, text=True, timeout=PATIENCE_S)
    assert done.returncode == 0, done.stderr[-4000:]
    said = done.stdout
    assert (
        "rank 0, step 0: out of memory on cpu with a micro-batch of 8, train.activation_checkpointing.policy=none"
        in said
    ), said
    order = [
        "checkpointing.policy=step",
        "micro_batch=4",
        "checkpointing.policy=recursive",
        "offload_optimizer=true",
        "model.patch",
    ]
    assert sorted(order, key=said.index) == order
    assert "python launch/plan.py --config" in said


def test_remedies_leave_out_what_is_done(tiny_config: Path) -> None:
    settings = [
        "train.activation_checkpointing.policy=recursive",
        "train.activation_checkpointing.per_layer=true",
        "train.activation_checkpointing.offload=true",
    ]
    settings += ["train.micro_batch=1", "train.zero=1", OFFLOAD]
    config = load_config(tiny_config, settings).train
    assert [text.split(":")[0] for text in remedies(config, share_of(config, world_of(1)))] == [
        "train.precision=bf16",
        "a larger model.patch",
    ]
    assert is_shortage(torch.OutOfMemoryError("CUDA out of memory."))
    assert not is_shortage(RuntimeError("shapes can't be multiplied"))
