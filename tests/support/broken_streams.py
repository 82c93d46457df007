"""Streams that cannot be written, for the tests of what is shown."""

import io


class BrokenStream(io.StringIO):
    """A stream whose use raises `error`; `isatty` too, if `is_terminal` is None."""

    def __init__(self, error, is_terminal=False):
        super().__init__()
        self.error, self.is_terminal = error, is_terminal

    def isatty(self):
        if self.is_terminal is None:
            raise self.error
        return self.is_terminal

    def write(self, *_):
        raise self.error

    flush = write


def closed_stream():
    stream = io.StringIO()
    stream.close()
    return stream
