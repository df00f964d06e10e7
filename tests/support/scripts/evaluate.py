import sys
from pathlib import Path

run = Path(sys.argv[sys.argv.index("--run") + 1])
if "fake: no-score" in (run / "config.yaml").read_text():
    sys.exit(5)
(run / "eval").mkdir(exist_ok=True)
for which in ("best", "last"):
    (run / "eval" / f"test-{which}.json").write_text("{}")
