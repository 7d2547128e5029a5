"""What goes over a wire to PostgreSQL, one message at a time: whose connection it is, what it asks, what it is answered."""

from __future__ import annotations

from typing import NamedTuple

_TLS_OR_GSS = {80877103, 80877104}
_CANCEL = 80877102


class Question(NamedTuple):
    """One message of a client's; `sql` is what it runs, if it runs anything."""

    data: bytes
    sql: str | None


class Questions:
    """The client's words; what is not whole yet is kept."""

    def __init__(self) -> None:
        self._rest = b""
        self._begun = False
        self._statements: dict[bytes, str] = {}
        #: The application_name, without `howdah `: `claim`, `ack`, …, `handler`; `probe` for `howdah` alone, `cancel` for a request to cancel.
        self.name = ""

    def cut(self, data: bytes) -> list[Question]:
        """Give the whole messages that have come."""
        self._rest += data
        said: list[Question] = []
        while (length := self._length()) is not None and len(self._rest) >= length:
            message, self._rest = self._rest[:length], self._rest[length:]
            said.append(Question(message, self._read(message) if self._begun else self._read_start(message)))
        return said

    def _length(self) -> int | None:
        if not self._begun:
            return int.from_bytes(self._rest[:4], "big") if len(self._rest) >= 4 else None
        return 1 + int.from_bytes(self._rest[1:5], "big") if len(self._rest) >= 5 else None

    def _read_start(self, message: bytes) -> None:
        code = int.from_bytes(message[4:8], "big")
        if code in _TLS_OR_GSS:
            return
        self._begun = True
        if code == _CANCEL:
            self.name = "cancel"
            return
        words = message[8:].split(b"\0")
        settings = dict(zip(words[::2], words[1::2], strict=False))
        name = settings.get(b"application_name", b"").decode()
        self.name = "probe" if name == "howdah" else name.removeprefix("howdah ")

    def _read(self, message: bytes) -> str | None:
        kind, body = message[:1], message[5:]
        if kind == b"Q":
            return body[:-1].decode()
        if kind == b"P":
            name, sql, _ = body.split(b"\0", 2)
            self._statements[name] = sql.decode()
        elif kind == b"B":
            return self._statements.get(body.split(b"\0", 2)[1])
        return None


class Answers:
    """The server's words, one message at a time; what is not whole yet is kept."""

    def __init__(self) -> None:
        self._rest = b""
        self._begun = False

    def cut(self, data: bytes) -> list[bytes]:
        """Give the whole messages that have come."""
        if not self._begun:
            self._begun = True
            if data in {b"N", b"S"}:  # the answer to the question for TLS; 'N' means no
                self._begun = data == b"S"
                return [data]
        self._rest += data
        said = []
        while len(self._rest) >= 5 and len(self._rest) > (length := int.from_bytes(self._rest[1:5], "big")):
            message, self._rest = self._rest[: length + 1], self._rest[length + 1 :]
            said.append(message)
        return said
