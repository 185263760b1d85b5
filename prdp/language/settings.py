"""The schemas of `prdp collm`: every key, its type, its bound, its default and its meaning, in this place alone.

conf/collm/*.yaml use these keys.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Annotated, Any

from prdp.config import MISSING
from prdp.configuration.bounds import broken_rules
from prdp.support.errors import ConfigError
from prdp.support.rules import AnyText, Count, CountOrZero, NotNegative, Positive, Rule, Share, Text, one_of

MODES = ("full", "lora", "head")
VARIANTS = ("trained", "init", "fine_tuned")
"""trained: base and row as they were learned; init: the base as it came, with the row that weak labels gave;
fine_tuned: a base that learned the answers by itself, with a row that weak labels of it gave."""
LABELS = ("assistant_right", "base_wrong", "divergent")
DTYPES = ("float32", "bfloat16", "float16")
METRIC = "exact"
_FILES = Rule(lambda value: bool(value) and all(one.strip() for one in value), "a list of files")
_RATES = Rule(lambda value: bool(value) and all(0 <= one <= 1 for one in value), "a list of numbers from 0 to 1")
_ETA = Rule(
    lambda value: value == "auto" or (_is_number(value) and 0 < float(value) < 1),
    "auto, or a number above 0 and below 1",
)


def _is_number(value: str) -> bool:
    return re.fullmatch(r"[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?", value) is not None


@dataclass
class AssistantConfig:
    """The larger model: a local folder, or a server with OpenAI's completions protocol that tells log-probabilities."""

    path: AnyText = ""
    """Folder of a causal language model of transformers; assistant=FOLDER is short for it."""
    url: AnyText = ""
    """Of a server, up to the version, such as http://127.0.0.1:8000/v1."""
    model: AnyText = ""
    """As the server calls it; empty names none."""
    key_variable: Text = "PRDP_ASSISTANT_KEY"
    """Environment variable that holds the server's key; where it is not set, none is sent."""
    tokens_per_call: Count = 1
    """Tokens that a request asks a server for; what is not wanted of them is dropped. Texts do not change with it."""
    at_once: Count = 4
    """Requests under way at a time."""
    timeout_seconds: Positive = 120.0
    """For each attempt at a request."""
    retries: CountOrZero = 5
    """After network errors, time-outs and answers that may be others in a moment."""
    backoff_seconds: NotNegative = 1.0
    """Pause before the first further attempt; doubles with each."""
    extra: dict[str, Any] = field(default_factory=dict)
    """Further keys of a request's body, such as return_tokens_as_token_ids of vLLM."""
    device: Text = "auto"
    """Of a local model: auto takes the GPU that there is; or such as cpu, cuda:1."""
    dtype: Annotated[str, one_of(*DTYPES)] = "float32"
    """Of a local model's weights."""


@dataclass
class PretrainConfig:
    """One run of `prdp collm pretrain`: the embedded task and its two tiny models, from scratch."""

    seed: CountOrZero = 0
    """Of scenes, weights and batches."""
    train: Count = 2000
    """Records that the base learns to defer on."""
    validation: Count = 100
    """Records for eta."""
    test: Count = 200
    """Records that neither model nor eta has seen."""
    base_steps: Count = 180
    """Of the base, on records of its own, with marks."""
    assistant_steps: Count = 120
    """Of the assistant, on records of its own, without learning marks."""
    batch_size: Count = 32
    """Records a step."""
    learning_rate: Positive = 4e-3
    """Highest, of both."""
    output_dir: Text = MISSING
    """A folder that is not there yet, or is empty: base/, assistant/ and the three files of records."""


@dataclass
class ScoreConfig:
    """One run of `prdp collm score`."""

    assistant: AssistantConfig = field(default_factory=AssistantConfig)
    data: Annotated[list[str], _FILES] = MISSING
    """Files of JSON lines: {"prompt": text, "answer": text}."""
    tokenizer: AnyText = ""
    """Folder of the tokenizer; must be given for a server, and is the assistant's own otherwise."""
    max_length: Count = 2048
    """Tokens of a record, at most."""
    batch_size: Count = 8
    """Records at a time."""
    output_dir: Text = MISSING
    """Folder of scores; files that it has already are not scored again."""


@dataclass
class LoraConfig:
    """An adapter of every linear layer."""

    rank: Count = 16
    """Of the adapter."""
    alpha: Positive = 32.0
    """Divided by the rank, the factor of what the adapter adds."""


@dataclass
class TrainingConfig:
    """How base and row learn, after the row alone has learned weak labels."""

    mode: Annotated[str, one_of(*MODES)] = "full"
    """full: all weights of the base; lora: an adapter; head: the deferral row alone."""
    steps: Count = 400
    """Of the optimizer."""
    batch_size: Count = 32
    """Records a step."""
    learning_rate: Positive = 2e-5
    """Highest, of the base; rises over 4% of the steps, then falls to 0 in a line."""
    row_learning_rate: Positive = 2e-5
    """Highest, of the deferral row."""
    cost: NotNegative = 0.0
    """What a call has to be worth, in nats of the gold token's log-likelihood. 0 is the paper's loss, with which an
    assistant that is better at every token draws deferral to 1 and ruins the base."""
    lora: LoraConfig = field(default_factory=LoraConfig)


@dataclass
class InitConfig:
    """How the deferral row learns weak labels, before anything else."""

    labels: Annotated[str, one_of(*LABELS)] = "assistant_right"
    """assistant_right: the assistant's likeliest token is the gold one and the base's is not; base_wrong: the base's is
    not; divergent: the two differ."""
    steps: CountOrZero = 100
    """Of the optimizer; 0 begins with the mean of the head's rows."""
    row_learning_rate: Positive = 2e-5
    """Highest."""
    positive_weight: Positive = 8.0
    """How often a label that is true counts."""


@dataclass
class TrainConfig:
    """One run of `prdp collm train`."""

    base: Text = MISSING
    """Folder of a causal language model of transformers."""
    scores: Text = MISSING
    """Folder that `prdp collm score` wrote."""
    training: TrainingConfig = field(default_factory=TrainingConfig)
    init: InitConfig = field(default_factory=InitConfig)
    fine_tuned: bool = True
    """Whether a base that learns the answers by itself, in as many steps, is kept beside it, to compare with."""
    seed: CountOrZero = 0
    """Of the order of records, and of an adapter."""
    device: Text = "auto"
    """auto takes the GPU that there is; or such as cpu, cuda:1."""
    dtype: Annotated[str, one_of(*DTYPES)] = "float32"
    """Of the base's weights."""
    checkpoint_every: CountOrZero = 50
    """Steps between two times that learning is written down, beside output_dir: a killed run goes on from there. 0 for
    never."""
    output_dir: Text = MISSING
    """A folder that is not there yet, or is empty."""


@dataclass
class WritingConfig:
    """How texts are written."""

    max_new_tokens: Count = 256
    """Of a text."""
    batch_size: Count = 8
    """Texts at a time."""
    temperature: NotNegative = 0.0
    """0 takes the likeliest token each time."""
    top_p: Share = 1.0
    """Tokens are drawn from the likeliest that have this much probability together."""
    compose: bool = False
    """Whether each token comes from the mixture of both models' probabilities; this asks the assistant every time."""
    seed: CountOrZero = 0
    """Of draws."""


@dataclass
class CalibrateConfig:
    """One run of `prdp collm calibrate`."""

    pair: Text = MISSING
    """Folder that `prdp collm train` wrote; the threshold goes there."""
    data: Text = MISSING
    """Validation: a file of JSON lines with answers."""
    metric: Text = METRIC
    """exact, or a function by its dotted path: (texts, answers) -> a number each."""
    rates: Annotated[list[float], _RATES] = field(default_factory=lambda: [round(0.1 * step, 1) for step in range(10)])
    """Shares of tokens whose quantiles are tried."""
    largest_rate: Share = 1.0
    """Thresholds that leave more tokens than this share to the assistant are not taken."""
    writing: WritingConfig = field(default_factory=WritingConfig)
    assistant: AssistantConfig = field(default_factory=AssistantConfig)
    device: Text = "auto"
    """Of the base."""
    dtype: Annotated[str, one_of(*DTYPES)] = "float32"
    """Of the base's weights."""


@dataclass
class DecodeConfig:
    """One run of `prdp collm decode`."""

    pair: Text = MISSING
    """Folder that `prdp collm train` wrote."""
    data: AnyText = ""
    """Prompts: a file of JSON lines, with answers or without."""
    prompt: AnyText = ""
    """One prompt instead; its text is shown while it is written."""
    eta: Annotated[str, _ETA] = "auto"
    """Deferral probability above which the assistant writes; auto takes what `prdp collm calibrate` found."""
    metric: Text = METRIC
    """For data with answers; see `prdp collm calibrate`."""
    compare: bool = True
    """Whether the baselines answer data with answers, too: each model alone, the fine-tuned base, random, entropy, weak
    labels."""
    variant: Annotated[str, one_of(*VARIANTS)] = "trained"
    """Which of the folder's models writes."""
    writing: WritingConfig = field(default_factory=WritingConfig)
    assistant: AssistantConfig = field(default_factory=AssistantConfig)
    device: Text = "auto"
    """Of the base."""
    dtype: Annotated[str, one_of(*DTYPES)] = "float32"
    """Of the base's weights."""
    output: AnyText = ""
    """File of JSON lines: texts, who wrote each token, calls. A page of the same name shows them coloured."""


def check(config: Any) -> None:
    """Check every value alone and those that must fit together.

    Raises:
        ConfigError: all that is wrong, a line each: the key, its value and what is allowed.
    """
    _, problems = broken_rules(config)
    if isinstance(config, ScoreConfig):
        problems += assistant_problems(config.assistant)
        if config.assistant.url and not config.tokenizer:
            problems.append("tokenizer: must be given for assistant.url, such as the base's folder")
    if isinstance(config, DecodeConfig) and bool(config.data.strip()) == bool(config.prompt.strip()):
        problems.append("data, prompt: give a file of prompts or one prompt")
    if isinstance(config, DecodeConfig) and config.output and not config.output.endswith(".jsonl"):
        problems.append(f"output={config.output}: must be a file that ends on .jsonl")
    if problems:
        raise ConfigError("\n".join(problems))


def assistant_problems(config: AssistantConfig) -> list[str]:
    """What is wrong with an assistant that must be given."""
    if bool(config.path) == bool(config.url):
        return [f"assistant.path={config.path!r}, assistant.url={config.url!r}: give one of them"]
    if config.path and config.tokens_per_call > 1:
        return [f"assistant.tokens_per_call={config.tokens_per_call}: must be 1 for a local model"]
    return []
