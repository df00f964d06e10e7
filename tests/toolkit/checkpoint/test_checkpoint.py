"""Contract 4 under damage, deletion, death and a full disk: files on a real disk, other real processes."""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import hashlib
import json
import logging
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from shards import open_store
from tests.support.crash import Countdown, ended, start
from tests.support.process import PATIENCE_S
from toolkit.checkpoint import checkpoint, commit
from toolkit.checkpoint.checkpoint import FILES, MANIFEST, Progress, TrainState, fault_of, hold, load, newest, steps_in
from toolkit.checkpoint.saver import Saver
from toolkit.checkpoint.weights import load_model
from toolkit.config import load_config
from toolkit.config.sections import CheckpointConfig, TrainConfig
from toolkit.errors import CheckpointError, ConfigError
from toolkit.models.base import build_model
from toolkit.rundir import RunDir

HASH = "0123abcd"


def state_of(step: int, size: int = 64) -> TrainState:
    """Tensors that say which step they are of."""
    weights = {"a": torch.full((size, size), float(step)), "b": torch.arange(5.0) + step}
    return TrainState(weights, {name: {"exp_avg": -w, "exp_avg_sq": w * w} for name, w in weights.items()}, step)


def save(folder: Path, *steps: int) -> None:
    for step in steps:
        commit.save(folder, state_of(step), Progress(step, 8 * step), HASH)


def assert_whole(folder: Path, step: int) -> None:
    state, progress = load(folder, step, HASH)
    assert progress.step == state.step == step
    expected = state_of(step)
    assert all(torch.equal(state.weights[name], w) for name, w in expected.weights.items())
    for name, moments in expected.moments.items():
        assert all(torch.equal(state.moments[name][key], value) for key, value in moments.items())


def bytes_in(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def truncate(file: Path) -> None:
    os.truncate(file, file.stat().st_size // 2)


def empty(file: Path) -> None:
    os.truncate(file, 0)


def zero(file: Path) -> None:
    file.write_bytes(bytes(file.stat().st_size))


def flip(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[len(data) // 3] ^= 4
    file.write_bytes(data)


@pytest.mark.parametrize("name", [*FILES, MANIFEST])
@pytest.mark.parametrize("damage", [truncate, empty, zero, flip, Path.unlink])
def test_a_damaged_file_is_found_named_and_passed_over(
    tmp_path: Path, name: str, damage: Callable[[Path], None], logged: list[str]
) -> None:
    save(tmp_path, 1, 2)
    damage(tmp_path / "step-00000002" / name)
    assert newest(tmp_path) == 1
    assert len(logged) == 1
    assert f"skipping {tmp_path / 'step-00000002'}: " in logged[0]
    blamed = "manifest" if name == MANIFEST else name  # a flipped digit of a digest speaks of both
    assert blamed in logged[0]
    with pytest.raises(CheckpointError, match=f"{blamed}.*Use --resume auto"):
        load(tmp_path, 2, HASH)
    assert_whole(tmp_path, 1)


def test_a_flipped_bit_anywhere_in_the_manifest_is_found(tmp_path: Path) -> None:
    save(tmp_path, 1)
    file = tmp_path / "step-00000001" / MANIFEST
    good = file.read_bytes()
    for position in range(len(good)):
        data = bytearray(good)
        data[position] ^= 1 << position % 8
        file.write_bytes(data)
        assert fault_of(tmp_path, 1) is not None, position


def test_a_manifest_that_names_nothing_vouches_for_nothing(tmp_path: Path) -> None:
    save(tmp_path, 1)
    (tmp_path / "step-00000001" / MANIFEST).write_text(checkpoint.manifest_text({}))
    assert fault_of(tmp_path, 1) == "manifest.json is damaged"


class Bomb:
    def __reduce__(self) -> tuple[object, ...]:
        return os.system, ("touch exploded",)


@pytest.mark.parametrize(
    ("zipped", "content"), [(True, {"a": Bomb()}), (False, {"a": Bomb()}), (False, {"a": torch.zeros(1)})]
)
@pytest.mark.parametrize("name", ["weights.pt", "moments.pt"])
def test_a_pickle_bomb_with_a_fitting_manifest_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, zipped: bool, content: dict[str, object]
) -> None:
    """And so is torch's old format, whatever is in it: there weights_only was no protection in torch 2.4 and 2.5."""
    monkeypatch.chdir(tmp_path)
    save(tmp_path, 1)
    folder = tmp_path / "step-00000001"
    torch.save(content, folder / name, _use_new_zipfile_serialization=zipped)
    files = json.loads((folder / MANIFEST).read_text())["files"]
    data = (folder / name).read_bytes()
    files[name] = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    (folder / MANIFEST).write_text(checkpoint.manifest_text(files))
    assert fault_of(tmp_path, 1) is None
    with pytest.raises(CheckpointError, match=f"{name}: is refused"):
        load(tmp_path, 1, HASH)
    assert not (tmp_path / "exploded").exists()


RECORD = {"step": 1, "samples": 8, "skipped": 0, "best": None, "config": HASH, "written_by": {}, "store": None}


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("trainer.json", b"{"),
        ("trainer.json", b"[" * 100_000),
        ("trainer.json", b"\xff"),
        ("trainer.json", b"[1]"),
        *(("trainer.json", json.dumps({**RECORD, key: {"a": 1}}).encode()) for key in RECORD if key != "written_by"),
        *(
            ("trainer.json", json.dumps({k: v for k, v in RECORD.items() if k != key}).encode())
            for key in ("best", "step")
        ),
        ("weights.pt", b"PK\x03\x04"),
        ("weights.pt", [1, 2]),
        ("weights.pt", {"a": 1}),
        ("moments.pt", {"a": torch.zeros(1)}),
        ("moments.pt", {"a": {"exp_avg": 1}}),
    ],
)
def test_files_that_no_training_wrote_are_refused_where_their_digests_fit(
    tmp_path: Path, name: str, data: object
) -> None:
    save(tmp_path, 1)
    folder = tmp_path / "step-00000001"
    if isinstance(data, bytes):
        (folder / name).write_bytes(data)
    else:
        torch.save(data, folder / name)
    files = json.loads((folder / MANIFEST).read_text())["files"]
    data = (folder / name).read_bytes()
    files[name] = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    (folder / MANIFEST).write_text(checkpoint.manifest_text(files))
    with pytest.raises(CheckpointError, match=f"{name}: is refused"):
        load(tmp_path, 1, HASH)


def test_a_checkpoint_of_another_run_is_refused(tmp_path: Path) -> None:
    save(tmp_path, 1)
    with pytest.raises(CheckpointError, match=r"is of the run 0123abcd, this one is ffffffff: config\.yaml was"):
        load(tmp_path, 1, "ffffffff")
    with pytest.raises(CheckpointError, match="no such checkpoint; there are: 1"):
        load(tmp_path, 7, HASH)


@pytest.fixture
def run(tiny_config: Path, tmp_path: Path) -> RunDir:
    """A run with loadable checkpoints of steps 2, 4, 6; 4 is the best."""
    made = RunDir.create(tmp_path / "run", load_config(tiny_config))
    model = build_model(made.config().model, open_store(made.config().data.store).manifest.frames)
    for step in (2, 4, 6):
        commit.save(made.checkpoints, TrainState(model.state_dict(), {}, step), Progress(step, 4 * step), HASH)
    commit.point(made.checkpoints, "best", 4)
    return made


def step_loaded(run: RunDir, which: str) -> int:
    return load_model(run, which, torch.device("cpu"))[1]


def test_pointers_are_checked_not_trusted(run: RunDir, capsys: pytest.CaptureFixture[str]) -> None:
    latest, best = run.checkpoints / "latest", run.checkpoints / "best"
    assert (step_loaded(run, "best"), step_loaded(run, "last"), step_loaded(run, "2")) == (4, 6, 2)
    assert capsys.readouterr().err == ""
    for text in ("", "step-00000004\n", "../../somewhere\n", "\0\0\0"):
        latest.write_text(text)
        assert step_loaded(run, "last") == 6
        assert "does not name the newest checkpoint; taking step-00000006" in capsys.readouterr().err
    latest.write_text("step-00000008\n")
    with pytest.raises(CheckpointError, match=r"step-00000008 .*there is none; the newest whole one is step-00000006"):
        step_loaded(run, "last")
    best.write_text("")
    with pytest.raises(CheckpointError, match=r"best: names no checkpoint; .* of: step-00000002, step-00000004"):
        step_loaded(run, "best")
    best.unlink()
    latest.unlink()
    assert step_loaded(run, "best") == 6  # a run without validation
    shutil.rmtree(run.checkpoints)
    (run.path / "DONE").unlink(missing_ok=True)
    run.write_state(phase="training")
    with pytest.raises(ConfigError, match="no checkpoint yet, training is still running"):
        step_loaded(run, "last")
    run.mark_failed("a test's")
    with pytest.raises(ConfigError, match="no checkpoint; train first"):
        step_loaded(run, "last")


@pytest.mark.parametrize(("which", "broken"), [("best", 4), ("last", 6)])
def test_scoring_a_damaged_checkpoint_is_an_error_that_names_the_newest_whole_one(
    run: RunDir, which: str, broken: int
) -> None:
    flip(run.checkpoints / checkpoint.name_of(broken) / "weights.pt")
    whole = "step-00000006" if broken == 4 else "step-00000004"
    text = f"asked for: {which}.*weights.pt differs from its SHA-256.*newest whole one is {whole}.*launch/train.py"
    with pytest.raises(CheckpointError, match=text):
        step_loaded(run, which)


def test_what_a_killed_writer_left_is_cleared_away_and_named(tmp_path: Path, logged: list[str]) -> None:
    save(tmp_path, 1, 2, 3)
    for name in (".step-00000004.tmp", ".step-00000000.trash"):
        shutil.copytree(tmp_path / "step-00000003", tmp_path / name)
    (tmp_path / ".latest.123.tmp").write_text("ste")
    os.rename(tmp_path / "step-00000003", tmp_path / "step-00000003.old")  # killed between two renames
    shutil.copytree(tmp_path / "step-00000002", tmp_path / "step-00000002.old")  # killed after them
    assert newest(tmp_path) == 3
    assert_whole(tmp_path, 3)
    commit.tidy(tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["latest", *map(checkpoint.name_of, (1, 2, 3))]
    names = (".step-00000004.tmp", ".step-00000000.trash", ".latest.123.tmp", "step-00000003", "step-00000002.old")
    for name in names:
        assert sum(f"{tmp_path / name}:" in text for text in logged) == 1, (name, logged)
    assert_whole(tmp_path, 3)


def test_pointers_are_made_to_agree_with_the_checkpoint_that_training_goes_on_from(
    tmp_path: Path, logged: list[str]
) -> None:
    save(tmp_path, 2, 4, 6)
    commit.point(tmp_path, "best", 6)
    progress = commit.repair(tmp_path, Progress(4, 32, {"step": 2, "score": 1.0}))
    assert progress.best == {"step": 2, "score": 1.0}
    assert (checkpoint.pointed(tmp_path, "latest"), checkpoint.pointed(tmp_path, "best")) == (4, 2)
    assert "checkpoints of steps [6] are deleted at the next save" in logged[0]
    flip(tmp_path / "step-00000002" / "weights.pt")
    progress = commit.repair(tmp_path, Progress(4, 32, {"step": 2, "score": 1.0}, 2))
    assert (progress.best, progress.improved) == (None, 2)  # patience still counts from it
    assert not (tmp_path / "best").exists()
    assert "the best so far: weights.pt differs" in logged[1]


def test_what_is_kept(tmp_path: Path) -> None:
    save(tmp_path, *range(1, 10))
    commit.point(tmp_path, "best", 2)
    assert commit.prune(tmp_path, 9, keep_last=2, keep_every=3) == [1, 4, 5, 7]
    assert steps_in(tmp_path) == [2, 3, 6, 8, 9]
    save(tmp_path, 4)  # training went back to step 3
    assert commit.prune(tmp_path, 4, keep_last=2) == [6, 8, 9]
    assert steps_in(tmp_path) == [2, 3, 4]


@contextlib.contextmanager
def subject_to_permissions() -> Iterator[None]:
    """Take from root, in this thread, what lets it read everything (CAP_DAC_OVERRIDE and CAP_DAC_READ_SEARCH)."""
    libc = ctypes.CDLL(None, use_errno=True)
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)
    before, less = (ctypes.c_uint32 * 6)(), (ctypes.c_uint32 * 6)()
    assert libc.capget(header, before) == 0
    less[:] = before[:]
    less[0] &= ~0b110
    assert libc.capset(header, less) == 0
    try:
        yield
    finally:
        assert libc.capset(header, before) == 0


@pytest.mark.skipif(sys.platform != "linux", reason="capabilities are Linux's")
@pytest.mark.parametrize("which", ["best", "4"])
@pytest.mark.parametrize(
    ("locked", "named"),
    [
        ("checkpoints/step-00000004/manifest.json", "step-00000004/manifest.json"),
        ("checkpoints/step-00000004/weights.pt", "step-00000004/weights.pt"),
        ("checkpoints/step-00000004", "step-00000004"),
        ("checkpoints/best", "best"),
        ("checkpoints", "checkpoints(/best)?"),
    ],
)
def test_a_checkpoint_that_may_not_be_read_is_neither_damaged_nor_absent(
    run: RunDir, locked: str, named: str, which: str
) -> None:
    """Nobody is told to delete DONE, to restore a checkpoint or to train first: it may be whole."""
    run.mark_done()
    file = run.path / locked
    mode = file.stat().st_mode
    file.chmod(0)
    try:
        with subject_to_permissions():
            if (locked, which) == ("checkpoints/best", "4"):
                assert step_loaded(run, which) == 4  # which needs no pointer
                return
            with pytest.raises(CheckpointError, match=f"{named}: permission denied") as caught:
                step_loaded(run, which)
    finally:
        file.chmod(mode)
    assert "chmod -R a+rX" in str(caught.value)
    for advice in ("DONE", "train", "delete", "damaged"):
        assert advice not in str(caught.value).replace(str(run.path), "")


@pytest.mark.skipif(sys.platform != "linux", reason="capabilities are Linux's")
def test_training_does_not_go_on_from_an_older_one_because_the_newest_may_not_be_read(
    tmp_path: Path, logged: list[str]
) -> None:
    save(tmp_path, 1, 2, 3)
    (tmp_path / "step-00000003" / MANIFEST).chmod(0)
    with subject_to_permissions():
        with pytest.raises(CheckpointError, match=r"step-00000003/manifest\.json: permission denied"):
            newest(tmp_path)
        with pytest.raises(CheckpointError, match=r"step-00000003/manifest\.json: permission denied"):
            load(tmp_path, 3, HASH)
        with pytest.raises(CheckpointError, match=r"step-00000003/manifest\.json: permission denied"):
            commit.repair(tmp_path, Progress(2, 8, {"step": 3, "score": 1.0}))
        assert load(tmp_path, 2, HASH)[1].step == 2
    assert logged == []


READER = """
import sys
from pathlib import Path
import torch
from toolkit.checkpoint.checkpoint import hold
with hold(Path(sys.argv[1]), int(sys.argv[2])) as held:
    print("holding", flush=True)
    sys.stdin.readline()
    assert held.fault() is None
    print(float(held.tensors("weights.pt")["a"][0, 0]), flush=True)
    sys.stdin.readline()
"""


@pytest.fixture
def reader(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process in the middle of reading the checkpoint of step 1; a line lets it read on, another lets it go."""
    save(tmp_path, 1, 2, 3)
    command = [sys.executable, "-c", READER, str(tmp_path), "1"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "holding\n"
        yield process
        process.kill()


def test_what_another_process_reads_is_neither_deleted_nor_mixed(
    tmp_path: Path, reader: subprocess.Popen[str], logged: list[str]
) -> None:
    assert reader.stdin is not None and reader.stdout is not None
    assert commit.prune(tmp_path, 3, keep_last=2) == []
    assert "step-00000001: is being read, so it is kept for now" in logged[0]
    other = TrainState({"a": torch.full((3, 3), 99.0)}, {}, 1)
    for _ in range(3):  # replaced under its reader, again and again
        commit.save(tmp_path, other, Progress(1, 8), HASH)
    assert float(load(tmp_path, 1, HASH)[0].weights["a"][0, 0]) == 99.0
    reader.stdin.write("\n")
    reader.stdin.flush()
    assert reader.stdout.readline() == "1.0\n"
    reader.stdin.write("\n")
    reader.stdin.flush()
    assert reader.wait(PATIENCE_S) == 0
    commit.prune(tmp_path, 3, keep_last=2)
    commit.tidy(tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["latest", "step-00000002", "step-00000003"]


def test_without_locks_reading_goes_on_and_a_deletion_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_locks(*_: object) -> None:
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr(fcntl, "flock", no_locks)
    save(tmp_path, 1, 2, 3)
    assert_whole(tmp_path, 1)
    with hold(tmp_path, 1) as held:
        assert commit.prune(tmp_path, 3, keep_last=2) == [1]
        with pytest.raises(CheckpointError, match="was deleted while it was read; try again"):
            held.tensors("weights.pt")


def test_readers_never_miss_a_checkpoint_that_is_replaced_over_and_over(tmp_path: Path) -> None:
    save(tmp_path, 1)

    def replace_forever() -> None:
        while True:
            save(tmp_path, 1)
            commit.prune(tmp_path, 1, keep_last=2)

    writer = start(replace_forever)
    try:
        for _ in range(100):
            assert newest(tmp_path) == 1
            assert_whole(tmp_path, 1)
    finally:
        os.kill(writer, signal.SIGKILL)
        assert ended(writer) == -signal.SIGKILL


@pytest.fixture
def memory(tmp_path: Path) -> Iterator[Path]:
    """A folder where fsync costs nothing: a killed process, other than a power cut, doesn't need it."""
    if not Path("/dev/shm").is_dir():
        yield tmp_path
        return
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        yield Path(folder)


def one_save(folder: Path, step: int) -> None:
    commit.save(folder, state_of(step), Progress(step, 8 * step, {"step": step, "score": 1.0}), HASH)
    commit.point(folder, "best", step)
    commit.prune(folder, step, keep_last=2)


@pytest.mark.parametrize("step", [3, 2], ids=["new", "replaced"])
def test_a_kill_at_any_write_leaves_whole_checkpoints_and_nothing_in_the_way(
    memory: Path, step: int, logged: list[str]
) -> None:
    """The n-th call that changes a file kills the process, for every n."""

    def doomed(folder: Path, kill_at: int) -> Callable[[], None]:
        def work() -> None:
            Countdown(folder, kill_at).arm()
            one_save(folder, step)

        return work

    outcomes = set()
    for kill_at in range(1, 100):
        folder = memory / str(kill_at)
        save(folder, 1, 2)
        code = ended(start(doomed(folder, kill_at)))
        if code == 0:
            break
        assert code == -signal.SIGKILL
        logged.clear()
        found = newest(folder)
        assert found in (2, step)
        assert logged == []  # what is visible is whole
        outcomes.add(found)
        for whole in steps_in(folder):
            assert_whole(folder, whole)
        latest = checkpoint.pointed(folder, "latest")
        assert latest is not None and fault_of(folder, latest) is None
        commit.tidy(folder)
        commit.repair(folder, load(folder, found, HASH)[1])
        one_save(folder, step)
        assert {p.name for p in folder.iterdir()} <= {"latest", "best", *map(checkpoint.name_of, (1, 2, 3))}
        assert steps_in(folder)[-2:] == ([2, 3] if step == 3 else [1, 2])
        assert checkpoint.pointed(folder, "best") == step
    else:
        pytest.fail("never done")
    assert kill_at > 30
    assert outcomes == {2, step}


def assert_refused_and_intact(folder: Path, before: dict[str, bytes], match: str) -> None:
    with pytest.raises(CheckpointError, match=match) as caught:
        commit.save(folder, state_of(9, size=300), Progress(9, 72), HASH)
    assert str(folder / "step-00000009") in str(caught.value)
    assert "bytes are free in" in str(caught.value)
    assert bytes_in(folder) == before
    assert newest(folder) == 2


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 2 MiB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "none", disk], capture_output=True, text=True)
    if mounted.returncode:
        pytest.skip(f"mounting is not allowed here: {mounted.stderr.strip()}")
    yield disk
    subprocess.run(["umount", disk], check=True)


def test_a_full_disk_is_foreseen(small_disk: Path) -> None:
    save(small_disk, 1, 2)
    before = bytes_in(small_disk)
    match = r"not enough room \(needs 2,12\d,\d{3} bytes; 1,9\d\d,\d{3} bytes are free in .*Free space"
    assert_refused_and_intact(small_disk, before, match)


def test_a_disk_that_fills_while_writing_leaves_what_was_there(
    small_disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(small_disk, 1, 2)
    (small_disk / "others").write_bytes(bytes(1_200_000))
    before = bytes_in(small_disk)
    monkeypatch.setattr(commit, "_check_room", lambda folder, needed: None)  # a quota isn't known beforehand
    assert_refused_and_intact(small_disk, before, "No space left on device")
    (small_disk / "others").unlink()
    save(small_disk, 3)
    assert_whole(small_disk, 3)


def test_a_read_only_disk_says_so(small_disk: Path) -> None:
    save(small_disk, 1, 2)
    before = bytes_in(small_disk)
    subprocess.run(["mount", "-o", "remount,ro", small_disk], check=True)
    assert_refused_and_intact(small_disk, before, "Read-only file system")
    assert_whole(small_disk, 2)


def test_a_limit_on_file_size_leaves_what_was_there(tmp_path: Path) -> None:
    """What a quota or `ulimit -f` does, without being root."""
    save(tmp_path, 1, 2)
    before = bytes_in(tmp_path)

    def limited() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))
        assert_refused_and_intact(tmp_path, before, "File too large")

    assert ended(start(limited)) == 0


def test_a_folder_that_cannot_be_made_says_so(tmp_path: Path) -> None:
    (tmp_path / "checkpoints").write_text("a file")
    with pytest.raises(CheckpointError, match=r"step-00000001: not written: (File exists|Not a directory) \(needs"):
        save(tmp_path / "checkpoints", 1)


def saver_of(folder: Path, **settings: object) -> Saver:
    return Saver(folder, TrainConfig(checkpoint=CheckpointConfig(**settings)), HASH)


def test_a_background_save_is_the_same_bit_for_bit(tmp_path: Path) -> None:
    for background in (True, False):
        saver = saver_of(tmp_path / str(background), async_save=background)
        for step in (1, 2, 3):
            saver.save(state_of(step), Progress(step, 8 * step, {"step": 1, "score": 0.5}), last=step == 3)
        saver.close()
    assert steps_in(tmp_path / "True") == [1, 2, 3]
    assert bytes_in(tmp_path / "True") == bytes_in(tmp_path / "False")


def test_each_checkpoint_is_logged_with_its_time_and_size(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    saver = saver_of(tmp_path)
    with caplog.at_level(logging.INFO):
        for step in (1, 2):
            saver.save(state_of(step), Progress(step, 8 * step), last=False)
        saver.close()
    found = re.findall(r"checkpoint of step (\d+) written in \d+\.\d s: ([\d,]+) bytes", caplog.text)
    sizes = [sum(file.stat().st_size for file in (tmp_path / checkpoint.name_of(step)).iterdir()) for step in (1, 2)]
    assert found == [("1", f"{sizes[0]:,}"), ("2", f"{sizes[1]:,}")]


def gate(monkeypatch: pytest.MonkeyPatch, module: object, function: str) -> threading.Event:
    """Let `function` begin only when the event is set."""
    event, call = threading.Event(), getattr(module, function)

    def waiting(*args: object) -> object:
        assert event.wait(PATIENCE_S)
        return call(*args)

    monkeypatch.setattr(module, function, waiting)
    return event


def test_one_save_is_on_its_way_and_the_next_waits_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, logged: list[str]
) -> None:
    slow_disk = gate(monkeypatch, os, "fsync")
    saver = saver_of(tmp_path)
    saver.save(state_of(1), Progress(1, 8), last=False)
    assert steps_in(tmp_path) == []  # training went on; nothing half-written is visible
    threading.Timer(0.3, slow_disk.set).start()
    began = time.perf_counter()
    saver.save(state_of(2), Progress(2, 16), last=False)
    assert time.perf_counter() - began > 0.2
    assert steps_in(tmp_path)[0] == 1
    assert sum("until the checkpoint of step 1 was written" in text for text in logged) == 1
    saver.close()
    assert_whole(tmp_path, 2)


def blocked(folder: Path) -> Path:
    """Make saves fail as a broken disk would, until it is deleted."""
    folder.mkdir(parents=True)
    (folder / "checkpoints").write_text("in the way")
    return folder / "checkpoints"


def test_a_failed_save_ends_training_at_the_next_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, logged: list[str]
) -> None:
    obstacle, go = blocked(tmp_path / "run"), gate(monkeypatch, commit, "_bytes_of")
    saver = saver_of(obstacle)
    saver.save(state_of(1), Progress(1, 8), last=False)
    assert not saver.failed
    go.set()
    saver.wait()
    assert saver.failed
    with pytest.raises(CheckpointError, match="step-00000001: not written"):
        saver.save(state_of(2), Progress(2, 16), last=True)
    assert not saver.failed  # told once
    saver.close()
    assert [text for text in logged if "waited" not in text] == []


def test_a_failed_save_can_be_logged_counted_and_retried(tmp_path: Path, logged: list[str]) -> None:
    obstacle = blocked(tmp_path / "run")
    saver = saver_of(obstacle, on_error="continue")
    for step in (1, 2):
        saver.save(state_of(step), Progress(step, 8 * step), last=False)
        saver.wait()
    assert not saver.failed
    assert saver.errors == len(logged) == 2
    assert "2 saves failed, training continues without: " in logged[1]
    assert "step-00000002: not written" in logged[1]
    with pytest.raises(CheckpointError, match="step-00000003: not written"):
        saver.save(state_of(3), Progress(3, 24), last=True)  # a run doesn't end without its checkpoint
    obstacle.unlink()
    saver.save(state_of(4), Progress(4, 32), last=True)
    assert_whole(obstacle, 4)


def test_a_fault_of_ours_in_the_thread_is_not_taken_for_a_full_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(commit, "_bytes_of", lambda state: 1 / 0)
    saver = saver_of(tmp_path, on_error="continue")
    with pytest.raises(ZeroDivisionError):
        saver.save(state_of(1), Progress(1, 8), last=True)
