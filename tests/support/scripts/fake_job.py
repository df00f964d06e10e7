import sys
from pathlib import Path

from launch.cli.parser import run_script
from launch.jobs import job

run_script(lambda: job.main(sys.argv[1:], scripts=Path(__file__).parent))
