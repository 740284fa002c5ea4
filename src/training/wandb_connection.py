"""Whether and how this process reaches Weights & Biases (W&B). Imports wandb when it is used."""

import ssl
from functools import cache
from urllib.error import HTTPError, URLError
from urllib.request import urlopen

ANSWER_TIMEOUT = 5  # seconds that the server gets to answer at all
AS_REQUESTED = "as requested"


def choose_mode() -> tuple[str, str]:
    """Return W&B's mode, and why it is offline; the user's own choice (WANDB_MODE) comes first."""
    import wandb

    settings = wandb.setup(wandb.Settings(silent=True)).settings
    if settings.mode == "disabled":
        return "disabled", AS_REQUESTED
    if settings.mode in ("offline", "dryrun"):
        return "offline", AS_REQUESTED
    if not server_answers(settings.base_url):
        return "offline", f"{settings.base_url} does not answer"
    try:
        # wandb.init would ask at the terminal and wait.
        has_key = wandb.login(prompt=False, verify=False)
    except Exception as error:
        return "offline", first_line(error)
    return ("online", "") if has_key else ("offline", "no API key: run wandb login")


@cache
def server_answers(url: str) -> bool:
    """Return whether a server answers, asked once per process; wandb would try for minutes."""
    try:
        urlopen(url, timeout=ANSWER_TIMEOUT).close()
    except HTTPError:
        return True  # an answer all the same
    except URLError as error:
        return isinstance(error.reason, ssl.SSLError)  # wandb has its own certificates
    except OSError:
        return False
    return True


def default_entity() -> str:
    """Return whose projects are meant where no entity is configured.

    Raises:
        ValueError: the account has no default entity, such as one that is only in teams.
    """
    import wandb

    entity = wandb.setup().settings.entity or wandb.Api().default_entity
    if not entity:
        raise ValueError("this account has no default entity: set logger.wandb.entity=TEAM")
    return str(entity)


def first_line(error: Exception) -> str:
    """Return the first line of an error's text, or its type."""
    return str(error).strip().split("\n")[0] or type(error).__name__
