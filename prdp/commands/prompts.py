"""`prdp prompts`: write prompt sets, look at them, clean them, split them, and check what a run has used."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prdp.support.errors import start_up_checks
from prdp.support.printable import printable, printable_values

if TYPE_CHECKING:
    from prdp.prompts.duplicates import Match
    from prdp.prompts.near_duplicates import Bounded
    from prdp.prompts.table import PromptTable

_EPILOG = """\
SOURCE is a file (.txt, .csv, .tsv, .json, .jsonl, .parquet; all but the last also .gz), a pattern in quotes, or the
folder of a Hugging Face dataset. --option KEY=VALUE is handed to its reader, the same keys as in conf/prompts:
  --option prompt_column=caption --option category_column=style --option 'metadata_columns=[tag,include]'
  --option 'columns=[source,prompt]'   names the columns of a file without a header line
Outputs end on .jsonl (prompts with their metadata: all columns, unless options above choose some) or .txt (prompts
alone).
"""
_SHOWN = 20
WRITE = "write"
"""The subcommand whose words are overrides, KEY=VALUE; prdp/commands/write_prompts.py has it."""


def main(arguments: Sequence[str]) -> int:
    """Run a subcommand; the exit code is 1 when `leakage` finds some or `used` a fault, else 0."""
    if arguments[:1] == [WRITE]:
        from prdp.commands.write_prompts import main as write

        return write(arguments[1:])
    options = _parser().parse_args(arguments)
    with start_up_checks():
        return options.run(options)


def inspect(options: argparse.Namespace) -> int:
    """Show the first prompts with their metadata."""
    source = _open(options)
    print(f"{len(source):,} prompts, fingerprint {source.fingerprint}, read from {source.path}")
    for index in range(min(options.rows, len(source))):
        text, metadata = source[index]
        print(f"{index:>8}  {printable(text)}")
        for name, value in metadata.items():
            print(f"{'':>8}    {printable(f'{name}: {value}')}")
    return 0


def stats(options: argparse.Namespace) -> int:
    """Print counts and lengths; with a model, how many prompts its text encoder would cut."""
    from prdp.prompts.statistics import describe, quantiles, quantiles_text

    source = _open(options)
    texts = list(source.texts())
    found = describe(texts, source.metadata())
    print(f"prompts     {found.prompts:,}, fingerprint {source.fingerprint}")
    print(f"different   {found.distinct:,}; {found.distinct_normalised:,} but for case, punctuation and spaces")
    print(f"characters  {quantiles_text(found.characters)}")
    print(f"words       {quantiles_text(found.words)}")
    if options.model:
        from prdp.prompts.tokens import count_tokens, load_tokenizer

        tokens = count_tokens(load_tokenizer(options.model), texts)
        print(f"tokens      {quantiles_text(quantiles(tokens.counts.tolist()))}")
        print(f"            {tokens.sentence('the prompts')}")
    for name, count in found.metadata.items():
        print(f"metadata    {printable(name)}: {count:,} prompts")
    if found.questions:
        print(f"questions   {found.questions:,}")
    for name, values in found.values.items():
        shown = ", ".join(f"{value} {count:,}" for value, count in list(values.items())[:_SHOWN])
        print(f"{name:<11} {len(values)} different: {printable(shown)}{', ...' if len(values) > _SHOWN else ''}")
    return 0


def dedupe(options: argparse.Namespace) -> int:
    """Drop prompts that repeat earlier ones."""
    from prdp.prompts.duplicates import find_duplicates

    _check_outputs(options.output, options.dropped)
    source = _open(options, options.output)
    matches, bounded = find_duplicates(list(source.texts()), None if options.exact else options.near)
    _tell_bounded(bounded)
    _drop(options, source, {match.row: (match, source) for match in matches})
    return 0


def leakage(options: argparse.Namespace) -> int:
    """Look for prompts that repeat held-out ones."""
    from prdp.prompts.any_file import open_prompts, parse_options
    from prdp.prompts.duplicates import find_leaks

    _check_outputs(options.output, options.dropped)
    source = _open(options, options.output)
    texts = list(source.texts())
    leaks: dict[int, tuple[Match, PromptTable]] = {}
    for path, *words in options.against:
        held_out = open_prompts(path, **parse_options(words))
        matches, bounded = find_leaks(texts, list(held_out.texts()), None if options.exact else options.near)
        _tell_bounded(bounded)
        near = sum(match.reason == "near" for match in matches)
        print(f"{path}: of its {len(held_out):,} prompts, {len(matches) - near:,} are repeated and {near:,} nearly so")
        for match in matches:
            leaks.setdefault(match.row, (match, held_out))
    _drop(options, source, leaks)
    return 1 if leaks else 0


def split(options: argparse.Namespace) -> int:
    """Cut a source into training and held-out prompts, by the digest of each text."""
    from prdp.prompts.duplicates import held_out_rows
    from prdp.prompts.writing import write_prompts

    _check_outputs(options.train, options.heldout)
    source = _open(options, options.train, options.heldout)
    held_out = held_out_rows(source.texts(), options.count, options.seed)
    aside = set(held_out)
    write_prompts(options.heldout, (source[row] for row in held_out))
    kept = write_prompts(options.train, (source[row] for row in range(len(source)) if row not in aside))
    print(f"{options.train}: {kept:,} prompts\n{options.heldout}: {len(held_out):,} prompts")
    return 0


def used(options: argparse.Namespace) -> int:
    """Check from a run's log that every pass used every prompt once."""
    from prdp.prompts.usage import check_usage

    usage = check_usage(options.run_dir)
    counts = usage.counts
    print(
        f"{usage.epochs:,} epochs drew {usage.drawn:,} prompts from a source of {usage.rows:,}\n"
        f"whole passes: {usage.whole_passes}\n"
        f"draws of a prompt: at least {counts.min():,}, at most {counts.max():,}; never used: {(counts == 0).sum():,}"
    )
    for fault in usage.faults:
        print(f"fault: {fault}")
    print("faults found" if usage.faults else "no prompt was missed in a whole pass, and none repeated within a pass")
    return 1 if usage.faults else 0


def _open(options: argparse.Namespace, *outputs: str | None) -> PromptTable:
    """The source; with all its columns where an output keeps them, unless options of the reader choose some."""
    from prdp.prompts.any_file import has_columns, open_prompts, parse_options

    given = parse_options(options.option)
    keeps = has_columns(options.source) and any(path is not None and path.endswith(".jsonl") for path in outputs)
    if keeps and not given.keys() & {"metadata_columns", "category_column"}:
        given["metadata_columns"] = "all"
    return open_prompts(options.source, **given)


def _check_outputs(*paths: str | None) -> None:
    """Refuse an output that cannot be written before any work starts."""
    from prdp.prompts.writing import check_ending

    for path in paths:
        if path is not None:
            check_ending(path)


def _drop(options: argparse.Namespace, source: PromptTable, dropped: Mapping[int, tuple[Match, PromptTable]]) -> None:
    """Write and show what goes, why, and what stays."""
    from prdp.prompts.writing import write_prompts

    def explained(row: int) -> tuple[str, dict[str, Any]]:
        match, origin = dropped[row]
        repeated = origin[match.repeats][0]
        reason = {"row": row, "reason": match.reason, "similarity": round(match.similarity, 4)}
        return source[row][0], {**reason, "repeats_row": match.repeats, "repeats": repeated}

    rows = sorted(dropped)
    for row in rows[:_SHOWN]:
        text, why = printable_values(explained(row))
        print(f"row {row}: {text}\n  {why['reason']} {why['similarity']:g}, row {why['repeats_row']}: {why['repeats']}")
    if len(rows) > _SHOWN:
        print(f"... and {len(rows) - _SHOWN:,} more{'' if options.dropped else '; --dropped FILE lists all'}")
    if options.dropped:
        write_prompts(options.dropped, map(explained, rows))
    if options.output:
        write_prompts(options.output, (source[row] for row in range(len(source)) if row not in dropped))
    reasons = [dropped[row][0].reason for row in rows]
    counts = ", ".join(f"{reasons.count(reason):,} {reason}" for reason in ("exact", "normalised", "near"))
    print(f"{len(source):,} prompts: {len(source) - len(rows):,} stay, {len(rows):,} go ({counts})")


def _tell_bounded(bounded: Bounded) -> None:
    if bounded.buckets:
        print(
            f"note: {bounded.texts:,} look-ups among very many alike were not compared with all of them, so some near "
            "duplicates may be left; a second run on the output finds more"
        )


def _parser() -> argparse.ArgumentParser:
    style = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(prog="prdp prompts", description=__doc__, epilog=_EPILOG, formatter_class=style)
    commands = parser.add_subparsers(metavar="COMMAND", required=True)

    def command(run: Any, source: bool = True) -> argparse.ArgumentParser:
        made = commands.add_parser(
            run.__name__, help=run.__doc__, description=run.__doc__, epilog=_EPILOG, formatter_class=style
        )
        made.set_defaults(run=run)
        if source:
            made.add_argument("source", metavar="SOURCE")
            made.add_argument("--option", action="append", default=[], metavar="KEY=VALUE", help="of the reader")
        return made

    command(inspect).add_argument("--rows", type=int, default=5, help="prompts to show; default 5")
    command(stats).add_argument("--model", help="count tokens as this model's text encoder: a folder, hub id or shapes")
    cleaning = (command(dedupe), command(leakage))
    for made in cleaning:
        made.add_argument("--near", type=float, default=0.85, help="similarity of near duplicates; default 0.85")
        made.add_argument("--exact", action="store_true", help="only equal ones, but for case, punctuation and spaces")
        made.add_argument("--output", metavar="FILE", help="write the prompts that stay")
        made.add_argument("--dropped", metavar="FILE", help="write those that go, with the reason and what they repeat")
    cleaning[1].add_argument(
        "--against",
        nargs="+",
        action="append",
        required=True,
        metavar=("LIST", "KEY=VALUE"),
        help="a held-out list and options of its reader; may be given several times",
    )
    cut = command(split)
    cut.add_argument("--count", type=int, required=True, help="prompts to hold out")
    cut.add_argument("--seed", type=int, default=0, help="another seed, another split; default 0")
    cut.add_argument("--train", required=True, metavar="FILE", help="output")
    cut.add_argument("--heldout", required=True, metavar="FILE", help="output")
    commands.add_parser(WRITE, help="Have a language model write prompts for a skill.", add_help=False)
    command(used, source=False).add_argument("run_dir", type=Path, help="the run's folder")
    return parser
