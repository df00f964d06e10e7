"""DeepSpeed under every setting that we offer, against plain PyTorch; checkpoints that don't know who wrote them."""

from __future__ import annotations

import json
import math
import shutil
from itertools import islice
from pathlib import Path

import pytest
import torch

from shards import open_store
from tests.toolkit.train.conftest import Train, torchrun
from toolkit.config import RunConfig, load_config
from toolkit.data.batches import Share, read_batches
from toolkit.data.windows import WindowSet, to_unit
from toolkit.distributed import World
from toolkit.errors import ConfigError
from toolkit.models.base import build_model
from toolkit.rundir import RunDir
from toolkit.train.engine import deepspeed_config, share_of
from toolkit.train.sampling import draw


def plain_losses(
    config: RunConfig, bf16: bool = False, late: bool = False, leave_out: int | None = None
) -> list[float]:
    """The same run in a dozen lines of plain PyTorch: one process, Adam, clip_grad_norm_.

    bf16: the forward and backward in bf16, the weights and Adam in fp32.
    leave_out: the number of a step without an update.
    late: Adam takes an empty step first, the fault of DeepSpeed's unpartitioned bf16 optimizer.
    """
    cfg = config.train
    store = open_store(config.data.store)
    windows = WindowSet(store, "train", config.data.context + config.data.horizon, 1)
    torch.manual_seed(config.seed)
    model = build_model(config, store.manifest.frames)
    work = build_model(config, store.manifest.frames).bfloat16() if bf16 else model
    adam = torch.optim.Adam(model.parameters(), lr=cfg.lr, betas=cfg.betas)
    if late:
        for parameter in model.parameters():
            parameter.grad = torch.zeros_like(parameter)
        adam.step()
    losses = []
    batches = read_batches(windows, config.seed, Share(cfg.batch, cfg.batch, 0, 1), 0)
    for step, batch in enumerate(islice(batches, cfg.steps)):
        work.load_state_dict(model.state_dict())
        sampling = draw(config.seed, batch.positions, step, config.data.horizon, cfg.sampling, torch.device("cpu"))
        loss = work(to_unit(batch.frames, windows.scale), config.data.context, sampling).losses["mse"]
        for parameter, grad in zip(model.parameters(), torch.autograd.grad(loss, list(work.parameters())), strict=True):
            parameter.grad = grad.float()
        assert cfg.clip is not None
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), cfg.clip)
        assert norm > cfg.clip
        if step != leave_out:
            adam.step()
        losses.append(float(loss.detach()))
    return losses


def logged(run: Path) -> list[float]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [line["loss"] for line in lines if line["kind"] == "train"]


FP32 = [["train.zero=0"], ["train.zero=1"], ["train.zero=2"], ["train.zero=0", "train.micro_batch=1"]]
FP32 += [["train.zero=2", "train.micro_batch=1", f"train.checkpointing={policy}"] for policy in ("step", "recursive")]
BF16 = [[f"train.zero={stage}", "train.precision=bf16"] for stage in (0, 1, 2)]


@pytest.fixture(scope="session")
def on_two_ranks(
    tiny_config: Path, train_on: Train, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, list[float]]:
    """Losses of every setting on 2 ranks, by its overrides."""
    folder = tmp_path_factory.mktemp("two-ranks")
    jobs = [
        {"config": str(tiny_config), "set": settings, "run": str(folder / f"run{index}")}
        for index, settings in enumerate(FP32 + BF16)
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


PROBED = [[f"train.zero={stage}", "train.micro_batch=1"] for stage in (0, 1, 2)]
PROBED += [["train.zero=2", "train.precision=bf16"]]


@pytest.fixture(scope="session")
def probed(tiny_config: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict]:
    """What tests/toolkit/train/probe.py saw under every setting on 2 ranks, by its overrides."""
    folder = tmp_path_factory.mktemp("probe")
    (folder / "settings.json").write_text(json.dumps(PROBED))
    done = torchrun(2, "probe.py", tiny_config, folder / "settings.json", folder / "out.json")
    assert done.returncode == 0, done.stderr[-4000:]
    return dict(zip(map(" ".join, PROBED), json.loads((folder / "out.json").read_text()), strict=True))


@pytest.mark.parametrize("settings", PROBED, ids=" ".join)
def test_the_gradients_norm_is_known_before_the_update(probed: dict[str, dict], settings: list[str]) -> None:
    """At every stage it is the norm that DeepSpeed goes on to use, and a gradient that isn't finite on one rank only
    is seen, and thrown away without a trace, on all.
    """
    told, used = probed[" ".join(settings)]["told"], probed[" ".join(settings)]["used"]
    assert [math.isfinite(norm) for norm in told] == [True, True, False, True]
    if "train.zero=0" not in settings:  # without ZeRO, DeepSpeed tells none
        assert [told[i] for i in (0, 1, 3)] == pytest.approx([used[i] for i in (0, 1, 3)], rel=1e-5)
    tolerance = 1e-2 if "train.precision=bf16" in settings else 1e-5
    reference = probed[" ".join(PROBED[0])]["told"]
    assert [told[i] for i in (0, 1, 3)] == pytest.approx([reference[i] for i in (0, 1, 3)], rel=tolerance)
    assert probed[" ".join(settings)]["kept"]


def weights_of(run: Path, step: int) -> dict[str, torch.Tensor]:
    return torch.load(run / "checkpoints" / f"step-{step:08d}" / "weights.pt", weights_only=True)


def test_a_resumed_run_is_the_run_that_was_not_interrupted(tiny_config: Path, train_on: Train, tmp_path: Path) -> None:
    kinds = [["train.zero=0"], ["train.zero=2"], ["train.zero=1", "train.precision=bf16"]]
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


def cut_back(run: Path, step: int) -> None:
    """Make a finished run look as if it had been killed right after its checkpoint of `step`."""
    (run / "DONE").unlink()
    for path in (run / "checkpoints").glob("step-*"):
        if path.name > f"step-{step:08d}":
            for file in path.iterdir():
                file.unlink()
            path.rmdir()


def test_a_checkpoint_does_not_know_the_world_size_or_zero_stage(
    tiny_config: Path, train_on: Train, tmp_path: Path
) -> None:
    """2 ranks of ZeRO-2, then 1 process of ZeRO-0, against 1 process all the way."""
    base = {"config": str(tiny_config), "run": str(tmp_path / "run")}
    train_on([{**base, "set": ["train.zero=2"]}, {**base, "set": ["train.zero=0"], "run": str(tmp_path / "one")}], 2)
    cut_back(tmp_path / "run", 4)
    config = RunDir(tmp_path / "run").config_file
    config.write_text(config.read_text().replace("zero: 2", "zero: 0"))
    train_on([{"config": str(config), "run": str(tmp_path / "run")}], 1)
    a, b = weights_of(tmp_path / "run", 6), weights_of(tmp_path / "one", 6)
    for name in a:
        assert torch.allclose(a[name], b[name], rtol=1e-5, atol=1e-6), name


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
    with pytest.raises(ConfigError, match=r"micro_batch 4 doesn't divide a rank's share of 2"):
        share_of(load_config(tiny_config, ["train.micro_batch=4"]).train, world_of(2))


def test_deepspeed_keys_are_accepted_but_not_ours(tiny_config: Path) -> None:
    def made(*settings: str) -> dict:
        config = load_config(tiny_config, settings).train
        return deepspeed_config(config, share_of(config, world_of(1)))

    ours = made("train.deepspeed={zero_optimization: {overlap_comm: true}, dump_state: true}", "train.zero=2")
    assert ours["zero_optimization"] == {"stage": 2, "overlap_comm": True}
    assert ours["dump_state"] is True
    assert made("train.precision=bf16")["zero_optimization"] == {"stage": 1}
    for text in ("{train_batch_size: 4}", "{zero_optimization: {stage: 3}}"):
        with pytest.raises(ConfigError, match=r"train\.deepspeed may not set"):
            made(f"train.deepspeed={text}")
