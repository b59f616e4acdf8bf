"""What can go wrong, by name."""


class PayloadError(Exception):
    """An event's data cannot be used. Trying again cannot help, so its event is set aside at once."""

    def __init__(self, field: str, problem: str) -> None:
        super().__init__(f"{field}: {problem}")
        self.field = field


class ConfigurationError(Exception):
    """Settings or surroundings are wrong; the message names what and the remedy."""


class DiedAloneError(Exception):
    """The process ended while an event was alone in its transaction."""

    def __init__(self) -> None:
        super().__init__("the process ended while it applied this event")
