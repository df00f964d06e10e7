import sys
from pathlib import Path

from launch import sweep
from launch.cli.parser import run_script


def command(run, ranks, log_files):
    flags = ["--log-files"] if log_files else []
    return [sys.executable, str(Path(__file__).parent / "fake_job.py"), str(run), "--ranks", str(ranks), *flags]


run_script(lambda: sweep.main(sys.argv[1:], command=command))
