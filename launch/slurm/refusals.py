"""What Slurm's refusals mean, and what to do about each. The first hint whose pattern is found in a message holds."""

from __future__ import annotations

import re
import subprocess

HINTS = (
    (r"munge", "munge, which proves to Slurm who you are, doesn't run on this machine: ask who runs it"),
    (r"configuration source|resolve.*SRV", "this shell knows of no cluster: is SLURM_CONF set, is this a login node?"),
    (r"[Uu]nable to contact|Connection refused|timed out", "the controller doesn't answer: try `scontrol ping`, wait"),
    (r"[Ii]nvalid partition", "set `partition` in the profile to one of: {partitions}"),
    (r"[Ii]nvalid account", "set `account` in the profile; yours: `sacctmgr show user $USER withassoc`"),
    (r"[Ii]nvalid qos", "set `qos` in the profile; yours: `sacctmgr show user $USER withassoc format=qos`"),
    (r"[Ii]nvalid feature", "`constraint` in the profile names a feature that no node has: see `sinfo -o '%R %f'`"),
    (
        r"[Ii]nvalid node name",
        "`exclude` in the profile, or `nodelist` in its `sbatch`, names a node that isn't there. Nodes: {nodes}",
    ),
    (
        r"[Ii]nvalid generic resource",
        "no node has such GPUs: `gpu_type` in the profile, or --gpus-per-node (0: no GPUs). Nodes: {nodes}",
    ),
    (r"[Rr]eservation", "`reservation` in the profile's `sbatch`: `scontrol show reservation` lists those there are"),
    (
        r"(unrecognized|invalid|ambiguous) option|requires an argument|[Ii]nvalid [-\w]+ specification",
        "this sbatch doesn't take an option of the profile's `sbatch`: see `sbatch --help`",
    ),
    (r"[Mm]emory specification", "`mem` in the profile is more than a node has. Nodes: {nodes}"),
    (
        r"node configuration is not available|[Nn]ode count specification|More processors requested",
        "no node has as many GPUs (--gpus-per-node, `gpu_type`), CPUs or as much memory as was asked for, or there are "
        "fewer nodes than --nodes. Nodes: {nodes}",
    ),
    # The name of a limit comes before the sentence that follows each of them and mentions all kinds.
    (
        r"Max\w*Submit\w*Limit",
        "you may have no more jobs in the queue: --limit N submits N runs at most, --keep-submitted N stays and "
        "submits the next ones as others end, --pack N needs fewer jobs; `sacctmgr show qos format=name,maxsubmitpu`",
    ),
    (
        r"MaxWall\w*Limit|[Rr]equested time limit",
        "lower `time` in the profile; limits: `sinfo -o '%R %l'`, `sacctmgr show qos format=name,maxwall`",
    ),
    (
        r"(Max|Min|Grp)\w*(Cpu|CPU|Node|Gres|GRES|Mem|TRES|Billing)\w*",
        "a job asks for more than you may have: lower --nodes, --gpus-per-node, or `cpus_per_task` or `mem` in the "
        "profile; limits: `sacctmgr show qos`, `sacctmgr show assoc user=$USER`",
    ),
    (
        r"[Jj]ob violates|QOS\w*Limit|Assoc\w*Limit|limit reached",
        "a limit of your account or QOS: `sacctmgr show qos`, `sacctmgr show assoc user=$USER`",
    ),
    (
        r"array (index|is too)|MaxArraySize|[Ii]nvalid job array",
        "no array of this size: `scontrol show config | grep Array`",
    ),
)


def explain(command: str, message: str) -> str:
    """Return a refusal with what to do about it."""
    lines = [re.sub(r"^\w+: (error: )?", "", line) for line in message.splitlines()]
    hint = next((hint for pattern, hint in HINTS if re.search(pattern, message)), None)
    if hint is not None:
        hint = hint.format(partitions=_sinfo("%R") if "{part" in hint else "", nodes=_sinfo("%n: %c CPUs, %m MB, %G"))
    return f"{command}: {'; '.join(dict.fromkeys(lines))}" + (f"\n{hint[:1].upper()}{hint[1:]}" if hint else "")


def _sinfo(form: str) -> str:
    try:
        done = subprocess.run(["sinfo", "-h", "-o", form], capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return "(sinfo doesn't answer)"
    lines = list(dict.fromkeys(done.stdout.split("\n")[:-1]))
    return "; ".join(lines[:8]) + ("; ..." if len(lines) > 8 else "")
