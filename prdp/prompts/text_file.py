"""Prompts from text files, one a line."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence

from prdp.prompts.cache import Cleaning, cached_table
from prdp.prompts.files import source_files, stem, text_lines
from prdp.prompts.options import check_flag
from prdp.prompts.table import PromptTable, Row

_log = logging.getLogger(__name__)


class TextFilePrompts(PromptTable):
    """The non-empty lines of text files, in order. Lines end at '\\n', '\\r\\n' or '\\r', and at nothing else.

    Args:
        path: of a file, plain or .gz; a pattern; or a list of these.
        template: '{}' stands for the line, as in 'a painting of a {}'.
        file_as_category: True puts the file's name, without its endings, into the metadata as category.
        unique: True keeps the first of equal lines only.
        encoding: of the files.

    Raises:
        ValueError: no such file, not of the encoding, a NUL character, no prompt in it, or a template without '{}'.
    """

    def __init__(
        self,
        path: str | Sequence[str],
        template: str = "{}",
        file_as_category: bool = False,
        unique: bool = False,
        encoding: str = "utf-8",
    ) -> None:
        check_flag("file_as_category", file_as_category)
        files = source_files(path)

        def rows() -> Iterator[Row]:
            for file in files:
                metadata = {"category": stem(file)} if file_as_category else {}
                texts = quoted = 0
                for number, line in enumerate(text_lines(file, encoding), start=1):
                    text = line.strip()
                    texts += bool(text)
                    quoted += len(text) > 1 and text[0] == text[-1] == '"'
                    yield Row(line, metadata, f"{file} line {number}")
                if texts == quoted > 1:
                    _log.warning(
                        "prompts file %s: all %d prompts stand in double quotes, which stay a part of them; "
                        "called .csv and read with columns=[prompt], they come without",
                        file,
                        texts,
                    )

        options = {"file_as_category": file_as_category, "encoding": encoding}
        cleaning = Cleaning(template, unique, skip_empty=True)
        super().__init__(cached_table("text", files, options, rows, cleaning))
