"""Why a run's job was stopped and which nodes it has lost: what job.sh asks on a node, in one process per question.

    python -m launch.slurm.causes signal RUN JOB RESTART --signal TERM --warning 120

- Before the time limit Slurm sends USR2 to the batch script alone, which hands it on: the tasks stop with a
  checkpoint. When a grace time begins it sends TERM to the tasks alone: they do the same. On requeue, cancellation,
  preemption at once and the loss of another node it sends TERM to everything, srun too, which then kills the tasks:
  what counts is the last checkpoint. What srun and slurmstepd write into the log of the batch script then is the only
  exact word on the cause; where they wrote none, `scontrol show job` and `scontrol show node` are asked.
- A node that was lost may be back before the job is. For an hour a run keeps away from what it lost last: nodes that
  a job leaves out can be changed only while it is pending, so job.sh does it right after the requeue, while it still
  runs. Nobody changes it again while the job waits: so only one loss counts, and only while enough nodes are up.

It needs the standard library alone and runs on Python 3.6 (no newer syntax, annotations that are not evaluated): where
a container holds the Python of the run, the node has only that of its operating system.
"""

import argparse
import datetime
import json
import os
import re
import socket
import subprocess
import sys
import time

AVOID_S = 3600  # for so long a run keeps away from a node that it has lost
TIMEOUT_S = 60
PROBE_S = 30
NEVER = 9999999999.0
LOG_TIME = "%Y-%m-%d %H:%M:%S"
SLURM_TIME = "%Y-%m-%dT%H:%M:%S"
DOWN = ("DOWN", "FAIL", "*", "NOT_RESP")  # in the state of a node that Slurm calls lost
NO_GPUS = "can't use the GPUs of this job"
EVENTS = "events.jsonl"  # of a run: toolkit/rundir/events.py
OLD_RESTARTS = "restarts.tsv"  # of the last release
QUESTIONS = ("signal", "step", "restart", "fail", "lost", "avoid", "revisited")


class Job:
    """One start of a run's job, with what can be asked about it.

    Args:
        run: the run directory.
        name: the job as squeue shows it, 4711 or 4711_3.
        restart: 0 for its first start.
    """

    def __init__(self, run: str, name: str, restart: int) -> None:
        self.run = run
        self.name = name
        self.restart = restart
        self.nodes = os.environ.get("SLURM_JOB_NODELIST", "")
        self.size = int(os.environ.get("SLURM_JOB_NUM_NODES", "1"))

    def log(self, restart: int) -> str:
        """Return what the batch script of a start, srun and slurmstepd wrote; empty where there is none."""
        return _read(os.path.join(self.run, "logs", f"{self.name}_{restart}_batch.log"))

    def cause_of_signal(self, number: str, warning_s: int) -> str:
        """Return why Slurm has sent this job a signal.

        Args:
            number: `TERM`, `USR2`, or `STEP` where it was sent to the tasks alone.
            warning_s: seconds before the time limit at which Slurm warns.
        """
        about = _ask("scontrol", "--oneliner", "show", "job", self.name)
        if "JobState=CANCELLED" in about:
            return "cancelled"
        # Of a job that is requeued Slurm has counted one start more.
        if number == "TERM" and re.search(f"JobState=COMPLETING.* Restarts={self.restart} ", about):
            return "cancelled"
        if " PreemptTime=2" in about:
            return "preempted"
        if number == "TERM":
            gone = lost_by_log(self.log(self.restart)) or lost_by_state(self.nodes, NEVER)
            return "lost " + ",".join(gone) if gone else ended_by_log(self.log(self.restart))
        end = _seconds(_match(r".* EndTime=(\S+)", about), SLURM_TIME, NEVER)
        # Slurm sends it up to a minute early, and may be late itself.
        return "asked by a signal" if end - time.time() > warning_s + 90 else "time limit"

    def cause_before(self) -> "tuple[str, str, str]":
        """Return of the start before: its nodes, those of them that were lost, and why it ended."""
        log = self.log(self.restart - 1)
        first = log.partition("\n")[0]
        nodes = _match(r".* on (.*)", first)
        why = _match(r"(?m)^.{19} asked to stop: (.*)", log)
        gone = lost_by_log(log)
        if not nodes:
            why = "it could not begin"
        elif why.startswith("lost"):
            gone = gone or why[len("lost ") :].split(",")
        elif why == "preempted or requeued":
            why = ended_by_log(log)  # slurmstepd may have said so after the script had looked
        elif not why:
            gone = gone or lost_by_state(nodes, _seconds(first[:19], LOG_TIME, 0.0))
        if gone:
            why = "lost " + ",".join(gone)
        return nodes, ",".join(gone), why or "exited without a final status"

    def record(self, event: str, **values: "object") -> None:
        """Append an event to the run's record, on a line of its own even where a kill has left half a line."""
        moment = datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%dT%H:%M:%S.%f")[:-3] + "Z"
        head = {"time": moment, "event": event, "host": socket.gethostname(), "job": self.name}
        line = json.dumps({**head, **values}).encode() + b"\n"
        with open(os.path.join(self.run, EVENTS), "ab+") as file:
            if file.tell():
                file.seek(-1, os.SEEK_END)
                line = line if file.read(1) == b"\n" else b"\n" + line
            file.write(line)

    def record_restart(self, max_restarts: int) -> str:
        """Record that Slurm has begun this job again, and return where and why the start before ended."""
        nodes, lost, why = self.cause_before()
        if self.restart > max_restarts:
            why += f"; not begun again, as max_restarts is {max_restarts}"
        self.record("restart", start=self.restart + 1, nodes=nodes, lost=lost, cause=why)
        return f"{nodes or 'no node'}: {why}"

    def restarts(self) -> "list[tuple[float, str]]":
        """Return of each restart of the run, oldest first: its time (UNIX), and the nodes lost before it."""
        found = []
        for line in _read(os.path.join(self.run, OLD_RESTARTS)).splitlines():
            fields = line.split("\t")
            if len(fields) >= 5 and re.match(r"\d+(\.\d+)?$", fields[0]):
                found.append((float(fields[0]), fields[4]))
        for line in _read(os.path.join(self.run, EVENTS)).splitlines():
            try:
                event = json.loads(line)
                if event["event"] == "restart":
                    found.append((_utc(event["time"]), str(event.get("lost", ""))))
            except (ValueError, KeyError, TypeError, AttributeError):
                continue
        return found

    def lost(self) -> "list[str]":
        """Return the nodes that this start has lost: by the log, else those on which no task can be started.

        Ranks see the loss of a node long before Slurm does. Alone on a node it cannot be found out in this way, nor
        where not even the node of this script answers.
        """
        gone = lost_by_log(self.log(self.restart))
        if gone or self.size < 2 or not _reaches(os.environ.get("SLURMD_NODENAME", "")):
            return gone
        return [node for node in hostnames(self.nodes) if not _reaches(node)]

    def avoided(self, lost: str = "") -> str:
        """Return the nodes to keep away from, with commas.

        They are `lost`, or what the run has lost last, if lately, and those on which runs failed as soon as they began.

        Empty where the partition has too few others that are up.
        """
        lately = time.time() - AVOID_S
        root = os.path.join(self.run, "../.." if os.path.exists(os.path.join(self.run, "pack.json")) else "..")
        bad = failing_nodes(_read(os.path.join(root, "early_failures.tsv")), lately)
        names = lost or last_lost(self.restarts(), lately)
        names = ",".join(sorted({*names.split(","), *bad} - {""}))
        if not names:
            return ""
        partition = "--partition=" + os.environ.get("SLURM_JOB_PARTITION", "")
        states = "--states=idle,mixed,allocated,completing"
        up = set(_ask("sinfo", "--noheader", "--Node", partition, states, "--format=%N").split())
        return names if len(up - set(names.split(","))) >= self.size else ""

    def revisited(self) -> "list[str]":
        """Return those of its nodes that it should keep away from: Slurm has started it there all the same."""
        avoided = self.avoided().split(",")
        return [node for node in hostnames(self.nodes) if node in avoided]


def lost_by_log(log: str) -> "list[str]":
    """Return the nodes that srun has lost."""
    lists = re.findall(r"(?m)^srun: error: Node failure on (\S+)", log)
    return sorted({node for nodes in lists for node in hostnames(nodes)})


def lost_by_state(nodes: str, since: float) -> "list[str]":
    """Return those of a list of nodes that Slurm calls lost, or whose slurmd has started after a UNIX time."""
    gone = []
    for line in _ask("scontrol", "--oneliner", "show", "node", nodes).splitlines():
        found = re.match(r"NodeName=(\S+) .* State=(\S+) .* SlurmdStartTime=(\S+)", line)
        if found and (
            any(word in found.group(2) for word in DOWN) or _seconds(found.group(3), SLURM_TIME, 0.0) > since
        ):
            gone.append(found.group(1))
    return gone


def ended_by_log(log: str) -> str:
    """Return why Slurm has ended the step, by slurmstepd's message."""
    line = _match(r"(?m)^(.* CANCELLED AT .* DUE TO .*)", log)
    if "PREEMPTION" in line:
        return "preempted"
    return "requeued" if "REQUEUE" in line else "preempted or requeued"


def last_lost(restarts: "list[tuple[float, str]]", since: float) -> str:
    """Return the nodes that were lost before the last restart after a UNIX time before which any were."""
    return next((names for when, names in reversed(restarts) if names and when >= since), "")


def failing_nodes(failures: str, since: float) -> "list[str]":
    """Return the nodes on which several runs failed as soon as they began (launch/jobs/attempts.py).

    One run is enough where it found that it can't use the node's GPUs (toolkit/distributed/device.py).
    """
    runs = {}  # type: dict[str, set[str]]
    for line in failures.splitlines():
        fields = line.split("\t")
        if len(fields) == 4 and fields[1] and fields[0].isdigit() and int(fields[0]) >= since:
            runs.setdefault(fields[1], set()).update([fields[2], NO_GPUS] if NO_GPUS in fields[3] else [fields[2]])
    return sorted(node for node, those in runs.items() if len(those) > 1)


def hostnames(nodes: str) -> "list[str]":
    """Return the nodes of a list as Slurm writes it, `n[1-3,7]`."""
    return _ask("scontrol", "show", "hostnames", nodes).split()


def _utc(text: str) -> float:
    """Return the UNIX time of a time stamp of the record, with or without a fraction. Raises ValueError."""
    form = "%Y-%m-%dT%H:%M:%S" + (".%f" if "." in text else "") + "Z"
    moment = datetime.datetime.strptime(text, form).replace(tzinfo=datetime.timezone.utc)
    return moment.timestamp()


def _reaches(node: str) -> bool:
    """Whether a task of this job can be started on a node; Slurm may not know for minutes that it cannot."""
    command = ["srun", "--overlap", "--nodes=1", "--ntasks=1", "--nodelist=" + node, "true"]
    return _call(command, PROBE_S)[0] == 0


def _ask(*command: str) -> str:
    """Return what a command of Slurm prints; empty where it fails."""
    code, text = _call(list(command), TIMEOUT_S)
    return text if code == 0 else ""


def _call(command: "list[str]", timeout_s: float) -> "tuple[int, str]":
    try:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    except OSError:
        return 127, ""
    try:
        text = process.communicate(timeout=timeout_s)[0]
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
        return 124, ""
    return process.returncode, text.decode("utf-8", "replace")


def _read(path: str) -> str:
    try:
        with open(path if os.path.isfile(path) else os.devnull, encoding="utf-8", errors="replace") as file:
            return file.read()
    except OSError:
        return ""


def _match(pattern: str, text: str) -> str:
    found = re.search(pattern, text)
    return found.group(1) if found else ""


def _seconds(text: str, form: str, otherwise: float) -> float:
    """Return a local time as UNIX seconds; `otherwise` where Slurm says `Unknown` or nothing."""
    try:
        return time.mktime(time.strptime(text, form))
    except ValueError:
        return otherwise


def main(arguments: "list[str]") -> int:
    """Print the answer to one question, or record an event; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m launch.slurm.causes", description="Asked by launch/slurm/job.sh.")
    parser.add_argument("question", choices=QUESTIONS)
    parser.add_argument("run", help="the run directory")
    parser.add_argument("job", help="4711 or 4711_3")
    parser.add_argument("restart", type=int, help="0 for the first start of the job")
    parser.add_argument("--signal", default="STEP", help="TERM, USR2, or STEP: to the tasks alone")
    parser.add_argument(
        "--warning", type=int, default=120, metavar="S", help="seconds before the time limit at which Slurm warns"
    )
    parser.add_argument("--max-restarts", type=int, default=0, metavar="N", help="how often the job may begin again")
    parser.add_argument("--cause", default="", help="of a failure")
    parser.add_argument("--exit-code", type=int, help="of a failure")
    parser.add_argument("--lost", default="", help="nodes to keep away from (default: those that the run lost last)")
    options = parser.parse_args(arguments)
    job = Job(options.run, options.job, options.restart)
    if options.question == "signal":
        print(job.cause_of_signal(options.signal, options.warning))
    elif options.question == "step":
        print(ended_by_log(job.log(job.restart)))
    elif options.question == "restart":
        print(job.record_restart(options.max_restarts))
    elif options.question == "fail":
        job.record("fail", cause=options.cause, exit_code=options.exit_code)
    elif options.question == "lost":
        print(",".join(job.lost()))
    elif options.question == "avoid":
        print(job.avoided(options.lost))
    else:
        print(",".join(job.revisited()))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
