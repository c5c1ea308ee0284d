"""Where trained models are kept: a folder a version, and a file that names the published one."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vocbeam.schemas.errors import ConfigError
from vocbeam.transforms.text_model import LinearTextModel

_VERSION = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


@dataclass(frozen=True)
class ModelStore:
    """Versioned text models below one folder: `VERSION/model.skops`, `VERSION/card.json`, and `published`.

    Versions are written once and never changed; which one is published is told by one file, replaced atomically.
    """

    folder: Path

    def add(self, model: LinearTextModel, card: Mapping[str, Any]) -> Path:
        """Stores a model beside its card; the folder. Raises ConfigError where the version is there already."""
        target = self._folder_of(model.version)
        if target.exists():
            raise ConfigError(
                f"{target} is there already; a stored model is never changed, so train under a new version"
            )
        staging = self.folder / f".{model.version}.{os.getpid()}"
        staging.mkdir(parents=True)
        (staging / "model.skops").write_bytes(model.to_bytes())
        (staging / "card.json").write_text(json.dumps(card, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")
        staging.rename(target)
        return target

    def publish(self, version: str) -> None:
        """Makes a stored version the one that new events are tagged with."""
        self.load(version)
        staging = self.folder / f".published.{os.getpid()}"
        staging.write_text(version + "\n", encoding="utf-8")
        staging.replace(self.folder / "published")

    def published(self) -> str | None:
        """The published version, or None while there is none."""
        try:
            return (self.folder / "published").read_text(encoding="utf-8").strip()
        except FileNotFoundError:
            return None

    def versions(self) -> list[str]:
        """All stored versions; their names sort by the time of training."""
        return sorted(path.parent.name for path in self.folder.glob("[!.]*/card.json"))

    def load(self, version: str) -> LinearTextModel:
        """A stored model. Raises ConfigError where it is missing or unreadable."""
        path = self._folder_of(version) / "model.skops"
        try:
            stored = path.read_bytes()
        except OSError as error:
            raise ConfigError(f"no text model {version}: can't read {path} ({error.strerror})") from error
        return LinearTextModel.from_bytes(stored)

    def card(self, version: str) -> dict[str, Any]:
        """The card that was stored with a model. Raises ConfigError where it is missing."""
        path = self._folder_of(version) / "card.json"
        try:
            card: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        except OSError as error:
            raise ConfigError(f"no model card of {version}: can't read {path} ({error.strerror})") from error
        return card

    def _folder_of(self, version: str) -> Path:
        if not _VERSION.fullmatch(version):
            raise ConfigError(f"{version!r} is no model version: letters, digits, '.', '_' and '-', 64 at most")
        return self.folder / version
