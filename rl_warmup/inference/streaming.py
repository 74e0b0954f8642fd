"""Tokens of one prompt as they are written, the warmup apart from the target.

Knows: transformers' streamers, a thread that generates. Must not know: models.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from queue import Queue
from threading import Thread

from torch import Tensor
from transformers.generation.streamers import BaseStreamer


class PartStreamer(BaseStreamer):
    """Yields (part, text): `warmup` pieces, then `target` pieces.

    Pieces of a part joined are its text where more tokens only add to what was decoded. Where they change it (a tokenizer that
    cleans up spaces may), what was told stays, and text that no longer continues it is not told.
    """

    def __init__(self, decode: Callable[[list[int]], str], separator_id: int, eos_id: int) -> None:
        self.decode, self.separator_id, self.eos_id = decode, separator_id, eos_id
        self.part, self.ids, self.told, self.skipped = "warmup", list[int](), "", False
        self.left = False  # nobody reads the pieces any more
        self.queue: Queue[tuple[str, str] | BaseException | None] = Queue()

    def put(self, value: Tensor) -> None:
        """A token that `generate` wrote; its first call brings the prompt. Raises _Left: nobody reads the pieces any more."""
        if self.left:
            raise _Left
        if not self.skipped:
            self.skipped = True
            return
        for token in value.flatten().tolist():
            if token == self.separator_id and self.part == "warmup":
                self._tell(last=True)
                self.part, self.ids, self.told = "target", [], ""
            elif token != self.eos_id:
                self.ids.append(token)
                self._tell()

    def end(self) -> None:
        """All is written, but not checked yet: `pieces` ends when what generates has returned."""
        self._tell(last=True)

    def _tell(self, last: bool = False) -> None:
        text = self.decode(self.ids)
        if not last and text.endswith("\ufffd"):  # a token that is a part of a character
            return
        if text.startswith(self.told) and text != self.told:
            self.queue.put((self.part, text[len(self.told) :]))
            self.told = text

    def pieces(self, write: Callable[[], object]) -> Iterator[tuple[str, str]]:
        """What `write`, which generates with this streamer, brings; run in a thread of its own."""

        def run() -> None:
            try:
                write()
            except BaseException as error:
                self.queue.put(error)
            else:
                self.queue.put(None)

        thread = Thread(target=run, daemon=True)
        thread.start()
        try:
            while (found := self.queue.get()) is not None:
                if isinstance(found, BaseException):
                    raise found
                yield found
        finally:  # also where the reader leaves early: the thread ends before the model is used again
            self.left = True
            thread.join()


class _Left(Exception):
    """Ends the writing of a stream whose reader has gone."""
