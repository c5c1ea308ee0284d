"""The web pages: metrics by stage and department, and what people do about them.

Importing it without the extra `web` raises ConfigError.
"""

from importlib.util import find_spec

from vocbeam.schemas.errors import ConfigError

_MISSING = [name for name in ("authlib", "flask", "flask_limiter", "flask_wtf", "waitress") if find_spec(name) is None]
if _MISSING:
    raise ConfigError(f"{', '.join(_MISSING)} not installed; install the extra: pip install 'vocbeam[web]'")
