"""The exception for every mistake that a user can mend."""


class FlairError(Exception):
    """Something the user can mend: one line saying what was given, what was expected and what to do next."""

    def _render_traceback_(self) -> list[str]:
        """What Jupyter shows in place of a traceback."""
        return [str(self)]
