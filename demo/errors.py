"""The one error of the demonstration."""


class DemoError(Exception):
    """The demonstration has shown that something is wrong; the message is the sentence that says what."""
