"""The scripts that start runs: linted, and run with stand-ins for Ray and Slurm that note how they were called."""

from __future__ import annotations

import os
import re
import shutil
import signal
import stat
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SCRIPTS = sorted((ROOT / "launch").glob("*.sh"))

# Each call is a line: the program and its arguments, between bars.
RECORD = 'printf "%s\\n" "$(basename "$0")$(printf "|%s" "$@")" >>"$CALLS"\n'
STAND_INS = {
    "ray": """
if [[ -n ${RAY_AUTH_TOKEN_PATH:-} ]]; then stat -c '%a %s' "$RAY_AUTH_TOKEN_PATH" >>"$CALLS.token"; fi
echo "mode=$RAY_AUTH_MODE token=${RAY_AUTH_TOKEN:-none}" >>"$CALLS.environment"
"""
    + RECORD
    + """
case $1 in
start) exec sleep 300 ;;
job)
    case $2 in
    status) # a line for each time that it is asked; the last one stays
        line=$(head -n 1 "$CALLS.states" 2>/dev/null || echo "Job 'ID' succeeded")
        [[ ! -e $CALLS.states || $(wc -l <"$CALLS.states") == 1 ]] || sed -i 1d "$CALLS.states"
        echo "cli.py:73 -- ${line//ID/${@: -1}}"
        ;;
    submit) exit "$(head -n 1 "$CALLS.exits" 2>/dev/null || echo 0)" ;;
    esac
    ;;
esac
""",
    "srun": RECORD + 'while [[ $1 == --* ]]; do shift; done\nexec "$@"\n',
    "scontrol": RECORD + 'if [[ $1 == show ]]; then printf "node1\\nnode2\\n"; fi\n',
    "hostname": 'echo "10.0.0.1 172.17.0.1 "\n',
    # Of the script's own lines in Python: waits for as many nodes as it is told.
    "python": RECORD + 'until (($(grep -c "^ray|start" "$CALLS") >= ${@: -1})); do sleep 0.05; done\n',
    "prdp": RECORD
    + """
trap 'echo saved; exit 143' TERM
echo started
if [[ -n ${PRDP_WAITS:-} ]]; then
    sleep 300 &
    wait
fi
exit "${PRDP_EXIT:-0}"
""",
}


def tool(name: str) -> str:
    """A linter that was installed beside Python, or anywhere on the path."""
    found = shutil.which(name, path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    if found is None:
        pytest.skip(f"{name} is not installed")
    return found


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """Stand-ins first on the path."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name, body in STAND_INS.items():
        (folder / name).write_text(f"#!/usr/bin/env bash\n{body}")
        (folder / name).chmod(0o755)
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "SLURM_", "PRDP_"))}
    own = {"CALLS": str(tmp_path / "calls"), "PRDP_POLL_SECONDS": "0"}
    return {**kept, "PATH": f"{folder}:{os.environ['PATH']}", **own}


@pytest.fixture
def slurm(environment: dict[str, str]) -> dict[str, str]:
    """What Slurm sets, for two nodes."""
    return {
        **environment,
        "SLURM_JOB_ID": "12345",
        "SLURM_JOB_NODELIST": "node[1-2]",
        "SLURM_CPUS_PER_TASK": "8",
        "SLURM_GPUS_ON_NODE": "4",
    }


def calls(environment: dict[str, str], program: str) -> list[list[str]]:
    """The arguments of each call of a program."""
    file = Path(environment["CALLS"])
    lines = [line.split("|") for line in file.read_text().splitlines()] if file.exists() else []
    return [line[1:] for line in lines if line[0] == program]


def run(script: str, *words: str, environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    command = ["bash", str(ROOT / "launch" / script), *words]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.name)
def test_scripts_are_sound(script: Path) -> None:
    assert script.stat().st_mode & stat.S_IXUSR
    subprocess.run(["bash", "-n", str(script)], check=True, timeout=60)
    linted = subprocess.run([tool("shellcheck"), str(script)], capture_output=True, text=True, timeout=60)
    assert linted.returncode == 0, linted.stdout


def test_the_dockerfile_is_sound() -> None:
    linted = subprocess.run(
        [tool("hadolint"), str(ROOT / "docker" / "Dockerfile")], capture_output=True, text=True, timeout=60
    )
    assert linted.returncode == 0, linted.stdout


def test_the_image_is_pinned_and_not_roots() -> None:
    text = (ROOT / "docker" / "Dockerfile").read_text()
    assert re.search(r"^ARG PYTHON_IMAGE=python:3\.11\.\d+-slim-\w+$", text, re.MULTILINE)
    assert set(re.findall(r"^FROM (\S+)", text, re.MULTILINE)) == {"${PYTHON_IMAGE}"}
    assert re.findall(r"^USER (.*)$", text, re.MULTILINE)[-1] == "1000:1000"
    assert all("-c constraints.txt" in line for line in re.findall(r"^RUN pip install.*$", text, re.MULTILINE))
    assert "PIP_NO_CACHE_DIR=1" in text


def test_the_build_gets_all_that_the_package_is_made_of_and_nothing_else() -> None:
    lines = (ROOT / ".dockerignore").read_text().splitlines()
    rules = [line for line in lines if line and not line.startswith("#")]
    assert rules[0] == "*"
    let_in = {rule[1:] for rule in rules if rule.startswith("!")}
    assert let_in == {
        "constraints.txt",
        "setup.cfg",
        "pyproject.toml",
        "MANIFEST.in",
        "README.md",
        "LICENSE",
        "prdp",
        "conf",
    }
    assert all((ROOT / name).exists() for name in let_in)


def test_a_job_is_submitted_with_the_checkout(environment: dict[str, str]) -> None:
    words = ["--address", "http://head:8265", "--gpus", "1", "--output-dir", "/shared/a run", "reward.note=a b;$c"]
    finished = run("ray_job.sh", *words, environment=environment)
    assert finished.returncode == 0, finished.stderr
    call, _ = calls(environment, "ray")
    assert call[:4] == ["job", "submit", "--address", "http://head:8265"]
    assert call[call.index("--working-dir") + 1] == str(ROOT)
    assert call[call.index("--entrypoint-num-gpus") + 1] == "1"
    assert '"/docs"' in call[call.index("--runtime-env-json") + 1]
    assert call[call.index("--") + 1 :] == [
        *("python", "-m", "prdp", "train", "cluster=ray", "cluster.address=auto", "checkpoint.resume=auto"),
        *("output_dir=/shared/a run", "reward.note=a b;$c"),
    ]
    assert "mode=token" in Path(environment["CALLS"] + ".environment").read_text()


def test_a_job_of_an_installed_prdp_carries_nothing(environment: dict[str, str]) -> None:
    assert run("ray_job.sh", "--installed", "--output-dir", "/runs/a", environment=environment).returncode == 0
    call, _ = calls(environment, "ray")
    assert "--working-dir" not in call
    assert "excludes" not in call[call.index("--runtime-env-json") + 1]


def test_secrets_of_the_environment_stay_out_of_a_job(environment: dict[str, str]) -> None:
    secrets = {"RAY_AUTH_TOKEN": "geheim-1", "WANDB_API_KEY": "geheim-2", "AWS_SECRET_ACCESS_KEY": "geheim-3"}
    finished = run("ray_job.sh", "--output-dir", "/runs/a", environment={**environment, **secrets})
    said = Path(environment["CALLS"]).read_text() + finished.stdout + finished.stderr
    assert "geheim" not in said


def test_a_failed_job_is_submitted_again_under_another_id(environment: dict[str, str]) -> None:
    Path(environment["CALLS"] + ".exits").write_text("1\n")
    Path(environment["CALLS"] + ".states").write_text("Job 'ID' failed\n")
    finished = run("ray_job.sh", "--attempts", "3", "--output-dir", "/runs/a", environment=environment)
    assert finished.returncode == 1
    ids = [call[call.index("--submission-id") + 1] for call in calls(environment, "ray") if call[1] == "submit"]
    assert len(ids) == len(set(ids)) == 3
    assert finished.stderr.count("did not succeed") == 3


AT_WORK = "Status for job 'ID': RUNNING"


@pytest.mark.parametrize(
    ("states", "code", "logs", "says"),
    [
        ([AT_WORK, AT_WORK, "Job 'ID' succeeded"], 0, 2, "the log ended before the job"),
        ([AT_WORK, "Connection refused", AT_WORK, "Job 'ID' failed"], 1, 2, "did not succeed"),
        (["Job 'ID' was stopped"], 1, 0, "was stopped"),
        (["Connection refused"], 2, 0, "which may be at work: cli.py:73 -- Connection refused"),
    ],
)
def test_a_log_that_ends_is_not_the_end_of_a_job(
    environment: dict[str, str], states: list[str], code: int, logs: int, says: str
) -> None:
    """Ray's submission ends with 0 also where the connection has ended, and where somebody has stopped the job."""
    Path(environment["CALLS"] + ".states").write_text("\n".join(states) + "\n")
    finished = run("ray_job.sh", "--attempts", "1", "--output-dir", "/runs/a", environment=environment)
    assert finished.returncode == code
    assert says in finished.stderr
    assert [call[1] for call in calls(environment, "ray")].count("logs") == logs


def test_the_driver_goes_where_it_is_told_to(environment: dict[str, str]) -> None:
    words = ["--on", "ray.io/accelerator-type=H100", "--output-dir", "/runs/a", "cluster.learner_gpus=1"]
    assert run("ray_job.sh", *words, environment=environment).returncode == 0
    call = calls(environment, "ray")[0]
    assert call[call.index("--entrypoint-label-selector") + 1] == '{"ray.io/accelerator-type": "H100"}'
    # Ray hides all GPUs from a driver that it has placed by a label.
    assert call[call.index("--") + 1 :][:4] == ["env", "-u", "CUDA_VISIBLE_DEVICES", "python"]


@pytest.mark.parametrize(
    "words, complaint",
    [
        (["experiment=a"], "--output-dir='': must be an absolute path"),
        (["--output-dir", "runs/a"], "--output-dir='runs/a': must be an absolute path"),
        (["--output-dir"], "--output-dir needs a value"),
        (["--output-dir", "/a", "--attempts", "0"], "--attempts=0: must be a whole number from 1 on"),
        (["--output-dir", "/a", "--gpus", "many"], "--gpus=many: must be a number"),
        (["--output-dir", "/a", "--on", "H100"], "--on=H100: must be a label and its value, such as pool=learner"),
        (["--output-dir", "/a", "--on", 'a=b"c'], "must be a label and its value"),
        (["--output-dir", "/a", "--on", "a=b", "--gpus", "1"], "--on and --gpus: a driver that has GPUs"),
        (["--output-dir", "/a", "--adress", "b"], "unknown option --adress"),
    ],
)
def test_mistakes_in_a_submission_are_named(environment: dict[str, str], words: list[str], complaint: str) -> None:
    finished = run("ray_job.sh", *words, environment=environment)
    assert finished.returncode == 2
    assert complaint in finished.stderr
    assert not calls(environment, "ray")


def test_slurm_starts_a_head_and_workers_and_the_learner(slurm: dict[str, str], tmp_path: Path) -> None:
    folder = tmp_path / "run"
    finished = run("slurm.sh", str(folder), "experiment=shapes_smoke", "a=b c", environment=slurm)
    assert finished.returncode == 0, finished.stderr
    address = "10.0.0.1:22345"
    size = ["--num-cpus=8", "--num-gpus=4"]
    head = [f"--node-ip-address={address.partition(':')[0]}", "--port=22345", "--include-dashboard=false"]
    assert calls(slurm, "ray") == [
        ["start", "--block", "--head", *head, *size],
        ["start", "--block", f"--address={address}", *size],
    ]
    assert [call[3] for call in calls(slurm, "srun") if "ray" in call] == ["--nodelist=node1", "--nodelist=node2"]
    assert calls(slurm, "python") == [["-P", "-", "1"], ["-P", "-", "2"]]
    shared = ["train", "cluster=ray", f"cluster.address={address}", "checkpoint.resume=auto", f"output_dir={folder}"]
    assert calls(slurm, "prdp") == [[*shared, "experiment=shapes_smoke", "a=b c"]]
    assert ["requeue", "12345"] not in calls(slurm, "scontrol")


def test_slurms_token_is_in_a_file_of_its_own_and_goes_with_the_job(slurm: dict[str, str], tmp_path: Path) -> None:
    run("slurm.sh", str(tmp_path / "run"), environment={**slurm, "RAY_AUTH_TOKEN": "of-somebody-else"})
    assert set(Path(slurm["CALLS"] + ".token").read_text().splitlines()) == {"600 64"}
    assert set(Path(slurm["CALLS"] + ".environment").read_text().splitlines()) == {"mode=token token=none"}
    assert list((tmp_path / "run").iterdir()) == []


def test_slurm_hands_on_a_failure_and_does_not_queue_it_again(slurm: dict[str, str], tmp_path: Path) -> None:
    finished = run("slurm.sh", str(tmp_path / "run"), environment={**slurm, "PRDP_EXIT": "2"})
    assert finished.returncode == 2
    assert ["requeue", "12345"] not in calls(slurm, "scontrol")


def test_slurm_lets_the_learner_save_and_queues_the_job_again(slurm: dict[str, str], tmp_path: Path) -> None:
    command = ["bash", str(ROOT / "launch" / "slurm.sh"), str(tmp_path / "run")]
    with subprocess.Popen(
        command, env={**slurm, "PRDP_WAITS": "1"}, stdout=subprocess.PIPE, text=True, start_new_session=True
    ) as job:
        assert job.stdout is not None
        try:
            assert job.stdout.readline() == "started\n"
            job.send_signal(signal.SIGTERM)
            assert job.stdout.readline().startswith("slurm.sh: SIGTERM")
            assert job.stdout.readline() == "saved\n"
            assert job.wait(timeout=60) == 143
        finally:
            os.killpg(job.pid, signal.SIGKILL)
    assert calls(slurm, "scontrol")[-1] == ["requeue", "12345"]
    assert list((tmp_path / "run").iterdir()) == []


@pytest.mark.parametrize("words", [[], ["runs/relative"]])
def test_slurm_wants_a_shared_folder(slurm: dict[str, str], words: list[str]) -> None:
    finished = run("slurm.sh", *words, environment=slurm)
    assert finished.returncode == 2
    assert "RUN_FOLDER is absolute" in finished.stderr


def test_slurm_is_warned_ahead_of_the_end_and_queued_again() -> None:
    directives = re.findall(r"^#SBATCH (.*)$", (ROOT / "launch" / "slurm.sh").read_text(), re.MULTILINE)
    assert "--requeue" in directives
    assert "--signal=B:TERM@300" in directives
    assert "--open-mode=append" in directives
