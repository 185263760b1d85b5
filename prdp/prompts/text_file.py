"""Prompts from text files, one a line."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from prdp.prompts.cache import Cleaning, cached_table
from prdp.prompts.files import source_files, stem, text_lines
from prdp.prompts.table import PromptTable, Row


class TextFilePrompts(PromptTable):
    """The non-empty lines of text files, in order.

    Args:
        path: of a file, plain or .gz; a pattern; or a list of these.
        template: '{}' stands for the line, as in 'a painting of a {}'.
        file_as_category: True puts the file's name, without its endings, into the metadata as category.
        unique: True keeps the first of equal lines only.
        encoding: of the files.

    Raises:
        ValueError: no such file, not of the encoding, no prompt in it, or a template without '{}'.
    """

    def __init__(
        self,
        path: str | Sequence[str],
        template: str = "{}",
        file_as_category: bool = False,
        unique: bool = False,
        encoding: str = "utf-8",
    ) -> None:
        files = source_files(path)

        def rows() -> Iterator[Row]:
            for file in files:
                metadata = {"category": stem(file)} if file_as_category else {}
                for number, line in enumerate(text_lines(file, encoding), start=1):
                    yield Row(line, metadata, f"{file} line {number}")

        options = {"file_as_category": file_as_category, "encoding": encoding}
        cleaning = Cleaning(template, unique, skip_empty=True)
        super().__init__(cached_table("text", files, options, rows, cleaning))
