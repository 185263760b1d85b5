"""`prdp merge`: LoRA experts of one base to one LoRA file, without loading a network."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from prdp.checkpoints.run_folder import check_empty
from prdp.configuration.compose import Composer
from prdp.configuration.key_help import topics_among, topics_help
from prdp.configuration.override_words import OverrideParser, quoted_list, split_lists
from prdp.configuration.typed import Root, conf_folder, groups, schema_keys
from prdp.experts.settings import MergeConfig, check_merge
from prdp.support.errors import ConfigError

if TYPE_CHECKING:
    from prdp.experts.merge import Merged

RECORD_FILE = "merge.json"
_MERGE = Root(name="merge", schema=MergeConfig, groups=("merge",), check=check_merge)
_HELP = """\
MODELS are, each with a name before it if you like (colour:runs/a):
  runs/a                   a run of prdp train with learner=lora: its exported weights
  runs/sweep               every run of a sweep
  a LoRA file, or a folder with one, of diffusers, kohya or PEFT

OVERRIDES
  weights=[2,1]  scale=1.5           weights are divided by their sum, then scale multiplies
  merge=mean_delta                   exact; the rank is the sum of the ranks
  merge=svd merge.rank=16            the nearest of a smaller rank; tells what is lost
  merge=ties merge.density=0.3       merge=dare merge.seed=1
  format=diffusers                   or kohya, or peft
  output_dir=runs/merged             a new folder; prdp evaluate takes it as a model
"""

_MORE = """\
More of a key or a method:
  prdp merge --help weights        prdp merge --help merge.ties"""


def main(arguments: Sequence[str]) -> int:
    """The command."""
    if topics := topics_among(arguments):
        print(topics_help(topics, _MERGE))
        return 0
    options = _parser().parse_intermixed_args(arguments)
    lists, rest = split_lists(options.overrides, ("models",))
    if not lists.get("models"):
        raise ConfigError("which models? Give models=[runs/a,runs/b], for instance; see prdp merge --help")
    words = [f"models={quoted_list(lists['models'])}", *rest]
    with Composer(words, folders=options.config_dir, root=_MERGE) as composer:
        [job] = composer.jobs()
    merge(job.config)
    return 0


def merge(config: MergeConfig) -> Path:
    """Read, check, merge and write; the folder.

    Raises:
        ConfigError, StartError: what is wrong, before anything is merged.
    """
    from prdp.evaluation.experts import find_experts
    from prdp.experts.merge import absent_layers, merge_experts, normalised
    from prdp.experts.methods import build_method
    from prdp.experts.writing import check_format, write_lora
    from prdp.support.storage import atomic_directory

    folder = Path(config.output_dir)
    check_empty(folder)
    found = find_experts(config.models)
    experts, notes = found.experts, list(found.notes)
    weights = normalised(config.weights, [expert.name for expert in experts])
    family = None if found.base is None else found.base.family
    check_format({name: one for expert in experts for name, one in expert.layers.items()}, config.format, family)
    for lacking, layers in absent_layers(experts).items():
        notes.append(f"{', '.join(lacking)}: zero in {len(layers)} layers that others adapt, such as {layers[0]}")
    for note in notes:
        print(note)
    merged = merge_experts(experts, weights, config.scale, build_method(config.merge), print)
    record = merged.record()
    ranks = sorted({one.layer.rank for one in merged.layers.values()})
    with atomic_directory(folder) as place:
        factors = {name: one.layer for name, one in merged.layers.items()}
        file = write_lora(place, factors, config.format, record, family)
        each = {
            name: {"rank": one.layer.rank, "relative_error": one.error} for name, one in merged.layers.items()
        }
        told = {**record, "format": config.format, "layers": each}
        (place / RECORD_FILE).write_text(json.dumps(told, indent=2) + "\n", encoding="utf-8")
        size = file.stat().st_size
    for expert, weight in zip(experts, weights, strict=True):
        print(f"{weight:.4g} x {expert.name}  {expert.source}")
    print(f"{len(merged.layers)} layers, rank {' to '.join(map(str, dict.fromkeys((ranks[0], ranks[-1]))))}")
    if note := _spare_note(merged):
        print(note)
    if not merged.method.exact:
        print(f"relative error {merged.error:.2e} of all deltas together")
    print(f"{folder / file.name}  {size / 1e6:.1f} MB")
    return folder


def _spare_note(merged: Merged) -> str:
    """Layers whose rank is larger than that of any delta of their shape; empty where there are none."""
    most = {name: min(one.layer.up.shape[0], one.layer.down[0].numel()) for name, one in merged.layers.items()}
    spare = [name for name, one in merged.layers.items() if one.layer.rank > most[name]]
    if not spare:
        return ""
    first = spare[0]
    return (
        f"{len(spare)} layers have a larger rank than their deltas can, such as {first} "
        f"({merged.layers[first].layer.rank} of {most[first]}): merge=svd merge.rank={max(most.values())} loses "
        "nothing of them and takes less room"
    )


def _parser() -> argparse.ArgumentParser:
    available = groups([conf_folder()], _MERGE)
    options = "\n".join(f"  {group}  {', '.join(names)}" for group, names in available.items())
    return OverrideParser(
        keys=["merge", *schema_keys(MergeConfig)],
        prog="prdp merge",
        usage="prdp merge models=[...] [OVERRIDES] [options]",
        description="Merge LoRA experts of one base into one LoRA file.",
        epilog=f"{_HELP}\ngroups:\n{options}\n{_MORE}",
    )
