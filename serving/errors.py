"""What whoever asks can put right."""


class RequestError(ValueError):
    """A request that is not answered; the message says what is wrong with it and what to do.

    status: of HTTP; parameter: the field that is wrong, where it is one; code: OpenAI's word for
    it, for programs.
    """

    def __init__(
        self, message: str, *, status: int = 400, parameter: str | None = None, code: str = ""
    ) -> None:
        super().__init__(message)
        self.status = status
        self.parameter = parameter
        self.code = code or None
