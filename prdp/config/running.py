"""The sections `cluster`, `tracking` and `checkpoint`: where a run works, who watches, what stays."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated

from prdp.config.choices import CLUSTER_KINDS, DIRECT_TRANSPORTS, WANDB_MODES, Amounts
from prdp.support.rules import AnyText, Count, CountOrZero, NotNegative, Positive, Text, one_of


@dataclass
class ClusterConfig:
    """Where the work runs."""

    kind: Annotated[str, one_of(*CLUSTER_KINDS)] = "inline"
    """'inline': one process; 'ray': actors."""
    samplers: Count = 2
    """Actors that sample."""
    reward_actors: Count = 1
    """Actors that score."""
    threads: CountOrZero = 1
    """CPU threads of every actor and of the learner; set before torch is imported. 0: plan from the cores."""
    address: Text = "local"
    """Ray address; 'local' starts a private cluster, 'auto' joins a running one."""
    sampler_gpus: NotNegative = 0.0
    """GPUs of each sampler; a fraction shares one."""
    reward_gpus: NotNegative = 0.0
    """GPUs of each reward actor; 0 hides them from it."""
    learners: Count = 1
    """Processes that learn together, this one included; the update is that of one."""
    fsdp_size: Count = 1
    """Of these processes, how many hold one network together: each has so much of weights, gradients and optimizer, and
    gathers the rest a block at a time. For learner.mode=full; must divide learners. 1: each holds all of it."""
    learner_gpus: NotNegative = 0.0
    """GPUs of each of them that Ray keeps free, for this process on its own node; 0 claims none."""
    colocate: bool = False
    """Samplers and processes that learn share their devices by turns: what one of them holds there waits on the host
    while the other works. With Ray each GPU has one of both; learner_gpus = sampler_gpus is what they claim of it."""
    learner_timeout_seconds: NotNegative | None = None
    """How long a process that learns may take for its share of a pass before it counts as hung and is replaced; null:
    10 times the longest of the earlier ones, by cells, and at least 60 s; 0: no limit."""
    sampler_resources: Amounts = field(default_factory=dict)
    """Further resources of Ray's that each sampler claims, such as a node type: {"a100_node": 0.01}."""
    reward_resources: Amounts = field(default_factory=dict)
    """Likewise of each reward actor."""
    placement: Annotated[str, one_of("pack", "spread")] = "pack"
    """'pack' the actors on few nodes, or 'spread' them over many."""
    autoscaling: bool = False
    """Whether the cluster adds nodes for what it cannot hold."""
    start_timeout_seconds: Positive = 900.0
    """How long all actors may take to start."""
    host: Text = "127.0.0.1"
    """Address that Ray's ports and dashboard bind to."""
    dashboard: bool = False
    """Start Ray's dashboard with a private cluster; needs the dashboard extra."""
    max_staleness: CountOrZero = 0
    """Epochs by which sampling runs ahead of learning: 0 takes turns; 1 or 2 overlap, under weights that much older."""
    retries: CountOrZero = 9
    """Deaths borne in a row beyond the first, of one actor or on one chunk, before the run stops."""
    reward_retries: CountOrZero = 3
    """How often a reward that raised is asked again, with growing pauses."""
    sample_timeout_seconds: NotNegative | None = None
    """How long a sampler may take for one chunk, or for binding weights, before it counts as hung and is replaced;
    null: 10 times the longest of the earlier ones, by images, and at least 60 s; 0: no limit."""
    reward_timeout_seconds: NotNegative | None = None
    """How long a reward actor may score one chunk; null and 0 as for sample_timeout_seconds."""
    object_store_gib: Positive | None = None
    """Memory of the object store of a private Ray, where rollouts lie; what is more goes to disk. null: 30% of the
    machine's memory, as far as it is free."""
    weight_transport: Annotated[str, one_of("object_store", *DIRECT_TRANSPORTS)] = "object_store"
    """How weights get to the samplers: 'object_store', or straight from the learner by 'gloo' (CPU) or 'nccl' (GPU)."""
    weight_timeout_seconds: Positive = 120.0
    """How long a sampler may take no weights that are sent straight to it before it counts as hung and is replaced."""
    reward_environment: Text | None = None
    """Own environment of the reward actors: a requirements file, a virtual environment or a Python interpreter."""


@dataclass
class TrackingConfig:
    """Who watches; the JSONL log is always written."""

    console: bool = True
    """Progress on the terminal."""
    tensorboard: bool = False
    """Events for TensorBoard in the run's folder; needs the tensorboard extra."""
    wandb: Annotated[str, one_of(*WANDB_MODES)] = "disabled"
    """disabled, offline, online, or auto: online when a key is there, else offline. WANDB_MODE wins over the last
    three."""
    wandb_project: Text | None = None
    """null takes WANDB_PROJECT, else 'prdp'."""
    wandb_entity: AnyText | None = None
    """User or team; null takes WANDB_ENTITY, else the account's default."""
    wandb_group: AnyText | None = None
    """Name shared by runs that belong together; null takes WANDB_RUN_GROUP, else the name of the sweep."""
    mlflow: bool = False
    """Metrics and pictures for MLflow; needs the mlflow extra."""
    mlflow_uri: AnyText | None = None
    """Of its server or database; null takes MLFLOW_TRACKING_URI, else a database in the run's folder."""
    mlflow_experiment: AnyText | None = None
    """null takes MLFLOW_EXPERIMENT_NAME, else 'prdp'."""
    trackio: bool = False
    """Metrics and pictures for Trackio; needs the trackio extra."""
    trackio_project: Text | None = None
    """null takes 'prdp'."""
    training_pictures: CountOrZero = 4
    """How many of the best and of the worst images of an epoch the services are shown, whenever held-out prompts are
    judged; 0 for none."""
    report: bool = True
    """Write report.html at the end."""


@dataclass
class CheckpointConfig:
    """Atomic checkpoints, and what to resume from."""

    every: Count = 10
    """Epochs between checkpoints; the last epoch always has one."""
    keep: Count = 2
    """How many of the newest stay."""
    keep_best: Text | None = None
    """A metric of evaluations, eval/score or eval/<sub-score>: the checkpoint with the largest stays as well."""
    resume: Text = "never"
    """never, auto (newest whole checkpoint in output_dir, or in the mirror), or the path of a checkpoint."""
    mirror: Text | None = None
    """URL that each checkpoint is copied to, such as s3://bucket/run or file:///shared/run; of this run alone."""
    background: bool = True
    """Whether learning goes on while a checkpoint is written and copied."""
    change: list[Text] = field(default_factory=list)
    """Keys of learner and objective that a resumed run may have other values of, such as [learner.learning_rate]: the
    curve goes on from there as another one."""
